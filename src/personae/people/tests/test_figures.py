from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from personae.people.cohorts import Cohorts
from personae.people.profiles import Profiles


@pytest.fixture(scope="module")
def cohorts(people) -> Cohorts:
    return Cohorts().fit(people)


def test_the_curves_are_those_of_the_choice(cohorts):
    lines = {t.name: t for t in cohorts.plot_choice().data}
    curves = cohorts.curves_
    np.testing.assert_allclose(lines["stability"].y, curves.stability)
    np.testing.assert_allclose(lines["score = elbow x stability"].y, curves.score.where(curves.score >= 0))
    assert cohorts.plot_choice().layout.shapes[0].x0 == cohorts.k_


def test_a_given_k_has_no_curves(people):
    with pytest.raises(ValueError, match="k = 2 was given"):
        Cohorts(k=2).fit(people).plot_choice()


def test_a_profile_has_the_numbers_of_the_tables(cohorts, people):
    figure = cohorts.plot_profile(0, people.questions_)
    cells = pd.concat([cohorts.profiles_.telling_answers(0), cohorts.profiles_.standing_out(0)])
    everybody, here = figure.data
    np.testing.assert_allclose(here.x, cells.share)
    np.testing.assert_allclose(everybody.x, cells.population_share)
    np.testing.assert_allclose(here.x + here.error_x.array, cells.high)
    np.testing.assert_allclose(here.x - here.error_x.arrayminus, cells.low)
    assert here.text[0].startswith("subject ")
    assert cohorts.plot_profile(-1).data[1].name == cohorts[-1].name
    with pytest.raises(IndexError, match="there is no cohort 99"):
        cohorts.plot_profile(99)


def test_telling_answers_follow_the_profile(cohorts):
    found = cohorts.profiles_.telling_answers(1)
    telling = cohorts.profiles_.telling
    assert found.question.tolist() == telling.question[telling.cohort == 1].head(5).tolist()
    assert (found.share > found.population_share).all()
    assert (found["count"] >= 10).all()


def test_suppressed_cells_are_in_no_profile(people, survey):
    cohorts = Cohorts(k=2, minimum=1000).fit(people, survey)
    assert len(cohorts.profiles_.telling_answers(0)) == len(cohorts.profiles_.standing_out(0)) == 0
    assert len(cohorts.plot_profile(0).data[1].x) == 0
    assert cohorts.profiles_.mean_differences().isna().all(axis=None)
    assert cohorts.plot_questions().data[0].z.shape == (0, 2)


def test_mean_differences_by_hand(cohorts, survey):
    away = cohorts.profiles_.mean_differences()
    answers = cohorts.profiles_.answers
    whole = answers.groupby(["question", "cohort"]).suppressed.sum().unstack() == 0
    place = survey.option / (survey.n_options[survey.question] - 1)
    for name, c in [(q, c) for q in whole.index for c in whole.columns if whole.loc[q, c]][:20]:
        asked = survey.question == survey.question_index(name)[0]
        mine = asked & (cohorts.labels_[survey.respondent] == c)
        assert away.loc[name, c] == pytest.approx(place[mine].mean() - place[asked].mean(), abs=1e-5)


def test_hidden_options_count_as_among_everybody(cohorts):
    answers = pd.DataFrame(
        {
            "question": "q",
            "cohort": 0,
            "option": ["a", "b", "c"],
            "share": [0.8, np.nan, np.nan],
            "population_share": [0.4, 0.15, 0.45],
        }
    )
    profiles = Profiles(answers, answers, answers, answers)
    # the rest, 0.2, is shared as 0.15 to 0.45: 0.05 and 0.15 at 1/2 and 1
    assert profiles.mean_differences().loc["q", 0] == pytest.approx((0.05 - 0.15) / 2 + (0.15 - 0.45))


def test_the_heat_map_shows_the_most_dividing_questions(cohorts, people):
    heat = cohorts.plot_questions(people.questions_, most=7).data[0]
    chosen = cohorts.profiles_.splitting.question.head(7)
    np.testing.assert_allclose(heat.z, cohorts.profiles_.mean_differences().loc[chosen])
    assert heat.zmax == -heat.zmin == pytest.approx(np.nanmax(np.abs(heat.z)))
