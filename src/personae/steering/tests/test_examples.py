"""Questions that letters cannot ask are left out of training, and named."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from personae.data.survey import Question, Survey
from personae.people.opinion_model import OpinionModel
from personae.steering.examples import AnswersAndTalk
from personae.steering.persona_prompt import PersonaPrompt

WIDE = Question("brand", "Which of these do you buy?", tuple(f"brand {i}" for i in range(30)))


@pytest.fixture(scope="module")
def with_a_wide_one(mixed) -> Survey:
    """The survey with a question of thirty options, which stands among the others."""
    n = mixed.n_respondents
    return Survey(
        [*mixed.questions[:2], WIDE, *mixed.questions[2:]],
        mixed.respondent_ids,
        np.concatenate([mixed.respondent, np.arange(n)]),
        np.concatenate([mixed.question + (mixed.question >= 2), np.full(n, 2)]),
        np.concatenate([mixed.option, np.arange(n) % 30]),
    )


@pytest.mark.parametrize("recipe", ["contextual", "constant"])
def test_a_question_of_more_options_than_letters_is_not_learned_from(lm, with_a_wide_one, caplog, recipe):
    people = OpinionModel(n_components=1).fit(with_a_wide_one)
    with caplog.at_level(logging.WARNING):
        steerer = PersonaPrompt(lm, recipe=recipe, steps=8).fit(with_a_wide_one, people, progress=False)
    assert [r.getMessage() for r in caplog.records if r.name == "personae.steering.examples"] == [
        "not learned from, since letters name 26 options at most: brand"
    ]
    assert np.isfinite([h["loss"] for h in steerer.history_]).all()
    somebody, others = [people["r0"], people["r1"]], [q for q in with_a_wide_one.questions if q != WIDE]
    np.testing.assert_allclose(steerer.predict_proba(somebody, others).sum(-1), 1, atol=1e-5)
    p = steerer.predict_proba(somebody, [WIDE, *others], "text")
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)


def test_the_others_are_asked(lm, with_a_wide_one):
    people = OpinionModel(n_components=1).fit(with_a_wide_one)
    task = AnswersAndTalk(lm, with_a_wide_one, people, "late", "contextual", 0)
    assert task.usable.tolist() == [0, 1, 3, 4, 5]


def test_a_survey_of_such_questions_alone_is_refused(lm, with_a_wide_one):
    alone = with_a_wide_one.select(questions=["brand"])
    people = OpinionModel(n_components=1).fit(alone)
    with pytest.raises(ValueError, match=r"every question has more than 26 options, .*: brand"):
        AnswersAndTalk(lm, alone, people, "late", "contextual", 0)
