"""What every export starts from: one persona's virtual tokens in one context, checked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personae.data.survey import Question
from personae.lm.names import EMBEDDED, is_hub_id
from personae.lm.prompts import LETTERS, Message, Prompt, letter_ids
from personae.lm.reading import KeyValues
from personae.people.persona import Persona
from personae.steering.persona_prompt import PersonaPrompt

Context = Question | Sequence[Message]
"""A question to be answered by a letter, or a chat to be continued."""
_ANY_QUESTION = Question("any", "?", ("no", "yes"))  # where none is read


@dataclass(frozen=True)
class ExportedPrompt:
    """One persona's virtual tokens in one context.

    Attributes
    ----------
    steerer : PersonaPrompt
    persona : Persona
    context : Question, list of messages, or None
        None where the virtual tokens are the same for every question.
    prompt : Prompt or None
        The context's own tokens.
    virtual : Tensor (T, H), or for placement ``prefix`` keys and values (1, Hkv, T, D) a layer
        All of them finite.
    """

    steerer: PersonaPrompt
    persona: Persona
    context: Context | None
    prompt: Prompt | None
    virtual: Tensor | KeyValues

    @classmethod
    def make(cls, steerer: Any, persona: Persona, context: Context | None = None) -> ExportedPrompt:
        """Compute the virtual tokens.

        Parameters
        ----------
        context : Question or list of messages, optional
            May be left out where virtual tokens depend on the person alone (recipes ``paper`` and ``constant``).

        Raises
        ------
        ValueError
            The method has no virtual tokens, they depend on a context that is not given, or one is not finite.
        """
        if context is None and check_method(steerer).recipe == "contextual":
            raise ValueError(
                "this steerer makes its virtual tokens anew for every question and chat; say for which one: --question "
                "(with --options where it is new) or --message, or train one whose virtual tokens depend on the person "
                "alone: personae steer BUNDLE --recipe paper"
            )
        asked = _ANY_QUESTION if context is None else context
        if isinstance(asked, Question):
            rows = check_method(steerer).question_rows(asked, [persona])
        else:
            rows = check_method(steerer).chat_rows(asked, [persona])
        assert rows.virtual is not None  # as of every `PersonaPrompt`
        virtual = rows.virtual[0] if isinstance(rows.virtual, Tensor) else rows.virtual
        check_finite(virtual, persona)
        return cls(steerer, persona, context, None if context is None else rows.prompts[0], virtual)

    @property
    def letters(self) -> dict[str, int]:
        """Of a question, each option's letter and the id of its token."""
        if not isinstance(self.context, Question):
            return {}
        n = len(self.context.options)
        return dict(zip(LETTERS, letter_ids(self.steerer.lm_, n), strict=False))

    @property
    def sharpness(self) -> float:
        """What `PersonaPrompt` multiplies the letters' logits with; without a context, those of new questions."""
        if self.context is None:
            return self.steerer.sharpness_
        return self.steerer.sharpness_of(self.context) if isinstance(self.context, Question) else 1.0


def check_method(steerer: Any) -> PersonaPrompt:
    """The steerer; ``ValueError`` unless it makes one set of virtual tokens for a person in a context."""
    if not isinstance(steerer, PersonaPrompt):
        raise ValueError(
            f'a steerer of the method "{steerer.method}" has no virtual tokens of a persona to export; train one that '
            "has: personae steer BUNDLE"
        )
    return steerer


def check_finite(virtual: Tensor | KeyValues, persona: Persona) -> None:
    """Raise ``ValueError`` unless every number is finite: one that is not fails the requests of others on a server."""
    tensors = [virtual] if isinstance(virtual, Tensor) else [x for pair in virtual for x in pair]
    if not all(bool(torch.isfinite(x).all()) for x in tensors):
        raise ValueError(
            f'virtual tokens of "{persona.name}" are not finite, so nothing is written; train the steerer again'
        )


def hub_id(steerer: Any) -> str | None:
    """The hub id of the very LM that a steerer was trained with; None of a folder, or of the copy in a package, whose
    numbers are not the hub's."""
    name = steerer.lm_.name
    folder = str(getattr(steerer.lm_.model.config, "_name_or_path", ""))
    if name in EMBEDDED:
        known: str = EMBEDDED[name].hub_id
        return known if "models--" + known.replace("/", "--") in folder else None
    return name if is_hub_id(name) and not Path(name).exists() else None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which stands at its place when it is whole, or not at all.

    Raises
    ------
    ValueError
        Something is there already.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty, so nothing is written there; give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new.chmod(0o755)  # it may be shared, as what any program writes
        yield new
        os.rename(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
