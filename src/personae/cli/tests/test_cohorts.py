from __future__ import annotations

import json


def test_cards_of_all_cohorts(run, fitted):
    text = run("cohorts", fitted).stdout
    assert text.count("telling answers") == 2
    assert "side: left" in text
    assert "questions that divide the cohorts" in text


def test_one_cohort_shows_every_answer(run, fitted):
    text = run("cohorts", fitted, "cohort-1").stdout
    assert run("cohorts", fitted, 1).stdout == text
    assert "cohort-0" not in text
    assert all(f"thing {j} (q{j})" in text for j in range(8))
    assert "cells of fewer than 10 people are left out" in text


def test_json_holds_the_whole_tables(run, fitted):
    found = json.loads(run("cohorts", fitted, "--json").stdout)
    assert [c["cohort"] for c in found["cohorts"]] == ["cohort-0", "cohort-1"]
    assert len(found["cohorts"][0]["answers"]) == 16
    assert len(found["dividing_questions"]) == 8
    hidden = [cell for cell in found["cohorts"][0]["answers"] if cell["suppressed"]]
    assert all(cell["count"] is None for cell in hidden)  # no NaN in JSON
    assert found["curves"] is None  # k was given


def test_unknown_cohort_and_bundle(run, fitted, tmp_path):
    assert 'no cohort "7"; there are: cohort-0, cohort-1' in run("cohorts", fitted, 7, status=1).stderr
    assert "there is no bundle" in run("cohorts", tmp_path / "b", status=1).stderr
