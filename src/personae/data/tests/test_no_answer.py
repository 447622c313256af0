from __future__ import annotations

import re

import pytest

from personae.data.no_answer import says_no_answer

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
