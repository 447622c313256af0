"""Networks that make virtual tokens from a person vector and a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from personae.lm.frozen import FrozenLM
from personae.lm.prompts import LETTERS
from personae.lm.reading import KeyValues
from personae.people.text_opinion_model import PersonContext

FORMATS = ("letters", "text", "talk")  # the ways in which the LM is read; each is a view of the context
# Text of the LM's vocabulary from which each format's virtual tokens start.
_STARTS = {"letters": " A person", "text": " A person", "talk": "As a person"}


class Slot(nn.Module):
    """Where virtual tokens enter the LM: input embeddings, or key/values before every layer (``prefix``).

    A slot turns numbers of unit scale into virtual tokens: start + scale * numbers. The start is text of the LM's own
    vocabulary and the scale is the LM's own, since a frozen LM understands nothing far from them.
    """

    def __init__(self, lm: FrozenLM, n_tokens: int, prefix: bool) -> None:
        super().__init__()
        self.n_tokens, self.prefix, self.shapes = n_tokens, prefix, lm.key_shapes
        starts = []
        for format in FORMATS:
            tokens = (lm.tokens(_STARTS[format]) * n_tokens)[:n_tokens]
            if prefix:
                context = lm.encode([tokens])
                pairs = zip(context.keys, context.values, strict=True)
                layers = [torch.cat([k[0].flatten(), v[0].flatten()]).float().cpu() for k, v in pairs]
                starts.append(torch.cat(layers))
                scale = torch.cat([layer.std().expand(len(layer)) for layer in layers])
            else:
                starts.append(lm.embed(tokens).float().flatten().cpu())
                scale = torch.full_like(starts[0], 3 * lm.embedding_scale)
        self.start = nn.Parameter(torch.stack(starts))
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.size = scale.numel()

    def forward(self, numbers: Tensor, format: int) -> Tensor | KeyValues:
        """(C, N, size) to (C, N, T, H), or to key/values (C*N, Hkv, T, D) a layer."""
        flat = self.start[format] + self.scale * numbers
        c, n, _ = flat.shape
        if not self.prefix:
            return flat.view(c, n, self.n_tokens, -1)
        layers = []
        at = 0
        for heads, size in self.shapes:
            length = heads * self.n_tokens * size
            key, value = flat[..., at : at + length], flat[..., at + length : at + 2 * length]
            shape = (c * n, heads, self.n_tokens, size)
            layers.append((key.reshape(shape), value.reshape(shape)))
            at += 2 * length
        return layers


class ContextualNetwork(nn.Module):
    """Virtual tokens as a function of person x context.

    Notes
    -----
    With f the features of `PersonContext` and p the option probabilities that it reads from them::

        virtual = start + scale * W f + sum_k p_k letter_k

    The last term (only where the prompt lists lettered options) starts as the expected embedding of the letters: it
    tells the LM in its own vocabulary what the features would say, and the LM's feedback trains all of it.
    """

    def __init__(self, lm: FrozenLM, trunk: PersonContext, n_tokens: int, prefix: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.slot = Slot(lm, n_tokens, prefix)
        self.out = nn.Linear(2 * trunk.width, self.slot.size, bias=False)
        nn.init.normal_(self.out.weight, 0.0, 0.02)
        named = lm.embed([lm.tokens(" " + letter)[0] for letter in LETTERS]).float().cpu() / self.slot.scale[0]
        letters = named.repeat(1, n_tokens) if not prefix else torch.zeros(len(LETTERS), self.slot.size)
        self.letters = nn.Parameter(letters)

    def forward(self, vectors: Tensor, h: Tensor, format: str, n_options: list[int] | None) -> Tensor | KeyValues:
        """Virtual tokens of people (N, D) or (C, N, D) in contexts (C, 2H)."""
        view = FORMATS.index(format)
        features = self.trunk(vectors, h, view)
        numbers = self.out(features)
        if format == "letters" and n_options is not None:
            p = torch.softmax(self.trunk.option_logits(features, n_options), -1)  # (C, N, K)
            numbers = numbers + p @ self.letters[: p.shape[-1]]
        return self.slot(numbers, view)


class PaperNetwork(nn.Module):
    """The soft-prompting model of arXiv 2311.04978: a two-layer perceptron on the person vector alone.

    32 hidden units; the paper's output is key/values before every layer (``prefix``), its variant input tokens.
    """

    def __init__(self, lm: FrozenLM, vectors: Tensor, n_tokens: int, prefix: bool, hidden: int = 32) -> None:
        super().__init__()
        self.slot = Slot(lm, n_tokens, prefix)
        last = nn.Linear(hidden, self.slot.size)
        nn.init.normal_(last.weight, 0.0, 0.02)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(vectors.shape[1], hidden), nn.Tanh(), last)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("std", vectors.std(0).clamp(min=1e-6))

    def forward(self, vectors: Tensor, h: Tensor, format: str, n_options: list[int] | None) -> Tensor | KeyValues:
        """Virtual tokens of people (N, D) or (C, N, D), the same in all C contexts."""
        numbers = self.mlp((vectors - self.mean) / self.std)
        numbers = numbers if numbers.dim() == 3 else numbers.expand(len(h), -1, -1)
        return self.slot(numbers, FORMATS.index(format))
