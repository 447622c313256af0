"""The shared-context engine: many continuations of a few contexts, each context computed once.

A question and its people, or a dialogue and its K prompts with the reply, have one shape: C contexts, each continued
N times by M tokens. A context's keys and values depend neither on the person nor on the prompt, so they are computed
once, without gradient, and never copied per row: attention folds the N continuations into the query dimension,

    scores = [ q K_context^T | q K_own^T ],    p = softmax(scores),    out = p_context V_context + p_own V_own,

which is what every row [context + continuation] computes alone, in another order. It enters an LM through the
attention interface of transformers, so it serves every architecture that uses that interface; `FrozenLM` checks on a
tiny input that this is so, and runs `continue_plain` where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from personae.lm import deep

ATTENTION = "personae_shared_context"
_FUSED_KEYS = 2048  # own keys of all continuations of a context up to which the fused kernel is used on a GPU
_OTHER_TERMS = ("softcap", "position_bias", "s_aux")  # of attention scores; SDPA knows some, this file none


@dataclass
class Context:
    """C encoded contexts, right-padded to the longest.

    Attributes
    ----------
    ids : list of C token lists
    keys, values : list, one a layer, of Tensor (C, Hkv, T, D)
        Post-rotary, as the LM caches them.
    lengths : Tensor (C,)
        True lengths; positions from there on are padding.
    hidden : Tensor (C, T, H)
        The final hidden states.
    """

    ids: list[list[int]]
    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def last(self) -> Tensor:
        """Hidden state (C, H) of the last token."""
        return self.hidden[torch.arange(len(self), device=self.hidden.device), self.lengths - 1]

    @cached_property
    def mean(self) -> Tensor:
        """Mean hidden state (C, H) of the tokens; with `last` the LM's own representation of a text."""
        place = torch.arange(self.hidden.shape[1], device=self.hidden.device)
        real = (place < self.lengths[:, None]).to(self.hidden.dtype)  # (C, T)
        return (self.hidden * real[..., None]).sum(1) / self.lengths[:, None].to(self.hidden.dtype)

    def start(self, row: int, length: int) -> Context:
        """The first tokens of one context as a context, without a copy: a causal LM computed them for themselves."""
        keys, values = ([t[row : row + 1, :, :length] for t in layers] for layers in (self.keys, self.values))
        lengths = torch.tensor([length], device=self.lengths.device)
        return Context([self.ids[row][:length]], keys, values, lengths, self.hidden[row : row + 1, :length])


def home(model: PreTrainedModel) -> torch.device:
    """Where embeddings are computed; an LM may be split over devices, with its layers elsewhere."""
    embedding = model.get_input_embeddings()
    placed = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)  # of Accelerate
    return embedding.weight.device if placed is None else torch.device(placed)


def encode(model: PreTrainedModel, ids: Sequence[Sequence[int]], pad: int = 0) -> Context:
    """Run C contexts through the LM once, without gradient.

    Right padding needs no mask: a causal LM never looks to the right, and what the padding computes is not read.
    """
    device = home(model)
    lengths = torch.tensor([len(i) for i in ids], device=device)
    longest = int(lengths.max())
    padded = torch.full((len(ids), longest), pad, device=device)  # (C, T)
    for c, tokens in enumerate(ids):
        padded[c, : len(tokens)] = torch.tensor(tokens, device=device)
    cache = DynamicCache()
    with torch.no_grad():
        hidden = model.base_model(
            input_ids=padded, attention_mask=torch.ones_like(padded), past_key_values=cache, use_cache=True
        ).last_hidden_state
    *kept, hidden = in_one_block([*(t for layer in cache.layers for t in (layer.keys, layer.values)), hidden])
    return Context([list(i) for i in ids], kept[::2], kept[1::2], lengths, hidden)


