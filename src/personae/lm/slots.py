"""Rows that are decoded together and come and go between any two steps, each at its own length.

A row's keys and values lie in a slot of its own, from the slot's start, so that nobody's are moved or padded when a
neighbour comes or goes, and a step writes one place a row. Slots stand on shelves of 128, 256, 512, ... places; a row
that outgrows its slot moves up a shelf. What attention reads is thus at most twice what the rows hold (or the
shortest slot), whatever their lengths, and a row is copied as often as its length doubles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from personae.lm import deep
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Prompt
from personae.lm.reading import KeyValues, prefix_cache
from personae.lm.shared_context import Context, as_cache, attending

_SHORTEST = 128  # places of a slot on the first shelf
_PASS_TOKENS = 2048  # tokens, padding included, of one pass over newcomers
_CONTEXTS = 16  # texts encoded in one pass


@dataclass(frozen=True)
class Start:
    """What a row is to continue.

    Parameters
    ----------
    prompt : Prompt
    virtual : Tensor (T, H), deep ones (T, L*H), keys and values (Hkv, T, D) a layer for placement ``prefix``, or None
    context : Context of one row, optional
        The text before the virtual tokens, where it was read already.
    """

    prompt: Prompt
    virtual: Tensor | KeyValues | None = None
    context: Context | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens and virtual tokens."""
        return len(self.prompt.text_ids) + self.n_virtual

    @property
    def n_virtual(self) -> int:
        """Virtual tokens."""
        if self.virtual is None:
            return 0
        return len(self.virtual) if isinstance(self.virtual, Tensor) else self.virtual[0][0].shape[1]

    @property
    def head(self) -> tuple[int, ...]:
        """The text that rows may share: what stands before the virtual tokens, but for its last token where nothing
        follows, since that one predicts the next."""
        return self.prompt.before if self.n_virtual or self.prompt.after else self.prompt.before[:-1]


def starts_of(
    prompts: Sequence[Prompt],
    virtual: Tensor | KeyValues | None = None,
    contexts: Sequence[Context] | None = None,
) -> list[Start]:
    """One `Start` a prompt, of R sets of virtual tokens in one tensor (R, T, ...), or in one a layer.

    Raises
    ------
    ValueError
        There are not as many sets, or contexts, as prompts.
    """
    sets = len(prompts) if virtual is None else len(virtual if isinstance(virtual, Tensor) else virtual[0][0])
    if len(prompts) != sets:
        raise ValueError(f"{len(prompts)} prompts have {sets} sets of virtual tokens")
    if contexts is not None and len(prompts) != len(contexts):
        raise ValueError(f"{len(prompts)} prompts have {len(contexts)} contexts")

    def own(row: int) -> Tensor | KeyValues | None:
        if virtual is None:
            return None
        return [(k[row], v[row]) for k, v in virtual] if isinstance(virtual, list) else virtual[row]

    return [Start(p, own(i), None if contexts is None else contexts[i]) for i, p in enumerate(prompts)]


class Row:
    """One of the rows; whoever decodes may derive from it to note more."""

    length: int = 0  # tokens whose keys and values are kept
    shelf: _Shelf[Any] | None = None
    cache: DynamicCache | None = None  # of an LM that is run row by row


R = TypeVar("R", bound=Row)


class Rows(Protocol[R]):
    """The rows that are decoded together."""

    @property
    def rows(self) -> Sequence[R]:
        """Those who joined and have not left."""
        ...

    def join(self, newcomers: Sequence[R], starts: Sequence[Start]) -> Tensor:
        """Read what the newcomers are to continue; hidden states (N, H) that predict their first tokens.

        If it raises, none of them has joined.
        """
        ...

    def step(self, ids: Sequence[int]) -> Tensor:
        """One more token of each of ``rows``, in their order; hidden states (R, H) that predict the next ones.

        Afterwards ``rows`` may stand in another order.
        """
        ...

    def leave(self, row: R) -> None:
        """Forget a row; ``rows`` may stand in another order afterwards."""
        ...


def rows_of(lm: FrozenLM) -> Rows[Any]:
    """No rows yet, decoded together where the LM can do that.

    Examples
    --------
    >>> from personae.lm.prompts import chat_prompt
    >>> from personae.lm.tiny import tiny_lm
    >>> lm = tiny_lm()
    >>> running, ann, bob = rows_of(lm), Row(), Row()
    >>> asked = [Start(chat_prompt(lm, [{"role": "user", "content": text}], "before")) for text in ("Hi!", "Roads?")]
    >>> with torch.no_grad():
    ...     first = running.join([ann], asked[:1])
    ...     _ = running.step([5])
    ...     _ = running.join([bob], asked[1:])
    ...     running.step([7, 8]).shape
    torch.Size([2, 32])
    """
    return Slots(lm) if lm.shared else OneByOne(lm)


