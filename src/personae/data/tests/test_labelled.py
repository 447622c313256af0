from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.data.labelled import read_labelled
from personae.data.read import read_survey

pyreadstat = pytest.importorskip("pyreadstat", reason="the optional extra spss is not installed")

AGREE = {1: "Agree", 2: "Neither", 3: "Disagree", 8: "Don't know", 9: "Refused"}


def counts(survey):
    return {note.reason: (note.count, note.examples) for note in survey.account.notes}


@pytest.fixture
def sav(tmp_path):
    """An SPSS file with one of everything."""
    frame = pd.DataFrame(
        {
            "weight": [0.5, 1.5, 0.7, 1.1, 0.9],
            "remark": ["all good", "too long", "I am done", "no more", "thank you"],
            "caseid": [11, 12, 13, 14, 15],
            "tax": [1, 3, 8, 9, np.nan],
            "war": [2, 1, 97, 5, 3],  # 97 is declared missing, 5 has no label
            "party": ["a", "b", "x", "", "a"],
            "only": [1, 1, 1, 1, 1],
            "many": [1, 2, 3, 4, 5],
            "twice": [1, 2, 3, 1, 2],
            "sex": [1, 2, 2, 9, 1],
            "age": [20, 30, 999, 40, 50],
        }
    )
    path = tmp_path / "a.sav"
    pyreadstat.write_sav(
        frame,
        str(path),
        column_labels={"tax": "Taxes are too high", "war": "Wars are bad", "party": "Which party?"},
        variable_value_labels={
            "tax": AGREE,
            "war": {3: "Disagree", 1: "Agree", 2: "Neither", 97: "Somewhat"},
            "party": {"b": "Blue", "a": "Red", "x": "No answer"},
            "only": {1: "Yes", 9: "Refused"},
            "many": {i: f"Town {i}" for i in range(1, 17)},
            "twice": {1: "Other", 2: "Same", 3: "Other"},
            "sex": {1: "male", 2: "female", 9: "refused"},
        },
        missing_ranges={"war": [{"lo": 90, "hi": 99}], "age": [999]},
    )
    return path


def test_options_are_value_labels_in_the_order_of_their_codes(sav):
    survey = read_labelled(sav, traits=["sex", "age"])
    assert {q.id: (q.text, q.options) for q in survey.questions} == {
        "tax": ("Taxes are too high", ("Agree", "Neither", "Disagree")),
        "war": ("Wars are bad", ("Agree", "Neither", "Disagree")),
        "party": ("Which party?", ("Red", "Blue")),
    }
    assert {who: survey.answers_of(who) for who in survey.respondent_ids} == {
        "11": {"tax": "Agree", "war": "Neither", "party": "Red"},
        "12": {"tax": "Disagree", "war": "Agree", "party": "Blue"},
        "15": {"war": "Disagree", "party": "Red"},
    }


def test_everything_read_as_missing_is_listed_with_variable_and_count(sav):
    assert counts(read_labelled(sav, traits=["sex", "age"])) == {
        "variable with unique values taken as the respondent's id": (1, ["caseid"]),
        'label read as missing, "Don\'t know"': (1, ["tax (1)"]),
        'label read as missing, "Refused"': (1, ["tax (1)"]),
        'label read as missing, "No answer"': (1, ["party (1)"]),
        'label read as missing, "refused"': (1, ["sex (1)"]),
        'value declared missing, "Somewhat"': (1, ["war (1)"]),
        "value without a label read as missing": (1, ["war value 5 (1)"]),
        "value declared missing in a trait": (1, ["age (1)"]),
        "variable skipped: it has no value labels": (2, ["weight", "remark"]),
        "variable skipped: it has a single value label besides missing ones": (1, ["only"]),
        "variable skipped: it has more than 15 options": (1, ["many"]),
        "variable skipped: two of its values share a label": (1, ["twice"]),
        "respondent without answers, left out": (2, ["13", "14"]),
    }


def test_traits_are_labels_or_plain_values(sav):
    traits = read_labelled(sav, traits=["sex", "age"]).traits
    assert traits["sex"].tolist() == ["male", "female", "male"]
    assert traits["age"].tolist() == ["20", "30", "50"]