def in_one_block(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that share one allocation a device.

    What is kept for long would otherwise stand as thousands of islands among what comes and goes, and the allocator
    of a CPU then spends more time on finding room than the LM on computing.
    """
    kept = list(tensors)
    for device in {t.device for t in tensors}:  # several where the LM's layers lie on several
        some = [i for i, t in enumerate(tensors) if t.device == device]
        block = torch.cat([tensors[i].reshape(-1) for i in some])
        for i, piece in zip(some, block.split([tensors[i].numel() for i in some]), strict=True):
            kept[i] = piece.view(tensors[i].shape)
    return kept


def continue_shared(
    model: PreTrainedModel,
    context: Context,
    x: Tensor,
    offset: Tensor | None = None,
    visible: Tensor | None = None,
    corrections: deep.Corrections | None = None,
) -> Tensor:
    """Hidden states of N continuations of each context.

    Parameters
    ----------
    x : Tensor (C, N, M, H)
        Input embeddings of the continuations, right-padded.
    offset : Tensor (C, M) of int, optional
        Position of each token after the context's end; 0, 1, ... by default.
    visible : Tensor (C, M, M) of bool, optional
        Which own token (column) each own token (row) sees; causal by default. With ``offset`` it lets several
        branches (the options of a question) share one trunk (the virtual tokens).
    corrections : Corrections, optional
        Of the C*N continuations, context by context (see `personae.lm.deep`).

    Returns
    -------
    Tensor (C, N, M, H)
    """
    c, n, m, h = x.shape
    if offset is None:
        offset = torch.arange(m, device=x.device).expand(c, m)
    position = context.lengths[:, None] + offset  # (C, M)
    if visible is None:
        visible = torch.ones(m, m, dtype=torch.bool, device=x.device).tril().expand(c, m, m)
    with attending(_Shared(context, position, visible)), deep.corrected(model, corrections):
        out = model.base_model(
            inputs_embeds=x.reshape(c * n, m, h),
            position_ids=position.repeat_interleave(n, 0),
            use_cache=False,
        ).last_hidden_state
    return out.view(c, n, m, h)


def continue_plain(
    model: PreTrainedModel,
    context: Context,
    x: Tensor,
    offset: Tensor | None = None,
    visible: Tensor | None = None,
    corrections: deep.Corrections | None = None,
) -> Tensor:
    """The same as `continue_shared` by running every row [context + continuation] in full.

    One call a context keeps positions exact whatever the lengths; a tree is run once for each of its branches.
    """
    embed = model.get_input_embeddings()
    rows = []
    for c, tokens in enumerate(context.ids):
        head = embed(torch.tensor(tokens, device=x.device, dtype=torch.long)).to(x.dtype)  # (T, H)
        row = torch.zeros_like(x[c])  # (N, M, H)
        for path in _branches(x.shape[2], None if visible is None else visible[c]):
            path = path.to(x.device)
            full = torch.cat([head.expand(len(row), -1, -1), x[c][:, path]], 1)
            cache = None
            if not tokens and context.lengths[c] > 0:  # no text, but key/values that were learned
                length = int(context.lengths[c])
                cache = as_cache(
                    [k[c, :, :length].expand(len(row), -1, -1, -1) for k in context.keys],
                    [v[c, :, :length].expand(len(row), -1, -1, -1) for v in context.values],
                )
            own = None
            if corrections is not None:
                own = corrections.along(path, range(c * len(row), (c + 1) * len(row)), x.shape[2], len(head))
            with deep.corrected(model, own):
                out = model.base_model(inputs_embeds=full, past_key_values=cache, use_cache=cache is not None)
            row = row.index_copy(1, path, out.last_hidden_state[:, len(head) :])
        rows.append(row)
    return torch.stack(rows)


def as_cache(keys: Sequence[Tensor], values: Sequence[Tensor]) -> DynamicCache:
    """Keys and values (R, Hkv, T, D) a layer as the cache that R rows continue."""
    cache = DynamicCache()
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.update(k, v, layer)
    return cache


def _branches(m: int, visible: Tensor | None) -> list[Tensor]:
    """The root-to-leaf paths of a tree of tokens, each as token indices; one path when nothing branches."""
    if visible is None:
        return [torch.arange(m)]
    seen_by_others = (visible & ~torch.eye(m, dtype=torch.bool, device=visible.device)).any(0)
    return [torch.nonzero(visible[leaf]).flatten() for leaf in torch.nonzero(~seen_by_others).flatten().tolist()]


@dataclass
class _Shared:
    """What the attention function needs about the pass in progress."""

    context: Context
    position: Tensor  # (C, M)
    visible: Tensor  # (C, M, M)
    _biases: dict[tuple[int | None, torch.device], Tensor] = field(default_factory=dict)
    _masks: dict[tuple[int | None, torch.device], Tensor] = field(default_factory=dict)

    def bias(self, sliding_window: int | None, device: torch.device) -> Tensor:
        """(C, M, T + M): -inf where a query must not see a key (padding, other branches, beyond the window), else 0."""
        if (sliding_window, device) not in self._biases:  # layers differ in their window and device only
            length, position = self.context.lengths, self.position
            key = torch.arange(self.context.keys[0].shape[2], device=position.device).expand(len(length), -1)  # (C, T)
            padding = (key >= length[:, None])[:, None].expand(-1, position.shape[1], -1)
            hidden = torch.cat([padding, ~self.visible], -1)
            if sliding_window is not None:
                distance = position[:, :, None] - torch.cat([key, position], -1)[:, None]
                hidden = hidden | (distance >= sliding_window)
            bias = torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, -torch.inf)
            self._biases[sliding_window, device] = bias.to(device)
        return self._biases[sliding_window, device]

    def mask(self, sliding_window: int | None, n: int, rep: int, like: Tensor) -> Tensor:
        """(C, 1, N*rep*M, T + N*M): the bias of the context's keys and of all N continuations' keys, -inf for those of
        another continuation."""
        if (sliding_window, like.device) not in self._masks:
            bias = self.bias(sliding_window, like.device)
            c, m, t = len(bias), bias.shape[1], bias.shape[2] - bias.shape[1]
            mask = bias.new_full((c, n, rep, m, t + n * m), -torch.inf)
            mask[..., :t] = bias[:, None, None, :, :t]
            own = mask[..., t:].view(c, n, rep, m, n, m)
            own.diagonal(dim1=1, dim2=4).copy_(bias[:, None, :, t:, None].expand(c, rep, m, m, n))
            self._masks[sliding_window, like.device] = mask.view(c, 1, n * rep * m, t + n * m).to(like.dtype)
        return self._masks[sliding_window, like.device]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """The formula at the top of this file; see `Attention`."""
        ctx_k, ctx_v = self.context.keys[layer], self.context.values[layer]  # (C, Hkv, T, D)
        rows, hq, m, d = query.shape
        c, hkv = ctx_k.shape[:2]
        n, rep = rows // c, hq // hkv

        # Fold the N continuations, and the heads that share keys, into the query dimension of their context.
        q = (query * scaling).view(c, n, hkv, rep, m, d)
        q = q.permute(0, 2, 1, 3, 4, 5).contiguous()  # (C, Hkv, N, rep, M, D)
        k, v = (own.view(c, n, hkv, m, d).transpose(1, 2) for own in (key, value))  # (C, Hkv, N, M, D)
        if _fits_fused(query, n * m):
            out = _fused(q, k, v, ctx_k, ctx_v, self.mask(sliding_window, n, rep, query))
        else:
            out = _in_two_parts(
                q, k, v, ctx_k, ctx_v, self.bias(sliding_window, query.device)
            )  # (C, Hkv, N, rep, M, D)
        return out.permute(0, 2, 4, 1, 3, 5).reshape(rows, m, hq, d)  # (C*N, M, Hq, D)


class Attention(Protocol):
    """What stands for the LM's attention in a pass; `install` must have returned True for that LM."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """From (R, Hq, M, D) and the pass's own (R, Hkv, M, D) twice to (R, M, Hq, D)."""
        ...


_active: ContextVar[Attention | None] = ContextVar("attention", default=None)


@contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Passes of an LM within, which must not use a cache, attend in this way."""
    token = _active.set(attention)
    try:
        yield
    finally:
        _active.reset(token)


def install(model: PreTrainedModel) -> bool:
    """Let the LM's attention go through this file; ordinary passes are handed on to SDPA unchanged.

    Returns False, and changes nothing, for an LM that does not run on SDPA (a soft cap on its scores, say).
    """
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return False
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)
    model.set_attn_implementation(ATTENTION)
    return True


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _active.get() is not None else sdpa_mask(*args, **kwargs)


