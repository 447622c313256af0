from __future__ import annotations

import gzip
import json

import pytest

import personae as ps
from personae.data.account import SurveyError
from personae.data.read_dialogues import read_dialogues

TEXT = "1 your persona: i like tea.\n2 hi\thello\n"
UUID = "a07edb12-6b91-4138-b11e-02421888d699"
RECORDS = {
    "turns": {"turns": [{"speaker": "1", "text": "hi"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}]},
    "openai": {"messages": [{"role": "user", "content": "hi"}]},
    "chitchat": {UUID: {"messages": [[{"text": "hi", "sender": "ann"}]]}},
}


@pytest.mark.parametrize("style", RECORDS)
def test_json_is_recognised_and_named(write, style):
    text = json.dumps(RECORDS[style])
    for file in (
        write("a.jsonl", text),
        write("b", "\ufeff\n " + text),
        write("c.gz", gzip.compress(text.encode())),
    ):
        dialogues = read_dialogues(file)
        assert dialogues.account.format == style
        assert dialogues.account.source == str(file)
        assert [turn.text for turn in dialogues[0].turns] == ["hi"]
        assert read_dialogues(file, format=style).fingerprint == dialogues.fingerprint


def test_convai2_is_recognised_by_its_numbers(write):
    for file in (write("a.json", TEXT), write("b.gz", gzip.compress(TEXT.encode()))):
        assert read_dialogues(file).account.format == "convai2"
        assert len(ps.read_dialogues(str(file), format="convai2").examples()) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hello there\n", "a.txt is not a file that can be read as dialogues; accepted are ConvAI2 text"),
        ("respondent,q1\n1,a\n", "a.txt is not a file"),
        (b"\xff\xfe1\x00 \x00", "a.txt is not a file"),
        ("", "a.txt is empty"),
        ("\n \n", "a.txt is empty"),
    ],
)
def test_what_is_no_file_of_dialogues(write, content, expected):
    with pytest.raises(SurveyError) as caught:
        read_dialogues(write("a.txt", content))
    assert str(caught.value).startswith(expected)


def test_paths_and_formats_that_there_are_not(tmp_path):
    with pytest.raises(SurveyError, match="there is no file"):
        read_dialogues(tmp_path / "none.txt")
    with pytest.raises(SurveyError, match="is a folder; give the file"):
        read_dialogues(tmp_path)
    with pytest.raises(SurveyError, match='there is no format "text"; the formats are convai2, turns'):
        read_dialogues(tmp_path, format="text")
