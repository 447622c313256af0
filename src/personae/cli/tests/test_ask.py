from __future__ import annotations

import json

import pytest

from personae.cli.ask import parse_answers


def test_bars_of_the_opinion_model(run, fitted):
    text = run("ask", fitted, "q0", "--as", "cohort-0", "--as", "r007", "--answers", "q1=no, thanks,q2=yes").stdout
    assert "Do you like [thing] 0?" in text
    assert "opinion model" in text
    assert "steered LM" not in text
    assert "█" in text
    assert "new person" in text


def test_all_cohorts_answer_by_default(run, fitted):
    found = json.loads(run("ask", fitted, "q0", "--json").stdout)
    assert found["question"] == {"id": "q0", "text": "Do you like [thing] 0?", "options": ["no, thanks", "yes"]}
    assert [p["name"] for p in found["personas"]] == ["cohort-0", "cohort-1"]
    first, second = (p["opinion_model"] for p in found["personas"])
    assert sum(first.values()) == pytest.approx(1, abs=1e-5)
    assert abs(first["yes"] - second["yes"]) > 0.3


def test_somebody_with_few_answers_is_uncertain(run, fitted):
    args = ["--answers", "q0=yes", "--as", "r007", "--json"]
    known, new = json.loads(run("ask", fitted, "q1", *args).stdout)["personas"]
    assert new["kind"] == "fold-in"
    assert new["uncertainty"] > known["uncertainty"]


def test_two_blends_of_one_name_stay_apart(run, fitted):
    blends = ["--as", "0.501*cohort-0+0.499*cohort-1", "--as", "0.499*cohort-0+0.501*cohort-1"]
    first, second = json.loads(run("ask", fitted, "q0", *blends, "--json").stdout)["personas"]
    assert first["opinion_model"] != second["opinion_model"]


def test_the_steered_lm_answers_known_and_new_questions(run, steered):
    known = json.loads(run("ask", steered, "q0", "--json").stdout)["personas"][0]
    assert set(known["steered_lm"]) == set(known["opinion_model"]) == {"no, thanks", "yes"}
    new = json.loads(run("ask", steered, "Free trains?", "--options", "yes | no|perhaps", "--json").stdout)
    assert new["question"] == {"id": None, "text": "Free trains?", "options": ["yes", "no", "perhaps"]}
    assert sum(new["personas"][0]["steered_lm"].values()) == pytest.approx(1, abs=1e-5)
    assert "opinion_model" not in new["personas"][0]
    text = run("ask", steered, "q0").stdout
    assert text.index("steered LM") < text.index("opinion model")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["q9"], 'there is no question "q9"'),
        (["Free trains?"], "needs at least two different options"),
        (["Free trains?", "--options", "yes|yes"], "needs at least two different options"),
        (["Free trains?", "--options", "yes|no"], "train one: personae steer"),
        (["q0", "--options", "yes|no"], "q0 has its own options (no, thanks | yes)"),
        (["q0", "--as", "cohort-9"], 'no persona "cohort-9"; nearest: cohort-'),
        (["q0", "--answers", "q1"], '"q1" is no answer'),
        (["q0", "--answers", "q1=maybe"], '"maybe" is not an option'),
        (["q0", "--answers", "q1=yes,q1=yes"], "answers q1 twice"),
    ],
)
def test_what_cannot_be_asked(run, fitted, args, sentence):
    result = run("ask", fitted, *args, status=1)
    assert sentence in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_labels_may_hold_commas():
    assert parse_answers("q1=no, thanks, q2 = yes") == {"q1": "no, thanks", "q2": "yes"}
