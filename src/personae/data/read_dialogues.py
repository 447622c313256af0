"""`read_dialogues`: recognises what a file of dialogues is and calls its reader."""

from __future__ import annotations

import re
from pathlib import Path

from personae.data.account import SurveyError
from personae.data.chitchat import read_chitchat
from personae.data.convai2 import read_convai2
from personae.data.dialogue_json import STYLES, read_dialogue_json
from personae.data.dialogues import Dialogues
from personae.data.utterances import opening

FORMATS = ("convai2", *STYLES, "chitchat")
_ACCEPTED = (
    "ConvAI2 text (numbered lines), JSON lines or a JSON list of objects with turns, conversations (ShareGPT) or "
    'messages (OpenAI), the dataset.json of chitchat-dataset, or the word "chitchat"'
)


def read_dialogues(path: str | Path, format: str | None = None) -> Dialogues:
    """Read dialogues of any known format; ``dialogues.account`` says which, and what was left out and why.

    Parameters
    ----------
    path : str or Path
        A file, also gzipped, or ``"chitchat"`` for the conversations of 1,315 real people, fetched once.
    format : str, optional
        ``convai2``, ``turns``, ``sharegpt``, ``openai`` or ``chitchat`` where the guess would be wrong.

    Returns
    -------
    Dialogues

    Raises
    ------
    SurveyError
        Nothing is recognised, or the file is wrong; the message says where and what to do.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "talk.txt"
    >>> _ = file.write_text("1 your persona: i like tea.\\n2 __SILENCE__\\thi !\\n3 coffee ?\\ttea .\\n")
    >>> dialogues = read_dialogues(file)
    >>> dialogues
    Dialogues(1 dialogue, 3 turns, 2 speakers)
    >>> dialogues.account.format, [(note.count, note.reason) for note in dialogues.account.notes]
    ('convai2', [(1, '__SILENCE__, which is no utterance, left out')])
    """
    if format is not None and format not in FORMATS:
        raise SurveyError(f'there is no format "{format}"; the formats are {", ".join(FORMATS)}')
    if str(path) == "chitchat" and format in (None, "chitchat"):
        return read_chitchat()
    path = Path(path)
    kind = format or _recognise(path)
    if kind == "convai2":
        return read_convai2(path)
    if kind == "chitchat":
        return read_chitchat(path)
    return read_dialogue_json(path, format)


def _recognise(path: Path) -> str:
    """``convai2``, ``chitchat``, or ``json``, whose reader knows the styles."""
    start = opening(path)
    if not start:
        raise SurveyError(f"{path.name} is empty")
    if re.match(rb"\d+ ", start):
        return "convai2"
    if re.match(rb'\{\s*"[0-9a-f]{8}-[0-9a-f-]{27}"', start):  # conversations by their UUIDs
        return "chitchat"
    if start[:1] in b"{[":
        return "json"
    raise SurveyError(f"{path.name} is not a file that can be read as dialogues; accepted are {_ACCEPTED}")
