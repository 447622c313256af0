from __future__ import annotations

import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.data.wide import read_wide

QUESTIONS = "question,text,options\ntea,Do you like tea?,no|a bit|yes\nbus,Do you take the bus?,never|often\n"


@pytest.fixture
def questions(write):
    return write("questions.csv", QUESTIONS)


def message(*args, **kwargs):
    with pytest.raises(SurveyError) as caught:
        read_wide(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def counts(survey):
    return {note.reason: (note.count, note.examples) for note in survey.account.notes}


def test_answers_and_order_of_options_come_from_the_two_tables(write, questions):
    survey = read_wide(write("r.csv", "respondent,tea,bus\nann,yes,never\nbob,,often\neve,a bit,\n"), questions)
    assert list(survey.respondent_ids) == ["ann", "bob", "eve"]
    assert [(q.id, q.text, q.options) for q in survey.questions] == [
        ("tea", "Do you like tea?", ("no", "a bit", "yes")),
        ("bus", "Do you take the bus?", ("never", "often")),
    ]
    assert [survey.answers_of(who) for who in survey.respondent_ids] == [
        {"tea": "yes", "bus": "never"},
        {"bus": "often"},
        {"tea": "a bit"},
    ]
    assert survey.option.tolist() == [2, 0, 1, 1]
    assert survey.account.format == "wide"
    assert survey.account.notes == []


def test_the_id_is_the_column_respondent_wherever_it_stands_else_the_first(write, questions):
    named = read_wide(write("a.csv", "tea,Respondent\nyes,ann\nno,bob\n"), questions)
    first = read_wide(write("b.csv", "nr,tea\n01,yes\n1,no\n"), questions)
    assert list(named.respondent_ids) == ["ann", "bob"]
    assert list(first.respondent_ids) == ["01", "1"]
    assert counts(first)["first column taken as the respondent's id"] == (1, ["b.csv: nr"])


def test_what_is_left_out_is_counted(write, questions):
    survey = read_wide(write("r.csv", "respondent,tea,age,bus\nann,yes,33,\nbob,,20,\neve,no,41,\n"), questions)
    assert survey.n_respondents == 2
    assert survey.n_questions == 1
    assert counts(survey) == {
        "column that is not in the questions table, skipped": (1, ["age"]),
        "question nobody answered, left out": (1, ["bus"]),
        "respondent without answers, left out": (1, ["bob"]),
    }
    other = read_wide(write("s.csv", "respondent,tea\nann,yes\n"), questions)
    assert counts(other) == {"question of the questions table without a column, left out": (1, ["bus"])}


def test_an_answer_outside_the_options_is_found_and_counted(write, questions):
    rows = ["ann,yes,never", "", "bob,yes,oftn", "eve,abit,often", "joe,abit,often"]
    text = message(write("r.csv", "respondent,tea,bus\n" + "\n".join(rows)), questions)
    assert text.startswith(
        'r.csv: row 4, column bus: "oftn" is not an option of question "bus" (did you mean "often"?); it has: '
        "never | often; 3 cells of the file are like this"
    )


@pytest.mark.parametrize(("rows", "place"), [("a,x,\nb,,x", "row 2, column tea"), ("a,,x\nb,x,", "row 2, column bus")])
def test_the_first_place_is_first_by_row(write, questions, rows, place):
    assert message(write("r.csv", "respondent,tea,bus\n" + rows), questions).startswith(f"r.csv: {place}")


def test_an_answer_outside_the_options_in_parquet_has_a_row_too(tmp_path, questions):
    path = tmp_path / "r.parquet"
    pd.DataFrame({"respondent": ["ann", "bob"], "tea": ["yes", "yess"]}).to_parquet(path)
    assert message(path, questions).startswith('r.parquet: row 2, column tea: "yess" is not an option')


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "respondent,tea\nann,yes\n\nbob,no\nann,no\n",
            'r.csv: respondent "ann" stands in rows 2 and 5 of column resp',
        ),
        ("respondent,tea\nann,yes\n,no\n", "r.csv: row 3, column respondent is empty"),
        ("respondent,tea,tea\nann,yes,no\n", 'r.csv: row 1 names the column "tea" twice'),
        ("respondent,coffee\nann,yes\n", "no column of r.csv (coffee, ...) is a question of questions.csv"),
        ("respondent,tea\nann,\n", "r.csv holds no answers to any known question"),
    ],
)
def test_a_bad_table_is_named_with_its_rows(write, questions, content, expected):
    assert message(write("r.csv", content), questions).startswith(expected)


