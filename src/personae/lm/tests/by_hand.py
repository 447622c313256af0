"""One whole pass over one row with deep virtual tokens, by hooks of its own: what the library's passes are held to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from personae.lm.frozen import FrozenLM


@contextmanager
def corrected_by_hand(lm: FrozenLM, deeper: Tensor, at: int) -> Iterator[None]:
    """Add corrections (T, (L - 1) * H) to what leaves every layer but the last, from place ``at`` on."""
    n = lm.model.config.num_hidden_layers
    (layers,) = [m for m in lm.model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    parts = deeper.view(len(deeper), n - 1, lm.hidden_size)

    def after(number: int):
        def hook(module, args, output):
            x = (output[0] if isinstance(output, tuple) else output).clone()
            x[:, at : at + len(deeper)] += parts[:, number].to(x.dtype)
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return hook

    handles = [layer.register_forward_hook(after(i)) for i, layer in enumerate(layers[:-1])]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
