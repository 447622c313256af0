from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

import personae as ps
from personae.data.account import SurveyError
from personae.data.dialogues import Dialogue, Dialogues, Example, Turn, truncate

TALK = (Turn("ann", "tea ?"), Turn("bob", "coffee ."), Turn("bob", "and you ?"), Turn("ann", "tea !"))


@pytest.fixture
def two() -> Dialogues:
    return Dialogues(
        [
            Dialogue("a", TALK, {"bob": ("i never drink tea .",)}),
            Dialogue("b", TALK[:2], {"ann": ("i like tea .", "i am old ."), "bob": ("i am young .",)}),
        ]
    )


# examples --------------------------------------------------------------------------------------------------------
def test_by_default_those_reply_of_whom_a_persona_is_known(two):
    assert two.examples() == [
        Example("a", "bob", ("i never drink tea .",), TALK[:1], "coffee ."),
        Example("a", "bob", ("i never drink tea .",), TALK[:2], "and you ?"),
        Example("b", "ann", ("i like tea .", "i am old ."), (), "tea ?"),
        Example("b", "bob", ("i am young .",), TALK[:1], "coffee ."),
    ]


def test_each_turn_or_those_of_one_speaker(two):
    each = two.examples("each")
    assert [(e.dialogue, e.speaker, len(e.history), e.reply) for e in each] == [
        ("a", "ann", 0, "tea ?"),
        ("a", "bob", 1, "coffee ."),
        ("a", "bob", 2, "and you ?"),
        ("a", "ann", 3, "tea !"),
        ("b", "ann", 0, "tea ?"),
        ("b", "bob", 1, "coffee ."),
    ]
    assert two.examples("ann") == [e for e in each if e.speaker == "ann"]
    assert each[0].persona == ()  # nothing is known of ann in dialogue a


def test_examples_say_what_they_need(two):
    with pytest.raises(SurveyError, match=r"nobody named \"bop\" speaks; there are: bob"):
        two.examples("bop")
    with pytest.raises(SurveyError, match=r"no speaker has persona sentences.*speaker=\"each\""):
        Dialogues([Dialogue("a", TALK)]).examples()


# truncation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("budget", "kept"),
    [(100, 4), (9, 4), (8, 3), (7, 2), (6, 2), (5, 1), (3, 1), (2, 1), (0, 1)],
)
def test_whole_turns_are_dropped_from_the_left_and_the_last_one_stays(budget, kept):
    history = (Turn("a", "x"), Turn("b", "x x"), Turn("a", "x x x"), Turn("b", "x x x"))
    assert truncate(history, lambda turn: len(turn.text.split()), budget) == history[4 - kept :]


def test_a_turn_that_does_not_fit_ends_the_history_whatever_stands_before_it():
    history = (Turn("a", "x"), Turn("b", "x" * 9), Turn("a", "x"))
    assert truncate(history, lambda turn: len(turn.text), 5) == history[2:]
    assert truncate((), len, 5) == ()


# parts and content -----------------------------------------------------------------------------------------------
def test_a_split_keeps_order_and_loses_nothing():
    whole = Dialogues([Dialogue(str(i), TALK) for i in range(20)])
    rest, drawn = whole.split(0.25, seed=3)
    ids = [[d.id for d in part] for part in (rest, drawn)]
    assert (len(rest), len(drawn)) == (15, 5)
    assert sorted(ids[0] + ids[1], key=int) == [d.id for d in whole]
    assert all(part == sorted(part, key=int) for part in ids)
    assert [d.id for d in whole.split(0.25, seed=3)[1]] == ids[1]
    assert [d.id for d in whole.split(0.25, seed=4)[1]] != ids[1]
    assert drawn.account is whole.account


def test_both_parts_of_a_split_hold_something(two):
    assert [[len(part) for part in two.split(share)] for share in (0.001, 0.999)] == [[1, 1], [1, 1]]
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(SurveyError, match="between 0 and 1"):
            two.split(share)
    with pytest.raises(SurveyError, match="a single dialogue cannot be split"):
        Dialogues([two[0]]).split(0.5)


def test_the_fingerprint_follows_the_content(two):
    same = Dialogues([Dialogue(d.id, list(d.turns), dict(reversed(d.personas.items()))) for d in two])
    assert same.fingerprint == two.fingerprint
    first = two[0]
    others = [
        [two[1], first],
        [first],
        [dataclasses.replace(first, id="c"), two[1]],
        [dataclasses.replace(first, personas={}), two[1]],
        [dataclasses.replace(first, turns=first.turns[:-1]), two[1]],
        [dataclasses.replace(first, turns=(Turn("bob", "tea ?"), *first.turns[1:])), two[1]],
    ]
    prints = {Dialogues(other).fingerprint for other in others}
    assert len(prints) == len(others)
    assert two.fingerprint not in prints


def test_nothing_can_be_changed(two):
    with pytest.raises(dataclasses.FrozenInstanceError):
        two[0].id = "z"
    with pytest.raises(TypeError):
        two[0].personas["ann"] = ("new",)
    with pytest.raises(TypeError):
        two.speakers["ann"] = 0


def test_speakers_are_counted_in_order(two):
    assert dict(two.speakers) == {"ann": 3, "bob": 3}
    assert repr(two) == "Dialogues(2 dialogues, 6 turns, 2 speakers)"


@pytest.mark.parametrize(
    ("dialogues", "expected"),
    [
        ([], "there is no dialogue"),
        ([Dialogue(" ", TALK)], "a dialogue has an empty id"),
        ([Dialogue("a", TALK), Dialogue("a", TALK)], 'dialogue "a" occurs more than once'),
        ([Dialogue("a", (Turn("", "x"),))], 'dialogue "a": turn 1 has no speaker'),
        ([Dialogue("a", (*TALK, Turn("ann", " ")))], 'dialogue "a": turn 5 is empty'),
        ([Dialogue("a", (Turn("ann", "x" * 100_001),))], 'dialogue "a": turn 1 has 100,001 characters'),
        ([Dialogue("a", TALK, {"": ("x",)})], 'dialogue "a" has persona sentences of a speaker without a name'),
        ([Dialogue("a", TALK, {"ann": ()})], 'dialogue "a" has an empty persona of "ann"'),
        ([Dialogue("a", TALK, {"ann": ("x", "")})], 'dialogue "a": a persona sentence of "ann" is empty'),
    ],
)
def test_what_is_no_dialogue_is_refused_in_a_sentence(dialogues, expected):
    with pytest.raises(SurveyError) as caught:
        Dialogues(dialogues)
    assert str(caught.value).startswith(expected)


def test_dialogues_are_public_and_need_no_torch():
    assert (ps.Dialogues, ps.Dialogue, ps.Turn) == (Dialogues, Dialogue, Turn)
    code = "import sys, personae; personae.read_dialogues; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
