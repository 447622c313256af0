from __future__ import annotations

import string

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personae.data.account import SurveyError
from personae.data.long import read_long
from personae.data.read import read_survey
from personae.data.wide import read_wide

QUESTIONS = "question,text,options\ntea,Do you like tea?,no|a bit|yes\nbus,Do you take the bus?,never|often\n"


@pytest.fixture
def questions(write):
    return write("questions.csv", QUESTIONS)


def message(*args, **kwargs):
    with pytest.raises(SurveyError) as caught:
        read_long(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_rows_are_answers(write, questions):
    path = write("r.csv", "answer,respondent,question\nyes,ann,tea\noften,bob,bus\nnever,ann,bus\n")
    survey = read_long(path, questions)
    assert survey.answers_of("ann") == {"tea": "yes", "bus": "never"}
    assert survey.answers_of("bob") == {"bus": "often"}
    assert survey.account.format == "long"


def test_what_is_left_out_is_counted(write, questions):
    rows = ["ann,tea,yes,1", "bob,tea,,2", "ann,age,33,3", "eve,age,44,4", "eve,tea,no,5"]
    survey = read_long(write("r.csv", "respondent,question,answer,time\n" + "\n".join(rows)), questions)
    assert survey.n_answers == 2
    assert {note.reason: (note.count, note.examples) for note in survey.account.notes} == {
        "column of a long file that is not read": (1, ["time"]),
        "row without an answer": (1, []),
        "question that is not in the questions table, skipped": (1, ["age (2 labels)"]),
        "answer to a question that was skipped": (2, []),
        "question nobody answered, left out": (1, ["bus"]),
        "respondent without answers, left out": (1, ["bob"]),
    }


def test_columns_and_what_says_no_answer_are_read_as_in_wide_files(write):
    rows = ["ann,tea,1", "bob,tea,2", "eve,tea,99", "eve,bus,Yes", "ann,bus,yes", "joe,bus,Refused", "bob,bus,no"]
    survey = read_survey(write("r.csv", "Respondent,QUESTION,Answer,\n" + ",\n".join(rows) + ",\n"))
    assert survey.account.format == "long"
    assert {q.id: q.options for q in survey.questions} == {"tea": ("1", "2"), "bus": ("Yes", "no")}
    assert {who: survey.answers_of(who) for who in survey.respondent_ids} == {
        "ann": {"tea": "1", "bus": "Yes"},
        "bob": {"tea": "2", "bus": "no"},
        "eve": {"bus": "Yes"},
    }
    said = {note.reason: (note.count, note.examples) for note in survey.account.notes}
    assert said["number apart from the scale read as missing, 99 (list it in a questions table to keep it)"] == (
        1,
        ["tea (1)"],
    )
    assert said['label read as missing, "Refused"'] == (1, ["bus (1)"])
    assert said['answer spelled otherwise, taken as "Yes"'] == (1, ['bus "yes" (1)'])
    assert said["respondent without answers, left out"] == (1, ["joe"])
    assert "answer to a question that was skipped" not in said


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            "ann,tea,yes\n\nbob,tea,yess\neve,bus,x\n",
            'r.csv: row 4, column answer: "yess" is not an option of question "tea" (did you mean "yes"?)',
        ),
        (
            "ann,tea,yes\nbob,tea,yes\nann,tea,no\n",
            'r.csv: respondent "ann" answers question "tea" in row 2 and again in row 4 (repeats in all: 1)',
        ),
        ("ann,tea,yes\n,tea,yes\n", "r.csv: row 3, column respondent is empty"),
        ("ann,tea,yes\nann,,yes\n", "r.csv: row 3, column question is empty"),
        ("ann,coffee,yes\n", "no question of r.csv (coffee, ...) is in questions.csv"),
        ("ann,tea,\n", "r.csv holds no answers to any known question"),
    ],
)
def test_a_bad_table_is_named_with_its_rows(write, questions, rows, expected):
    assert message(write("r.csv", "respondent,question,answer\n" + rows), questions).startswith(expected)


def test_answers_outside_the_options_are_counted_in_all(write, questions):
    path = write("r.csv", "respondent,question,answer\n" + "".join(f"r{i},tea,?\n" for i in range(7)))
    assert "7 cells of the file are like this" in message(path, questions)


def test_without_a_questions_table_an_unknown_order_is_named(write):
    rows = "".join(f"r{i},colour,{c}\n" for i, c in enumerate(["red", "green", "blue"] * 3))
    assert "unknown for 1 question(s) (colour)" in message(write("r.csv", "respondent,question,answer\n" + rows))


def test_traits_come_from_the_respondents_table(write, questions):
    path = write("r.csv", "respondent,question,answer\nbob,tea,no\nann,tea,yes\n")
    survey = read_long(path, questions, write("p.csv", "respondent,sex\nann,f\nbob,m\n"))
    assert survey.traits["sex"].to_dict() == {"bob": "m", "ann": "f"}


label = (
    st.text(string.ascii_letters + string.digits + " ,;'\"|-äß日\n", min_size=1, max_size=8).map(str.strip).filter(bool)
)
tricky = st.sampled_from(["true", "NA", "None", "01", "1.0", "nan", "null", "#N/A", "-1"])


@st.composite
def wide_tables(draw):
    """A wide table of labels and the options of its questions, neither sorted nor complete."""
    n_people, n_questions = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    options = [
        draw(st.lists(st.one_of(tricky, label.filter(lambda s: "|" not in s)), min_size=2, max_size=5, unique=True))
        for _ in range(n_questions)
    ]
    cells = [[draw(st.one_of(st.none(), st.sampled_from(o))) for o in options] for _ in range(n_people)]
    cells[0][0] = options[0][0]
    people = draw(st.lists(st.one_of(tricky, label), min_size=n_people, max_size=n_people, unique=True))
    return people, options, cells


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=wide_tables())
def test_wide_and_long_files_are_the_same_survey(tmp_path, table, ending):
    people, options, cells = table
    names = [f"q{j}" for j in range(len(options))]
    wide = pd.DataFrame(cells, columns=names, dtype=object)
    wide.insert(0, "respondent", people)
    long = [(p, q, a) for p, row in zip(people, cells, strict=True) for q, a in zip(names, row, strict=True) if a]
    long = pd.DataFrame(long[::-1], columns=["respondent", "question", "answer"])
    questions = pd.DataFrame({"question": names, "text": names, "options": ["|".join(o) for o in options]})
    for frame, stem in ((wide, "wide"), (long, "long")):
        path = tmp_path / f"{stem}.{ending}"
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    questions.to_csv(tmp_path / "questions.csv", index=False)
    a = read_wide(tmp_path / f"wide.{ending}", tmp_path / "questions.csv")
    b = read_long(tmp_path / f"long.{ending}", tmp_path / "questions.csv")
    b = b.select(respondents=a.respondent_ids, questions=a.question_ids)
    assert a.fingerprint == b.fingerprint
    expected = {p: {q: c for q, c in zip(names, row, strict=True) if c} for p, row in zip(people, cells, strict=True)}
    assert {p: a.answers_of(p) for p in a.respondent_ids} == {p: row for p, row in expected.items() if row}
    assert [q.options for q in a.questions] == [tuple(options[names.index(q.id)]) for q in a.questions]
