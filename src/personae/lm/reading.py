"""Reading the LM after virtual tokens: C prompts x N sets of virtual tokens x the texts that may follow.

One pass serves everything that is read: letters at the end of the trunk (prompt + virtual tokens), whole texts along
branches that share it. Logits are computed only where they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from personae.lm import deep
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Prompt, answer_ids, letter_ids
from personae.lm.shared_context import Context, as_cache

KeyValues = list[tuple[Tensor, Tensor]]
_HELD = 64  # contexts whose keys and values exist at one time only to be thrown away
_LOGIT_ROWS = 128  # positions whose full-vocabulary logits exist at one time, near the processor


@dataclass
class Prepared:
    """C prompts ready to be continued.

    Attributes
    ----------
    prompts : list of Prompt
    parts : list of Context of one row, or None
        Each prompt's text before the virtual tokens; None where a prompt starts with them.
    representation : Tensor (C, 2H)
        The LM's own representation of each prompt without virtual tokens: last and mean hidden state.
    """

    prompts: list[Prompt]
    parts: list[Context] | None
    representation: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def context(self) -> Context | None:
        """All prompts' encoded text in one `Context`; padded only now, to the longest of these prompts."""
        return None if self.parts is None else _gather(self.parts)

    def select(self, rows: Sequence[int]) -> Prepared:
        """The given prompts."""
        return Prepared(
            [self.prompts[r] for r in rows],
            None if self.parts is None else [self.parts[r] for r in rows],
            self.representation[torch.as_tensor(rows)],
        )


def represent(lm: FrozenLM, prompts: Sequence[Prompt]) -> Tensor:
    """The LM's own representation (C, 2H) of prompts without virtual tokens; see `Prepared`."""
    return _represented(lm, [p.text_ids for p in prompts], 16)


def prepare(lm: FrozenLM, prompts: Sequence[Prompt], batch: int = 16) -> Prepared:
    """Encode prompts, in batches of similar length; what is before the slot stays, for everybody who is to come.

    A text that begins another one is not computed again: the turns of a dialogue cost as much as its last one.
    """
    shared = [bool(p.before) for p in prompts]
    if any(shared) != all(shared):
        raise ValueError("prompts of different placements cannot be prepared together")
    if not any(shared):
        return Prepared(list(prompts), None, _represented(lm, [p.text_ids for p in prompts], batch))
    full = _encode_once(lm, [p.text_ids for p in prompts], batch)
    representation = _representation(full)
    whole = all(not p.after for p in prompts)
    parts = full if whole else _encode_once(lm, [list(p.before) for p in prompts], batch)
    return Prepared(list(prompts), parts, representation)


def _represented(lm: FrozenLM, texts: Sequence[list[int]], batch: int) -> Tensor:
    """Last and mean hidden state (C, 2H) of texts whose keys and values nobody continues: few are held at a time."""
    order = sorted(range(len(texts)), key=texts.__getitem__)  # what begins another text stands beside it
    parts = [order[i : i + _HELD] for i in range(0, len(order), _HELD)]
    found = torch.cat([_representation(_encode_once(lm, [texts[i] for i in part], batch)) for part in parts])
    return found[torch.tensor(order).argsort().to(found.device)]


def _representation(contexts: Sequence[Context]) -> Tensor:
    return torch.cat([torch.cat([text.last, text.mean], -1) for text in contexts]).float()


def _encode_once(lm: FrozenLM, texts: Sequence[list[int]], batch: int) -> list[Context]:
    """Each text's context, as the start of the longest text that it begins."""
    # In lexicographic order whatever begins a text stands before it, so from the end only the last one kept can match.
    order = sorted(range(len(texts)), key=lambda i: texts[i], reverse=True)
    kept = order[:1]
    inside = {}
    for i in order:
        if texts[kept[-1]][: len(texts[i])] != texts[i]:
            kept.append(i)
        inside[i] = kept[-1]
    kept.sort(key=lambda i: len(texts[i]))
    place: dict[int, tuple[Context, int]] = {}
    for start in range(0, len(kept), batch):
        some = kept[start : start + batch]
        context = lm.encode([texts[i] for i in some])
        place |= {i: (context, row) for row, i in enumerate(some)}
    return [place[inside[i]][0].start(place[inside[i]][1], len(text)) for i, text in enumerate(texts)]


