"""`LocalBackend`: replies and answers of a steerer in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence

import numpy as np

from personae.data.survey import Question
from personae.lm.template import Message
from personae.people.persona import Persona
from personae.serving.backend import Piece, Sampling
from personae.serving.batching import Batcher
from personae.serving.starts import Asked, Starts
from personae.steering.base import Steerer, check_read

_QUESTIONS = 16  # of one block of answers


class LocalBackend:
    """The `Backend` of a fitted steerer and its LM, on one thread of this process.

    Parameters
    ----------
    steerer : Steerer
        From now on used by the backend alone.
    max_rows : int
        Replies decoded together.
    max_waiting, max_jobs : int
        Replies that may wait for a place, and calls of `answers` that may be under way.

    Notes
    -----
    In bfloat16 a batch rounds otherwise than a single row, so that a greedy reply may differ by its neighbours; in
    float32 it does not.

    Examples
    --------
    The LM here is a tiny random one, so that the example runs in a moment.

    >>> import asyncio
    >>> from personae import OpinionModel, PersonaPrompt, load_sample
    >>> from personae.lm.tiny import tiny_lm
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> steerer = PersonaPrompt(tiny_lm(), recipe="paper", steps=5).fit(survey, people, progress=False)
    >>> async def ask():
    ...     backend = LocalBackend(steerer)
    ...     everybody = [people[name] for name in people.respondent_ids_[:5]]
    ...     blocks = [block async for block in backend.answers(everybody, survey.questions[:18])]
    ...     await backend.close(grace=1)
    ...     return blocks
    >>> [block.shape for block in asyncio.run(ask())]
    [(5, 16, 3), (5, 2, 3)]
    """

    name = "local"

    def __init__(self, steerer: Steerer, max_rows: int = 64, max_waiting: int = 256, max_jobs: int = 16) -> None:
        self._steerer = steerer
        self._batcher = Batcher(steerer.lm_, Starts(steerer), max_rows, max_waiting, max_jobs)

    def chat(self, messages: Sequence[Message], persona: Persona, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `Backend`."""
        one_line = not self._steerer.lm_.template.is_chat
        return self._batcher.text(Asked.chat(messages, persona), sampling, one_line)

    def complete(self, text: str, persona: Persona | None, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `Backend`; without a persona the LM goes on as itself."""
        return self._batcher.text(Asked(text, persona), sampling)

    def answers(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> AsyncGenerator[np.ndarray, None]:
        """See `Backend`."""
        return self._batcher.work(self._blocks(personas, questions, read))

    async def close(self, grace: float) -> None:
        """See `Backend`."""
        await self._batcher.close(grace)

    def load(self) -> dict[str, float]:
        """See `Backend`."""
        return self._batcher.load()

    # in the batcher's thread -----------------------------------------------------------------------------------
    def _blocks(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str
    ) -> Iterator[np.ndarray | None]:
        """Blocks of questions, (P, q, K) each, and None after each part of one."""
        check_read(read)
        if not (personas and questions):
            raise ValueError("answers need at least one persona and one question")
        most = max(len(q.options) for q in questions)
        for first in range(0, len(questions), _QUESTIONS):
            asked = questions[first : first + _QUESTIONS]
            block = np.zeros((len(personas), len(asked), most), dtype=np.float32)
            for rows, columns, p in self._steerer.predict_parts(personas, asked, read):
                block[rows, columns, : p.shape[2]] = p
                yield None
            yield block
