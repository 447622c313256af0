from __future__ import annotations

import numpy as np
import pytest

from personae import Cohorts, OpinionModel, load_sample
from personae.people.suppression import hidden_cells, protected


def determined(hidden: np.ndarray) -> np.ndarray:
    """Hidden cells that follow from what is shown and all totals: their unit vectors are sums of the equations."""
    rows, columns = np.nonzero(hidden)
    system = np.vstack([rows == r for r in range(hidden.shape[0])] + [columns == c for c in range(hidden.shape[1])])
    rank = np.linalg.matrix_rank(system.astype(float))
    unit = np.eye(len(rows))
    return np.array([np.linalg.matrix_rank(np.vstack([system, u])) == rank for u in unit], bool)


@pytest.mark.parametrize("seed", range(8))
def test_no_hidden_cell_follows_from_totals(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        counts = rng.integers(0, 60, (rng.integers(2, 7), rng.integers(2, 6))).astype(float)
        hidden = hidden_cells(counts, 10, counts.sum(1), counts.sum(0))
        assert hidden[counts < 10].all()
        assert not determined(hidden).any()
        for cells, hides in ((counts, hidden), (counts.T, hidden.T)):
            left = np.where(hides, cells, 0).sum(1)[hides.any(1) & ~hides.all(1)]
            assert (left >= 10).all()


def test_nothing_is_hidden_without_need():
    assert not hidden_cells(np.full((3, 4), 25.0), 10, np.full(3, 100.0), np.full(4, 75.0)).any()


@pytest.fixture(scope="module")
def cohorts() -> Cohorts:
    survey = load_sample()
    return Cohorts(k=6).fit(OpinionModel(n_components=3).fit(survey), survey)


def test_profiles_hide_more_but_change_nothing_that_they_show(cohorts):
    before, after = cohorts.profiles_, protected(cohorts.profiles_)
    for old, new in ((before.answers, after.answers), (before.traits, after.traits)):
        hidden = new.suppressed.to_numpy(bool)
        assert (old.suppressed.to_numpy(bool) <= hidden).all()
        assert hidden.sum() > old.suppressed.sum()
        assert new.loc[hidden, ["count", "share", "low", "high"]].isna().all(axis=None)
        shown = ["count", "share", "low", "high", "n"]
        np.testing.assert_array_equal(old.loc[~hidden, shown].astype(float), new.loc[~hidden, shown].astype(float))
    assert before.answers.suppressed.sum() == cohorts.profiles_.answers.suppressed.sum()  # a copy


def test_what_a_profile_shows_gives_no_small_cell_away(cohorts):
    """A reader's subtraction, cohort by cohort: what is not shown of a question is nothing, or ten people and more."""
    answers = protected(cohorts.profiles_).answers
    for _, cells in answers.groupby(["question", "cohort"]):
        hidden = cells["count"].isna()
        if hidden.any() and not hidden.all():
            assert hidden.sum() > 1
            assert cells.n.iloc[0] - cells["count"].sum() >= 10


def test_everybodys_share_of_a_few_people_is_hidden():
    survey = load_sample()
    rare = (survey.question == 0) & (survey.option == 2)
    few = survey.keep_answers(~rare | (np.cumsum(rare) <= 4))  # four people give the third answer
    cohorts = Cohorts(k=2).fit(OpinionModel(n_components=2).fit(few), few)
    cells = protected(cohorts.profiles_).answers
    mine = cells[cells.question == few.questions[0].id]
    shown = mine[["option", "population_share"]].drop_duplicates().set_index("option").population_share
    assert shown.isna().sum() == 2  # itself, and one more, as the three add up to one
    assert np.isnan(shown[few.questions[0].options[2]])
    cohorts.profiles_ = protected(cohorts.profiles_)
    assert cohorts.profiles_.telling_answers(0).population_share.notna().all()
    assert cohorts.profiles_.mean_differences().loc[mine.question.iloc[0]].abs().max() < 0.5
