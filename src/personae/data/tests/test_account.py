from __future__ import annotations

import json

from personae.data.account import Account


def test_counts_and_places_of_one_reason_come_together():
    account = Account("a.csv", "wide")
    for column in "abcde":
        account.add("skipped", 2, where=column)
    account.add("other")
    (note, other) = account.notes
    assert (note.count, note.examples, other.count) == (10, list("abcde"), 1)
    assert str(account) == "a.csv (wide)\n  10 x skipped: a; b; c; ...\n  1 x other"


def test_all_columns_and_questions_are_named():
    account = Account("a.csv", "wide")
    for name in "abcdef":
        account.add("column skipped", 2, name=name)
    assert str(account) == "a.csv (wide)\n  12 x column skipped: a; b; c; d; e; f"
    assert str(Account.from_dict(account.as_dict())) == str(account)


def test_an_account_of_an_older_store_can_be_read():
    note = {"reason": "skipped", "count": 4, "examples": list("abcd")}
    account = Account.from_dict({"source": "a.csv", "format": "wide", "notes": [note]})
    assert str(account).endswith("4 x skipped: a; b; c; ...")


def test_nothing_is_no_note():
    account = Account("a.csv", "wide")
    account.add("skipped", 0, where="a")
    assert account.notes == []


def test_as_dict_is_plain_json():
    account = Account("a.csv", "wide")
    account.add("skipped", 2, where="a")
    assert json.loads(json.dumps(account.as_dict())) == {
        "source": "a.csv",
        "format": "wide",
        "notes": [{"reason": "skipped", "count": 2, "examples": ["a"], "named": False}],
    }


def test_examples_are_bounded():
    account = Account("a.csv", "wide")
    for i in range(account.max_examples + 5):
        account.add("skipped", where=str(i))
    assert len(account.notes[0].examples) == account.max_examples
    assert account.notes[0].count == account.max_examples + 5
