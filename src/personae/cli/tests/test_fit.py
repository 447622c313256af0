from __future__ import annotations

import gzip
import json
import shutil

import pandas as pd
import pytest

from personae.bundle import Bundle


def test_fit_says_what_it_read_and_what_to_try_next(run, survey_folder, tmp_path):
    result = run("fit", survey_folder, "--out", tmp_path / "b", "--cohorts", 2)
    assert "a wide table, one row a respondent" in result.stdout
    assert "120 respondents x 8 questions, 960 answers" in result.stdout
    assert "opinion model: " in result.stdout
    assert "cohort-1" in result.stdout
    assert f"personae steer {tmp_path / 'b'}" in result.stdout
    assert "fitting the opinion model ... " in result.stderr
    source = Bundle.open(tmp_path / "b").manifest["data"]["source"]
    assert source["path"] == str(survey_folder.resolve())


def test_fit_json(run, survey_folder, tmp_path):
    found = json.loads(run("fit", survey_folder, "--out", tmp_path / "b", "--json").stdout)
    assert found["survey"]["format"] == "wide"
    assert found["survey"]["respondents"] == 120
    assert found["bundle"] == str(tmp_path / "b")
    assert sum(c["people"] for c in found["cohorts"]) == 120
    assert found["curves"][0]["k"] == 1


def test_the_bundle_is_named_after_the_survey(run, survey_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--questions", survey_folder / "questions.csv", "--respondents", survey_folder / "respondents.csv"]
    run("fit", survey_folder / "responses.csv", *args, "--cohorts", 2)
    run("fit", survey_folder / "responses.csv", *args, "--cohorts", 3)  # and is replaced
    assert len(Bundle.open(tmp_path / "responses-bundle").cohorts) == 3


def test_a_bundle_of_another_survey_is_not_replaced_unless_it_is_named(run, survey_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wave.2023.csv", "wave.2024.csv", "wave.2024.CSV.gz"):
        content = (survey_folder / "responses.csv").read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    args = ["--questions", survey_folder / "questions.csv", "--cohorts", 2]
    run("fit", "wave.2023.csv", *args)
    run("fit", "wave.2024.csv", *args)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"wave.2023-bundle", "wave.2024-bundle"}
    refused = run("fit", "wave.2024.CSV.gz", *args, status=1).stderr.splitlines()
    assert refused == [
        f"wave.2024-bundle is a bundle of {tmp_path / 'wave.2024.csv'} and would be replaced; give another --out, or "
        "remove wave.2024-bundle"
    ]
    run("fit", "wave.2024.CSV.gz", *args, "--out", "wave.2024-bundle")


def test_a_damaged_bundle_can_be_fitted_again(run, survey_folder, fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "b")
    (tmp_path / "b" / "people" / "opinion_model.json").write_text("{}")
    assert "fit again" in run("cohorts", tmp_path / "b", status=1).stderr
    run("fit", survey_folder, "--out", tmp_path / "b", "--cohorts", 2)
    run("cohorts", tmp_path / "b")


def test_questions_that_have_too_many_options_for_a_steerer_are_named(run, tmp_path):
    options = [f"party {i}" for i in range(27)]
    (tmp_path / "questions.csv").write_text(f"question,text,options\nvote,Who?,{'|'.join(options)}\nok,Ok?,yes|no\n")
    rows = [f"r{i},{options[i % 27]},{('yes', 'no')[i % 2]}" for i in range(60)]
    (tmp_path / "r.csv").write_text("respondent,vote,ok\n" + "\n".join(rows))
    args = ["--questions", tmp_path / "questions.csv", "--out", tmp_path / "b", "--cohorts", 1]
    said = run("fit", tmp_path / "r.csv", *args, "--json").stderr
    assert "personae steer will not learn from questions with more than 26 options" in said
    assert "vote; join some of their options if it shall" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cohorts", "many"], '"many" is neither a number nor auto'),
        (["--cohorts", "0"], "k is 0"),
        (["--topic", "sports"], 'no question has the topic "sports"'),
        (["--traits", "side"], "side"),
    ],
)
def test_what_cannot_be_fitted(run, survey_folder, tmp_path, options, sentence):
    result = run("fit", survey_folder, "--out", tmp_path / "b", *options, status=2 if "many" in options else 1)
    assert sentence in result.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()


def test_a_survey_that_is_not_there(run, tmp_path):
    result = run("fit", tmp_path / "no.csv", "--out", tmp_path / "b", status=1)
    assert f"there is no file or folder {tmp_path / 'no.csv'}" in result.stderr


def test_fit_does_not_destroy(run, survey_folder, steered, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = run("fit", survey_folder, "--out", tmp_path, status=1)
    assert result.stderr.splitlines() == [
        f"{tmp_path} exists and is not a bundle, so it is not replaced; give another folder"
    ]
    assert "holds a trained steerer" in run("fit", survey_folder, "--out", steered, status=1).stderr


def test_draft_questions_can_be_fitted_with(run, survey_folder, tmp_path):
    result = run("questions", survey_folder / "responses.csv")
    assert result.stdout.splitlines()[0] == "question,title,topic,text,options,remark"
    (tmp_path / "questions.csv").write_text(result.stdout)
    assert len(pd.read_csv(tmp_path / "questions.csv")) == 8
    args = ["--questions", tmp_path / "questions.csv", "--out", tmp_path / "b", "--cohorts", 2]
    run("fit", survey_folder / "responses.csv", *args)
    found = json.loads(run("questions", survey_folder / "responses.csv", "--json").stdout)
    assert found[0]["options"] == "no, thanks|yes"