def test_a_scale_labelled_at_its_ends_keeps_the_numbers_between(tmp_path):
    labels = {
        "recommend": {0: "Not at all", 10: "Extremely", 98: "Don't know"},
        "trust": {1: "None", 5: "Full", 9: "Refused"},
        "half": {1: "Low", 3: "High"},
        "warm": {0: "Cold", 100: "Warm"},
    }
    frame = pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(32)],
            "recommend": [*range(11), 98, 77, np.nan, *[7] * 18],
            "trust": [*[1, 3, 2, 5, 8, 9] * 5, 6, 4],
            "half": [1, 2.5, 3, 3] * 8,
            "warm": range(32),
        }
    )
    path = tmp_path / "a.sav"
    missing = {"trust": [{"lo": 4, "hi": 4}]}  # what the file declares missing stays so
    pyreadstat.write_sav(frame, str(path), variable_value_labels=labels, missing_ranges=missing)
    survey = read_labelled(path)
    assert {q.id: q.options for q in survey.questions} == {
        "recommend": ("Not at all", *"123456789", "Extremely"),
        "trust": ("None", "2", "3", "Full"),
        "half": ("Low", "High"),
    }
    assert survey.answers_of("r3") == {"recommend": "3", "trust": "Full", "half": "High"}
    said = counts(survey)
    assert said["answer without a label between labelled ones, its number taken as the option"] == (
        27 + 10 + 31,
        ["recommend 1 to 9 (27)", "trust 2 to 3 (10)", "warm 1 to 31 (31)"],
    )
    assert said["value without a label read as missing"] == (
        15,
        ["recommend value 77 (1)", "trust value 8 (5)", "trust value 6 (1)", "half value 2.5 (8)"],
    )
    assert said["variable skipped: it has more than 15 options"] == (1, ["warm"])


def test_a_trait_labelled_at_its_ends_keeps_the_numbers_between(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b", "c"], "age": [18, 40, 99], "q": [1, 2, 1]})
    path = tmp_path / "a.sav"
    labels = {"age": {18: "18 or younger", 99: "99 or older"}, "q": {1: "yes", 2: "no"}}
    pyreadstat.write_sav(frame, str(path), variable_value_labels=labels)
    assert read_labelled(path, traits=["age"]).traits["age"].tolist() == ["18 or younger", "40", "99 or older"]


def test_the_id_may_be_named_and_else_rows_are_numbered(tmp_path):
    frame = pd.DataFrame({"nr": [7, 8, 8], "q": [1, 2, 1]})
    path = tmp_path / "a.sav"
    pyreadstat.write_sav(frame, str(path), variable_value_labels={"q": {1: "yes", 2: "no"}})
    survey = read_labelled(path)
    assert list(survey.respondent_ids) == ["r1", "r2", "r3"]
    assert "respondents numbered r1, r2, ... by row, as no variable has unique values" in counts(survey)
    assert counts(survey)["variable without a label, its name taken as the question's text"] == (1, ["q"])
    with pytest.raises(SurveyError, match=r"a\.sav: row 3, variable nr is repeated"):
        read_labelled(path, id="nr")
    with pytest.raises(SurveyError, match='there is no column "nx"'):
        read_labelled(path, id="nx")
    with pytest.raises(SurveyError, match='there is no column "sex"'):
        read_labelled(path, traits=["sex"])


def test_an_id_is_found_by_unique_whole_numbers_or_words(tmp_path):
    frame = pd.DataFrame({"weight": [0.5, 1.5], "remark": ["so so", "all good"], "who": ["x1", "x2"], "q": [1, 2]})
    path = tmp_path / "a.sav"
    pyreadstat.write_sav(frame, str(path), variable_value_labels={"q": {1: "yes", 2: "no"}})
    assert list(read_labelled(path).respondent_ids) == ["x1", "x2"]
    frame["who"] = [7, 9]
    pyreadstat.write_sav(frame, str(path), variable_value_labels={"q": {1: "yes", 2: "no"}})
    assert list(read_labelled(path).respondent_ids) == ["7", "9"]


def test_stata_extended_missing_values_are_listed(tmp_path):
    frame = pd.DataFrame({"id": [1, 2, 3, 4, 5], "q": [1, 2, "a", "b", 1]})
    path = tmp_path / "a.dta"
    pyreadstat.write_dta(
        frame,
        str(path),
        column_labels={"q": "Tea?"},
        variable_value_labels={"q": {1: "yes", 2: "no", "a": "shy"}},
        missing_user_values={"q": ["a", "b"]},
    )
    survey = read_survey(path)
    assert survey.questions[0].options == ("yes", "no")
    assert survey.option.tolist() == [0, 1, 0]
    assert survey.account.format == "labelled"
    assert counts(survey)['value declared missing, "shy"'] == (1, ["q (1)"])
    assert counts(survey)['value declared missing, "b"'] == (1, ["q (1)"])


def test_bad_files_are_named(tmp_path, write):
    with pytest.raises(SurveyError, match=r"b\.sav is not a readable SPSS or Stata file"):
        read_labelled(write("b.sav", "nonsense"))
    with pytest.raises(SurveyError, match="there is no file"):
        read_labelled(tmp_path / "none.dta")
    path = tmp_path / "c.sav"
    pyreadstat.write_sav(pd.DataFrame({"id": [1, 2], "x": [0.5, 0.7]}), str(path))
    with pytest.raises(SurveyError, match="has no variable with 2 to 15 value labels"):
        read_labelled(path)


def test_importing_the_readers_needs_neither_pyreadstat_nor_torch():
    code = "import sys, personae.data.read; assert not {'pyreadstat', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_says_what_to_install(sav, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyreadstat", None)
    with pytest.raises(SurveyError, match=r"pip install personae\[spss\]"):
        read_labelled(sav)
