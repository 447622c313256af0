"""`LocalBackend`: replies and answers of a steerer in this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from personae.data.survey import Question
from personae.lm.prompts import plain_prompt
from personae.lm.slots import Start
from personae.lm.template import Message
from personae.people.persona import Persona
from personae.serving.backend import Piece, Sampling
from personae.serving.batching import Batcher, check_length
from personae.steering.base import ChatRows, Steerer, check_read

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
        self._steerer, self._lm = steerer, steerer.lm_
        self._batcher = Batcher(self._lm, self._starts, max_rows, max_waiting, max_jobs)

    def chat(self, messages: Sequence[Message], persona: Persona, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `Backend`."""
        turns = tuple((message["role"], message["content"]) for message in messages)
        return self._batcher.text(_Asked(turns, persona), sampling, one_line=not self._lm.template.is_chat)

    def complete(self, text: str, persona: Persona | None, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `Backend`; without a persona the LM goes on as itself."""
        return self._batcher.text(_Asked(text, persona), sampling)

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

    def _starts(self, requests: Sequence[_Asked]) -> list[Start]:
        """What the LM is to continue; a chat that several personas are in is read once for all of them."""
        alike: dict[tuple[object, bool], list[int]] = defaultdict(list)
        for i, asked in enumerate(requests):
            alike[asked.said, asked.persona is None].append(i)
        found: dict[int, Start] = {}
        for same in alike.values():
            rows = self._rows(requests[same[0]].said, [requests[i].persona for i in same])
            found |= {i: Start(rows.prompts[n], _of_row(rows.virtual, n)) for n, i in enumerate(same)}
        return [found[i] for i in range(len(requests))]

    def _rows(self, said: str | tuple[tuple[str, str], ...], personas: Sequence[Persona | None]) -> ChatRows:
        texts = [said] if isinstance(said, str) else [content for _, content in said]
        check_length(self._lm, sum(len(self._lm.tokens(text)) for text in texts), 1)  # before the LM reads it
        who = [persona for persona in personas if persona is not None]
        if isinstance(said, str):
            if not (self._lm.bos or said):
                raise ValueError("there is no text to go on with")
            if not who:
                return ChatRows([plain_prompt(self._lm, said, "before")] * len(personas), None)
            return self._steerer.text_rows(said, who)
        rows = self._steerer.chat_rows([{"role": role, "content": content} for role, content in said], who)
        if rows.mixed is not None:
            raise ValueError(
                f"this steerer ({self._steerer.method}) mixes several prompts in a reply, which is not served; "
                'open it with selection="hard"'
            )
        return rows


@dataclass(frozen=True)
class _Asked:
    """A chat as (role, content) pairs, or a text, and who is to go on with it."""

    said: str | tuple[tuple[str, str], ...]
    persona: Persona | None


def _of_row(
    virtual: Tensor | list[tuple[Tensor, Tensor]] | None, n: int
) -> Tensor | list[tuple[Tensor, Tensor]] | None:
    if virtual is None:
        return None
    return virtual[n] if isinstance(virtual, Tensor) else [(k[n], v[n]) for k, v in virtual]
