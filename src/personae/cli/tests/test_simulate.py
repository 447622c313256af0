from __future__ import annotations

import json

import pandas as pd
import pytest


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_new_questions_of_cohorts_and_going_on(run, steered, tmp_path):
    table = write(tmp_path / "new.csv", "question,text,options\nbikes,More bike lanes?,no|yes|don't know\n")
    args = ["simulate", steered, "--questions", table, "--people", "cohorts", "--out", tmp_path / "out"]
    result = run(*args)
    assert "2 people x 1 questions, 1 files" in result.stdout
    assert "2 answers in" in result.stdout
    assert "2/2" in result.stderr  # the bar
    found = pd.read_parquet(tmp_path / "out" / "answers")
    assert found.respondent.tolist() == ["cohort-0", "cohort-1"]
    assert set(found.question) == {"bikes"}
    assert [len(p) for p in found.probabilities] == [3, 3]
    assert "2 of the 2 answers were there" in run(*args).stdout
    again = json.loads(run(*args, "--json").stdout)
    assert (again["people"], again["questions"], again["shards"], again["computed"]) == (2, 1, 1, 0)


def test_the_surveys_own_questions_by_id_or_all_of_them(run, steered, tmp_path):
    ids = write(tmp_path / "ids.csv", "\ufeffquestion\nq3\n\nq0\n")
    some = ["--people", "sample", "--n", 3, "--draw", 5]
    run("simulate", steered, "--questions", ids, *some, "--out", tmp_path / "some")
    found = pd.read_parquet(tmp_path / "some" / "answers").astype(str)
    assert found.question.tolist() == ["q3"] * 3 + ["q0"] * 3
    assert found.respondent.nunique() == 3
    assert set(found.answer) <= {"no, thanks", "yes"}
    run("simulate", steered, *some, "--out", tmp_path / "all")
    everything = pd.read_parquet(tmp_path / "all" / "answers").astype(str)
    assert everything.question.nunique() == 8
    both = found.merge(everything, on=["respondent", "question"])
    assert len(both) == 6
    assert (both.answer_x == both.answer_y).all()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--people", "cohort-9"], 'no persona "cohort-9"; nearest: cohort-'),
        (["--people", "sample", "--n", 999], "a sample of these 120 people has from 1 to 120"),
        (["--questions", "nowhere.csv"], "there is no file nowhere.csv"),
    ],
)
def test_what_cannot_be_simulated(run, steered, tmp_path, args, sentence):
    result = run("simulate", steered, *args, "--out", tmp_path / "out", status=1)
    assert sentence in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_questions_that_nobody_knows(run, steered, fitted, tmp_path):
    ids = write(tmp_path / "ids.csv", "question\nq99\n")
    result = run("simulate", steered, "--questions", ids, "--out", tmp_path / "out", status=1)
    assert 'there is no question "q99"' in result.stderr
    table = write(tmp_path / "new.csv", "question,text\nbikes,More bike lanes?\n")
    result = run("simulate", steered, "--questions", table, "--out", tmp_path / "out", status=1)
    assert 'new.csv has no column "options"' in result.stderr
    result = run("simulate", fitted, "--out", tmp_path / "out", status=1)
    assert "has no language model to ask; train one with: personae steer" in result.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--n", 5], "--n is the size of a sample"),
        (["--people", "sample"], "say how many"),
        (["--workers", 2], "--workers are Ray's"),
        ([], "Missing option '--out'"),
    ],
)
def test_options_that_do_not_go_together(run, steered, tmp_path, args, sentence):
    out = ["--out", tmp_path / "out"] if args else []
    assert sentence in run("simulate", steered, *args, *out, status=2).stderr
