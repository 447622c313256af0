from __future__ import annotations

import numpy as np

from personae.data.account import Account
from personae.data.build import build_survey, straight_liners
from personae.data.survey import Question, Survey

SCALE = [Question(f"s{j}", "?", ("low", "middle", "high")) for j in range(12)]
OTHER = [Question(f"o{j}", "?", ("yes", "no")) for j in range(9)]


def test_unanswered_questions_and_silent_people_are_left_out_and_counted():
    account = Account("x", "test")
    survey = build_survey(
        account, OTHER[:3], ["ann", "bob", "eve"], np.array([2, 0]), np.array([2, 0]), np.array([1, 0])
    )
    assert survey.answers_of("eve") == {"o2": "no"}
    assert survey.answers_of("ann") == {"o0": "yes"}
    assert list(survey.respondent_ids) == ["ann", "eve"]
    assert [(n.count, n.examples) for n in account.notes] == [(1, ["o1"]), (1, ["bob"])]


def people(*answers: list[int]) -> Survey:
    """One list a person: option of each question of SCALE and OTHER, -1 where not answered."""
    given = np.array(answers)
    person, item = np.nonzero(given >= 0)
    return Survey(SCALE + OTHER, [f"r{i}" for i in range(len(given))], person, item, given[person, item])


def test_straight_liners_gave_one_position_to_ten_or_more_questions_of_a_set():
    varied = [0, 1] * 4 + [0]  # over the other questions
    survey = people(
        [2] * 12 + varied,
        [2] * 10 + [-1] * 2 + varied,
        [2] * 9 + [-1] * 3 + varied,  # too few answers to say
        [2] * 11 + [1] + varied,  # one answer differs
        [0, 1, 2] * 4 + [1] * 9,  # the other set is too small
    )
    assert straight_liners(survey).tolist() == ["r0", "r1"]


def test_straight_liners_stay_and_are_counted():
    survey = people([2] * 12 + [-1] * 9, [0, 1, 2] * 4 + [0] * 9)
    account = Account("x", "test")
    built = build_survey(
        account, survey.questions, survey.respondent_ids, survey.respondent, survey.question, survey.option
    )
    assert built.fingerprint == survey.fingerprint
    (note,) = account.notes
    assert note.count == 1
    assert note.reason.startswith("straight-liner kept")
