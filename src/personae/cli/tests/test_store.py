"""From a long Parquet file to a bundle, out of core."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from personae.bundle import Bundle


@pytest.fixture(scope="module")
def store(run, survey_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    wide = pd.read_csv(survey_folder / "responses.csv")
    wide.melt("respondent", var_name="question", value_name="answer").to_parquet(folder / "long.parquet")
    args = ["--questions", survey_folder / "questions.csv", "--out", folder / "answers"]
    result = run("store", folder / "long.parquet", *args)
    assert "AnswerStore(120 people x 8 questions, 960 answers, 1 shards)" in result.stdout
    assert f"personae fit {folder / 'answers'}" in result.stdout
    return folder / "answers"


@pytest.fixture(scope="module")
def some(run, store, tiny_folder) -> Path:
    """A bundle whose opinion model holds some of the people, with a steerer; read only."""
    out = store.parent / "some"
    result = run("fit", store, "--out", out, "--cohorts", 2, "--sample", 500)
    assert "ask and simulate know all 120 people by name" in result.stdout
    assert "sweep 1, noise " in result.stderr
    result = run("steer", out, "--lm", tiny_folder, "--steps", 2)
    assert f"{len(Bundle.open(out).people)} random people of AnswerStore(120 people" in result.stderr
    return out


def test_a_store_that_fits_in_memory_gives_the_bundle_of_its_survey(run, store, survey_folder, tmp_path):
    """Equal to the fit of the same answers in memory, up to rounding; traits aside, which a store has none of."""
    run("fit", store, "--out", tmp_path / "out-of-core", "--cohorts", 2)
    wide = survey_folder / "responses.csv"
    run("fit", wide, "--questions", survey_folder / "questions.csv", "--out", tmp_path / "memory", "--cohorts", 2)
    ours, theirs = (Bundle.open(tmp_path / name) for name in ("out-of-core", "memory"))
    assert "everybody" not in ours
    assert set(ours.people.respondent_ids_) == set(theirs.people.respondent_ids_)
    p, q = (b.people.predict_proba([b.persona(n) for n in theirs.people.respondent_ids_]) for b in (ours, theirs))
    np.testing.assert_allclose(p, q, atol=2e-3)
    assert sorted(ours.cohorts.summary_.people) == sorted(theirs.cohorts.summary_.people)


def test_everybody_is_there_by_name(run, store, some):
    bundle = Bundle.open(some)
    held = set(bundle.people.respondent_ids_)
    assert 30 < len(held) < 100
    assert bundle.manifest["data"]["respondents"] == 120
    outside = next(f"r{i:03d}" for i in range(120) if f"r{i:03d}" not in held)
    assert f"{outside}" in run("ask", some, "q0", "--as", outside).stdout
    both = bundle.persona(f"0.5*{outside}+0.5*cohort-0")  # and may be blended
    assert np.isfinite(both.vector).all()
    assert 'no persona "r999"' in run("ask", some, "q0", "--as", "r999", status=1).stderr


def test_everybody_is_simulated(run, some, tmp_path):
    found = json.loads(run("simulate", some, "--people-per-shard", 50, "--out", tmp_path / "all", "--json").stdout)
    assert found["people"] == 120
    table = pd.read_parquet(tmp_path / "all" / "answers").astype({"respondent": str, "question": str})
    assert len(table) == table[["respondent", "question"]].drop_duplicates().shape[0] == 120 * 8
    bundle = Bundle.open(some)
    name = table.respondent[77]
    (mine,) = table.probabilities[(table.respondent == name) & (table.question == "q3")]
    asked = [bundle.people.questions_[3]]
    np.testing.assert_allclose(mine, bundle.steerer.predict_proba([bundle.persona(name)], asked)[0, 0], atol=1e-5)
    run("simulate", some, "--people", "sample", "--n", 30, "--out", tmp_path / "few")
    drawn = pd.read_parquet(tmp_path / "few" / "answers").respondent.astype(str).unique()
    assert len(set(drawn)) == 30
    assert not set(drawn) <= set(bundle.people.respondent_ids_)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--traits", "side"], "--traits does not go with the answer store"),
        (["--questions", "q.csv"], "--questions does not go with the answer store"),
    ],
)
def test_what_a_store_does_not_take(run, store, tmp_path, args, sentence):
    assert sentence in run("fit", store, "--out", tmp_path / "b", *args, status=2).stderr


def test_what_only_a_store_takes(run, survey_folder, tmp_path):
    result = run("fit", survey_folder, "--out", tmp_path / "b", "--engine", "ray", status=2)
    assert "--engine and --sample are for answer stores" in result.stderr


def test_stores_are_not_replaced(run, store, survey_folder):
    args = ["--questions", survey_folder / "questions.csv", "--out", store]
    assert "exists; remove it" in run("store", store.parent / "long.parquet", *args, status=1).stderr
    args = ["--questions", survey_folder / "questions.csv", "--out", store.parent / "other"]
    result = run("store", survey_folder / "responses.csv", *args, status=1)
    assert "responses.csv" in result.stderr
