"""Deep virtual tokens: corrected before every layer, not set at the input alone.

A virtual token of an LM with L layers of width H has H numbers, which are its input embedding, or L x H: the embedding
and what is added to its hidden state before the second and every later layer (deep prompt tuning, Liu et al. 2022,
arXiv 2110.07602, there as keys and values). Positions, norms and projections stay the LM's own, so it serves every
architecture whose layers stand in a list; and the text before such a token need not know of it, so contexts are shared
as with shallow ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Corrections(NamedTuple):
    """What is added to m hidden states of a pass.

    Attributes
    ----------
    numbers : Tensor (m, (L - 1) * H)
        Before layers 2 to L.
    row, place : int Tensor (m,)
        Where they stand in the pass's input (R, M, H).
    """

    numbers: Tensor
    row: Tensor
    place: Tensor

    def along(self, path: Tensor, rows: range, width: int, behind: int) -> Corrections:
        """Those of a pass over some rows alone, and of their ``width`` places over a path alone, ``behind`` others."""
        new = torch.full((width,), -1, device=self.place.device)
        new[path.to(new.device)] = behind + torch.arange(len(path), device=new.device)
        mine = (self.row >= rows.start) & (self.row < rows.stop) & (new[self.place] >= 0)
        return Corrections(self.numbers[mine], self.row[mine] - rows.start, new[self.place[mine]])


_active: ContextVar[Corrections | None] = ContextVar("corrections", default=None)
_watched: WeakSet[PreTrainedModel] = WeakSet()


def split(virtual: Tensor, hidden_size: int) -> tuple[Tensor, Tensor | None]:
    """Virtual tokens (..., W) as input embeddings (..., H), and their corrections (..., W - H) where they are deep."""
    deeper = virtual[..., hidden_size:]
    return virtual[..., :hidden_size], deeper if deeper.shape[-1] else None


def of_rows(numbers: Tensor, start: int | Tensor = 0) -> Corrections:
    """Corrections (R, T, (L - 1) * H) of T tokens in turn of every row, from a place that may differ by row."""
    r, t = numbers.shape[:2]
    row = torch.arange(r, device=numbers.device)[:, None].expand(r, t)
    first = torch.as_tensor(start, device=numbers.device).expand(r)[:, None]
    return Corrections(numbers.flatten(0, 1), row.flatten(), (first + torch.arange(t, device=first.device)).flatten())


@contextmanager
def corrected(model: PreTrainedModel, corrections: Corrections | None) -> Iterator[None]:
    """Passes of the LM within correct hidden states before its layers."""
    if corrections is not None and model not in _watched:
        for i, layer in enumerate(layers(model)):
            if i:
                layer.register_forward_pre_hook(_Correct(i - 1), with_kwargs=True)
        _watched.add(model)
    token = _active.set(corrections)
    try:
        yield
    finally:
        _active.reset(token)


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The LM's layers, in order.

    Raises
    ------
    ValueError
        It keeps them in no list.
    """
    n = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n:
            return module
    raise ValueError(f"{type(model).__name__} keeps its layers in no list; train with deep=False")


@torch.no_grad()
def typical_sizes(model: PreTrainedModel, embedded: Tensor) -> Tensor:
    """Mean size of a hidden state's numbers before layers 2 to L, (L - 1,), at the median token of a text (T, H).

    The median, since an LM's first token is of another size than all others.
    """
    seen = model.base_model(inputs_embeds=embedded[None], output_hidden_states=True)
    before = [h.float().abs().mean(-1).median().cpu() for h in seen.hidden_states[1 : len(layers(model))]]
    return torch.stack(before) if before else torch.zeros(0)


class _Correct:
    """Before one layer of the LM."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        active = _active.get()
        if active is None:
            return None
        x = args[0] if args else kwargs["hidden_states"]  # (R, M, H)
        h = x.shape[-1]
        more = active.numbers[:, self.number * h : (self.number + 1) * h]
        index = (active.row.to(x.device), active.place.to(x.device))
        x = x.index_put(index, more.to(x), accumulate=True)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})
