from __future__ import annotations

import pytest

from personae.data.account import Account, SurveyError
from personae.data.draft import draft_questions
from personae.data.wide import read_wide

ROWS = [("ann", "red", "agree"), ("bob", "green", "disagree"), ("eve", "blue", "neutral"), ("joe", "red", "agree")]


def test_a_draft_is_a_questions_table_that_the_reader_takes(write, tmp_path):
    path = write("r.csv", "id,colour,view\n" + "\n".join(map(",".join, ROWS)))
    with pytest.raises(SurveyError, match="personae questions"):
        read_wide(path)
    draft_questions(path).to_csv(tmp_path / "questions.csv", index=False)
    survey = read_wide(path, tmp_path / "questions.csv")
    assert {q.id: q.options for q in survey.questions} == {
        "colour": ("blue", "green", "red"),
        "view": ("agree", "neutral", "disagree"),
    }


def test_a_draft_says_which_order_is_a_guess(write):
    path = write("r.csv", "id,colour,view\n" + "\n".join(map(",".join, ROWS)))
    remark = draft_questions(path).set_index("question")["remark"]
    assert remark["colour"].startswith("CHECK the order")
    assert remark["view"].startswith("options are a well-known scale")


def test_wide_and_long_files_draft_the_same(write):
    wide = write("w.csv", "respondent,colour,view\n" + "\n".join(map(",".join, ROWS)))
    rows = [f"{p},{q},{a}" for p, *given in ROWS for q, a in zip(("colour", "view"), given, strict=True)]
    long = write("l.csv", "respondent,question,answer\n" + "\n".join(rows))
    assert draft_questions(wide).equals(draft_questions(long))


def test_what_says_no_answer_is_no_option_of_a_draft_and_the_reader_agrees(write, tmp_path):
    rows = [f"r{i},{'rgb'[i % 3]},{i % 5 + 1},yes" for i in range(15)] + ["x,Refused,99,YES", "y,r,3,no"]
    path = write("r.csv", "id,colour,sat,own\n" + "\n".join(rows))
    drafted = draft_questions(path).set_index("question")
    assert drafted["options"].to_dict() == {"colour": "b|g|r", "sat": "1|2|3|4|5", "own": "yes|no"}
    assert drafted.remark["colour"].endswith("; no answers: Refused")
    assert drafted.remark["sat"].endswith("; no answers: 99")
    drafted.reset_index().to_csv(tmp_path / "questions.csv", index=False)
    survey = read_wide(path, tmp_path / "questions.csv")
    assert survey.answers_of("x") == {"own": "yes"}


def test_questions_without_answers_in_a_long_file_are_left_out_and_said(write):
    account = Account("l.csv", "draft")
    path = write("l.csv", "respondent,question,answer\nann,tea,yes\nbob,tea,no\nann,bus,\n")
    assert draft_questions(path, account)["question"].tolist() == ["tea"]
    assert [n.examples for n in account.notes] == [[], ["bus"]]
    assert "1 x skipped, not taken as a question: no answer at all: bus" in str(account)


def test_an_answer_without_its_question_is_named(write):
    path = write("l.csv", "respondent,question,answer\nann,tea,yes\nbob,,no\n")
    with pytest.raises(SurveyError, match=r"^l\.csv: row 3, column question is empty"):
        draft_questions(path)


def test_free_text_is_left_out_and_said(write):
    account = Account("r.csv", "draft")
    path = write("r.csv", "id,view,remark\n" + "\n".join(f"r{i},{'yn'[i % 2]},I think {i}" for i in range(30)))
    assert draft_questions(path, account)["question"].tolist() == ["view"]
    assert [note.examples for note in account.notes if "free text" in note.reason] == [["remark"]]


def test_a_label_with_the_separator_is_an_error(write):
    with pytest.raises(SurveyError, match=r'the label "a\|b" of x holds a \|'):
        draft_questions(write("r.csv", "id,x\n1,a|b\n2,c\n"))
