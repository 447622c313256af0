from __future__ import annotations

import re

import pytest

from personae.data.no_answer import missing_codes, says_no_answer

NO_ANSWER = """Refused|DON'T KNOW|Don’t know|DK/NA|Don't know / Refused|(Refused)|Refused (VOL.)|No answer|Not asked.
not applicable|Inapplicable|IAP|Skipped on web|N/A|Don't know or refused"""


@pytest.mark.parametrize("label", re.split(r"[|\n]", NO_ANSWER))
def test_labels_that_say_no_answer(label):
    assert says_no_answer(label)


@pytest.mark.parametrize(
    "label", ["No", "None", "Not at all", "Neither", "Other", "Not sure", "Refused entry", "No opinion"]
)
def test_labels_that_are_answers(label):
    assert not says_no_answer(label)


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        ([1, 2, 3, 4, 5, 99], [99]),
        ([1, 2, 5, 98, 99], [98, 99]),
        ([*range(11), 88, 99], [88, 99]),
        ([1, 2, -9], [-9]),
        ([1, 2, -1], [-1]),  # 0 lies between
        ([1, 2, 3, 8, 9], [8, 9]),
        ([1, 2, 3, 4, 5, 6, 7, 998], [998]),
        ([10, 20, 30, 999, -99], [-99, 999]),
        # scales
        ([-1, 1], []),
        ([-1, 0, 1], []),
        ([-2, -1, 0, 1, 2], []),
        ([-2, -1, 1, 2], []),
        ([0, 1, 2, -1], []),
        ([*range(1, 10)], []),
        ([*range(11)], []),
        ([1, 2, 3, 5, 9], []),  # few people on a scale of ten
        ([0, 3, 5, 8, 9], []),
        ([0, 25, 50, 75, 88, 100], []),
        ([1, 2, 3, 4, 7], []),
        ([1, 99], []),  # nothing to stand apart from
        ([8, 9], []),
        ([1, 2, 3, 4, 5, 96], []),  # customary for another answer
        ([], []),
    ],
)
def test_codes_for_no_answer_stand_apart_from_the_scale(numbers, missing):
    assert sorted(missing_codes(numbers)) == missing
