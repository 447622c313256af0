"""Two devices that are not there: tensors that say they are on ``pretend:0`` or ``pretend:1`` and compute on the CPU.

An operation on tensors of two devices raises, as it does on two GPUs. Run as a program, this compares LMs that are
split over both with whole ones; a process of its own, since torch keeps a registered device for good.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from personae.lm.frozen import FrozenLM
from personae.lm.tests.test_device_map import everything, halves, same
from personae.lm.tiny import tiny_lm


class _Elsewhere(torch.Tensor):
    """A CPU tensor with the name of another device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> _Elsewhere:
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=device, **shape)  # type: ignore[attr-defined]

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner = inner

    def tolist(self) -> list:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of PretendDevices")


class PretendDevices(TorchDispatchMode):
    """Within it every operation is checked and computed."""

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        devices = {t.device for t in tensors if t.dim() or t.device.type != "cpu"}  # a number may come from anywhere
        if len(devices) > 1 and "copy_" not in str(func):
            raise RuntimeError(f"{func} of tensors on {sorted(map(str, devices))}")
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        where = next((t.device for t in tensors if t.device in devices), torch.device("cpu"))
        where = where if asked is None else torch.device(asked)
        given = {id(_inner(t)): t for t in tensors}
        made = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))

        def named(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if asked is None and id(value) in given:  # in place
                return given[id(value)]
            return _Elsewhere(value, where) if where.type == "pretend" else value

        return tree_map(named, made)


def put(module: torch.nn.Module, device: str) -> None:
    """What ``module.to(device)`` does."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, held in tensors.items():
                if held is not None and not isinstance(held, _Elsewhere):
                    there = _Elsewhere(held.detach(), torch.device(device))
                    tensors[name] = there if tensors is part._buffers else torch.nn.Parameter(there, False)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, _Elsewhere) else value


def check(architecture: str, placement: str) -> None:
    lm = tiny_lm(architecture)
    alone = everything(lm, placement)
    if lm.shared:
        lm.model.set_attn_implementation("sdpa")
    # The first layer's device is not the first one.
    where = {name: f"pretend:{1 - i}" for i, names in enumerate(halves(lm)) for name in names}
    with PretendDevices():
        for name, device in where.items():
            put(lm.model.get_submodule(name), device)
        attach_align_device_hook_on_blocks(lm.model, where, offload=dict.fromkeys(where, False))
        lm.model.hf_device_map = where
        split = FrozenLM(lm.model, lm.tokenizer, lm.name)
        assert split.split
        assert split.shared == lm.shared
        assert split.device == torch.device("pretend:1")
        assert [str(d) for d in split.layer_devices] == ["pretend:1", "pretend:0"]
        same(everything(split, placement), alone)


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("pretend")
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor, too, goes through the mode
    # bloom runs without the shared-context engine
    for case in itertools.product(("llama", "gpt2", "bloom"), ("late", "before", "prefix")):
        check(*case)
        print(*case, flush=True)
