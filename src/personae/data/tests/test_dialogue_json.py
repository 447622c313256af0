from __future__ import annotations

import json

import pytest

from personae.data.account import SurveyError
from personae.data.dialogue_json import read_dialogue_json
from personae.data.dialogues import Turn


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def notes(dialogues) -> dict:
    return {note.reason: (note.count, note.examples) for note in dialogues.account.notes}


def said(*pairs: str) -> list[dict]:
    return [{"speaker": pair[0], "text": pair[2:]} for pair in pairs]


def test_personas_and_turns(write):
    record = {
        "id": "x1",
        "personas": {"1": ["i like : tea.", "persona: none"], "2": []},
        "turns": said("1 hi", "2 hello", "2 you ?"),
    }
    dialogues = read_dialogue_json(write("a.jsonl", lines(record, {"turns": said("1 a", "2 b")})))
    assert dialogues.account.format == "turns"
    assert [d.id for d in dialogues] == ["x1", "2"]
    assert dialogues[0].turns == (Turn("1", "hi"), Turn("2", "hello"), Turn("2", "you ?"))
    assert dict(dialogues[0].personas) == {"1": ("i like : tea.", "persona: none")}
    assert notes(dialogues) == {}


def test_in_that_style_names_are_names(write):
    turns = [{"speaker": "human", "text": "hi"}, {"speaker": "system", "text": "beep"}, {"speaker": 7, "text": "so"}]
    (dialogue,) = read_dialogue_json(write("a.jsonl", lines({"id": 12, "turns": turns})))
    assert dialogue.id == "12"
    assert dialogue.turns == (Turn("human", "hi"), Turn("system", "beep"), Turn("7", "so"))


def test_sharegpt(write):
    talk = [
        {"from": "system", "value": "You are Ann.\n\n You like tea. "},
        {"from": "human", "value": "Coffee?"},
        {"from": "gpt", "value": "Tea: always.\n"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "42"},
        {"from": "system", "value": "Be Bob now."},
        {"from": "narrator", "value": "It rains."},
    ]
    dialogues = read_dialogue_json(write("a.json", json.dumps([{"id": "g", "conversations": talk}], indent=1)))
    assert dialogues.account.format == "sharegpt"
    assert dialogues[0].turns == (
        Turn("user", "Coffee?"),
        Turn("assistant", "Tea: always."),
        Turn("narrator", "It rains."),
    )
    assert [e.persona for e in dialogues.examples()] == [("You are Ann.", "You like tea.")]
    assert notes(dialogues) == {
        "system message with blanks around it, blanks removed": (1, ["a.json: dialogue 1, turn 1"]),
        "utterance with blanks around it, blanks removed": (1, ["a.json: dialogue 1, turn 3"]),
        "message of a tool": (2, ["a.json: dialogue 1, turn 4", "a.json: dialogue 1, turn 5"]),
        "system message after an utterance": (1, ["a.json: dialogue 1, turn 6"]),
    }


