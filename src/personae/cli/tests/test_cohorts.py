from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from personae.bundle import Bundle
from personae.bundle_files import _facts_of
from personae.data.wide import read_wide
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.people.profiles import Profiles


def test_cards_of_all_cohorts(run, fitted):
    text = run("cohorts", fitted).stdout
    assert text.count("telling answers") == 2
    assert "side: " not in text  # 57 of 60 here are left, so that three are right
    assert "no trait stands out" in text
    assert "questions that divide the cohorts" in text


def test_traits_that_stand_out(run, tmp_path):
    run("fit", "sample", "--out", tmp_path / "b", "--cohorts", 2)
    lines = run("cohorts", tmp_path / "b").stdout.splitlines()
    assert sum(line.startswith("  partyid: strong democrat ") for line in lines) >= 1


def test_one_cohort_shows_every_answer(run, fitted):
    text = run("cohorts", fitted, "cohort-1").stdout
    assert run("cohorts", fitted, 1).stdout == text
    assert "cohort-0" not in text
    assert all(f"thing {j} (q{j})" in text for j in range(8))
    assert "cells of fewer than 10 people, or that would tell of such" in text


def test_json_holds_the_whole_tables(run, fitted):
    found = json.loads(run("cohorts", fitted, "--json").stdout)
    assert [c["cohort"] for c in found["cohorts"]] == ["cohort-0", "cohort-1"]
    assert len(found["cohorts"][0]["answers"]) == 16
    assert len(found["dividing_questions"]) == 8
    hidden = [cell for cell in found["cohorts"][0]["answers"] if cell["suppressed"]]
    assert all(cell["count"] is None for cell in hidden)  # no NaN in JSON
    assert found["curves"] is None  # k was given


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    """A bundle as older versions wrote it: of 57 who answered, 3 said no; of 66 people in all, 6 are a cohort."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    said = np.where(rng.random((66, 6)) < 0.5, "yes", "no").astype(object)
    said[:6] = "no"
    said[6:, 0] = "yes"
    said[6:9, 0], said[9:12, 0] = "no", None
    frame = pd.DataFrame(said, columns=[f"q{j}" for j in range(6)])
    frame.insert(0, "respondent", [f"r{i}" for i in range(66)])
    survey = read_wide(written(frame, folder / "r.csv"))
    people = OpinionModel(n_components=2).fit(survey)
    cohorts = Cohorts(k=2).fit(people)
    cohorts.labels_ = (np.arange(66) < 6).astype(int)
    cohorts.profiles_ = Profiles.of(survey, cohorts.labels_, 2)
    cohorts._summarise()
    Bundle.write(folder / "b", people, cohorts)
    return folder / "b", cohorts.profiles_


def written(frame, path):
    frame.to_csv(path, index=False)
    return path


def left_over(answers):
    """What a reader computes for each question: how many gave the answers that are not shown."""
    cells = answers[answers.cohort == 0].groupby("question")
    return {q: c.n.iloc[0] - c["count"].sum() for q, c in cells if c["count"].isna().any()}


def test_no_small_cell_follows_from_what_is_shown_or_saved(run, small):
    folder, raw = small
    assert left_over(raw.answers)["q0"] == 3  # what would follow
    found = json.loads(run("cohorts", folder, "--json").stdout)
    answers = pd.DataFrame([{**cell, "cohort": c["cohort"]} for c in found["cohorts"] for cell in c["answers"]])
    first = answers[answers.cohort == "cohort-0"]
    assert first[first.question == "q0"]["count"].isna().all()
    assert [c["people"] for c in found["cohorts"]] == [None, None]
    text = run("cohorts", folder).stdout
    assert "54 of 57" not in text
    assert text.count("too few people to say how many") == 2
    saved = pd.read_parquet(folder / "cohorts" / "profile_answers.parquet")
    saved = saved[(saved.cohort == 0) & (saved.question == "q0")]
    assert saved["count"].isna().all()
    assert len(saved) == 2


def test_a_bundle_of_an_older_version_is_shown_with_as_little(run, small):
    folder, raw = small
    bundle = Bundle.open(folder)
    raw.save(bundle.part("cohorts"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: _facts_of(folder / name) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "54 of 57" not in run("cohorts", folder, "0").stdout


def test_unknown_cohort_and_bundle(run, fitted, tmp_path):
    assert 'no cohort "7"; there are: cohort-0, cohort-1' in run("cohorts", fitted, 7, status=1).stderr
    assert "there is no bundle" in run("cohorts", tmp_path / "b", status=1).stderr
