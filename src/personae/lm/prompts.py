"""Prompts: a question or a chat as token ids, with a slot for the virtual tokens.

Text that comes from a user is tokenised with special tokens disabled; only templates add them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from personae.lm.frozen import FrozenLM

Placement = Literal["prefix", "before", "system", "late"]
PLACEMENTS: tuple[Placement, ...] = ("prefix", "before", "system", "late")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SLOT = "\x00slot\x00"


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


Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


def chat_prompt(lm: FrozenLM, messages: Sequence[Message], placement: Placement, opening: str = "") -> Prompt:
    """A chat up to the point where the assistant speaks; ``opening`` is the start of the reply.

    A base model without chat template gets a plain transcript.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f'there is no placement "{placement}"; there are: {", ".join(PLACEMENTS)}')
    turns = list(messages)
    if placement == "system":
        if turns and turns[0]["role"] == "system":
            turns[0] = {"role": "system", "content": _SLOT + "\n" + turns[0]["content"]}
        else:
            turns = [{"role": "system", "content": _SLOT}, *turns]
    pieces = lm.template.render(turns)  # text pieces and, marked, what users wrote
    ids: list[int] = []
    slot = None
    for text, is_template in [*pieces, (opening, False)]:
        if not is_template and _SLOT in text:
            head, text = text.split(_SLOT, 1)
            ids += lm.tokens(head)
            slot = len(ids)
        ids += lm.tokens(text, special=is_template)
    if placement == "system":
        assert slot is not None
        return Prompt(tuple(ids[:slot]), tuple(ids[slot:]))
    return Prompt(tuple(ids), ()) if placement == "late" else Prompt((), tuple(ids))


def letters_prompt(
    lm: FrozenLM, text: str, options: Sequence[str], placement: Placement, about: str = ""
) -> Prompt:
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
    ids = (*lm.bos, *lm.tokens(f"{about}Question: {body}\nAnswer:"))
    return Prompt(ids, ()) if placement == "late" else Prompt((), ids)


def letter_ids(lm: FrozenLM, n_options: int) -> list[int]:
    """The token that names each option, as it follows ``Answer:``."""
    return [lm.tokens(" " + letter)[0] for letter in LETTERS[:n_options]]


def reply_ids(lm: FrozenLM, text: str) -> list[int]:
    """A reply as the tokens that follow `chat_prompt`, the end of the turn included."""
    end = lm.tokens(lm.template.turn_end(), special=True)[:1]
    return [*lm.tokens(text if lm.template.is_chat else " " + text), *end]


class Template:
    """The LM's chat template, taken apart so that user text never becomes a special token.

    The template is rendered with a marker in place of every content; the text between the markers is the template's
    own and the only text in which special tokens count. A base model without template gets ``User:``/``Assistant:``
    lines.
    """

    def __init__(self, lm: FrozenLM) -> None:
        self._tokenizer = lm.tokenizer
        self.is_chat = bool(getattr(lm.tokenizer, "chat_template", None))

    def render(self, messages: Sequence[Message], reply: bool = True) -> list[tuple[str, bool]]:
        """Pieces ``(text, is_template)``; with ``reply`` the last one opens the assistant's turn."""
        if not self.is_chat:
            names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
            lines = [p for m in messages for p in ((names[m["role"]], True), (m["content"], False), ("\n", True))]
            return [*lines, ("Assistant:", True)] if reply else lines
        markers = [f"<<content-{i}>>" for i in range(len(messages))]
        marked = [{"role": m["role"], "content": mark} for m, mark in zip(messages, markers, strict=True)]
        text = self._tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=reply)
        pieces: list[tuple[str, bool]] = []
        for mark, message in zip(markers, messages, strict=True):
            head, found, text = text.partition(mark)
            if not found:
                raise ValueError(
                    f"the chat template of this LM does not take a {message['role']} message at this place; "
                    "use a chat that starts with the user and alternates, or another placement"
                )
            pieces += [(head, True), (message["content"], False)]
        return [*pieces, (text, True)]

    def turn_end(self) -> str:
        """What the template writes after an assistant's message (first line); a newline for a base model."""
        if not self.is_chat:
            return "\n"
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        return self.render(asked, reply=False)[-1][0].strip("\n").split("\n")[0]
