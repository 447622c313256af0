"""`Saying`: the tokens of a reply as the pieces of text that a listener gets."""

from __future__ import annotations

from personae.lm.frozen import FrozenLM
from personae.lm.generation import Text
from personae.serving.backend import Piece, Sampling


class Saying:
    """A reply in the making, whoever chooses its tokens.

    Parameters
    ----------
    one_line : bool
        Whether the text ends with its line, as a base model's turn in a transcript does.

    Attributes
    ----------
    prompt_tokens : int
        What the last piece is to say of the prompt; set by whoever knows.
    n_tokens : int
        Tokens so far, without one that ends the reply.

    Examples
    --------
    >>> from personae.lm.tiny import tiny_lm
    >>> lm = tiny_lm()
    >>> saying = Saying(lm, Sampling(max_tokens=9, stop=("no",)), one_line=False)
    >>> [piece for piece in map(saying.add, lm.tokens("yes no")) if piece.finish]
    [Piece(text=' ', finish='stop', prompt_tokens=0, completion_tokens=...)]
    """

    def __init__(self, lm: FrozenLM, sampling: Sampling, one_line: bool) -> None:
        self.prompt_tokens = 0
        self.n_tokens = 0
        self._max_tokens, self._stop_ids = sampling.max_tokens, lm.stop_ids
        self._text, self._stop = Text(lm, one_line), _Stop(sampling.stop)

    def add(self, token: int) -> Piece:
        """The piece that one more token adds."""
        if token in self._stop_ids:
            return self.end()
        self.n_tokens += 1
        new = self._text.add(token)
        full = self.n_tokens == self._max_tokens
        last = full or self._text.ended
        text = self._stop.add(new + (self._text.rest() if full else ""), last)
        if self._stop.found or self._text.ended:
            return self._last(text, "stop")
        return self._last(text, "length") if full else Piece(text)

    def end(self) -> Piece:
        """The last piece of a reply that ends by itself."""
        return self._last(self._stop.add(self._text.rest(), last=True), "stop")

    def _last(self, text: str, finish: str) -> Piece:
        return Piece(text, finish, self.prompt_tokens, self.n_tokens)


class _Stop:
    """Text up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def add(self, new: str, last: bool) -> str:
        """What may be said now; everything if this text is the last."""
        text = self._held + new
        places = [place for place in map(text.find, self._strings) if place >= 0]
        if places:
            self.found = True
            return text[: min(places)]
        held = 0 if last else max((_overlap(text, string) for string in self._strings), default=0)
        said, self._held = text[: len(text) - held], text[len(text) - held :]
        return said


def _overlap(text: str, string: str) -> int:
    """Characters at the end of a text with which a string begins."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
