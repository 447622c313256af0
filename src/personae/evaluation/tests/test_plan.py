from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey
from personae.evaluation.plan import Pairs, make_plan


@pytest.fixture(scope="module")
def survey() -> Survey:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 6, 20)
    person, question = np.nonzero(rng.random((60, 20)) < 0.7)
    return Survey(
        [Question(f"q{j}", f"Question {j}?", tuple("abcde"[:k])) for j, k in enumerate(sizes)],
        [f"r{i}" for i in rng.permutation(60)],
        person,
        question,
        rng.integers(0, sizes[question]),
        pd.DataFrame({"side": ["left", "right"] * 30}),
    )


Cells = set[tuple[str, str, str]]


def cells(survey: Survey) -> Cells:
    """(respondent, question, answer) of a survey."""
    long = survey.to_frame().melt(ignore_index=False).dropna().reset_index()
    return set(long.itertuples(index=False, name=None))


def pair_cells(pairs: Pairs) -> Cells:
    asked = [pairs.questions[j] for j in pairs.question]
    return {
        (who, q.id, q.options[k]) for who, q, k in zip(pairs.respondents, asked, pairs.option.tolist(), strict=True)
    }


def ids(pairs: Pairs) -> tuple[set[str], set[str]]:
    """People and questions."""
    return set(pairs.respondents), {pairs.questions[j].id for j in pairs.question}


@pytest.mark.parametrize(
    ("answers", "people", "questions", "tuning"), [(0.2, 0, 0, 0), (0.5, 0.2, 0.25, 0.3), (0.9, 0, 0.5, 0)]
)
def test_no_answer_is_in_two_parts(survey, answers, people, questions, tuning):
    plan = make_plan(survey, answers, people, questions, tuning, given=(1000,))
    parts = [cells(plan.train), *(pair_cells(c.pairs) for c in plan.cells.values()), pair_cells(plan.tuning.pairs)]
    given = [cells(c.given) for c in plan.cells.values() if c.given is not None][:1]
    everything = [*parts, *given]
    assert sum(map(len, everything)) == len(set().union(*everything))
    assert set().union(*everything) <= cells(survey)
    if not tuning:  # else their answers to new questions are in no part
        assert set().union(*everything) == cells(survey)


def test_shares(survey):
    plan = make_plan(survey, 0.3, 0.2, 0.25)
    assert (plan.train.n_questions, plan.train.n_respondents) == (15, 48)
    seen = len(plan.cells["seen"])
    assert seen / (seen + plan.train.n_answers) == pytest.approx(0.3, abs=0.06)
    assert len(ids(plan.cells["new"].pairs)[1]) == 5


def test_new_questions_and_unseen_people_are_nowhere_in_train(survey):
    plan = make_plan(survey, people=0.2, questions=0.25, tuning=0.2, given=(1, 3))
    people, questions = set(plan.train.respondent_ids), set(plan.train.question_ids)
    for name in ("new", "unseen-new"):
        assert plan.cells[name].new
        assert not ids(plan.cells[name].pairs)[1] & questions
    for name in ("unseen-1", "unseen-3", "unseen-new"):
        assert not ids(plan.cells[name].pairs)[0] & people
        assert not set(plan.cells[name].given.question_ids) - questions
    for name in ("seen", "new"):
        assert plan.cells[name].given is None
        assert ids(plan.cells[name].pairs)[0] <= people
    assert ids(plan.tuning.pairs)[0] <= people
    assert not ids(plan.tuning.pairs)[1] - questions


def test_people_for_choices_are_in_no_claim(survey):
    plan = make_plan(survey, people=0.2, questions=0.25, tuning=0.3)
    tuning = ids(plan.tuning.pairs)[0]
    assert len(tuning) > 10
    assert not tuning & set().union(*(ids(c.pairs)[0] for n, c in plan.cells.items() if not n.startswith("unseen")))


def test_what_is_given_of_unseen_people_grows(survey):
    plan = make_plan(survey, 0.3, people=0.3, given=(5, 1, 1000))
    assert list(plan.cells) == ["seen", "unseen-1", "unseen-5", "unseen-1000"]
    few, more, most = (cells(plan.cells[f"unseen-{k}"].given) for k in (1, 5, 1000))
    assert few < more < most
    for k, known in ((1, few), (5, more)):
        counts = pd.Series([who for who, _, _ in known]).value_counts()
        assert counts.max() == k
    assert len({id(plan.cells[f"unseen-{k}"].pairs) for k in (1, 5, 1000)}) == 1
    assert not most & pair_cells(plan.cells["unseen-1"].pairs)


