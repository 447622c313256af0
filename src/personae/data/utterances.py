"""What every reader of dialogues needs: numbered lines of a file, clean utterances, an account of the speakers."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from personae.data.account import Account, SurveyError
from personae.data.dialogues import MAX_TEXT, Dialogue, Dialogues

MAX_LINE = 16 << 20  # bytes; a longer line is no dialogue, and reading on would take all the memory there is
SILENCE = "__SILENCE__"  # what ConvAI2 writes where the partner has not said anything yet
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def read_lines(path: Path, account: Account) -> Iterator[tuple[str, str]]:
    """(place, line) of each line of a UTF-8 file, also gzipped; empty lines are counted, line ends removed.

    A place reads ``talk.txt: line 7``. A line ends where the file says so, not at the other ends of Unicode.
    """
    with _opened(path) as stream:
        number = 0
        while raw := stream.readline(MAX_LINE + 1):
            number += 1
            where = f"{path.name}: line {number}"
            if len(raw) > MAX_LINE:
                raise SurveyError(f"{where} is longer than {MAX_LINE >> 20} MB; is this a file of dialogues?")
            line = _decoded(raw, where, first=number == 1).rstrip("\r\n")
            if line.strip():
                yield where, line
            else:
                account.add("empty line", where=where)


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, also gzipped."""
    with _opened(path) as stream:
        return _decoded(stream.read(), path.name, first=True)


def opening(path: Path) -> bytes:
    """The first bytes of a file, also gzipped, without blanks and byte-order mark before them; at most 4,096."""
    with _opened(path) as stream:
        return stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()


def clean(text: str, what: str, where: str, account: Account) -> str:
    """An utterance or persona sentence without blanks around it; ``""``, and counted, where nothing is said.

    Raises
    ------
    SurveyError
        More than 100,000 characters, or a NUL character.
    """
    words = text.strip()
    if not words:
        account.add(f"empty {what}, left out", where=where)
        return ""
    if words == SILENCE:
        account.add(f"{SILENCE}, which is no utterance, left out", where=where)
        return ""
    if len(words) > MAX_TEXT:
        raise SurveyError(
            f"{where}: the {what} has {len(words):,} characters; more than {MAX_TEXT:,} is nothing that somebody "
            "says, shorten or remove it"
        )
    if "\x00" in words:
        raise SurveyError(f"{where}: the {what} holds a NUL character; the file is damaged, copy it again")
    if words != text:
        account.add(f"{what} with blanks around it, blanks removed", where=where)
    if _HALF_CHARACTER.search(words):  # JSON can write half of an emoji; nothing that takes UTF-8 would take it
        account.add(f"{what} with half a character, replaced by \ufffd", where=where)
        words = _HALF_CHARACTER.sub("\ufffd", words)
    return words


def build_dialogues(account: Account, found: Iterable[tuple[str, Dialogue]]) -> Dialogues:
    """`Dialogues` of (place, dialogue) pairs; dialogues with one speaker or none are kept and counted."""
    place: dict[str, str] = {}
    dialogues: list[Dialogue] = []
    for where, dialogue in found:
        if dialogue.id in place:
            raise SurveyError(
                f'{where}: the id "{dialogue.id}" stands already at {place[dialogue.id]}; '
                "give every dialogue an id of its own"
            )
        place[dialogue.id] = where
        speakers = {turn.speaker for turn in dialogue.turns}
        if not speakers:
            account.add("dialogue without an utterance", where=where)
        elif len(speakers) == 1:
            account.add("dialogue in which only one speaker says something", where=where)
        dialogues.append(dialogue)
    if not any(dialogue.turns for dialogue in dialogues):
        raise SurveyError(f"{Path(account.source).name} holds no utterance; is it the right file?")
    return Dialogues(dialogues, account)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.is_dir():
        raise SurveyError(f"{path} is a folder; give the file of dialogues in it")
    if not path.exists():
        raise SurveyError(f"there is no file {path}")
    with open(path, "rb") as plain:
        if plain.read(2) != b"\x1f\x8b":
            plain.seek(0)
            yield plain
            return
    try:
        with gzip.open(path) as unzipped:
            yield unzipped  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise SurveyError(f"{path.name} is a damaged or cut-off gzip file; copy it again") from None


def _decoded(raw: bytes, where: str, first: bool) -> str:
    if first:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SurveyError(
            f"{where} is not UTF-8 (byte 0x{raw[error.start]:02x} at its position {error.start + 1:,}); "
            "save the file as UTF-8 and read it again"
        ) from None
