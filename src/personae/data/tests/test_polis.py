from __future__ import annotations

import pytest

from personae.data.account import SurveyError
from personae.data.polis import read_polis, statement_question
from personae.data.read import read_survey

COMMENTS = """timestamp,comment-id,author-id,agrees,disagrees,moderated,comment-body
1,3,9,0,0,1,"Bikes, ""please""."
2,0,9,0,0,0,More trees.
3,1,9,0,0,-1,Spam!
4,7,9,0,0,1,Nobody saw this.
"""
VOTES = """participant,group-id,n-votes,0,1,2,3
0,0,3,1,1,-1,
5,1,2,0,,1,-1
6,1,1,,1,,
"""


@pytest.fixture
def folder(write):
    write("town/comments.csv", COMMENTS)
    write("town/participants-votes.csv", VOTES)
    return write("town/summary.csv", 'topic,Our town\nurl,https://pol.is/x\nconversation-description,"a\n\nb"\n').parent


def test_votes_become_answers_to_statements(folder):
    survey = read_survey(folder)
    assert survey.account.format == "polis"
    assert {q.id: (q.text, q.title, q.options) for q in survey.questions} == {
        "0": ('Do you agree with this statement? "More trees."', "More trees.", ("disagree", "pass", "agree")),
        "3": (
            'Do you agree with this statement? "Bikes, "please"."',
            'Bikes, "please".',
            ("disagree", "pass", "agree"),
        ),
    }
    assert {who: survey.answers_of(who) for who in survey.respondent_ids} == {
        "0": {"0": "agree"},
        "5": {"0": "pass", "3": "disagree"},
    }


def test_every_statement_and_vote_is_accounted_for(folder):
    assert {n.reason: (n.count, n.examples) for n in read_polis(folder).account.notes} == {
        "Polis conversation": (1, ["Our town https://pol.is/x"]),
        "column of participants-votes.csv that is no statement": (2, ["group-id", "n-votes"]),
        "statement that the moderators rejected, left out": (1, ["1 (votes: 2)"]),
        "vote on a statement that the moderators rejected": (2, []),
        "statement without a text, left out": (1, ["2 (votes: 2)"]),
        "vote on a statement without a text": (2, []),
        "statement without a column of votes, left out": (1, ["7"]),
        "respondent without answers, left out": (1, ["6"]),
    }


def test_long_statements_have_a_short_title():
    question = statement_question("1", "word " * 40)
    assert question.title == " ".join(["word"] * 12) + "…"
    assert question.text.count("word") == 40


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (
            "participants-votes.csv",
            "participant,0,3\n1,1,0\n2,0,2\n",
            'participants-votes.csv: row 3, column 3: "2" is not an option of question "3"; it has: -1 | 0 | 1',
        ),
        (
            "participants-votes.csv",
            "participant,0\n1,1\n1,0\n",
            'participants-votes.csv: respondent "1" stands in rows 2',
        ),
        ("participants-votes.csv", "who,0\n1,1\n", 'participants-votes.csv has no column "participant"'),
        ("participants-votes.csv", "participant,88\n1,1\n", "town: no column of participants-votes.csv is an accepted"),
        ("comments.csv", "comment-id,moderated\n0,1\n", 'comments.csv has no column "comment-body"'),
        (
            "comments.csv",
            "comment-id,moderated,comment-body\n0,1,a\n0,1,b\n",
            'comments.csv: statement "0" stands in rows 2 and 3',
        ),
    ],
)
def test_a_bad_export_is_named(folder, file, content, expected):
    (folder / file).write_text(content)
    with pytest.raises(SurveyError) as caught:
        read_polis(folder)
    assert str(caught.value).startswith(expected)


@pytest.mark.shared
def test_bowling_green_adds_up(shared):
    survey = read_survey(shared / "polis" / "american-assembly.bowling-green")
    said = {note.reason: note.count for note in survey.account.notes}
    silent = said["respondent without answers, left out"]
    rejected = said["statement that the moderators rejected, left out"]
    assert survey.n_answers + said["vote on a statement that the moderators rejected"] == 225_524
    assert survey.n_respondents + silent == 2_031
    assert survey.n_questions + rejected == 896


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    ["15-per-hour-seattle", "canadian-electoral-reform", "scoop-hivemind.taxes", "american-assembly.bowling-green"],
)
def test_agreement_means_agreement(shared, name):
    """The export counts agreeing and disagreeing votes a statement; for accepted ones they are ours."""
    import pandas as pd

    survey = read_polis(shared / "polis" / name)
    comments = pd.read_csv(shared / "polis" / name / "comments.csv", dtype={"comment-id": str}).set_index("comment-id")
    counts = pd.DataFrame(survey.option_counts(), index=survey.question_ids, columns=["disagree", "pass", "agree"])
    both = counts.join(comments)
    assert both["agree"].corr(both["agrees"]) > 0.99
    assert both["disagree"].corr(both["disagrees"]) > 0.99
