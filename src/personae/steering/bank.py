"""A bank of K soft prompts, and the retrievers that choose among them for a context."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personae.lm.deep import typical_sizes
from personae.lm.frozen import FrozenLM
from personae.lm.reading import KeyValues
from personae.steering.selection import choice_log_probs, paper_scores

_START = " I am somebody who likes to"  # said of oneself, which the LM understands at the start of a reply
_APART, _OWN_APART = 0.05, 1 / 3  # spread of the prompts' numbers at the start; a third is that of the vocabulary


class PromptBank(nn.Module):
    """K soft prompts, each shifted by the context and by who speaks.

    Parameters
    ----------
    lm : FrozenLM
    n_prompts, n_tokens : int
        K, and tokens of each.
    n_shared : int
        Tokens that stand before each of them and are the same for all; T = n_shared + n_tokens are at work at a time.
    prefix : bool
        Whether the prompts are key/values before every layer in place of input embeddings.
    deep : bool
        Whether their tokens are corrected before every layer (see `personae.lm.deep`).
    deep_shift : bool
        Whether these corrections are shifted, too, as they are but in banks of earlier versions.
    n_context, n_person : int
        Sizes of a context's representation and of a person vector; without either there is no shift by it.
    learned_start : bool
        Whether the start is learned, too.
    reparametrise : bool
        P-tuning (Liu et al. 2021, arXiv 2103.10385): the prompts come out of a small recurrent network, which is an
        easier thing to learn than the prompts themselves.

    Notes
    -----
    With h the context's standardised representation and z the standardised person vector::

        prompt_k = start + scale * ( [0, numbers_k] + W [ (V h) * (1 + U z), U' z ] )

    The start is text of the LM's vocabulary. Learned, it holds what all replies have in common: K prompts that each
    learn it from the replies they are responsible for are slower than a single prompt. The numbers, of a prompt's own
    tokens, then start near zero and hold what sets the prompts apart; where the start is not learned they start apart.
    W starts at zero. Deep tokens have L x H numbers in place of H; the shift of the first H is a token's own, that of
    the others, with a W' of its own, is the same for all tokens.
    """

    def __init__(
        self,
        lm: FrozenLM,
        n_prompts: int,
        n_tokens: int,
        n_shared: int = 0,
        prefix: bool = False,
        deep: bool = False,
        deep_shift: bool = True,
        n_context: int = 0,
        n_person: int = 0,
        learned_start: bool = True,
        reparametrise: bool = False,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.shapes, self.prefix, self.n_shared = lm.key_shapes, prefix, n_shared
        ids = (lm.tokens(_START) * (n_shared + n_tokens))[: n_shared + n_tokens]
        if prefix:
            context = lm.encode([ids])
            pairs = zip(context.keys, context.values, strict=True)  # (1, Hkv, T, D) each
            parts = [x[0].transpose(0, 1).flatten(1).float() for pair in pairs for x in pair]
            start = torch.cat(parts, 1)
            scale = torch.cat([part.std().expand(part.shape[1]) for part in parts])
        else:
            start = lm.embed(ids).float()
            scale = torch.full((lm.hidden_size,), 3 * lm.embedding_scale)
        self.start = nn.Parameter(start.cpu(), requires_grad=learned_start)  # (T, W)
        width_in, self.deeper = start.shape[1], None
        if deep:  # corrections, in units of the hidden states that they are added to, start at zero
            sizes = typical_sizes(lm.model, start.to(lm.dtype)).repeat_interleave(lm.hidden_size)
            scale = torch.cat([scale, sizes.to(scale)])
            self.deeper = nn.Parameter(torch.zeros(len(ids), len(sizes)), requires_grad=learned_start)
        self.scale: Tensor
        self.register_buffer("scale", scale.cpu())  # (W,)
        apart = 0.0 if n_prompts == 1 else _APART if learned_start else _OWN_APART
        numbers = apart * torch.randn(n_prompts, n_tokens, width_in)
        self.numbers = nn.Parameter(F.pad(numbers, (0, len(scale) - width_in)))
        self.recurrent = _Recurrent(width_in) if reparametrise else None
        self.context = nn.Linear(n_context, width, bias=False) if n_context else None
        self.person = nn.Linear(n_person, 2 * width) if n_person else None
        used = width * (bool(n_context) + bool(n_person))
        self.out = nn.Linear(used, len(start) * width_in, bias=False) if used else None
        shifted = used and deep and deep_shift
        self.out_deeper = nn.Linear(used, len(scale) - width_in, bias=False) if shifted else None
        for out in filter(None, (self.out, self.out_deeper)):
            nn.init.zeros_(out.weight)

    def __len__(self) -> int:
        return len(self.numbers)

    def prompts(self) -> Tensor:
        """The prompts (K, T, W) that everybody shares, before any shift."""
        numbers = self.numbers if self.recurrent is None else self.recurrent(self.numbers)
        start: Tensor = self.start
        if self.deeper is not None:
            start = torch.cat([start, self.scale[start.shape[1] :] * self.deeper], 1)
        return start + self.scale * F.pad(numbers, (0, 0, self.n_shared, 0))

    def forward(self, h: Tensor, z: Tensor | None, chosen: Tensor | None = None) -> Tensor | KeyValues:
        """Virtual tokens for B contexts.

        Parameters
        ----------
        h : Tensor (B, n_context)
        z : Tensor (B, n_person) or None
        chosen : int Tensor (B, N), optional
            Which prompts each context gets; all K by default.

        Returns
        -------
        Tensor (B, N, T, H), of deep prompts (B, N, T, L*H), or with ``prefix`` key/values (B*N, Hkv, T, D) a layer
        """
        prompts = self.prompts()
        rows = prompts.expand(len(h), -1, -1, -1) if chosen is None else prompts[chosen]  # (B, N, T, W)
        if self.out is not None:
            features = self._features(h, z)
            shift = self.out(features).view(len(h), 1, len(self.start), -1)
            if self.out_deeper is None:
                shift = F.pad(shift, (0, rows.shape[-1] - shift.shape[-1]))
            else:
                deeper = self.out_deeper(features)[:, None, None].expand(-1, -1, len(self.start), -1)
                shift = torch.cat([shift, deeper], -1)
            rows = rows + self.scale * shift
        return self._key_values(rows) if self.prefix else rows

    def _features(self, h: Tensor, z: Tensor | None) -> Tensor:
        a = None if self.context is None else self.context(h)
        if self.person is None:
            assert a is not None
            return a
        if z is None:
            raise ValueError("these prompts were trained with person vectors; say as whom to speak")
        gain, own = self.person(z).chunk(2, -1)
        return own if a is None else torch.cat([a * (1 + gain), own], -1)

    def _key_values(self, rows: Tensor) -> KeyValues:
        b, n, t, _ = rows.shape
        sizes = [heads * size for heads, size in self.shapes for _ in range(2)]
        parts = [part.reshape(b * n, t, -1) for part in rows.split(sizes, -1)]
        return [
            (key.view(b * n, t, heads, size).transpose(1, 2), value.view(b * n, t, heads, size).transpose(1, 2))
            for (heads, size), key, value in zip(self.shapes, parts[::2], parts[1::2], strict=True)
        ]


class _Recurrent(nn.Module):
    """The prompt encoder of P-tuning: a bidirectional LSTM over a prompt's tokens and a two-layer perceptron."""

    def __init__(self, size: int, hidden: int = 128) -> None:
        super().__init__()
        self.words = nn.Linear(size, hidden)
        self.places = nn.LSTM(hidden, hidden // 2, bidirectional=True, batch_first=True)
        last = nn.Linear(hidden, size, bias=False)
        nn.init.normal_(last.weight, 0.0, 0.02)
        self.out = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.out(self.places(self.words(numbers))[0])


class Retriever(nn.Module):
    """Chooses by the context's representation and, where it is known, by who speaks.

    Notes
    -----
    ``log p = log softmax(cos(W h + U z, e_k) / temperature)`` with keys e_k that are learned. They start as the centres
    of clusters of training contexts (`start_at`), so that every prompt is used from the first step.
    """

    def __init__(self, n_prompts: int, n_context: int, n_person: int = 0, size: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(n_context, size, bias=False)
        self.person = nn.Linear(n_person, size, bias=False) if n_person else None
        self.keys = nn.Parameter(torch.randn(n_prompts, size))

    @torch.no_grad()
    def start_at(self, h: Tensor, seed: int) -> None:
        """Query = the leading principal directions of contexts (n, n_context); keys = their K-means centres."""
        from sklearn.cluster import KMeans

        size = min(len(self.query.weight), *h.shape)
        directions = torch.linalg.svd(h - h.mean(0), full_matrices=False).Vh[:size]
        self.query.weight[:size] = directions.to(self.query.weight)
        spread = F.normalize(self.query(h.to(self.query.weight)), dim=-1).cpu().numpy()
        if len(np.unique(spread, axis=0)) >= len(self.keys) > 1:
            centres = KMeans(len(self.keys), n_init=4, random_state=seed).fit(spread).cluster_centers_
            self.keys.copy_(F.normalize(torch.as_tensor(centres), dim=-1))

    def queries(self, h: Tensor, z: Tensor | None) -> Tensor:
        """Where contexts (B, n_context) of people (B, n_person) stand among the keys, (B, size)."""
        query = self.query(h)
        if self.person is None:
            return query
        if z is None:
            raise ValueError("this retriever was trained with person vectors; say as whom to speak")
        return query + self.person(z)

    def forward(self, h: Tensor, z: Tensor | None, prompts: Tensor, temperature: float) -> Tensor:
        """log p (B, K)."""
        return choice_log_probs(self.queries(h, z), self.keys, temperature)


class PaperRetriever(nn.Module):
    """The dense retriever of arXiv 2406.18187: one projection of contexts' and prompts' mean embeddings."""

    def __init__(self, hidden_size: int, size: int = 128) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, size)

    def scores(self, h: Tensor, prompts: Tensor) -> Tensor:
        """`paper_scores` (B, K) of contexts' mean word embeddings (B, H) and prompts (K, T, H)."""
        return paper_scores(h, prompts.mean(1), self.projection.weight, self.projection.bias)

    def forward(self, h: Tensor, z: Tensor | None, prompts: Tensor, temperature: float) -> Tensor:
        """log p (B, K) = log softmax of the scores; there is no temperature in it."""
        return torch.log_softmax(self.scores(h, prompts), -1)


class SelectiveNetwork(nn.Module):
    """A bank and its retriever, with the statistics that contexts and people are standardised by.

    Attributes
    ----------
    temperature : Tensor ()
        Of the retriever's choice; it falls during training, so it is kept with the weights.
    """

    def __init__(self, bank: PromptBank, retriever: Retriever | PaperRetriever, n_context: int, n_person: int) -> None:
        super().__init__()
        self.bank, self.retriever = bank, retriever
        self.h_mean: Tensor
        self.h_std: Tensor
        self.z_mean: Tensor
        self.z_std: Tensor
        for name, size in (("h", n_context), ("z", n_person)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(1.0))

    @property
    def n_person(self) -> int:
        """Size of the person vectors it was made for; 0 where it knows nothing of people."""
        return len(self.z_mean)

    def standardise(self, h: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Contexts' representations (B, n_context) and person vectors (B, n_person), the latter only if they are used.

        The paper's retriever compares word embeddings as they are.
        """
        if not isinstance(self.retriever, PaperRetriever):
            h = ((h - self.h_mean) / self.h_std).clamp(-8, 8)
        return h, ((z - self.z_mean) / self.z_std).clamp(-8, 8) if self.n_person and z is not None else None

    def learn_statistics(self, h: Tensor, z: Tensor | None, seed: int) -> None:
        """Take means and scales from training contexts (n, n_context) and people, and start the retriever there."""
        for name, values in (("h", h), ("z", z if self.n_person else None)):
            if values is not None:
                spread = values.std(0) if len(values) > 1 else torch.ones_like(values[0])
                getattr(self, f"{name}_mean").copy_(values.mean(0))
                # Coordinates that hardly ever move stay quiet; where none does, the scale is 1.
                getattr(self, f"{name}_std").copy_(spread.clamp(min=1e-2 * spread.mean()) if spread.any() else 1.0)
        if isinstance(self.retriever, Retriever):
            self.retriever.start_at(self.standardise(h, None)[0], seed)

    def choose(self, h: Tensor, z: Tensor | None) -> Tensor:
        """log p (B, K) of the prompts for standardised contexts."""
        return self.retriever(h, z, self.bank.prompts(), self.temperature)
