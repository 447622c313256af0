"""Batched generation in which every row has virtual tokens of its own; streamed as it is made."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Prompt
from personae.lm.reading import KeyValues
from personae.lm.shared_context import Context
from personae.lm.slots import Row, Rows, Start, rows_of, starts_of


def stream(
    lm: FrozenLM,
    prompts: Sequence[Prompt],
    virtual: Tensor | KeyValues | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    mixed: Tensor | None = None,
    contexts: Sequence[Context] | None = None,
) -> Generator[list[str], None, list[bool]]:
    """Decode R prompts together; each step yields the new text of every row ("" where there is none).

    What the generator returns (``yield from``) says which of the texts ended by themselves.

    Parameters
    ----------
    virtual : Tensor (R, T, H), or deep ones (R, T, L*H), or for placement ``prefix`` keys and values (R, Hkv, T, D) a
        layer, or None
    temperature : float
        0 is greedy; else tokens are drawn from the softmax at this temperature.
    top_p : float in (0, 1]
        Draw only from the smallest set of tokens with at least this probability.
    seeds : sequence of int, optional
        One a row (a voice, where rows are mixed): a text does not depend on its neighbours. 0, 1, ... by default.
    mixed : Tensor (R / N, N), optional
        log of weights: every N rows in turn are one voice, whose next token is that of the mixture of theirs,

            P(token | said) = sum_n w_n P_n(token | said),   w_n proportional to p_n P_n(said),

        and each step yields one text a voice.
    contexts : sequence of R Context, optional
        What stands before the virtual tokens, where it was read already (`personae.lm.reading.Prepared.parts`);
        otherwise it is read once for all rows that share it.
    """
    if not 0 < top_p <= 1 or temperature < 0:
        raise ValueError(f"temperature must be at least 0 and top_p in (0, 1]; got {temperature} and {top_p}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
    voices = len(prompts) if mixed is None else len(mixed)
    seeds = range(voices) if seeds is None else seeds
    starts = starts_of(prompts, virtual, contexts)
    if len(prompts) != (len(seeds) if mixed is None else mixed.numel()) or len(seeds) != voices:
        raise ValueError(f"{len(prompts)} prompts do not go with {len(seeds)} seeds for {voices} voices")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return _decode(lm, starts, max_new_tokens, temperature, top_p, generators, mixed)


class _Row(Row):
    def __init__(self, place: int, voice: int) -> None:
        self.place, self.voice = place, voice


@torch.no_grad()
def _decode(
    lm: FrozenLM,
    starts: Sequence[Start],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    generators: Sequence[torch.Generator],
    mixed: Tensor | None,
) -> Generator[list[str], None, list[bool]]:
    longest = max(start.n_tokens for start in starts)
    lm.check_length(longest)
    room = max_new_tokens if lm.max_tokens is None else min(max_new_tokens, lm.max_tokens - longest + 1)
    texts = [Text(lm, one_line=not lm.template.is_chat) for _ in generators]
    ended = [False] * len(texts)
    weights = None if mixed is None else mixed.detach().float().cpu().clone()
    each = len(starts) // len(texts)  # rows of a voice
    rows = [_Row(place, place // each) for place in range(len(starts))]
    running: Rows[_Row] = rows_of(lm)
    hidden = running.join(rows, starts)  # (R, H), in the order of the rows
    said: dict[int, int] = {}  # the last token of every voice that goes on
    for step in range(room):
        if step:
            order = list(running.rows)
            states = running.step([said[row.voice] for row in order])
            hidden = states[sorted(range(len(order)), key=lambda i: order[i].place)]
        logits = lm.logits(hidden).cpu()  # (R, V) of the rows that are left
        voices = [voice for voice, over in enumerate(ended) if not over]
        if weights is not None:
            of_prompts = logits.log_softmax(-1).view(len(voices), each, -1)
            logits = (weights[voices, :, None] + of_prompts).logsumexp(1)
        said = {
            voice: choose(row, temperature, top_p, generators[voice]) for voice, row in zip(voices, logits, strict=True)
        }
        if weights is not None:
            found = of_prompts[torch.arange(len(voices)), :, torch.tensor(list(said.values()))]  # (voices, N)
            weights[voices] = (weights[voices] + found).log_softmax(1)
        news = [""] * len(texts)
        for voice, token in said.items():
            if token not in lm.stop_ids:
                news[voice] = texts[voice].add(token)
            ended[voice] = token in lm.stop_ids or texts[voice].ended
        yield news
        for row in rows:
            if ended[row.voice]:
                running.leave(row)
        if all(ended):
            break
    yield [text.rest() for text in texts]
    return ended


def generate(
    lm: FrozenLM, prompts: Sequence[Prompt], virtual: Tensor | KeyValues | None = None, **how: Any
) -> list[str]:
    """The whole texts of `stream`."""
    return finish(stream(lm, prompts, virtual, **how))[0]


def finish(pieces: Generator[list[str], None, list[bool]]) -> tuple[list[str], list[bool]]:
    """The whole texts of a `stream`, and whether each ended by itself rather than at the limit of new tokens."""
    ended: list[bool] = []

    def watched() -> Iterator[list[str]]:
        ended.extend((yield from pieces))

    return ["".join(row).strip() for row in zip(*watched(), strict=True)], ended


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """The next token, from one row's logits (V,); one random number is drawn, none where ``temperature`` is 0.

    Examples
    --------
    >>> choose(torch.tensor([1.0, 3.0, 2.0]), 0.0, 1.0, torch.Generator())
    1
    >>> choose(torch.tensor([1.0, 3.0, 2.0]), 1.0, 0.5, torch.Generator())  # 1 alone has a probability of 0.67
    1
    """
    if temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits / temperature, -1)
    index = None
    if top_p < 1:
        p, index = _likeliest(p, top_p)
    cdf = p.double().cumsum(0)
    u = torch.rand(1, dtype=torch.float64, generator=generator) * cdf[-1]
    place = torch.searchsorted(cdf, u, right=True).clamp(max=len(cdf) - 1)  # the first place with cdf > u
    return int(place if index is None else index[place])


def _likeliest(p: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of tokens that has at least this probability: theirs, and which they are."""
    for n in (256, 4096, len(p)):  # few tokens are enough as a rule, and to sort them all takes longer than the LM
        kept, index = p.topk(min(n, len(p)))
        before = kept.cumsum(0) - kept
        if before[-1] >= top_p:
            break
    few = before < top_p  # the first token is always kept
    return kept[few], index[few]