class Slots(Generic[R]):
    """`Rows` in slots; see the top of this file."""

    def __init__(self, lm: FrozenLM) -> None:
        self._lm = lm
        self._shelves: dict[int, _Shelf[R]] = {}  # by capacity

    @property
    def rows(self) -> list[R]:
        return [row for shelf in self._shelves.values() for row in shelf.rows]

    def join(self, newcomers: Sequence[R], starts: Sequence[Start]) -> Tensor:
        try:
            return self._join(newcomers, starts)
        except BaseException:
            for row in newcomers:
                self.leave(row)
            raise

    def step(self, ids: Sequence[int]) -> Tensor:
        x = self._lm.embed(ids)[:, None]
        return self._pass([_Span(shelf, 0) for shelf in self._shelves.values() if shelf.rows], x, [1] * len(ids))

    def leave(self, row: R) -> None:
        if row.shelf is not None:
            row.shelf.remove(row)

    def _join(self, newcomers: Sequence[R], starts: Sequence[Start]) -> Tensor:
        """What stands before the virtual tokens is computed once for all who share it, the rest row by row."""
        contexts = {s.head: _only(s.context, len(s.head)) for s in starts if s.head and s.context is not None}
        contexts |= self._contexts({s.head for s in starts if s.head} - set(contexts))
        rests = [self._rest(start) for start in starts]  # (M_i, H) each
        hidden = rests[0].new_empty(len(starts), self._lm.hidden_size)
        for some in _batches([len(x) for x in rests]):
            longest = len(rests[some[-1]])
            places = {newcomers[i]: i for i in some}
            standing = {id(shelf): len(shelf.rows) for shelf in self._shelves.values()}
            for row, i in places.items():
                start = starts[i]
                kept = start.virtual if isinstance(start.virtual, list) else contexts.get(start.head)
                row.length = kept[0][0].shape[1] if kept else 0
                self._put(row, row.length + longest, kept)
            spans = [_Span(shelf, standing.get(id(shelf), 0)) for shelf in self._shelves.values()]
            spans = [span for span in spans if span.rows]
            order = [places[row] for span in spans for row in span.rows]
            x = torch.stack([torch.nn.functional.pad(rests[i], (0, 0, 0, longest - len(rests[i]))) for i in order])
            corrections = _corrections([starts[i].virtual for i in order], self._lm.hidden_size)
            hidden[order] = self._pass(spans, x, [len(rests[i]) for i in order], corrections)
        return hidden

    def _contexts(self, texts: set[tuple[int, ...]]) -> dict[tuple[int, ...], KeyValues]:
        """Keys and values (Hkv, T, D) a layer of each text."""
        order = sorted(texts, key=lambda ids: (len(ids), ids))
        found: dict[tuple[int, ...], KeyValues] = {}
        for first in range(0, len(order), _CONTEXTS):
            some = order[first : first + _CONTEXTS]
            context = self._lm.encode(some)
            layers = list(zip(context.keys, context.values, strict=True))
            found |= {
                ids: [(k[c, :, : len(ids)], v[c, :, : len(ids)]) for k, v in layers] for c, ids in enumerate(some)
            }
        return found

    def _rest(self, start: Start) -> Tensor:
        """Input embeddings (M, H) of what no context holds."""
        before, after = (self._lm.embed(ids) for ids in (start.prompt.before[len(start.head) :], start.prompt.after))
        if not isinstance(start.virtual, Tensor):
            return torch.cat([before, after])
        embedded, _ = deep.split(start.virtual, self._lm.hidden_size)
        return torch.cat([before, embedded.to(after.dtype), after])

    def _put(self, row: R, length: int, kept: KeyValues | None) -> None:
        """Place a row on the shelf for that many tokens, with the keys and values it has."""
        capacity = max(_SHORTEST, 1 << length.bit_length())  # more than length, so that a step finds a place
        if capacity not in self._shelves:
            self._shelves[capacity] = _Shelf(self._lm, capacity)
        self._shelves[capacity].add(row, kept)

    def _pass(
        self, spans: list[_Span[R]], x: Tensor, counts: list[int], corrections: deep.Corrections | None = None
    ) -> Tensor:
        """Append right-padded input embeddings (R, M, H) to the rows of the spans; hidden states (R, H) of the last."""
        rows = [row for span in spans for row in span.rows]
        begin = torch.tensor([row.length for row in rows], device=x.device)
        position = begin[:, None] + torch.arange(x.shape[1], device=x.device)  # (R, M)
        for span, own in zip(spans, position.split([len(span.rows) for span in spans]), strict=True):
            span.prepare(own)
        with attending(_Attention(spans)), deep.corrected(self._lm.model, corrections):
            out = self._lm.model.base_model(inputs_embeds=x, position_ids=position, use_cache=False).last_hidden_state
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        for row in rows:  # only now, since a row that moves up lets another one move to its slot
            shelf = row.shelf
            if shelf is not None and row.length == shelf.capacity:
                kept = shelf.read(row)
                shelf.remove(row)
                self._put(row, row.length, kept)
        return out[torch.arange(len(rows), device=x.device), torch.tensor(counts, device=x.device) - 1]