def test_everybody_and_their_traits_stay(survey):
    plan = make_plan(survey, 0.95, seed=2)
    assert plan.train.respondent_ids.equals(survey.respondent_ids)
    assert plan.train.traits.equals(survey.traits)
    assert plan.traits.equals(survey.traits)
    assert plan.train.account is survey.account
    assert list(plan.cells) == ["seen"]
    assert make_plan(survey, people=0.2).traits.equals(survey.traits)


def test_the_survey_itself_is_left_alone(survey):
    before = survey.fingerprint, survey.n_answers
    make_plan(survey, 0.5, 0.5, 0.5, 0.5)
    del survey.__dict__["fingerprint"]
    assert (survey.fingerprint, survey.n_answers) == before


def test_same_seed_same_plan(survey):
    first, again, other = (make_plan(survey, 0.2, 0.2, 0.25, 0.1, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.train.fingerprint == again.train.fingerprint != other.train.fingerprint
    assert pair_cells(first.cells["seen"].pairs) == pair_cells(again.cells["seen"].pairs)


def test_the_fingerprint_sees_every_part(survey):
    plan = make_plan(survey, 0.3, 0.2, 0.25, 0.2, given=(1, 5))
    prints = {
        plan.fingerprint,
        plan.sample(5).fingerprint,
        make_plan(survey, 0.3, 0.2, 0.25, 0.2, given=(1, 6)).fingerprint,
    }
    for name, cell in plan.cells.items():
        pairs = Pairs(cell.pairs.respondents, cell.pairs.questions, cell.pairs.question, cell.pairs.option * 0)
        prints.add(replace(plan, cells={**plan.cells, name: replace(cell, pairs=pairs)}).fingerprint)
    assert len(prints) == 3 + len(plan.cells)


def test_a_sampled_plan(survey):
    plan = make_plan(survey, 0.3, 0.3, 0.25, 0.2, given=(1, 5))
    some = plan.sample(7)
    assert {len(c) for c in some.cells.values()} == {len(some.tuning)} == {7}
    assert some.cells["unseen-1"].pairs is some.cells["unseen-5"].pairs
    assert some.train is plan.train
    for name, cell in some.cells.items():
        assert pair_cells(cell.pairs) < pair_cells(plan.cells[name].pairs)


@pytest.mark.parametrize(("answers", "questions"), [(0, 0), (1, 0), (-0.1, 0), (1.2, 0), (0.2, 1), (0.2, -0.1)])
def test_shares_that_are_none(survey, answers, questions):
    with pytest.raises(ValueError, match="shares to hold out lie between 0 and 1"):
        make_plan(survey, answers, questions=questions)


def test_shares_that_are_not_a_number(survey):
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_plan(survey, float("nan"))


def test_given_answers_are_at_least_one(survey):
    with pytest.raises(ValueError, match="at least one answer"):
        make_plan(survey, people=0.2, given=(0, 5))


def test_nothing_left_to_fit_to(survey):
    with pytest.raises(ValueError, match="nothing is left to fit to"):
        make_plan(survey, 0.5, questions=0.99)
    with pytest.raises(ValueError, match="nothing is left to fit to"):
        make_plan(survey.keep_answers(np.arange(survey.n_answers) < 1), 0.999)


# pairs -----------------------------------------------------------------------------------------------------------
def test_a_sample_is_a_part_in_order_without_repeats(survey):
    pairs = make_plan(survey).cells["seen"].pairs
    some = pairs.sample(30, seed=1)
    assert len(some) == 30
    assert pair_cells(some) < pair_cells(pairs)
    assert len(pair_cells(some)) == 30
    place = {cell: i for i, cell in enumerate(zip(pairs.respondents, pairs.question.tolist(), strict=True))}
    order = [place[cell] for cell in zip(some.respondents, some.question.tolist(), strict=True)]
    assert order == sorted(order)
    assert pair_cells(pairs.sample(30, seed=1)) == pair_cells(some) != pair_cells(pairs.sample(30, seed=2))


def test_a_sample_larger_than_the_whole_is_the_whole(survey):
    pairs = make_plan(survey).cells["seen"].pairs
    assert pair_cells(pairs.sample(10**6, 0)) == pair_cells(pairs)
    assert len(pairs.sample(0, 0)) == 0


def test_a_smaller_sample_is_part_of_a_larger(survey):
    pairs = make_plan(survey).cells["seen"].pairs
    assert pair_cells(pairs.sample(10, 3)) < pair_cells(pairs.sample(20, 3))