class Text:
    """Tokens to text, holding back what may still change: an unfinished character.

    Parameters
    ----------
    one_line : bool
        Whether the text ends with its line, as a base model's turn in a transcript does.

    Attributes
    ----------
    ended : bool
        Whether that line is complete.

    Examples
    --------
    >>> from personae.lm.tiny import tiny_lm
    >>> lm = tiny_lm(chat=False)
    >>> text = Text(lm, one_line=True)
    >>> [text.add(token) for token in lm.tokens("yes\\nno")], text.ended
    (['yes', '', ''], True)
    """

    def __init__(self, lm: FrozenLM, one_line: bool) -> None:
        self._tokenizer = lm.tokenizer
        self._one_line = one_line
        self._ids: list[int] = []
        self._said = 0
        self.ended = False

    def add(self, token: int) -> str:
        """The new text after one more token; "" while it may still change, or once the text has ended."""
        if self.ended:
            return ""
        self._ids.append(token)
        text = self._decoded()
        if self._one_line and "\n" in text.lstrip():
            text = text[: text.index("\n", len(text) - len(text.lstrip()))]
            self.ended = True
        elif text.endswith("\ufffd"):
            return ""
        return self._new(text)

    def rest(self) -> str:
        """What was held back, when no token follows."""
        return "" if self.ended else self._new(self._decoded())

    def _decoded(self) -> str:
        # The tidying of some tokenizers takes back spaces that were said already.
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _new(self, text: str) -> str:
        new, self._said = text[self._said :], len(text)
        return new
