"""Prompts: a question or a chat as token ids, with a slot for the virtual tokens.

Text that comes from a user is tokenised with special tokens disabled; only templates add them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from personae.lm.frozen import FrozenLM
from personae.lm.template import Message, Piece

Placement = Literal["prefix", "before", "system", "late"]
PLACEMENTS: tuple[Placement, ...] = ("prefix", "before", "system", "late")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Prompt:
    """Token ids with a slot: ``before`` + virtual tokens + ``after`` + what the LM is to say.

    ===========  ============================  ==========================================
    placement    before                        after
    ===========  ============================  ==========================================
    ``prefix``   nothing (key/values instead)  everything
    ``before``   nothing                       everything
    ``system``   up to the system message      the rest of the chat, reply header included
    ``late``     everything                    nothing: the prompt is shared by everybody
    ===========  ============================  ==========================================
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def text_ids(self) -> list[int]:
        """The tokens without the slot."""
        return [*self.before, *self.after]


def chat_prompt(lm: FrozenLM, messages: Sequence[Message], placement: Placement, opening: str = "") -> Prompt:
    """A chat up to the point where the assistant speaks; ``opening`` is the start of the reply.

    A base model without chat template gets a plain transcript.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f'there is no placement "{placement}"; there are: {", ".join(PLACEMENTS)}')
    turns = list(messages)
    if placement == "system":
        if turns and turns[0]["role"] == "system":
            turns[0] = {"role": "system", "content": "\n" + turns[0]["content"]}
        else:
            turns = [{"role": "system", "content": ""}, *turns]
    pieces = lm.template.render(turns)
    pieces.append((opening if lm.template.is_chat or not opening else " " + opening, False))
    bos = () if lm.template.is_chat else lm.bos  # a template writes its own
    if placement == "system":  # the slot opens the first message
        return Prompt((*bos, *_tokens(lm, pieces[:1])), tuple(_tokens(lm, pieces[1:])))
    ids = (*bos, *_tokens(lm, pieces))
    return Prompt(ids, ()) if placement == "late" else Prompt((), ids)


def _tokens(lm: FrozenLM, pieces: Sequence[Piece]) -> list[int]:
    """Tokens of template and user text, as of the whole text unless a user's part would become a special token."""
    whole = lm.tokens("".join(text for text, _ in pieces), special=True)
    template = [i for text, is_template in pieces if is_template for i in lm.tokens(text, special=True)]
    if [i for i in whole if i in lm.special_ids] == [i for i in template if i in lm.special_ids]:
        return whole
    return [i for text, is_template in pieces for i in lm.tokens(text, special=is_template)]


def letters_prompt(lm: FrozenLM, text: str, options: Sequence[str], placement: Placement, about: str = "") -> Prompt:
    """A question with lettered options, to be answered by a letter (see `letter_ids`)."""
    if len(options) > len(LETTERS):
        raise ValueError(f"a question has {len(options)} options; letters reach to {len(LETTERS)}")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return _question_prompt(lm, f"{text}\n{listed}", placement, about)


def text_prompt(lm: FrozenLM, text: str, options: Sequence[str], placement: Placement, about: str = "") -> Prompt:
    """A question whose options are named in it, to be answered by an option's own text."""
    return _question_prompt(lm, f"{text} ({' / '.join(options)})", placement, about)


def _question_prompt(lm: FrozenLM, body: str, placement: Placement, about: str) -> Prompt:
    if placement == "system":
        system = [{"role": "system", "content": about}] if about else []
        return chat_prompt(lm, [*system, {"role": "user", "content": body}], placement, opening="Answer:")
    about = about + "\n" if about else ""
    return plain_prompt(lm, f"{about}Question: {body}\nAnswer:", placement)


def plain_prompt(lm: FrozenLM, text: str, placement: Placement) -> Prompt:
    """A text that the LM goes on with; it has no system message, whose slot stands before everything instead."""
    ids = (*lm.bos, *lm.tokens(text))
    return Prompt(ids, ()) if placement == "late" else Prompt((), ids)


def letter_ids(lm: FrozenLM, n_options: int) -> list[int]:
    """The token that names each option, as it follows ``Answer:``."""
    return [answer_ids(lm, letter)[-1] for letter in LETTERS[:n_options]]


def answer_ids(lm: FrozenLM, text: str) -> list[int]:
    """An answer as the tokens that follow ``Answer:``; alone, some tokenizers would give it another beginning."""
    return lm.tokens(f"Answer: {text}")[len(lm.tokens("Answer:")) :]


def reply_ids(lm: FrozenLM, text: str) -> list[int]:
    """A reply as the tokens that follow `chat_prompt`, the end of the turn included."""
    return [*lm.tokens(text if lm.template.is_chat else " " + text), *lm.turn_end_ids]
