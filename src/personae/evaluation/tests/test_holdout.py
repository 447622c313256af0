from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey
from personae.evaluation.holdout import Pairs, hold_out


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


@pytest.mark.parametrize(("answers", "questions"), [(0.2, 0.0), (0.5, 0.25), (0.9, 0.5)])
def test_every_answer_is_in_one_part(survey, answers, questions):
    held = hold_out(survey, answers, questions)
    train, seen, new = cells(held.train), pair_cells(held.seen), pair_cells(held.new)
    assert train | seen | new == cells(survey)
    assert len(train) + len(seen) + len(new) == survey.n_answers
    assert (len(seen), len(new)) == (len(held.seen), len(held.new))


def test_shares(survey):
    held = hold_out(survey, 0.3, 0.25)
    assert held.train.n_questions == 15
    assert len(held.seen) / (len(held.seen) + held.train.n_answers) == pytest.approx(0.3, abs=0.06)
    assert len({held.new.questions[j].id for j in held.new.question}) == 5


def test_new_questions_are_nowhere_in_train(survey):
    held = hold_out(survey, questions=0.25)
    new = {held.new.questions[j].id for j in held.new.question}
    assert not new & set(held.train.question_ids)
    assert new | set(held.train.question_ids) == set(survey.question_ids)
    assert not new & {held.seen.questions[j].id for j in held.seen.question}
    # All answers to a new question are there to be predicted, not only a share.
    counts = survey.option_counts().sum(1)
    for j in np.unique(held.new.question):
        assert (held.new.question == j).sum() == counts[j]


def test_everybody_and_their_traits_stay(survey):
    held = hold_out(survey, 0.95, seed=2)
    assert held.train.respondent_ids.equals(survey.respondent_ids)
    assert held.train.traits.equals(survey.traits)
    assert held.train.account is survey.account
    assert len(hold_out(survey).new) == 0


def test_the_survey_itself_is_left_alone(survey):
    before = survey.fingerprint, survey.n_answers
    hold_out(survey, 0.5, 0.5)
    del survey.__dict__["fingerprint"]
    assert (survey.fingerprint, survey.n_answers) == before


def test_same_seed_same_split(survey):
    first, again, other = (hold_out(survey, 0.2, 0.25, seed) for seed in (3, 3, 4))
    assert first.train.fingerprint == again.train.fingerprint != other.train.fingerprint
    for part in ("seen", "new"):
        mine, same = getattr(first, part), getattr(again, part)
        assert (mine.respondents == same.respondents).all()
        assert (mine.question == same.question).all()
        assert (mine.option == same.option).all()
    assert pair_cells(first.seen) != pair_cells(other.seen)


@pytest.mark.parametrize(("answers", "questions"), [(0, 0), (1, 0), (-0.1, 0), (1.2, 0), (0.2, 1), (0.2, -0.1)])
def test_shares_that_are_none(survey, answers, questions):
    with pytest.raises(ValueError, match="shares to hold out lie between 0 and 1"):
        hold_out(survey, answers, questions)


def test_shares_that_are_not_a_number(survey):
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(survey, float("nan"))


def test_nothing_left_to_fit_to(survey):
    with pytest.raises(ValueError, match="nothing is left to fit to"):
        hold_out(survey, 0.5, 0.99)
    with pytest.raises(ValueError, match="nothing is left to fit to"):
        hold_out(survey.keep_answers(np.arange(survey.n_answers) < 1), 0.999)


# pairs -----------------------------------------------------------------------------------------------------------
def test_a_sample_is_a_part_in_order_without_repeats(survey):
    pairs = hold_out(survey).seen
    some = pairs.sample(30, seed=1)
    assert len(some) == 30
    assert pair_cells(some) < pair_cells(pairs)
    assert len(pair_cells(some)) == 30
    place = {cell: i for i, cell in enumerate(zip(pairs.respondents, pairs.question.tolist(), strict=True))}
    order = [place[cell] for cell in zip(some.respondents, some.question.tolist(), strict=True)]
    assert order == sorted(order)
    assert pair_cells(pairs.sample(30, seed=1)) == pair_cells(some) != pair_cells(pairs.sample(30, seed=2))


def test_a_sample_larger_than_the_whole_is_the_whole(survey):
    pairs = hold_out(survey).seen
    assert pair_cells(pairs.sample(10**6, 0)) == pair_cells(pairs)
    assert len(pairs.sample(0, 0)) == 0


def test_losses():
    question = Question("q", "?", ("a", "b", "c"))
    pairs = Pairs(np.array(["x", "y", "z"]), (question,), np.zeros(3, int), np.array([0, 1, 2]))
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.25, 0.65], [0.6, 0.4, 0.0]])
    right, nll = pairs.losses(p)
    assert right.tolist() == [True, False, False]
    np.testing.assert_allclose(nll[:2], [np.log(2), np.log(4)])
    assert 10 < nll[2] < np.inf  # said to be impossible, and yet finite