def _attention(
    module: torch.nn.Module,
    query: Tensor,  # (C*N, Hq, M, D)
    key: Tensor,  # (C*N, Hkv, M, D)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    active = _active.get()
    if active is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    unknown = [name for name in _OTHER_TERMS if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return active.attend(layer, query, key, value, scaling, sliding_window), None


def _in_two_parts(q: Tensor, k: Tensor, v: Tensor, ctx_k: Tensor, ctx_v: Tensor, bias: Tensor) -> Tensor:
    """The formula at the top of this file, word for word; no key is copied and nobody's keys meet anybody else's."""
    c, hkv, n, rep, m, d = q.shape
    t = ctx_k.shape[2]
    s_ctx = q.view(c, hkv, n * rep * m, d) @ ctx_k.transpose(-1, -2)
    s_own = q.view(c, hkv, n, rep * m, d) @ k.transpose(-1, -2)
    scores = torch.cat([s_ctx.view(c, hkv, n, rep, m, t), s_own.view(c, hkv, n, rep, m, m)], -1).float()
    scores += bias[:, None, None, None]  # (C, Hkv, N, rep, M, T + M)
    p = torch.softmax(scores, -1).to(q.dtype)
    o_ctx = p[..., :t].reshape(c, hkv, n * rep * m, t) @ ctx_v
    o_own = p[..., t:].reshape(c, hkv, n, rep * m, m) @ v
    return o_ctx.view(q.shape) + o_own.view(q.shape)


def _fused(q: Tensor, k: Tensor, v: Tensor, ctx_k: Tensor, ctx_v: Tensor, mask: Tensor) -> Tensor:
    """The same in one fused kernel of the library: everybody's keys stand behind the context's, ``mask`` hides those
    of the others."""
    c, hkv, n, rep, m, d = q.shape
    out = torch.nn.functional.scaled_dot_product_attention(
        q.view(c, hkv, n * rep * m, d),
        torch.cat([ctx_k, k.reshape(c, hkv, n * m, d)], 2),
        torch.cat([ctx_v, v.reshape(c, hkv, n * m, d)], 2),
        attn_mask=mask,
        scale=1.0,  # q is scaled
    )
    return out.view(q.shape)


def _fits_fused(query: Tensor, own_keys: int) -> bool:
    """On a GPU a pass over keys that the mask hides is cheaper than scores in memory, while they are not many.

    On a CPU it is not: there the backward pass of a masked SDPA makes a training step a quarter slower.
    """
    return query.is_cuda and own_keys <= _FUSED_KEYS
