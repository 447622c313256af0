"""Batched generation in which every row has virtual tokens of its own; streamed as it is made."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from personae.lm import deep
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Prompt
from personae.lm.reading import KeyValues, prefix_cache


def stream(
    lm: FrozenLM,
    prompts: Sequence[Prompt],
    virtual: Tensor | KeyValues | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    mixed: Tensor | None = None,
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
    """
    if not 0 < top_p <= 1 or temperature < 0:
        raise ValueError(f"temperature must be at least 0 and top_p in (0, 1]; got {temperature} and {top_p}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
    voices = len(prompts) if mixed is None else len(mixed)
    seeds = range(voices) if seeds is None else seeds
    sets = len(prompts) if virtual is None else len(virtual if isinstance(virtual, Tensor) else virtual[0][0])
    if not len(prompts) == sets == (len(seeds) if mixed is None else mixed.numel()) or len(seeds) != voices:
        raise ValueError(f"{len(prompts)} prompts have {sets} sets of virtual tokens and {len(seeds)} seeds")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return _decode(lm, prompts, virtual, max_new_tokens, temperature, top_p, generators, mixed)


@torch.no_grad()
def _decode(
    lm: FrozenLM,
    prompts: Sequence[Prompt],
    virtual: Tensor | KeyValues | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    generators: Sequence[torch.Generator],
    mixed: Tensor | None,
) -> Generator[list[str], None, list[bool]]:
    embedded, deeper = deep.split(virtual, lm.hidden_size) if isinstance(virtual, Tensor) else (None, None)
    rows = [_row(lm, p, None if embedded is None else embedded[i]) for i, p in enumerate(prompts)]
    longest = max(len(r) for r in rows)
    lm.check_length(longest)
    starts = torch.tensor([longest - len(r) + len(p.before) for r, p in zip(rows, prompts, strict=True)])
    corrections = deep.of_rows(deeper, starts)
    x = torch.stack([torch.nn.functional.pad(r, (0, 0, longest - len(r), 0)) for r in rows])  # left-padded
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=lm.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = None
    if isinstance(virtual, list):
        cache = prefix_cache(lm.placed(virtual), lm.dtype)
        ahead = virtual[0][0].shape[2]
        positions = positions + ahead
        mask = torch.cat([mask.new_ones(len(rows), ahead), mask], 1)
    texts = [Text(lm, one_line=not lm.template.is_chat) for _ in generators]
    alive = torch.ones(len(texts), dtype=torch.bool)
    weights = None if mixed is None else mixed.float().cpu()
    inputs: dict[str, Tensor] = {"inputs_embeds": x}
    room = max_new_tokens if lm.max_tokens is None else min(max_new_tokens, lm.max_tokens - longest + 1)
    for _ in range(room):
        with deep.corrected(lm.model, corrections):
            out = lm.model.base_model(
                **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        cache, corrections = out.past_key_values, None
        logits = lm.logits(out.last_hidden_state[:, -1]).cpu()  # (R, V)
        if weights is not None:
            each = logits.log_softmax(-1).view(*weights.shape, -1)  # (voices, N, V)
            logits = (weights[:, :, None] + each).logsumexp(1)
        chosen = [choose(row, temperature, top_p, g) for row, g in zip(logits, generators, strict=True)]
        if weights is not None:
            said = each[torch.arange(len(chosen)), :, torch.tensor(chosen)]  # (voices, N)
            weights = (weights + said).log_softmax(1)
        news = []
        for r, token in enumerate(chosen):
            if alive[r] and token in lm.stop_ids:
                alive[r] = False
            news.append(texts[r].add(token) if alive[r] else "")
            if alive[r] and texts[r].ended:
                alive[r] = False
        yield news
        if not alive.any():
            break
        tokens = torch.tensor(chosen, device=lm.device)
        inputs = {"input_ids": tokens.repeat_interleave(len(rows) // len(chosen))[:, None]}
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    yield [text.rest() for text in texts]
    return (~alive).tolist()


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


def _row(lm: FrozenLM, prompt: Prompt, virtual: Tensor | None) -> Tensor:
    own = [] if virtual is None else [virtual.to(lm.dtype)]
    return torch.cat([lm.embed(prompt.before), *own, lm.embed(prompt.after)])


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
