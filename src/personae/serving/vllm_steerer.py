"""`VllmSteerer`: a steerer as the library knows it, whose answers and replies a vLLM server computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from anyio.from_thread import start_blocking_portal

from personae.data.survey import Question
from personae.lm.template import Message
from personae.people.persona import Persona
from personae.serving.backend import Piece, Sampling
from personae.serving.vllm import VllmBackend
from personae.steering.base import ChatRows, Steerer


class VllmSteerer(Steerer):
    """``answer``, ``chat``, ``stream`` and ``predict_proba`` of a steerer on a vLLM server.

    Parameters
    ----------
    steerer : PersonaPrompt
    url : str
    **how
        Of `VllmBackend`.

    Raises
    ------
    ValueError, Unavailable
        As `VllmBackend` does.

    Examples
    --------
    >>> def ask(steerer, persona):
    ...     with VllmSteerer(steerer, "http://localhost:8000") as remote:
    ...         return remote.answer("Free trains?", ["no", "yes"], persona), remote.chat("Why?", persona)
    """

    def __init__(self, steerer: Steerer, url: str, **how: Any) -> None:
        self._steerer, self.lm_ = steerer, steerer.lm_
        self._backend = VllmBackend(steerer, url, **how)
        self._loop = start_blocking_portal()  # a thread with an event loop, in which all requests are made
        self._portal = self._loop.__enter__()

    def __enter__(self) -> VllmSteerer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connections; needed once, at the end."""
        self._portal.call(self._backend.close, 0.0)
        self._loop.__exit__(None, None, None)

    def __repr__(self) -> str:
        return f"VllmSteerer({self._steerer!r}, {self._backend.url!r})"

    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """See `Steerer`."""

        async def blocks() -> list[np.ndarray]:
            return [block async for block in self._backend.answers(personas, questions, read)]

        return np.concatenate(self._portal.call(blocks), 1)

    def stream(
        self,
        messages: Sequence[Message],
        personas: Sequence[Persona],
        max_new_tokens: int = 80,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[list[str]]:
        """See `Steerer`."""
        seeds = range(len(personas)) if seeds is None else seeds
        how = [Sampling(max_new_tokens, temperature, top_p, seed) for seed in seeds]
        replies = [self._backend.chat(messages, who, each) for who, each in zip(personas, how, strict=True)]
        try:
            while any(pieces := self._portal.call(_step, replies)):
                yield ["" if piece is None else piece.text for piece in pieces]
        finally:
            self._portal.call(_end, replies)

    def chat_rows(self, messages: Sequence[Message], personas: Sequence[Persona]) -> ChatRows:
        """See `Steerer`; computed here."""
        return self._steerer.chat_rows(messages, personas)

    def save(self, folder: Path | str) -> None:
        """See `Steerer`; where it runs is not saved."""
        self._steerer.save(folder)


async def _step(replies: Sequence[AsyncGenerator[Piece, None]]) -> list[Piece | None]:
    """The next piece of each reply; None of one that has ended."""
    return list(await asyncio.gather(*(anext(reply, None) for reply in replies)))


async def _end(replies: Sequence[AsyncGenerator[Piece, None]]) -> None:
    for reply in replies:
        await reply.aclose()