def _gather(rows: Sequence[Context]) -> Context:
    """One right-padded `Context` of several of one row each."""
    if len(rows) == 1:
        return rows[0]
    longest = max(c.hidden.shape[1] for c in rows)

    def padded(tensors: Sequence[Tensor]) -> Tensor:  # (1, ..., t, D) each
        new = tensors[0].new_zeros(len(tensors), *tensors[0].shape[1:-2], longest, tensors[0].shape[-1])
        for row, tensor in zip(new, tensors, strict=True):
            row[..., : tensor.shape[-2], :] = tensor[0]
        return new

    layers = range(len(rows[0].keys))
    return Context(
        [c.ids[0] for c in rows],
        [padded([c.keys[layer] for c in rows]) for layer in layers],
        [padded([c.values[layer] for c in rows]) for layer in layers],
        torch.cat([c.lengths for c in rows]),
        padded([c.hidden for c in rows]),
    )


@dataclass
class Read:
    """What the LM computed for C prompts x N sets of virtual tokens.

    Attributes
    ----------
    trunk : Tensor (C, N, H)
        Hidden state that predicts the first token after prompt and virtual tokens.
    branch : Tensor (C, N, B, H) or None
        Hidden states at the branches' input tokens.
    """

    trunk: Tensor
    branch: Tensor | None


