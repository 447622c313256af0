"""`Steerer`: whatever makes a frozen LM answer and talk as somebody."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.lm.generation import stream
from personae.lm.prompts import Message, Prompt
from personae.lm.reading import KeyValues
from personae.lm.shared_context import Context
from personae.people.persona import ANYONE, Persona

REGISTRY: dict[str, type[Steerer]] = {}
_PART = 16  # people whose answers to one question are computed without a pause
READS = ("letters", "text")  # how an answer is read: by option letter, or by the options' full text


def check_read(read: str) -> None:
    """Raise ``ValueError`` if there is no such way to read an answer."""
    if read not in READS:
        raise ValueError(f'answers are read by "letters" or by "text", not by "{read}"')


class ChatRows(NamedTuple):
    """Rows that `personae.lm.generation.stream` continues.

    Attributes
    ----------
    prompts : list of R Prompt
    virtual : Tensor (R, T, H), deep ones (R, T, L*H), keys and values (R, Hkv, T, D) a layer for placement ``prefix``,
        or None
    mixed : Tensor (R / N, N), optional
        Where every N rows are one voice, the log of their weights.
    contexts : list of R Context, optional
        What stands before the virtual tokens, where the LM read it to find them.
    """

    prompts: list[Prompt]
    virtual: Tensor | KeyValues | None
    mixed: Tensor | None = None
    contexts: list[Context] | None = None

    @classmethod
    def together(cls, parts: Sequence[ChatRows]) -> ChatRows:
        """The rows of several, all of one steerer, in their order."""
        prompts, virtual, mixed, contexts = zip(*parts, strict=True)
        return cls(
            list(chain.from_iterable(prompts)),
            None if virtual[0] is None else _joined(virtual),
            None if mixed[0] is None else torch.cat(mixed),
            None if contexts[0] is None else list(chain.from_iterable(contexts)),
        )


def _joined(virtual: Sequence[Tensor | KeyValues]) -> Tensor | KeyValues:
    if isinstance(virtual[0], Tensor):
        return torch.cat([own for own in virtual if isinstance(own, Tensor)])
    layers = zip(*virtual, strict=True)  # of each the pairs of all parts
    return [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]


class Steerer(BaseEstimator, ABC):
    """One method of steering; a subclass with a ``method`` name registers itself.

    Attributes
    ----------
    lm_ : FrozenLM
    """

    method: ClassVar[str] = ""
    lm_: FrozenLM

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.method:
            REGISTRY[cls.method] = cls

    # what a method must do -------------------------------------------------------------------------------------
    @abstractmethod
    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """Option probabilities (P, Q, K), K the most options of these questions, zero beyond a question's own."""

    @abstractmethod
    def chat_rows(self, messages: Sequence[Message], personas: Sequence[Persona]) -> ChatRows:
        """One chat as each persona hears it: what the LM is to continue, and the virtual tokens in it."""

    @abstractmethod
    def save(self, folder: Path | str) -> None:
        """Write tensors as safetensors and the rest as JSON into an existing or new folder."""

    # what a method may do better, or at all --------------------------------------------------------------------
    def predict_parts(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> Iterator[tuple[slice, list[int], np.ndarray]]:
        """`predict_proba` a part at a time, each of a fraction of a second, so that other work fits in between.

        Yields
        ------
        (rows, columns, p)
            Which personas and which questions, and their probabilities (n, q, k).
        """
        for j, question in enumerate(questions):
            for first in range(0, len(personas), _PART):
                rows = slice(first, first + _PART)
                yield rows, [j], self.predict_proba(personas[rows], [question], read)

    def text_rows(self, text: str, personas: Sequence[Persona]) -> ChatRows:
        """A text as each persona goes on with it, as `chat_rows` gives a chat."""
        raise ValueError(
            f"the method {self.method} steers answers and chats, not the continuation of a text; use a chat"
        )

    # what follows from it --------------------------------------------------------------------------------------
    def stream(
        self,
        messages: Sequence[Message],
        personas: Sequence[Persona],
        max_new_tokens: int = 80,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[list[str]]:
        """The personas' replies to one chat, decoded together; each step yields the new text of everyone."""
        rows = self.chat_rows(messages, personas)
        return stream(
            self.lm_, rows.prompts, rows.virtual, max_new_tokens, temperature, top_p, seeds, rows.mixed, rows.contexts
        )

    def answer(
        self, text: str, options: Sequence[str], personas: Persona | Sequence[Persona], read: str = "letters"
    ) -> pd.DataFrame:
        """Answers to one question, known or new.

        Parameters
        ----------
        text : str
            The question's wording.
        options : sequence of str
            At least two, in scale order.
        read : {"letters", "text"}
            By option letter, or by the options' full text, length-normalised.

        Returns
        -------
        DataFrame, personas x options
            Probabilities; rows sum to one.
        """
        people = [personas] if isinstance(personas, Persona) else list(personas)
        options = [options] if isinstance(options, str) else list(options)
        if len(options) < 2 or len(set(options)) < len(options) or not all(o.strip() for o in options):
            raise ValueError(f"a question needs at least two different options; got: {' | '.join(options) or 'none'}")
        p = self.predict_proba(people, [Question("asked", text, tuple(options))], read)
        return pd.DataFrame(p[:, 0], index=[q.name for q in people], columns=list(options))

    def chat(self, messages: str | Sequence[Message], persona: Persona = ANYONE, seed: int = 0, **how: Any) -> str:
        """A persona's reply to a message or to a whole chat.

        Parameters
        ----------
        messages : str or list of {"role", "content"}
        persona : Persona
            May be left out where the steerer learned nothing of people.
        **how
            ``max_new_tokens``, ``temperature`` and ``top_p`` of `stream`; greedy by default.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return "".join(piece for (piece,) in self.stream(turns, [persona], seeds=[seed], **how)).strip()