def test_openai(write):
    talk = [
        {"role": "developer", "content": "You are Ann."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
        {"role": "assistant", "content": "I see."},
    ]
    dialogues = read_dialogue_json(write("a.jsonl", lines({"messages": talk, "model": "m"})))
    assert dialogues.account.format == "openai"
    assert dialogues[0].turns == (Turn("user", "Look:"), Turn("assistant", "I see."))
    assert dict(dialogues[0].personas) == {"assistant": ("You are Ann.",)}
    assert notes(dialogues) == {
        "part of a message that is no text, left out": (1, ["a.jsonl: line 1, turn 2"]),
        "field of a turn that is not read: tool_calls": (1, ["a.jsonl: line 1, turn 3"]),
        "empty utterance, left out": (1, ["a.jsonl: line 1, turn 3"]),
        "field of a turn that is not read: tool_call_id": (1, ["a.jsonl: line 1, turn 4"]),
        "message of a tool": (1, ["a.jsonl: line 1, turn 4"]),
        "field of a dialogue that is not read: model": (1, ["a.jsonl: line 1"]),
    }


def test_what_is_not_said_is_counted(write):
    records = [{"turns": said("1 a", "1 b")}, {"turns": []}, {"turns": said("1 __SILENCE__", "2 ", "1 hi", "2 x")}]
    dialogues = read_dialogue_json(write("a.jsonl", lines(*records).replace("\n", "\n\n", 1)))
    assert [len(d.turns) for d in dialogues] == [2, 0, 2]
    assert notes(dialogues) == {
        "dialogue in which only one speaker says something": (1, ["a.jsonl: line 1"]),
        "empty line": (1, ["a.jsonl: line 2"]),
        "dialogue without an utterance": (1, ["a.jsonl: line 3"]),
        "__SILENCE__, which is no utterance, left out": (1, ["a.jsonl: line 4, turn 1"]),
        "empty utterance, left out": (1, ["a.jsonl: line 4, turn 2"]),
    }


def test_half_of_an_emoji_becomes_a_sign_that_can_be_written(write):
    file = write("a.jsonl", r'{"turns": [{"speaker": "1", "text": "oh \ud83d\ude00 \ud83d"}]}')
    dialogues = read_dialogue_json(file)
    assert dialogues[0].turns[0].text == "oh \U0001f600 \ufffd"
    assert notes(dialogues)["utterance with half a character, replaced by \ufffd"] == (1, ["a.jsonl: line 1, turn 1"])


GOOD = lines({"id": "g", "turns": said("1 a", "2 b")})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD + "[1]\n", "a.jsonl: line 2 is a list; a dialogue is a JSON object, all of it in one line"),
        (GOOD + '"hi"\n', 'a.jsonl: line 2 is the text "hi"; a dialogue is'),
        (GOOD + "{'turns': 1}\n", "a.jsonl: line 2 is not JSON (Expecting property name"),
        (GOOD[:-9], "a.jsonl: line 1 is not JSON ("),
        ('{\n"turns": []\n}\n', "a.jsonl: line 1 is not JSON (Expecting property name"),
        ("[" + GOOD + ", 3]", "a.jsonl: dialogue 2 is a number"),
        ("[" + GOOD, "a.jsonl is not JSON ("),
        ('{"text": "a"}', 'a.jsonl: line 1 holds text; a dialogue needs one of "turns" (turns), "conversations"'),
        (
            '{"turns": [], "messages": []}',
            "a.jsonl: line 1 fits several formats; say which: format='turns' or 'openai'",
        ),
        (GOOD + lines({"messages": []}), 'a.jsonl: line 2: "turns" is missing where a list of turns is needed'),
        (lines({"turns": {"a": 1}}), 'a.jsonl: line 1: "turns" is an object where a list'),
        (lines({"turns": ["hi"]}), 'a.jsonl: line 1, turn 1 is the text "hi"; a turn is an object with "speaker"'),
        (lines({"turns": [{"text": "a"}]}), 'a.jsonl: line 1, turn 1: "speaker" is missing where a name'),
        (lines({"turns": [{"speaker": " ", "text": "a"}]}), 'a.jsonl: line 1, turn 1: "speaker" is empty where a name'),
        (lines({"turns": [{"speaker": "1", "text": 5}]}), 'a.jsonl: line 1, turn 1: "text" is a number where a text'),
        (lines({"turns": [], "personas": []}) + lines({"turns": [], "personas": ["x"]}), 'a.jsonl: line 2: "personas"'),
        (lines({"turns": [], "personas": {"1": "x"}}), 'a.jsonl: line 1: the persona of "1" has to be a list'),
        (lines({"turns": [], "id": True}), 'a.jsonl: line 1: "id" is true or false where a name'),
        (GOOD + GOOD, 'a.jsonl: line 2: the id "g" stands already at a.jsonl: line 1'),
        (b'{"turns": "\xff"}', "a.jsonl: line 1 is not UTF-8 (byte 0xff"),
        ("", "a.jsonl is empty"),
        ("\n\n", "a.jsonl is empty"),
        ("[]", "a.jsonl is empty"),
        (lines({"turns": []}), "a.jsonl holds no utterance"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_with_the_line(write, content, expected):
    with pytest.raises(SurveyError) as caught:
        read_dialogue_json(write("a.jsonl", content))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_endless_utterances_numbers_and_nesting(write):
    with pytest.raises(SurveyError, match=r"line 2, turn 2: the utterance has 1,000,000 characters; more than 100,000"):
        read_dialogue_json(write("a.jsonl", GOOD + lines({"turns": said("1 a", "2 " + "x" * 1_000_000)})))
    for value in ("[" * 200_000, "1" * 5000):
        with pytest.raises(SurveyError, match=r"line 1 is JSON that cannot be read"):
            read_dialogue_json(write("a.jsonl", '{"turns": ' + value))


def test_a_named_format_decides(write):
    file = write("a.jsonl", lines({"turns": said("1 a"), "messages": [{"role": "user", "content": "hi"}]}))
    assert read_dialogue_json(file, format="openai")[0].turns == (Turn("user", "hi"),)
    assert read_dialogue_json(file, format="turns")[0].turns == (Turn("1", "a"),)


@pytest.mark.shared
@pytest.mark.parametrize(("part", "size", "silent", "turns"), [("train", 6700, 36, 178_049), ("valid", 746, 3, 20_242)])
def test_the_real_files(shared, part, size, silent, turns):
    dialogues = read_dialogue_json(shared / "synthetic-persona-chat" / f"{part}.jsonl.gz")
    assert len(dialogues) == size
    assert {note.reason: note.count for note in dialogues.account.notes}["dialogue without an utterance"] == silent
    assert len(dialogues.examples()) == sum(dialogues.speakers.values()) == turns
    assert set(dialogues.speakers) == {"1", "2"}
