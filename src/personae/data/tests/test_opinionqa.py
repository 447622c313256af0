from __future__ import annotations

import pytest

from personae.data.account import SurveyError
from personae.data.opinionqa import read_opinionqa
from personae.data.read import read_survey

INFO = """,Unnamed: 0,key,option_mapping,question,references,option_ordinal
0,0,SAFE_W26,"{1.0: 'Very', 2.0: 'Not too', 99.0: 'Refused'}",How safe?,"['Very', 'Not too', 'Refused']","[1.0, 2.0]"
1,1,WORLD_W26,"{1.0: 'Safer'}",World?,"['Safer', 'Worse', 'Neither', 'Refused']","[1.0, 2.0, 1.5]"
2,2,WHY_W26,"{}",Why?,"[""Don't care"", 'Sport', 'Refused']","[1, 1]"
3,3,GONE_W26,"{}",Gone?,"['Yes', 'No', 'Refused']","[1.0, 2.0]"
4,4,ONE_W26,"{}",One?,"['Yes', 'Refused']","[1.0]"
"""
RESPONSES = """QKEY,SAFE_W26,WORLD_W26,WHY_W26,ONE_W26,WEIGHT_W26,SEX,POLPARTY
1001,Very,Neither,Don't care,Yes,0.7,Female,Democrat
1002,Refused,Worse,,Yes,1.1,Male,Refused
1003,Not too,Odd,Sport,Yes,1.2,nan,Other
"""


@pytest.fixture
def folder(write):
    write("w26/info.csv", INFO)
    return write("w26/responses.csv", RESPONSES).parent


def test_options_stand_in_the_order_of_their_ordinals(folder):
    survey = read_survey(folder)
    assert survey.account.format == "opinionqa"
    assert {q.id: (q.text, q.options) for q in survey.questions} == {
        "SAFE_W26": ("How safe?", ("Very", "Not too")),
        "WORLD_W26": ("World?", ("Safer", "Neither", "Worse")),
        "WHY_W26": ("Why?", ("Don't care", "Sport")),
    }
    assert {who: survey.answers_of(who) for who in survey.respondent_ids} == {
        "1001": {"SAFE_W26": "Very", "WORLD_W26": "Neither", "WHY_W26": "Don't care"},
        "1002": {"WORLD_W26": "Worse"},
        "1003": {"SAFE_W26": "Not too", "WHY_W26": "Sport"},
    }
    assert survey.traits.loc["1001"].tolist() == ["Female", "Democrat"]
    assert survey.traits.isna().sum().to_dict() == {"SEX": 1, "POLPARTY": 1}


def test_what_is_missing_is_counted(folder):
    assert {n.reason: (n.count, n.examples) for n in read_opinionqa(folder).account.notes} == {
        "question whose options have no order, kept in the order of info.csv": (1, ["WHY_W26"]),
        "question of info.csv without a column in responses.csv, left out": (1, ["GONE_W26"]),
        "question without two different options, skipped": (1, ["ONE_W26"]),
        '"Refused" read as missing': (1, ["SAFE_W26 (1)"]),
        "label that info.csv does not list, read as missing": (1, ['WORLD_W26 "Odd" (1)']),
        "column of responses.csv that is neither question nor trait": (2, ["ONE_W26", "WEIGHT_W26"]),
        "trait refused, read as missing": (2, ["SEX (1)", "POLPARTY (1)"]),
    }


def test_without_qkey_rows_are_numbered(folder):
    path = folder / "responses.csv"
    path.write_text(RESPONSES.replace("QKEY", "weight"))
    survey = read_opinionqa(folder)
    assert list(survey.respondent_ids) == ["r1", "r2", "r3"]
    assert any("numbered r1, r2" in note.reason for note in survey.account.notes)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("['Very', 'Not too', 'Refused']", "__import__('os')", "info.csv: row 2, column references should hold a list"),
        ('"[1.0, 2.0, 1.5]"', "1.0", "info.csv: row 3, column option_ordinal should hold a list"),
        ("[1.0, 2.0, 1.5]", "[1, 2, 3, 4, 5]", "info.csv: row 3, column option_ordinal: [1, 2, 3, 4, 5] does not give"),
        ("[1.0, 2.0, 1.5]", "['a', 'b']", "info.csv: row 3, column option_ordinal: ['a', 'b'] does not give a place"),
        ("references", "refs", 'info.csv has no column "references"'),
        ("How safe?", "", "info.csv: row 2, column key: every question needs a key and a question"),
        ("SAFE_W26", "WORLD_W26", 'info.csv: row 3, column key: "WORLD_W26" stands in the table twice'),
    ],
)
def test_a_bad_info_table_is_named_with_row_and_column(folder, old, new, expected):
    (folder / "info.csv").write_text(INFO.replace(old, new, 1))
    with pytest.raises(SurveyError) as caught:
        read_opinionqa(folder)
    assert str(caught.value).startswith(expected)
