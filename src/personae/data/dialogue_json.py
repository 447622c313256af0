"""Dialogues as JSON: objects with personas and turns, ShareGPT conversations, or OpenAI messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from personae.data.account import Account, SurveyError
from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.data.utterances import build_dialogues, clean, opening, read_lines, read_text


class Keys(NamedTuple):
    """What a style of JSON calls the list of turns, and in a turn the speaker and the text."""

    turns: str
    speaker: str
    text: str


STYLES = {
    "turns": Keys("turns", "speaker", "text"),
    "sharegpt": Keys("conversations", "from", "value"),
    "openai": Keys("messages", "role", "content"),
}
# The roles of ShareGPT and OpenAI by one name each; in the "turns" style a speaker is called as he is.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "function": "tool",
    "function_call": "tool",
    "observation": "tool",
}


def read_dialogue_json(path: str | Path, format: str | None = None) -> Dialogues:
    """Read JSON lines (or one JSON list) of dialogues.

    Parameters
    ----------
    path : str or Path
        UTF-8, also gzipped; one object a line, or one list of objects. An object has

        - ``turns``: a list of ``{"speaker": .., "text": ..}``, or
        - ``conversations``: a list of ``{"from": .., "value": ..}`` (ShareGPT), or
        - ``messages``: a list of ``{"role": .., "content": ..}`` (OpenAI),

        and where wanted ``id`` and ``personas`` (speaker to list of sentences). Other fields are counted and not read.
    format : {"turns", "sharegpt", "openai"}, optional
        Where the first object does not say it.

    Returns
    -------
    Dialogues
        An object without id is called by its number. In the styles of ShareGPT and OpenAI the speakers are ``"user"``
        (``human``) and ``"assistant"`` (``gpt``); the system message is what the assistant is told to be, so each of
        its lines is a persona sentence of the assistant. Messages of tools, and system messages after the first
        utterance, are counted and left out; so are empty turns and ``__SILENCE__``.

    Raises
    ------
    SurveyError
        A line that is no JSON object or lacks its turns, a turn without speaker; with file, line and turn.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "talk.jsonl"
    >>> talk = [{"role": "system", "content": "You like tea."}, {"role": "user", "content": "Coffee?"},
    ...         {"role": "assistant", "content": "Tea, please."}]
    >>> _ = file.write_text(json.dumps({"messages": talk}))
    >>> read_dialogue_json(file).examples()
    [Example(dialogue='1', speaker='assistant', persona=('You like tea.',),
             history=(Turn(speaker='user', text='Coffee?'),), reply='Tea, please.')]
    """
    path = Path(path)
    account = Account(str(path), format or "json")
    records = _records(path, account)
    first = next(records, None)
    if first is None:
        raise SurveyError(f"{path.name} is empty")
    account.format = format or _style(*first)
    numbered = enumerate(chain([first], records), 1)
    return build_dialogues(account, ((where, _dialogue(i, record, where, account)) for i, (where, record) in numbered))


def _records(path: Path, account: Account) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each dialogue of the file."""
    if opening(path).startswith(b"["):
        found = (
            (f"{path.name}: dialogue {i}", entry) for i, entry in enumerate(_parsed(read_text(path), path.name), 1)
        )
    else:
        found = ((where, _parsed(line, where)) for where, line in read_lines(path, account))
    for where, record in found:
        if not isinstance(record, dict):
            raise SurveyError(f"{where} is {_named(record)}; a dialogue is a JSON object, all of it in one line")
        yield where, record


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.colno}"
        raise SurveyError(
            f"{where} is not JSON ({error.msg} at {at}); JSON lines hold one whole object a line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SurveyError(f"{where} is JSON that cannot be read ({error}); correct or remove it") from None


def _style(where: str, record: dict[str, Any]) -> str:
    fitting = [name for name, keys in STYLES.items() if keys.turns in record]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise SurveyError(f"{where} fits several formats; say which: format={' or '.join(map(repr, fitting))}")
    shown = ", ".join(list(record)[:6]) or "nothing"
    wanted = ", ".join(f'"{keys.turns}" ({name})' for name, keys in STYLES.items())
    raise SurveyError(f"{where} holds {shown}; a dialogue needs one of {wanted}")


def _dialogue(number: int, record: dict[str, Any], where: str, account: Account) -> Dialogue:
    keys = STYLES[account.format]
    entries = record.get(keys.turns)
    if not isinstance(entries, list):
        raise SurveyError(f'{where}: "{keys.turns}" is {_named(entries)} where a list of turns is needed')
    personas = _personas(record, where, account)
    turns: list[Turn] = []
    for i, entry in enumerate(entries, 1):
        place = f"{where}, turn {i}"
        if not isinstance(entry, dict):
            raise SurveyError(
                f'{place} is {_named(entry)}; a turn is an object with "{keys.speaker}" and "{keys.text}"'
            )
        _tell_unread(entry, keys[1:], "field of a turn", place, account)
        speaker = _name(entry.get(keys.speaker), f'{place}: "{keys.speaker}"')
        role = speaker if account.format == "turns" else _ROLES.get(speaker, speaker)
        is_told = account.format != "turns" and role in ("system", "tool")
        what = f"{role} message" if is_told else "utterance"
        text = clean(_text(entry.get(keys.text), place, keys.text, account), what, place, account)
        if not text:
            continue
        if not is_told:
            turns.append(Turn(role, text))
        elif role == "system" and not turns:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            personas["assistant"] = (*personas.get("assistant", ()), *lines)
        else:
            account.add("message of a tool" if role == "tool" else "system message after an utterance", where=place)
    _tell_unread(record, ("id", "personas", keys.turns), "field of a dialogue", where, account)
    name = _name(record["id"], f'{where}: "id"') if record.get("id") is not None else str(number)
    return Dialogue(name, tuple(turns), personas)


def _personas(record: dict[str, Any], where: str, account: Account) -> dict[str, tuple[str, ...]]:
    """Speaker to sentences; who has no sentence is left out."""
    given = record.get("personas") or {}
    if not isinstance(given, dict):
        raise SurveyError(f'{where}: "personas" is {_named(given)} where an object of speaker to sentences is needed')
    personas = {}
    for speaker, sentences in given.items():
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise SurveyError(f'{where}: the persona of "{speaker}" has to be a list of sentences')
        name = _name(speaker, f"{where}: the speaker of a persona")
        cleaned = (clean(sentence, "persona sentence", where, account) for sentence in sentences)
        if known := tuple(sentence for sentence in cleaned if sentence):
            personas[name] = known
    return personas


def _text(value: object, place: str, key: str, account: Account) -> str:
    """The text of a turn: a string, nothing, or OpenAI's list of parts, of which those with a text count."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        texts = [part["text"] for part in value if isinstance(part.get("text"), str)]
        account.add("part of a message that is no text, left out", len(value) - len(texts), where=place)
        return "\n".join(texts)
    raise SurveyError(f'{place}: "{key}" is {_named(value)} where a text is needed')


def _name(value: object, where: str) -> str:
    """The name of a speaker or dialogue; numbers are names, too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise SurveyError(f"{where} is {_named(value)} where a name is needed")
    return value.strip()


def _tell_unread(entry: dict[str, Any], known: tuple[str, ...], what: str, where: str, account: Account) -> None:
    for name in entry:
        if name not in known:
            account.add(f"{what} that is not read: {name}", where=where)


def _named(value: object) -> str:
    """What a value of JSON is, in words."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return f'the text "{value[:40]}"' if value.strip() else "empty"
    names = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}
    return names[type(value)]
