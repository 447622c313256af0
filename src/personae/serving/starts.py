"""`Starts`: from what is said to whom, to what the LM is to continue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from personae.lm.prompts import plain_prompt
from personae.lm.slots import Start, starts_of
from personae.lm.template import Message
from personae.people.persona import Persona
from personae.steering.base import ChatRows, Steerer


@dataclass(frozen=True)
class Asked:
    """A chat as (role, content) pairs, or a text, and who is to go on with it.

    Parameters
    ----------
    persona : Persona or None
        None where the LM goes on as itself.
    """

    said: str | tuple[tuple[str, str], ...]
    persona: Persona | None

    @classmethod
    def chat(cls, messages: Sequence[Message], persona: Persona) -> Asked:
        """A chat that a persona is to answer."""
        return cls(tuple((message["role"], message["content"]) for message in messages), persona)

    @property
    def messages(self) -> list[Message] | None:
        """The chat as a template takes it; None of a text."""
        if isinstance(self.said, str):
            return None
        return [{"role": role, "content": content} for role, content in self.said]


class Starts:
    """What the LM is to continue for each of several requests; a chat that several personas are in is read once.

    Parameters
    ----------
    limit : int, optional
        Tokens that whoever decodes takes at most, if fewer than the LM does.
    """

    def __init__(self, steerer: Steerer, limit: int | None = None) -> None:
        self._steerer, self._lm, self._limit = steerer, steerer.lm_, limit

    def __call__(self, requests: Sequence[Asked]) -> list[Start]:
        """One `Start` a request.

        Raises
        ------
        ValueError
            A text is too long or empty, or the steerer refuses a persona, a chat or a text; the message says why.
        """
        alike: dict[tuple[object, bool], list[int]] = defaultdict(list)
        for i, asked in enumerate(requests):
            alike[asked.said, asked.persona is None].append(i)
        found: dict[int, Start] = {}
        for same in alike.values():
            rows = self._rows(requests[same[0]], [requests[i].persona for i in same])
            found |= dict(zip(same, starts_of(rows.prompts, rows.virtual, rows.contexts), strict=True))
        return [found[i] for i in range(len(requests))]

    def _rows(self, asked: Asked, personas: Sequence[Persona | None]) -> ChatRows:
        messages = asked.messages
        texts = [str(asked.said)] if messages is None else [message["content"] for message in messages]
        tokens = sum(len(self._lm.tokens(text)) for text in texts)
        self._lm.check_length(tokens, 1, self._limit)  # before the LM reads it
        who = [persona for persona in personas if persona is not None]
        if messages is None:
            text = texts[0]
            if not (self._lm.bos or text):
                raise ValueError("there is no text to go on with")
            if not who:
                return ChatRows([plain_prompt(self._lm, text, "before")] * len(personas), None)
            return self._steerer.text_rows(text, who)
        rows = self._steerer.chat_rows(messages, who)
        if rows.mixed is not None:
            raise ValueError(
                f"this steerer ({self._steerer.method}) mixes several prompts in a reply, which is not served; "
                'open it with selection="hard"'
            )
        return rows