class _Shelf(Generic[R]):
    """Slots of one capacity; the first ones are taken, without a gap."""

    def __init__(self, lm: FrozenLM, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[R] = []
        new = lm.embed([0]).new_empty
        # (2, slots, capacity, Hkv, D) each: keys, values
        self.layers = [
            new(2, 0, capacity, heads, size, device=device)
            for (heads, size), device in zip(lm.key_shapes, lm.layer_devices, strict=True)
        ]

    def add(self, row: R, kept: KeyValues | None) -> None:
        """Give a row the next slot, and put ``row.length`` keys and values (Hkv, T, D) there."""
        n = len(self.rows)
        if n == self._slots:
            self._resize(max(4, 2 * n))
        for layer in self.layers:
            layer[:, n, row.length :] = 0  # what is not finite would pass through the mask
        for layer, pair in zip(self.layers, kept or [], strict=False):
            for to, what in zip(layer, pair, strict=True):
                to[n, : row.length] = what.transpose(0, 1)
        self.rows.append(row)
        row.shelf = self

    def read(self, row: R) -> KeyValues:
        """Copies of a row's keys and values (Hkv, T, D) a layer."""
        i = self.rows.index(row)
        copies = [layer[:, i, : row.length].clone().transpose(1, 2) for layer in self.layers]
        return [(k, v) for k, v in copies]

    def remove(self, row: R) -> None:
        """Take a row away; the last one moves to its slot."""
        i, last = self.rows.index(row), self.rows.pop()
        row.shelf = None
        if last is not row:
            self.rows[i] = last
            for layer in self.layers:
                layer[:, i, : last.length] = layer[:, len(self.rows), : last.length]
        if 4 * len(self.rows) < self._slots:
            self._resize(2 * len(self.rows))

    @property
    def _slots(self) -> int:
        return min(layer.shape[1] for layer in self.layers)  # not all have grown if one could not

    def _resize(self, slots: int) -> None:
        """Have that many slots, a layer at a time, so that no more than one is there twice."""
        n = len(self.rows)
        for i, old in enumerate(self.layers):
            new = old.new_empty(2, slots, *old.shape[2:])
            new[:, :n] = old[:, :n]
            self.layers[i] = new


class _Span(Generic[R]):
    """The rows of a shelf from one on, in a pass."""

    def __init__(self, shelf: _Shelf[R], first: int) -> None:
        self.shelf, self.first = shelf, first
        self.rows = shelf.rows[first:]

    def prepare(self, position: Tensor) -> None:
        """Note where the rows' M new tokens stand, (n, M)."""
        self.position = position
        slots = torch.arange(self.first, self.first + len(self.rows), device=position.device)
        self._index = (slots[:, None] * self.shelf.capacity + position).flatten()
        self._width = int(position.max()) + 1
        self._masks: dict[tuple[int | None, torch.device], Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None) -> Tensor:
        """(n, Hq, M, D) and (n, Hkv, M, D) twice to (n, Hq, M, D)."""
        n, hq, m, d = q.shape
        hkv = k.shape[1]
        both = self.shelf.layers[layer]
        index = self._index.to(q.device)
        for kept, new in zip(both, (k, v), strict=True):
            kept.flatten(0, 1).index_copy_(0, index, new.transpose(1, 2).flatten(0, 1))
        keys, values = both[:, self.first : self.first + n, : self._width].transpose(2, 3)  # (n, Hkv, W, D) each
        # The heads that share keys stand in the query dimension, so that no key is copied for them.
        out = torch.nn.functional.scaled_dot_product_attention(
            q.reshape(n, hkv, hq // hkv * m, d), keys, values, attn_mask=self._mask(window, hq // hkv, q), scale=scaling
        )
        return out.view(n, hq, m, d)

    def _mask(self, window: int | None, rep: int, q: Tensor) -> Tensor:
        """(n, 1, rep*M, W): -inf for keys that a token must not see, those to its right or beyond the window."""
        if (window, q.device) not in self._masks:
            key, position = torch.arange(self._width, device=q.device), self.position[..., None].to(q.device)
            hidden = key > position  # (n, M, W)
            if window is not None:
                hidden |= position - key >= window
            bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
            self._masks[window, q.device] = bias.repeat(1, rep, 1)[:, None]
        return self._masks[window, q.device]


class _Attention:
    """See `personae.lm.shared_context.Attention`."""

    def __init__(self, spans: Sequence[_Span[Any]]) -> None:
        self._spans = spans

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        sizes = [len(span.rows) for span in self._spans]
        parts = zip(self._spans, *(t.split(sizes) for t in (query, key, value)), strict=True)
        out = [span.attend(layer, q, k, v, scaling, sliding_window) for span, q, k, v in parts]
        return (out[0] if len(out) == 1 else torch.cat(out)).transpose(1, 2)  # (R, M, Hq, D)


def _only(context: Context, length: int) -> KeyValues:
    """Keys and values (Hkv, T, D) a layer of the start of a context of one row."""
    return [(k[0, :, :length], v[0, :, :length]) for k, v in zip(context.keys, context.values, strict=True)]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in order of length, as many at a time as a pass may have tokens."""
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if some and (len(some) + 1) * lengths[i] > _PASS_TOKENS:
            yield some
            some = []
        some.append(i)
    yield some


def _corrections(virtual: Sequence[Tensor | KeyValues | None], hidden_size: int) -> deep.Corrections | None:
    """Those of rows that begin with their virtual tokens, as far as these are deep."""
    parts = [(row, deep.split(own, hidden_size)[1]) for row, own in enumerate(virtual) if isinstance(own, Tensor)]
    found = [(row, deeper) for row, deeper in parts if deeper is not None]
    if not found:
        return None
    rows = torch.cat([torch.full((len(deeper),), row) for row, deeper in found])
    places = torch.cat([torch.arange(len(deeper)) for _, deeper in found])
    return deep.Corrections(torch.cat([deeper for _, deeper in found]), rows, places)


class OneByOne(Generic[R]):
    """`Rows` of an LM that does not let its attention be stood in for: a pass a row, slower and equal."""

    def __init__(self, lm: FrozenLM) -> None:
        self._lm = lm
        self.rows: list[R] = []

    def join(self, newcomers: Sequence[R], starts: Sequence[Start]) -> Tensor:
        hidden = []
        for row, start in zip(newcomers, starts, strict=True):
            row.cache, virtual, before = DynamicCache(), start.virtual, start.prompt.before
            if start.head and start.context is not None:
                known, before = start.context.start(0, len(start.head)), before[len(start.head) :]
                row.cache = as_cache(known.keys, known.values)
            own, corrections = [], None
            if isinstance(virtual, Tensor):
                embedded, deeper = deep.split(virtual[None], self._lm.hidden_size)
                own = [embedded[0].to(self._lm.dtype)]
                corrections = None if deeper is None else deep.of_rows(deeper, len(before))
            elif virtual is not None:
                row.cache = prefix_cache(self._lm.placed([(k[None], v[None]) for k, v in virtual]), self._lm.dtype)
            x = torch.cat([self._lm.embed(before), *own, self._lm.embed(start.prompt.after)])
            with deep.corrected(self._lm.model, corrections):
                hidden.append(self._pass(row, x))
        self.rows += newcomers
        return torch.stack(hidden)

    def step(self, ids: Sequence[int]) -> Tensor:
        embedded = self._lm.embed(ids)
        return torch.stack([self._pass(row, x[None]) for row, x in zip(self.rows, embedded, strict=True)])

    def leave(self, row: R) -> None:
        row.cache = None
        if row in self.rows:
            self.rows.remove(row)

    def _pass(self, row: R, x: Tensor) -> Tensor:
        out = self._lm.model.base_model(inputs_embeds=x[None], past_key_values=row.cache, use_cache=True)
        row.length += len(x)
        return out.last_hidden_state[0, -1]
