"""ConvAI2 (Persona-Chat) in ParlAI's text form: numbered lines, persona sentences first, then pairs with a tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from personae.data.account import Account, SurveyError
from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.data.utterances import build_dialogues, clean, read_lines

_PERSONAS = {"your persona:": "self", "partner's persona:": "partner"}


def read_convai2(path: str | Path) -> Dialogues:
    """Read a ConvAI2 file such as ``valid_self_original.txt``.

    Parameters
    ----------
    path : str or Path
        UTF-8, also gzipped. Lines are numbered from 1 in each dialogue: ``1 your persona: i like tea.`` (also
        ``partner's persona:``), then ``5 partner's utterance<TAB>reply``. Further cells (rewards, candidate replies)
        are counted and not read.

    Returns
    -------
    Dialogues
        Of the speakers ``"partner"`` and ``"self"``, who replies; ids are the dialogues' numbers in the file. Empty
        utterances and ``__SILENCE__`` are counted and are no turns.

    Raises
    ------
    SurveyError
        A line without number, tab or in the wrong place, with its line number.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "talk.txt"
    >>> _ = file.write_text("1 your persona: i like tea.\\n2 hi , what do you drink ?\\ttea .\\n")
    >>> read_convai2(file).examples()
    [Example(dialogue='1', speaker='self', persona=('i like tea.',),
             history=(Turn(speaker='partner', text='hi , what do you drink ?'),), reply='tea .')]
    """
    path = Path(path)
    account = Account(str(path), "convai2")
    return build_dialogues(account, _dialogues(path, account))


def _dialogues(path: Path, account: Account) -> Iterator[tuple[str, Dialogue]]:
    begun, count, previous = "", 0, 0  # where the dialogue begins, which one it is, the number of its last line
    turns: list[Turn] = []
    personas: dict[str, list[str]] = {}
    for where, line in read_lines(path, account):
        number, words = _numbered(line, where)
        if number == 1:
            if begun:
                yield begun, _dialogue(count, turns, personas)
            begun, count, turns, personas = where, count + 1, [], {}
        elif not begun or number != previous + 1:
            expected = f"{previous + 1}, or 1 for a new dialogue" if begun else "1"
            raise SurveyError(
                f"{where} has the number {number} where {expected} is expected; a line is missing or moved"
            )
        previous = number
        cells = words.split("\t")
        if len(cells) == 1:
            speaker, sentence = _persona(words, where)
            if turns:
                raise SurveyError(
                    f"{where} is a persona sentence after the first utterance; does a new dialogue begin there? "
                    "Then number it from 1"
                )
            if sentence := clean(sentence, "persona sentence", where, account):
                personas.setdefault(speaker, []).append(sentence)
            continue
        if any(cells[2:]):
            account.add("line with rewards or candidate replies, which are not read", where=where)
        for speaker, what, text in (("partner", "utterance", cells[0]), ("self", "reply", cells[1])):
            if text := clean(text, what, where, account):
                turns.append(Turn(speaker, text))
    if begun:
        yield begun, _dialogue(count, turns, personas)


def _dialogue(count: int, turns: list[Turn], personas: dict[str, list[str]]) -> Dialogue:
    return Dialogue(str(count), tuple(turns), {speaker: tuple(known) for speaker, known in personas.items()})


def _numbered(line: str, where: str) -> tuple[int, str]:
    number, _, words = line.partition(" ")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise SurveyError(f'{where} begins with "{number[:20]}"; every line of ConvAI2 begins with its number')
    return int(number), words


def _persona(words: str, where: str) -> tuple[str, str]:
    """(speaker, sentence); only the words before the sentence are taken off, whatever stands inside it."""
    for beginning, speaker in _PERSONAS.items():
        if words.startswith(beginning):
            return speaker, words.removeprefix(beginning).removeprefix(" ")
    raise SurveyError(
        f"{where} has no tab; between the partner's utterance and the reply there has to be one "
        '(and a persona sentence begins with "your persona:")'
    )
