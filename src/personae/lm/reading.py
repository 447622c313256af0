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
) -> Read:
    """Run the LM over prompt + virtual tokens (+ branches), every prompt with each of its N sets.

    Parameters
    ----------
    virtual : Tensor (C, N, T, H), or deep ones (C, N, T, L*H) (see `personae.lm.deep`), or for placement ``prefix`` a
        list, one a layer, of keys and values (C*N, Hkv, T, D)
    branches : for each prompt its texts as token ids, optional
        Each text's tokens but the last are run; see `text_log_probs`.
    """
    c = len(prepared)
    prefix = None if isinstance(virtual, Tensor) else lm.placed(virtual)
    n = virtual.shape[1] if isinstance(virtual, Tensor) else virtual[0][0].shape[0] // c
    own = virtual.shape[2] if isinstance(virtual, Tensor) else 0  # virtual tokens that are part of the row
    trees = [_Tree.build(own + len(p.after), b) for p, b in zip(prepared.prompts, branches or [()] * c, strict=True)]
    m = max(t.size for t in trees)
    width = max(len(t.tokens) for t in trees)

    after = [lm.embed([*p.after, *t.tokens]) for p, t in zip(prepared.prompts, trees, strict=True)]
    tail = torch.stack([torch.nn.functional.pad(e, (0, 0, 0, m - own - len(e))) for e in after])  # (C, M - T, H)
    x, deeper = tail[:, None].expand(c, n, -1, -1), None
    if isinstance(virtual, Tensor):
        embedded, deeper = deep.split(virtual, lm.hidden_size)
        x = torch.cat([embedded.to(lm.dtype), x], 2)

    # One path per row is plain causal order, which the LM's own fused attention does best.
    branching = any(len(t.branches) > 1 for t in trees)
    if prepared.context is not None or branching:
        visible = torch.stack([t.visible(m) for t in trees]).to(lm.device) if branching else None
        offset = torch.stack([t.offset(m) for t in trees]).to(lm.device) if branching else None
        hidden = _extend(lm, prepared, prefix, x, offset, visible, deeper)
    else:
        hidden = _rows(lm, prefix, x, deeper)
    each = torch.arange(c, device=lm.device)
    ends = torch.tensor([t.trunk - 1 for t in trees], device=lm.device)
    trunk = hidden[each, :, ends]  # (C, N, H)
    if not width:
        return Read(trunk, None)
    index = torch.stack([torch.arange(width).clamp(max=t.size - t.trunk - 1) + t.trunk for t in trees])
    index = index.clamp(min=0).to(lm.device)  # (C, B); padding repeats a real place and is never read
    branch = hidden.gather(2, index[:, None, :, None].expand(c, n, width, hidden.shape[-1]))
    return Read(trunk, branch)


def _extend(
    lm: FrozenLM,
    prepared: Prepared,
    prefix: KeyValues | None,
    x: Tensor,
    offset: Tensor | None,
    visible: Tensor | None,
    deeper: Tensor | None,
) -> Tensor:
    c, n, m, h = x.shape
    if prepared.context is not None:
        return lm.extend(prepared.context, x, offset, visible, deeper)
    # No shared part: every row is a context of its own, empty or holding its learned key/values.
    if prefix is None:
        prefix = lm.placed([(x.new_zeros(c * n, heads, 0, size),) * 2 for heads, size in lm.key_shapes])
    length = torch.full((c * n,), prefix[0][0].shape[2], device=x.device)
    unused = x.new_zeros(c * n, 0, h)
    keys, values = [k.to(x.dtype) for k, _ in prefix], [v.to(x.dtype) for _, v in prefix]
    alone = Context([[]] * (c * n), keys, values, length, unused)

    def per_row(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.repeat_interleave(n, 0)

    own = None if deeper is None else deeper.flatten(0, 1)[:, None]
    return lm.extend(alone, x.reshape(c * n, 1, m, h), per_row(offset), per_row(visible), own).view(c, n, m, h)


def _rows(lm: FrozenLM, prefix: KeyValues | None, x: Tensor, deeper: Tensor | None) -> Tensor:
    c, n, m, h = x.shape
    cache = None if prefix is None else prefix_cache(prefix, lm.dtype)
    with deep.corrected(lm.model, deep.of_rows(None if deeper is None else deeper.flatten(0, 1))):
        out = lm.model.base_model(
            inputs_embeds=x.reshape(c * n, m, h), past_key_values=cache, use_cache=cache is not None
        )
    return out.last_hidden_state.view(c, n, m, h)


def prefix_cache(prefix: KeyValues, dtype: torch.dtype) -> DynamicCache:
    """Learned keys and values (R, Hkv, T, D) a layer as the cache that the text continues."""
    return as_cache([k.to(dtype) for k, _ in prefix], [v.to(dtype) for _, v in prefix])


@dataclass
class _Tree:
    """A trunk of tokens and the branches that continue it, laid out in one row."""

    trunk: int
    tokens: list[int]
    branches: list[int]  # number of input tokens of each branch

    @classmethod
    def build(cls, trunk: int, texts: Sequence[Sequence[int]]) -> _Tree:
        inputs = [list(t[:-1]) for t in texts]
        return cls(trunk, [i for t in inputs for i in t], [len(t) for t in inputs if t])

    @property
    def size(self) -> int:
        return self.trunk + len(self.tokens)

    def offset(self, m: int) -> Tensor:
        position = list(range(self.trunk))
        for length in self.branches:
            position += range(self.trunk, self.trunk + length)
        return torch.tensor(position + [0] * (m - len(position)))

    def visible(self, m: int) -> Tensor:
        seen = torch.ones(m, m, dtype=torch.bool).tril()
        start = self.trunk
        for length in self.branches:
            seen[start : start + length, self.trunk : start] = False
            start += length
        seen[self.size :] = False
        seen[self.size :, 0] = True  # padding must see something; nothing reads it
        return seen


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
