from __future__ import annotations

import numpy as np
import pytest

from personae import OpinionModel, Survey, load_sample
from personae.data.account import SurveyError
from personae.data.survey import Question
from personae.people.inquiry import next_question


@pytest.fixture(scope="module")
def people() -> OpinionModel:
    return OpinionModel(n_components=3).fit(load_sample())


@pytest.mark.parametrize("answers", [{}, {"natenvir": "too little"}, {"natarms": "too much", "natfare": "too much"}])
def test_it_is_the_question_whose_answer_leaves_least_uncertainty(people, answers):
    left = {
        (q.id, option): people.fold_in({**answers, q.id: option}).uncertainty
        for q in people.questions_
        if q.id not in answers
        for option in q.options
    }
    best, _ = min(left, key=left.__getitem__)
    asked = next_question(people, answers)
    assert asked.question.id == best
    assert asked.uncertainty == pytest.approx(left[best, asked.question.options[0]], rel=1e-4)


def test_among_some_questions_until_all_are_answered(people):
    answers: dict[str, str] = {}
    order, left = [], []
    while (asked := next_question(people, answers, among=["natarms", "natfare", "natcity"])) is not None:
        order.append(asked.question.id)
        left.append(asked.uncertainty)
        answers[asked.question.id] = asked.question.options[1]
    assert sorted(order) == ["natarms", "natcity", "natfare"]
    assert left == sorted(left, reverse=True)


def test_noise_is_not_asked():
    """Five questions follow one camp, five are coin flips: those of the camp come first."""
    rng = np.random.default_rng(0)
    camp = rng.choice([-1, 1], 400)
    chance = 1 / (1 + np.exp(-2 * camp[:, None] * np.r_[np.ones(5), np.zeros(5)]))
    said = (rng.random((400, 10)) < chance).astype(int)
    person, question = np.nonzero(np.ones_like(said))
    questions = [Question(f"q{j}", f"Do you like {j}?", ("no", "yes")) for j in range(10)]
    people = OpinionModel(n_components=1).fit(
        Survey(questions, [str(i) for i in range(400)], person, question, said.ravel())
    )
    assert next_question(people, {}).question.id in {f"q{j}" for j in range(5)}


def test_a_loaded_model_asks_the_same(people, tmp_path):
    people.save(tmp_path)
    loaded = OpinionModel.load(tmp_path)
    asked, again = next_question(people, {}), next_question(loaded, {})
    assert (asked.question.id, asked.uncertainty) == (again.question.id, pytest.approx(again.uncertainty, abs=1e-5))


def test_unknown_questions_are_named(people):
    with pytest.raises(SurveyError, match="natenvir"):
        next_question(people, {}, among=["natenvi"])
    with pytest.raises(SurveyError, match="too little"):
        next_question(people, {"natenvir": "perhaps"})