def read(
    lm: FrozenLM,
    prepared: Prepared,
    virtual: Tensor | KeyValues,
    branches: Sequence[Sequence[Sequence[int]]] | None = None,
    shared: int = 0,
) -> Read:
    """Run the LM over prompt + virtual tokens (+ branches), every prompt with each of its N sets.

    Parameters
    ----------
    virtual : Tensor (C, N, T, H), or deep ones (C, N, T, L*H) (see `personae.lm.deep`), or for placement ``prefix`` a
        list, one a layer, of keys and values (C*N, Hkv, T, D)
    branches : for each prompt its texts as token ids, optional
        Each text's tokens but the last are run; see `text_log_probs`.
    shared : int
        Tokens that begin all of a prompt's sets alike: they are run once, with the sets as branches of them.
    """
    c = len(prepared)
    prefix = None if isinstance(virtual, Tensor) else lm.placed(virtual)
    if not isinstance(virtual, Tensor):
        virtual = lm.embed([]).expand(c, virtual[0][0].shape[0] // c, 0, -1)  # none of them is part of the row
    n = virtual.shape[1]
    if n == 1 or any(p.after for p in prepared.prompts):  # text in every branch would make rows too long
        shared = 0
    texts = [list(b) for b in branches or [()] * c]
    own = virtual.shape[2] - shared
    layouts = [_Layout.of(shared, own + len(p.after), n, t) for p, t in zip(prepared.prompts, texts, strict=True)]
    m = max(one.tree.size for one in layouts)

    embedded, deeper = deep.split(virtual, lm.hidden_size)
    rows = []
    for i, (prompt, text) in enumerate(zip(prepared.prompts, texts, strict=True)):
        tail = lm.embed([*prompt.after, *(token for t in text for token in t[:-1])]).expand(n, -1, -1)
        each = torch.cat([embedded[i, :, shared:].to(lm.dtype), tail], 1)  # (N, t, H)
        if shared:
            each = torch.cat([embedded[i, :1, :shared].to(lm.dtype), each.flatten(0, 1)[None]], 1)
        rows.append(torch.nn.functional.pad(each, (0, 0, 0, m - each.shape[1])))
    x = torch.stack(rows)  # (C, N, M, H), or where sets share a row (C, 1, M, H)
    corrections = None if deeper is None else _corrections(deeper, shared, layouts)

    # One path per row is plain causal order, which the LM's own fused attention does best.
    branching = any(one.tree.branches for one in layouts)
    if prepared.context is not None or branching:
        visible = torch.stack([one.tree.visible(m) for one in layouts]).to(lm.device) if branching else None
        offset = torch.stack([one.tree.offset(m) for one in layouts]).to(lm.device) if branching else None
        hidden = _extend(lm, prepared, prefix, x, offset, visible, corrections)
    else:
        hidden = _rows(lm, prefix, x, corrections)
    flat = hidden.flatten(1, 2)  # (C, rows * M, H)
    first = torch.zeros(n, dtype=torch.long) if shared else m * torch.arange(n)
    ends = (torch.tensor([one.ends for one in layouts]) + first).to(lm.device)  # (C, N)
    n_read = torch.tensor([one.n_read for one in layouts], device=lm.device)

    def at(index: Tensor) -> Tensor:  # (C, ...) to (C, ..., H)
        found = flat.gather(1, index.flatten(1)[..., None].expand(-1, -1, flat.shape[-1]))
        return found.view(*index.shape, flat.shape[-1])

    trunk, width = at(ends), int(n_read.max())
    if not width:
        return Read(trunk, None)
    # Padding repeats a real place and is never read.
    behind = torch.minimum(1 + torch.arange(width, device=lm.device), n_read[:, None])  # (C, B)
    return Read(trunk, at(ends[:, :, None] + behind[:, None]))


def _extend(
    lm: FrozenLM,
    prepared: Prepared,
    prefix: KeyValues | None,
    x: Tensor,
    offset: Tensor | None,
    visible: Tensor | None,
    corrections: deep.Corrections | None,
) -> Tensor:
    c, n, m, h = x.shape
    if prepared.context is not None:
        return lm.extend(prepared.context, x, offset, visible, corrections)
    # No shared part: every row is a context of its own, empty or holding its learned key/values.
    if prefix is None:
        prefix = lm.placed([(x.new_zeros(c * n, heads, 0, size),) * 2 for heads, size in lm.key_shapes])
    length = torch.full((c * n,), prefix[0][0].shape[2], device=x.device)
    unused = x.new_zeros(c * n, 0, h)
    keys, values = [k.to(x.dtype) for k, _ in prefix], [v.to(x.dtype) for _, v in prefix]
    alone = Context([[]] * (c * n), keys, values, length, unused)

    def per_row(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.repeat_interleave(n, 0)

    rows = x.reshape(c * n, 1, m, h)
    return lm.extend(alone, rows, per_row(offset), per_row(visible), corrections).view(c, n, m, h)


def _rows(lm: FrozenLM, prefix: KeyValues | None, x: Tensor, corrections: deep.Corrections | None) -> Tensor:
    c, n, m, h = x.shape
    cache = None if prefix is None else prefix_cache(prefix, lm.dtype)
    with deep.corrected(lm.model, corrections):
        out = lm.model.base_model(
            inputs_embeds=x.reshape(c * n, m, h), past_key_values=cache, use_cache=cache is not None
        )
    return out.last_hidden_state.view(c, n, m, h)


def _corrections(deeper: Tensor, shared: int, layouts: Sequence[_Layout]) -> deep.Corrections:
    """Those of virtual tokens (C, N, T, (L - 1) * H) where they stand in the rows."""
    if not shared:
        return deep.of_rows(deeper.flatten(0, 1))
    c, n, t, _ = deeper.shape
    row, once = torch.arange(c), torch.arange(shared)
    begins = torch.tensor([one.begins for one in layouts])  # (C, N)
    own = (begins[..., None] + torch.arange(t - shared)).flatten()
    return deep.Corrections(
        torch.cat([deeper[:, 0, :shared].flatten(0, 1), deeper[:, :, shared:].flatten(0, 2)]),
        torch.cat([row.repeat_interleave(shared), row.repeat_interleave(n * (t - shared))]).to(deeper.device),
        torch.cat([once.repeat(c), own]).to(deeper.device),
    )


def prefix_cache(prefix: KeyValues, dtype: torch.dtype) -> DynamicCache:
    """Learned keys and values (R, Hkv, T, D) a layer as the cache that the text continues."""
    return as_cache([k.to(dtype) for k, _ in prefix], [v.to(dtype) for _, v in prefix])


@dataclass
class _Tree:
    """Segments of tokens side by side in one row; each continues an earlier one, or the prompt."""

    starts: list[int]  # of the segments, in the row
    lengths: list[int]
    parents: list[int | None]

    def add(self, length: int, parent: int | None = None) -> int:
        """The number of a new segment."""
        self.starts.append(self.size)
        self.lengths.append(length)
        self.parents.append(parent)
        return len(self.starts) - 1

    @property
    def size(self) -> int:
        return self.starts[-1] + self.lengths[-1] if self.starts else 0

    @property
    def branches(self) -> bool:
        """Whether some segment does not continue the one beside it."""
        return any(parent != (i - 1 if i else None) for i, parent in enumerate(self.parents))

    def offset(self, m: int) -> Tensor:
        """How far each of m places is behind the prompt, (m,)."""
        found = torch.zeros(m, dtype=torch.long)
        begin: list[int] = []
        for start, length, parent in zip(self.starts, self.lengths, self.parents, strict=True):
            begin.append(0 if parent is None else begin[parent] + self.lengths[parent])
            found[start : start + length] = begin[-1] + torch.arange(length)
        return found

    def visible(self, m: int) -> Tensor:
        """Which of m places (columns) each of them (rows) sees, (m, m)."""
        seen = torch.zeros(m, m, dtype=torch.bool)
        for i, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            rows = slice(start, start + length)
            seen[rows, rows] = torch.ones(length, length, dtype=torch.bool).tril()
            parent = self.parents[i]
            while parent is not None:
                seen[rows, self.starts[parent] : self.starts[parent] + self.lengths[parent]] = True
                parent = self.parents[parent]
        seen[self.size :, 0] = True  # padding must see something; nothing reads it
        return seen


@dataclass
class _Layout:
    """Where a row has the sets of virtual tokens of a prompt and the texts that follow each of them."""

    tree: _Tree
    begins: list[int]  # where each set's own tokens begin
    ends: list[int]  # the place that predicts what follows it
    n_read: int  # the texts' input tokens, which stand right behind

    @classmethod
    def of(cls, shared: int, own: int, n: int, texts: Sequence[Sequence[int]]) -> _Layout:
        """Of n sets in one row where they share tokens; else of one, and all rows are alike."""
        lengths = [len(text) - 1 for text in texts if len(text) > 1]
        tree = _Tree([], [], [])
        root = tree.add(shared) if shared else None
        begins = []
        for _ in range(n if shared else 1):
            trunk = tree.add(own, root)
            begins.append(tree.starts[trunk])
            for length in lengths:
                tree.add(length, trunk)
        if not shared:
            begins *= n
        return cls(tree, begins, [begin + own - 1 for begin in begins], sum(lengths))


def letter_logits(lm: FrozenLM, found: Read, n_options: Sequence[int]) -> Tensor:
    """Logits (C, N, K) of the option letters, -inf beyond a question's own options."""
    k = max(n_options)
    logits = lm.logits(found.trunk, torch.tensor(letter_ids(lm, k), device=lm.device))
    beyond = torch.arange(k, device=lm.device) >= torch.tensor(n_options, device=lm.device)[:, None]
    return logits.masked_fill(beyond[:, None], float("-inf"))


def option_texts(lm: FrozenLM, options: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Each question's options as the tokens that follow ``Answer:``."""
    return [[answer_ids(lm, option) for option in each] for each in options]


def option_logits(
    lm: FrozenLM, prepared: Prepared, virtual: Tensor | KeyValues, options: Sequence[Sequence[str]], by: str = "letters"
) -> Tensor:
    """Logits (C, N, K) over each question's options, -inf beyond its own; softmax gives their probabilities.

    Parameters
    ----------
    options : for each prompt its option labels
    by : {"letters", "text"}
        Read the letters at one place, or the options' full text, length-normalised.
    """
    n_options = [len(o) for o in options]
    if by == "letters":
        return letter_logits(lm, read(lm, prepared, virtual), n_options)
    if by != "text":
        raise ValueError(f'options are read by "letters" or by "text", not by "{by}"')
    branches = option_texts(lm, options)
    scores = text_log_probs(lm, read(lm, prepared, virtual, branches), branches)
    k = max(n_options)
    padded = [torch.nn.functional.pad(s, (0, k - s.shape[1]), value=float("-inf")) for s in scores]
    return torch.stack(padded)


def text_log_probs(
    lm: FrozenLM, found: Read, branches: Sequence[Sequence[Sequence[int]]], mean: bool = True
) -> list[Tensor]:
    """Log-probability of each branch's text, for every prompt a Tensor (N, texts).

    Parameters
    ----------
    mean : bool
        Mean a token (length-normalised), so that long texts compete with short ones; else the sum.
    """
    states: list[Tensor] = []
    targets: list[int] = []
    places: list[tuple[int, int]] = []
    n = found.trunk.shape[1]
    if not all(len(text) for texts in branches for text in texts):
        raise ValueError("a text without tokens has no probability")
    for c, texts in enumerate(branches):
        start = 0
        for text in texts:
            states.append(found.trunk[c][:, None])  # (N, 1, H)
            if len(text) > 1:
                assert found.branch is not None
                states.append(found.branch[c][:, start : start + len(text) - 1])
                start += len(text) - 1
            targets += text
            places.append((c, len(text)))
    flat = torch.cat(states, 1)  # (N, tokens, H)
    wanted = torch.tensor(targets, device=lm.device).expand(n, -1)
    token = _token_log_probs(lm, flat.reshape(-1, flat.shape[-1]), wanted.reshape(-1)).view(n, -1)
    out: list[list[Tensor]] = [[] for _ in branches]
    for (c, _), piece in zip(places, token.split([length for _, length in places], 1), strict=True):
        out[c].append(piece.mean(1) if mean else piece.sum(1))
    return [torch.stack(o, 1) for o in out]


def _token_log_probs(lm: FrozenLM, hidden: Tensor, targets: Tensor) -> Tensor:
    """log P(target) for each row of ``hidden`` (R, H); full-vocabulary logits exist for one chunk at a time."""

    def chunk(h: Tensor, t: Tensor) -> Tensor:
        return -torch.nn.functional.cross_entropy(lm.logits(h), t, reduction="none")

    if len(hidden) <= _LOGIT_ROWS:
        return chunk(hidden, targets)
    pieces = []
    for h, t in zip(hidden.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True):
        # Recomputed in the backward pass rather than kept: [rows, vocabulary] is the largest thing there is.
        pieces.append(checkpoint(chunk, h, t, use_reentrant=False) if torch.is_grad_enabled() else chunk(h, t))
    return torch.cat(pieces)