# without a questions table -------------------------------------------------------------------------------------------
def test_an_obvious_order_is_taken_and_said(write):
    rows = [
        f"r{i},{'no' if i % 2 else 'yes'},{i % 5},{i},I think {i},{'tea' if i % 3 else 'milk'},x" for i in range(40)
    ]
    survey = read_wide(write("r.csv", "id,likes,score,age,remark,drink,same\n" + "\n".join(rows)))
    assert {q.id: q.options for q in survey.questions} == {
        "likes": ("yes", "no"),
        "score": ("0", "1", "2", "3", "4"),
        "drink": ("milk", "tea"),
    }
    assert survey.questions[0].text == "likes"
    said = counts(survey)
    assert said["question that is in no questions table, options ordered as a well-known scale"][1] == ["likes"]
    assert said["question that is in no questions table, options ordered as whole numbers, in numeric order"] == (
        1,
        ["score"],
    )
    assert said["skipped, not taken as a question: more than 15 different labels, so a number or free text"] == (
        2,
        ["age", "remark"],
    )
    assert said["skipped, not taken as a question: a single label"] == (1, ["same"])


def test_what_says_no_answer_is_no_option(write):
    """sat 1 to 5 with 99, inc 1 and 2 with -9 and -8, trust with a refusal, owns with NA alone besides yes."""
    rows = [f"r{i},{i % 5 + 1},{1 + i % 2},{('Agree', 'Disagree')[i % 2]},yes,{i % 11}" for i in range(22)]
    rows += ["x,99,-9,Refused,NA,10", "y,99,-8,don't know,NA,99", "z,3,,DK,,1"]
    survey = read_wide(write("r.csv", "id,sat,inc,trust,owns,nps\n" + "\n".join(rows)))
    assert {q.id: q.options for q in survey.questions} == {
        "sat": tuple("12345"),
        "inc": ("1", "2"),
        "trust": ("Agree", "Disagree"),
        "nps": tuple(map(str, range(11))),
    }
    assert survey.answers_of("x") == {"nps": "10"}
    said = counts(survey)
    apart = "number apart from the scale read as missing, {} (list it in a questions table to keep it)"
    assert said[apart.format(99)] == (3, ["sat (2)", "nps (1)"])
    assert said[apart.format(-9)] == (1, ["inc (1)"])
    assert said[apart.format(-8)] == (1, ["inc (1)"])
    assert said['label read as missing, "Refused"'] == (1, ["trust (1)"])
    assert said['label read as missing, "don\'t know"'] == (1, ["trust (1)"])
    assert said["skipped, not taken as a question: a single label"] == (1, ["owns (besides NA)"])


def test_a_questions_table_keeps_what_it_lists_and_the_rest_that_says_no_answer_is_missing(write):
    questions = write(
        "q.csv",
        "question,text,options,codes\ntrust,Trust?,Agree|Disagree|Refused,\nsat,How?,bad|good|won't say,1|2|99\n",
    )
    rows = ["ann,Agree,99", "bob,Refused,1", "eve,DK,-9", "joe,agree,2.0", "sue,Disagree,good"]
    survey = read_wide(write("r.csv", "id,trust,sat\n" + "\n".join(rows)), questions)
    assert [survey.answers_of(who) for who in survey.respondent_ids] == [
        {"trust": "Agree", "sat": "won't say"},
        {"trust": "Refused", "sat": "bad"},
        {"trust": "Agree", "sat": "good"},
        {"trust": "Disagree", "sat": "good"},
    ]
    said = counts(survey)
    assert said['label read as missing, "DK"'] == (1, ["trust (1)"])
    assert said["number apart from the scale read as missing, -9 (list it in a questions table to keep it)"][0] == 1
    assert said['answer spelled otherwise, taken as "Agree"'] == (1, ['trust "agree" (1)'])
    assert said["number written otherwise than in the options or codes"] == (1, ["sat (1)"])


