from __future__ import annotations

import numpy as np
import pytest

from personae.data.account import Account, SurveyError
from personae.data.codebook import SCALES, order_of, read_questions, unfit
from personae.data.survey import Question
from personae.data.tables import Column


def test_a_questions_table_keeps_order_wording_and_labels(write):
    path = write(
        "q.csv",
        "question,text,options,title,topic\nb,Is it?,true|NA|None|01,it,things\na,Was it?,no | yes,,\n",
    )
    account = Account("q.csv", "test")
    entries = read_questions(path, account)
    assert [entry.question for entry in entries.values()] == [
        Question("b", "Is it?", ("true", "NA", "None", "01"), "it", "things"),
        Question("a", "Was it?", ("no", "yes")),
    ]
    assert [(note.count, note.examples) for note in account.notes] == [(2, ["a"])]  # the blanks around no and yes


def test_codes_stand_for_options_besides_the_labels(write):
    path = write("q.csv", "question,text,options,codes\na,Is it?,no|maybe|yes,-1|0|1\n")
    entry = read_questions(path, Account("q.csv", "test"))["a"]
    column = Column(np.array([0, 1, 2, 3, -1, 4]), ["-1", "0", "1", "maybe", "2"])
    assert entry.option_codes(column).tolist() == [0, 1, 2, 1, -1, -2]


def test_columns_that_are_not_read_are_said_but_not_the_remarks_of_a_draft(write):
    account = Account("q.csv", "test")
    read_questions(write("q.csv", "question,text,options,remark,weight\na,Is it?,no|yes,CHECK,3\n"), account)
    assert [note.examples for note in account.notes] == [["weight"]]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a,Is it?,yes,", 'q.csv: row 3, column options: question "a" has the single option "yes"'),
        ("a,Is it?,yes|no|yes,", 'q.csv: row 3, column options: question "a" lists the option "yes" twice'),
        ("a,Is it?,yes||no,", 'q.csv: row 3, column options: question "a" has an empty option'),
        ("a,Is it?,,", "q.csv: row 3, column options is empty"),
        ("a,,yes|no,", "q.csv: row 3, column text is empty"),
        (",Is it?,yes|no,", "q.csv: row 3, column question is empty"),
        ("first,Is it?,yes|no,", 'q.csv: row 3, column question: "first" stands in the table twice'),
        ("a,Is it?,no|maybe|yes,1|3|2", 'q.csv: row 3, column codes: the codes of question "a" (1|3|2) neither rise'),
        ("a,Is it?,no|yes,1|1", "q.csv: row 3, column codes: the codes of question"),
        ("a,Is it?,no|yes,1|x", "q.csv: row 3, column codes: the codes of question"),
        ("a,Is it?,no|yes,1|2|3", 'q.csv: row 3, column codes: question "a" has 2 options, 3 codes'),
        ("a,Is it?,1|0,0|1", 'q.csv: row 3, column codes: "0" is both a code and another option of "a"'),
    ],
)
def test_a_bad_questions_table_is_named_with_row_and_column(write, row, expected):
    path = write("q.csv", f"question,text,options,codes\nfirst,Was it?,yes|no,\n{row}\n")
    with pytest.raises(SurveyError) as caught:
        read_questions(path, Account("q.csv", "test"))
    assert str(caught.value).startswith(expected)


def test_a_missing_column_is_named(write):
    with pytest.raises(SurveyError, match=r'^q\.csv has no column "options"; its columns are: question, text$'):
        read_questions(write("q.csv", "question,text\na,Is it?\n"), Account("q.csv", "test"))


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (["no", "yes"], ("yes", "no")),
        (["NO", "Yes"], ("Yes", "NO")),
        (["Disagree", "Strongly agree", "Agree"], ("Strongly agree", "Agree", "Disagree")),
        (["too much", "about right", "too little"], ("too little", "about right", "too much")),
        (["10", "2", "-1"], ("-1", "2", "10")),
        (["3.0", "1.0", "2.0"], ("1.0", "2.0", "3.0")),
        (["tea", "coffee"], ("coffee", "tea")),
        (["1", "1.0", "2"], None),  # two labels for one number
        (["1.5", "2", "3"], None),
        (["Agree", "agree", "disagree"], None),  # two labels for one place on the scale
        (["agree", "disagree", "whatever"], None),
        (["nan", "1", "2"], None),
        (["inf", "1", "2"], None),
    ],
)
def test_the_order_of_options_is_only_taken_where_it_is_obvious(labels, options):
    found = order_of(labels)
    assert (found and found[0]) == options


def test_scales_agree_on_the_order_of_what_they_share():
    for one in SCALES:
        for other in SCALES:
            shared = set(one) & set(other)
            assert [label for label in one if label in shared] == [label for label in other if label in shared]


def test_scales_are_lower_case_without_repeats():
    for scale in SCALES:
        assert list(scale) == list(dict.fromkeys(label.casefold().strip() for label in scale))


@pytest.mark.parametrize(
    ("labels", "n_answers", "fit"),
    [
        ([], 0, False),
        (["a"], 9, False),
        (["a", "b"], 2, True),
        ([str(i) for i in range(15)], 100, True),
        ([str(i) for i in range(16)], 100, False),
        ([f"I think {i}" for i in range(6)], 8, False),
        ([f"party {i}" for i in range(6)], 12, True),
        ([str(i) for i in range(7)], 8, True),  # a scale from 0 to 6, few people
    ],
)
def test_numbers_and_free_text_are_no_questions(labels, n_answers, fit):
    assert (unfit(labels, n_answers) is None) == fit
