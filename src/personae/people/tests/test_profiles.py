import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey
from personae.people.profiles import Profiles


def two_camps(n=400, share=0.9, seed=0, extra=0):
    """Camp 0 says yes to "split", camp 1 no; "same" is a coin; camp 1 may have few answers to "rare"."""
    rng = np.random.default_rng(seed)
    camp = np.repeat([0, 1], n // 2)
    split = (rng.random(n) < np.where(camp == 0, share, 1 - share)).astype(int)
    same = rng.integers(0, 2, n)
    questions = [Question(q, "?", ("no", "yes"), t) for q, t in (("split", "the matter"), ("same", ""), ("rare", ""))]
    rare = np.concatenate([np.arange(20), np.arange(n // 2, n // 2 + 5)])
    person = np.concatenate([np.arange(n), np.arange(n), rare])
    question = np.repeat([0, 1, 2], [n, n, len(rare)])
    traits = pd.DataFrame({"town": np.where(np.arange(n) % 100 == 0, "A", np.where(camp == 0, "B", None))})
    option = np.concatenate([split, same, np.ones(len(rare), int)])
    return Survey(questions, [f"r{i}" for i in range(n)], person, question, option, traits), camp


@pytest.fixture(scope="module")
def camps():
    survey, labels = two_camps()
    return survey, labels, Profiles.of(survey, labels, 2)


def test_answers_are_the_observed_ones(camps):
    survey, labels, profiles = camps
    cell = profiles.answers.query("question == 'split' and option == 'yes' and cohort == 0").iloc[0]
    mine = (survey.question == 0) & (labels[survey.respondent] == 0)
    assert cell["count"] == survey.option[mine].sum()
    assert cell.n == 200
    assert cell.share == pytest.approx(cell["count"] / 200)
    assert cell.population_share == pytest.approx(survey.option[survey.question == 0].mean())
    assert cell.low < cell.share < cell.high


def test_telling_and_splitting_questions_come_first(camps):
    _, _, profiles = camps
    assert profiles.splitting.question[0] == "split"
    assert profiles.splitting.tv[0] == pytest.approx(0.8, abs=0.08)
    assert profiles.telling[profiles.telling.cohort == 1].question.iloc[0] == "split"
    same = profiles.telling[profiles.telling.question == "same"]
    assert (same.tv < 0.06).all()


def test_small_cells_are_kept_and_marked(camps):
    _, _, profiles = camps
    rare = profiles.telling[profiles.telling.question == "rare"].set_index("cohort")
    assert not rare.suppressed[0]
    assert rare.suppressed[1]
    assert rare.loc[1, ["n", "tv", "low", "high", "raw_tv"]].isna().all()
    assert profiles.splitting.set_index("question").suppressed["rare"]
    cells = profiles.answers
    assert len(cells) == 3 * 2 * 2
    assert cells[cells.suppressed]["count"].isna().all()
    assert (cells[~cells.suppressed]["count"] >= 10).all()
    towns = profiles.traits.set_index(["value", "cohort"])
    assert towns.suppressed[("A", 0)]
    assert np.isnan(towns.share[("A", 0)])
    assert not towns.suppressed[("B", 0)]
    assert towns.share[("B", 0)] == pytest.approx(0.99)


def test_minimum_is_configurable(camps):
    survey, labels, _ = camps
    profiles = Profiles.of(survey, labels, 2, minimum=2)
    assert not profiles.telling.suppressed.any()
    assert not profiles.traits.set_index(["value", "cohort"]).suppressed[("A", 0)]


def test_label_names_the_most_telling_answers(camps):
    survey, _, profiles = camps
    assert profiles.label(0, survey).startswith("yes: the matter")
    assert profiles.label(1, survey).startswith("no: the matter")


def test_groups_drawn_at_random_are_not_far_apart():
    """The raw distance of small random groups is large, the corrected one is not."""
    rng = np.random.default_rng(0)
    questions = [Question(f"q{j}", "?", tuple("abcde")) for j in range(40)]
    person, question = np.indices((200, 40)).reshape(2, -1)
    survey = Survey(questions, [f"r{i}" for i in range(200)], person, question, rng.integers(0, 5, 8000))
    splitting = Profiles.of(survey, rng.integers(0, 5, 200), 5).splitting
    assert splitting.raw_tv.mean() > 0.15
    assert splitting.tv.mean() < 0.5 * splitting.raw_tv.mean()
    assert splitting.low.mean() < 0.05


def test_intervals_cover_the_truth():
    share_hits, tv_hits = [], []
    for seed in range(40):
        survey, labels = two_camps(n=200, share=0.7, seed=seed)
        profiles = Profiles.of(survey, labels, 2, seed=seed)
        cell = profiles.answers.query("question == 'split' and option == 'yes' and cohort == 0").iloc[0]
        share_hits.append(cell.low <= 0.7 <= cell.high)
        row = profiles.splitting.set_index("question").loc["split"]
        tv_hits.append(row.low <= 0.4 <= row.high)
    assert np.mean(share_hits) >= 0.85
    assert np.mean(tv_hits) >= 0.85


def test_blocks_of_questions_do_not_matter(camps, monkeypatch):
    survey, labels, profiles = camps
    monkeypatch.setattr("personae.people.profiles._BLOCK_CELLS", 1)
    other = Profiles.of(survey, labels, 2)
    pd.testing.assert_frame_equal(other.telling, profiles.telling)
    pd.testing.assert_frame_equal(other.splitting, profiles.splitting)


def test_no_traits():
    survey, labels = two_camps()
    bare = Survey(survey.questions, survey.respondent_ids, survey.respondent, survey.question, survey.option)
    assert len(Profiles.of(bare, labels, 2).traits) == 0


def test_save_and_load(camps, tmp_path):
    _, _, profiles = camps
    profiles.save(tmp_path)
    loaded = Profiles.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.answers, profiles.answers)
    pd.testing.assert_frame_equal(loaded.traits, profiles.traits)