def test_spellings_of_one_option_are_one_option(write):
    rows = [
        f"r{i},{label},{i % 2 + 1}{'.0' * (i > 6)}" for i, label in enumerate(["Yes", "yes", "No", "YES ", "Yes"] * 2)
    ]
    survey = read_wide(write("r.csv", "id,likes,side\n" + "\n".join(rows)))
    assert {q.id: q.options for q in survey.questions} == {"likes": ("Yes", "No"), "side": ("1", "2")}
    assert survey.n_answers == 20
    said = counts(survey)
    assert said['answer spelled otherwise, taken as "Yes"'] == (4, ['likes "yes" (2)', 'likes "YES" (2)'])
    assert said["number written otherwise than in the options or codes"] == (3, ["side (2)", "side (1)"])


def test_codes_are_named_where_an_answer_is_no_option(write):
    questions = write("q.csv", "question,text,options,codes\nsat,How?,bad|good,1|2\n")
    text = message(write("r.csv", "id,sat\nann,1\nbob,3\n"), questions)
    assert text.startswith(
        'r.csv: row 3, column sat: "3" is not an option of question "sat"; it has: bad | good (codes 1 | 2)'
    )


def test_an_unknown_order_asks_for_a_questions_table(write):
    rows = [f"r{i},{'rgb'[i % 3]},yes" for i in range(9)]
    assert message(write("r.csv", "id,colour,ok\n" + "\n".join(rows))) == (
        "r.csv: the order of the options is unknown for 1 question(s) (colour); write a questions table with the "
        "options in scale order: personae questions r.csv > questions.csv prints a draft to correct"
    )


def test_a_table_without_questions_is_refused(write):
    rows = [f"r{i},I think {i}" for i in range(20)]
    assert message(write("r.csv", "id,remark\n" + "\n".join(rows))).startswith("r.csv holds nothing that looks like a")


# traits --------------------------------------------------------------------------------------------------------------
def test_traits_may_be_columns_of_the_file_and_of_a_respondents_table(write, questions):
    responses = write("r.csv", "respondent,tea,sex\nann,yes,f\nbob,no,\neve,no,m\njoe,,m\n")
    people = write("p.csv", "respondent,age,town\neve,01,NA\nann,40,\nsue,50,x\n")
    survey = read_wide(responses, questions, people, traits=["sex"])
    assert survey.traits.astype(object).where(survey.traits.notna(), None).to_dict("index") == {
        "ann": {"sex": "f", "age": "40", "town": None},
        "bob": {"sex": None, "age": None, "town": None},
        "eve": {"sex": "m", "age": "01", "town": "NA"},
    }
    said = counts(survey)
    assert said["person of the respondents table without a row of answers, left out"][0] == 1
    assert said["respondent who is not in the respondents table, traits missing"][0] == 2
    assert not any("sex" in note.examples for note in survey.account.notes)


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ("respondent,age\nann,1\nann,2\n", 'p.csv: respondent "ann" stands in rows 2 and 3'),
        ("respondent,age\nann,1\n,2\n", "p.csv: row 3, column respondent is empty"),
        (
            "respondent,age\nA,1\nB,2\n",
            "none of the 2 people of p.csv (such as A) is a respondent of the answers (such as",
        ),
        ("respondent,bus\nann,1\n", 'the trait "bus" stands both in r.csv and in the respondents table'),
    ],
)
def test_a_bad_respondents_table_is_named(write, questions, people, expected):
    responses = write("r.csv", "respondent,tea,bus\nann,yes,often\nbob,no,\n")
    assert message(responses, questions, write("p.csv", people), traits=["bus"]).startswith(expected)


def test_an_unknown_trait_column_names_the_nearest(write, questions):
    responses = write("r.csv", "respondent,tea,gender\nann,yes,f\n")
    assert message(responses, questions, traits=["gendr"]) == 'there is no column "gendr"; nearest: gender'
