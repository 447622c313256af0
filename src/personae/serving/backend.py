"""`Backend`: what the server asks for replies and answers, whoever computes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from personae.data.survey import Question
from personae.lm.template import Message
from personae.people.persona import Persona


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn.

    Parameters
    ----------
    max_tokens : int
        Of the new text, at least 1.
    temperature : float
        0 takes the likeliest token.
    top_p : float in (0, 1]
        Draw only from the smallest set of tokens with at least this probability.
    seed : int
        Same seed, same text, whatever else is computed beside it.
    stop : tuple of str
        The text ends before the first of these.
    """

    max_tokens: int = 80
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ``ValueError`` if a number is out of its range."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1; got {self.max_tokens}")
        if not (0 < self.top_p <= 1 and 0 <= self.temperature < float("inf")):
            raise ValueError(
                f"temperature must be at least 0 and top_p in (0, 1]; got {self.temperature} and {self.top_p}"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1; got {self.seed}")
        if not all(self.stop):
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True)
class Piece:
    """New text of a reply; the last piece says why it ends and how long everything was.

    Parameters
    ----------
    text : str
        May be empty.
    finish : {"stop", "length"} or None
        On the last piece: it came to its end or to a stop string, or it reached ``max_tokens``.
    prompt_tokens, completion_tokens : int
        On the last piece; virtual tokens count among the prompt's.
    """

    text: str
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Busy(Exception):
    """The queue is full.

    Attributes
    ----------
    retry_after : float
        Seconds after which there may be room.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after:.0f} seconds")
        self.retry_after = retry_after


class Unavailable(Exception):
    """The backend is closing, or it failed as a whole: this request and all others end."""


class Backend(Protocol):
    """Replies and answers of personas.

    The three methods return at once; what they raise, they raise when the first item is asked for: ``ValueError`` with
    a sentence for a request that cannot be served, `Busy` where too many wait, `Unavailable` where there is no going
    on. Closing the generator (``aclose``, see `contextlib.aclosing`) frees what it uses.
    """

    name: str

    def chat(self, messages: Sequence[Message], persona: Persona, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """A persona's reply to a chat, piece by piece."""
        ...

    def complete(self, text: str, persona: Persona | None, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """A text as a persona (or the LM alone) goes on with it."""
        ...

    def answers(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> AsyncGenerator[np.ndarray, None]:
        """Option probabilities, a block of questions at a time.

        Yields
        ------
        float32 array (P, q, K)
            The next q questions, in the order given; K is the most options of all these questions, zero beyond a
            question's own.
        """
        ...

    async def close(self, grace: float) -> None:
        """Take nothing new, let what runs end within ``grace`` seconds, and end the rest with `Unavailable`."""
        ...

    def load(self) -> dict[str, float]:
        """Numbers for monitoring: ``alive`` (0 or 1), what waits and runs, what was done since the start."""
        ...
