"""`Template`: an LM's chat template, with what users wrote told apart from what the template says."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
Piece = tuple[str, bool]  # text, and whether it is the template's own

_REMEDY = "use a chat that starts with the user and alternates, or another placement"
_BASE_ROLES = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class Template:
    """The LM's chat template, taken apart so that user text never becomes a special token.

    The template is rendered with a marker in place of every content; the text between the markers is the template's
    own and the only text in which special tokens count. A base model without template gets ``User:``/``Assistant:``
    lines.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.is_chat = bool(getattr(tokenizer, "chat_template", None))

    def render(self, messages: Sequence[Message], reply: bool = True) -> list[Piece]:
        """Pieces of text; with ``reply`` the last one opens the assistant's turn."""
        for message in messages:
            if message["role"] not in _BASE_ROLES:
                raise ValueError(f'a message is from "system", "user" or "assistant", not from "{message["role"]}"')
        if not self.is_chat:
            lines = [p for m in messages for p in ((_BASE_ROLES[m["role"]], True), (m["content"], False), ("\n", True))]
            return [*lines, ("Assistant:", True)] if reply else lines
        markers = [f"<<content-{i}>>" for i in range(len(messages))]
        marked = [{"role": m["role"], "content": mark} for m, mark in zip(messages, markers, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=reply)
        except TemplateError as error:
            raise ValueError(f"the chat template of this LM refuses this chat ({error}); {_REMEDY}") from error
        pieces: list[Piece] = []
        for mark, message in zip(markers, messages, strict=True):
            head, found, text = text.partition(mark)
            if not found:
                raise ValueError(
                    f"the chat template of this LM does not take a {message['role']} message at this place; {_REMEDY}"
                )
            pieces += [(head, True), (message["content"], False)]
        return [*pieces, (text, True)]

    def turn_end(self) -> str:
        """What the template writes after an assistant's message (first line); a newline for a base model."""
        if not self.is_chat:
            return "\n"
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        return self.render(asked, reply=False)[-1][0].strip("\n").split("\n")[0]
