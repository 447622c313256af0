from __future__ import annotations

import gzip
import re

import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.data.read import read_survey

WIDE = "respondent,tea\nann,yes\nbob,no\n"
LONG = "respondent,question,answer\nann,tea,yes\nbob,tea,no\n"
QUESTIONS = "question,text,options\ntea,Do you like tea?,no|yes\n"
PEOPLE = "respondent,sex\nann,f\nbob,m\n"


@pytest.mark.parametrize(("content", "format"), [(WIDE, "wide"), (LONG, "long")])
@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet"])
def test_wide_and_long_are_told_apart_in_files_and_folders(write, tmp_path, content, format, ending):
    folder = write("survey/questions.csv", QUESTIONS).parent
    write("survey/respondents.csv", PEOPLE)
    path = folder / f"responses.{ending}"
    if ending == "parquet":
        rows = [line.split(",") for line in content.splitlines()]
        pd.DataFrame(rows[1:], columns=rows[0]).to_parquet(path)
    else:
        data = content.replace(",", "\t") if ending == "tsv" else content
        path.write_bytes(gzip.compress(data.encode()) if ending.endswith("gz") else data.encode())
    whole = read_survey(folder)
    assert whole.account.format == format
    assert whole.questions[0].text == "Do you like tea?"
    assert whole.traits["sex"].to_dict() == {"ann": "f", "bob": "m"}
    part = read_survey(path, questions=folder / "questions.csv", respondents=folder / "respondents.csv")
    assert part.fingerprint == whole.fingerprint
    assert read_survey(str(path)).questions[0].options == ("yes", "no")  # without tables: the well-known order


def test_a_folder_may_hold_the_responses_alone(write):
    assert read_survey(write("survey/responses.csv", WIDE).parent).n_answers == 2


def test_traits_of_a_wide_file(write):
    path = write("r.csv", "respondent,tea,sex\nann,yes,f\nbob,no,m\n")
    for traits in (["sex"], "sex"):
        survey = read_survey(path, traits=traits)
        assert list(survey.question_ids) == ["tea"]
        assert survey.traits["sex"].tolist() == ["f", "m"]


def test_the_format_may_be_forced(write):
    path = write("r.csv", "respondent,question,answer\nann,yes,no\nbob,no,no\neve,no,yes\n")
    assert list(read_survey(path, format="wide").question_ids) == ["question", "answer"]


def test_the_sample_is_a_word():
    assert read_survey("sample").account.source == "NORC, General Social Survey 2018"


@pytest.mark.parametrize(
    ("path", "kwargs", "expected"),
    [
        ("none.csv", {}, r"there is no file or folder .*none\.csv$"),
        ("r.docx", {}, r"r\.docx is not a file that can be read as a survey; accepted are"),
        ("folder", {}, r"the folder .* is no survey \(it holds notes\.txt\); accepted are"),
        ("two", {}, r"the folder .*two holds responses\.csv and responses\.parquet; keep the one that is meant"),
        ("r.csv", {"format": "xls"}, 'there is no format "xls"; the formats are wide, long'),
        ("l.csv", {"traits": ["sex"]}, r"a long table \(give a respondents table\) takes no traits"),
        ("r.csv", {"questions": "gone.csv"}, r"there is no file gone\.csv"),
        ("r.csv", {"respondents": "gone.csv"}, r"there is no file gone\.csv"),
    ],
)
def test_what_is_not_recognised_is_said(write, tmp_path, path, kwargs, expected):
    write("r.docx", "x")
    write("folder/notes.txt", "x")
    write("r.csv", WIDE)
    write("l.csv", LONG)
    write("two/responses.csv", WIDE)
    write("two/responses.parquet", WIDE)
    with pytest.raises(SurveyError, match=expected) as caught:
        read_survey(tmp_path / path, **kwargs)
    assert "\n" not in str(caught.value)


def test_tables_that_a_format_does_not_take_are_refused():
    with pytest.raises(SurveyError, match="the sample takes no traits; leave it out"):
        read_survey("sample", traits=["sex"])


@pytest.mark.shared
def test_gss_2018_is_read_whole(shared):
    survey = read_survey(shared / "gss-2018")
    assert (survey.n_respondents, survey.n_questions, survey.n_answers) == (2_348, 360, 484_291)
    assert survey.account.format == "wide"
    assert " ".join(survey.traits) == "age sex race degree partyid polviews relig marital income16"
    blanks, straight = survey.account.notes  # nothing is left out
    assert (blanks.reason, blanks.examples) == (
        "cell with blanks around its text, blanks removed",
        ["questions.csv: column text"],
    )
    assert straight.reason.startswith("straight-liner kept")
    question = survey.questions[int(survey.question_index("natfare")[0])]
    assert question.options == ("too little", "about right", "too much")
    assert re.search("welfare", question.text, re.IGNORECASE)
    assert survey.option_counts()[survey.question_index("natfare")[0], :3].tolist() == [285, 407, 441]
