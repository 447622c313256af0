"""Networks that make virtual tokens from a person vector and a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from personae.lm.frozen import FrozenLM
from personae.lm.prompts import LETTERS, letter_ids
from personae.lm.reading import KeyValues
from personae.people.text_opinion_model import ANCHORS, PersonContext
from personae.steering.expectation import Expectation
from personae.steering.recall import Recall

_LEAST = -6.0  # log-probabilities below are as good as none
FORMATS = ("letters", "text", "talk")  # the ways in which the LM is read; each is a view of the context
# Text of the LM's vocabulary from which each format's virtual tokens start.
_STARTS = {"letters": " A person", "text": " A person", "talk": "As a person with opinions, I would say"}


class Slot(nn.Module):
    """Where virtual tokens enter the LM: input embeddings, or key/values before every layer (``prefix``).

    A slot turns numbers of unit scale into virtual tokens: start + scale * numbers. The start is text of the LM's own
    vocabulary and the scale is the LM's own, since a frozen LM understands nothing far from them.

    Attributes
    ----------
    n_tokens : dict of format to int
    width : int
        Numbers a token: H, or those of all layers' key/values.
    """

    def __init__(self, lm: FrozenLM, n_tokens: dict[str, int], prefix: bool) -> None:
        super().__init__()
        self.n_tokens, self.prefix, self.shapes = n_tokens, prefix, lm.key_shapes
        self.start = nn.ParameterDict()
        for format, n in n_tokens.items():
            ids = (lm.tokens(_STARTS[format]) * n)[:n]
            if prefix:
                context = lm.encode([ids])
                pairs = zip(context.keys, context.values, strict=True)  # (1, Hkv, T, D) each
                parts = [x[0].transpose(0, 1).flatten(1) for pair in pairs for x in pair]
                scale = torch.cat([part.float().std().expand(part.shape[1]) for part in parts]).cpu()
                self.start[format] = nn.Parameter(torch.cat(parts, 1).float().cpu())  # (T, width)
            else:
                self.start[format] = nn.Parameter(lm.embed(ids).float().cpu())
                scale = torch.full((lm.hidden_size,), 3 * lm.embedding_scale)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.width = len(scale)

    @property
    def most(self) -> int:
        """Numbers to make: those of the format with the most tokens."""
        return max(self.n_tokens.values()) * self.width

    def forward(self, numbers: Tensor, format: str) -> Tensor | KeyValues:
        """(C, N, most) to (C, N, T, H), or to key/values (C*N, Hkv, T, D) a layer."""
        c, n, _ = numbers.shape
        t = self.n_tokens[format]
        tokens = self.start[format] + self.scale * numbers[..., : t * self.width].reshape(c, n, t, self.width)
        if not self.prefix:
            return tokens
        sizes = [heads * size for heads, size in self.shapes for _ in range(2)]
        parts = [part.reshape(c * n, t, -1) for part in tokens.split(sizes, -1)]
        layers: KeyValues = []
        for (heads, size), key, value in zip(self.shapes, parts[::2], parts[1::2], strict=True):
            shape = (c * n, t, heads, size)
            layers.append((key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2)))
        return layers


class ContextualNetwork(nn.Module):
    """Virtual tokens as a function of person x context.

    Parameters
    ----------
    expectation : Expectation
        What the opinion model expects of people.
    recall : Recall
        Which of somebody's answers matter to a chat.

    Notes
    -----
    With f the features of `PersonContext` and p option probabilities::

        virtual = start + scale * (W f + sum_k p_k word_k + sum_k l_k word'_k)

    The last terms say p, and l, its logarithm less their mean, in learned words. Where the prompt lists lettered
    options there are two words a letter, starting as the letter's own embedding and as nothing, and p is what the
    opinion model expects of this person: of a question that was asked by its own read-out, of a new one by those of
    questions that read alike. Where the answer is a text or a sentence there is one word an anchor of the scale (lowest
    to highest option), and p is read from the features. The LM's feedback trains all of it.

    Before a sentence stand further virtual tokens: the words of an expected answer that matters to the chat
    (`Recall`), but for placement ``prefix``.

    The features of a question that is new lead nowhere: there are too few questions to learn what new ones mean. Its
    letters are told p alone. Training takes some questions for new, with a p that knows nothing of their answers, so
    that the LM learns what such a p is worth.
    """

    def __init__(
        self,
        lm: FrozenLM,
        trunk: PersonContext,
        expectation: Expectation,
        recall: Recall,
        n_tokens: dict[str, int],
        prefix: bool,
    ) -> None:
        super().__init__()
        self.n_person = len(trunk.z_mean)
        self.trunk = trunk
        self.expectation = expectation
        self.recall = recall
        self.slot = Slot(lm, n_tokens, prefix)
        self.out = nn.Linear(2 * trunk.width, self.slot.most, bias=False)
        nn.init.normal_(self.out.weight, 0.0, 0.02)
        letters = torch.zeros(len(LETTERS), self.slot.most)
        if not prefix:
            named = lm.embed(letter_ids(lm, len(LETTERS))).float().cpu() / self.slot.scale
            letters[:, : n_tokens["letters"] * self.slot.width] = named.repeat(1, n_tokens["letters"])
        self.letters = nn.Parameter(letters)
        self.by_logits = nn.Parameter(torch.zeros_like(letters))
        self.anchors = nn.ParameterDict({f: torch.zeros(ANCHORS, self.slot.most) for f in FORMATS if f != "letters"})

    def recalled(self, vectors: Tensor, h: Tensor, without: Tensor | None = None, said: Tensor | None = None) -> Tensor:
        """Words (C, N, L, H) of an answer of each person that matters to chats (C, 2H); see `Recall.forward`."""
        x = vectors if vectors.dim() == 3 else vectors.expand(len(h), -1, -1)
        return self.recall(h.float(), self.expectation.of_everything(x), without, said)

    def forward(
        self,
        vectors: Tensor,
        h: Tensor,
        format: str,
        expected: Tensor | None = None,
        new: Tensor | None = None,
        without: Tensor | None = None,
        said: Tensor | None = None,
    ) -> Tensor | KeyValues:
        """Virtual tokens of people (N, D) or (C, N, D) in contexts (C, 2H).

        For letters with what is ``expected``, logits (C, N, K), of questions some of which may be ``new`` (C,). For
        talk ``without`` (C,) recalling some questions, and told what is ``said`` (C, 2).
        """
        features = self.trunk(vectors, h, FORMATS.index(format))
        numbers = self.out(features)
        if expected is not None:
            if new is not None:
                numbers = numbers.masked_fill(new[:, None, None], 0.0)
            k, log_p = expected.shape[-1], expected.log_softmax(-1)
            numbers = numbers + log_p.exp() @ self.letters[:k] + centred(log_p) @ self.by_logits[:k]
            return self.slot(numbers, format)
        tokens = self.slot(
            numbers + torch.softmax(self.trunk.scale_readout(features), -1) @ self.anchors[format], format
        )
        if format != "talk" or not isinstance(tokens, Tensor):
            return tokens
        return torch.cat([tokens, self.recalled(vectors, h, without, said).to(tokens.dtype)], 2)


def centred(log_p: Tensor) -> Tensor:
    """Log-probabilities (..., K) of at least exp(-6) less their mean over a question's own options; 0 beyond these.

    >>> centred(torch.tensor([0.8, 0.2, 0.0]).log())
    tensor([ 0.6931, -0.6931,  0.0000])
    """
    own = torch.isfinite(log_p)
    kept = torch.where(own, log_p.clamp(min=_LEAST), 0.0)
    return torch.where(own, kept - kept.sum(-1, keepdim=True) / own.sum(-1, keepdim=True), 0.0)


class PaperNetwork(nn.Module):
    """The soft-prompting model of arXiv 2311.04978: a two-layer perceptron on the person vector alone.

    32 hidden units; the paper's output is key/values before every layer (``prefix``), its variant input tokens.
    """

    def __init__(self, lm: FrozenLM, vectors: Tensor, n_tokens: dict[str, int], prefix: bool, hidden: int = 32) -> None:
        super().__init__()
        self.n_person = vectors.shape[1]
        self.slot = Slot(lm, n_tokens, prefix)
        last = nn.Linear(hidden, self.slot.most)
        nn.init.normal_(last.weight, 0.0, 0.02)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(vectors.shape[1], hidden), nn.Tanh(), last)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("std", vectors.std(0).clamp(min=1e-6))

    def forward(self, vectors: Tensor, h: Tensor, format: str) -> Tensor | KeyValues:
        """Virtual tokens of people (N, D) or (C, N, D), the same in all C contexts."""
        numbers = self.mlp((vectors - self.mean) / self.std)
        numbers = numbers if numbers.dim() == 3 else numbers.expand(len(h), -1, -1)
        return self.slot(numbers, format)


class ConstantNetwork(nn.Module):
    """One soft prompt for everybody and every question: virtual = start + scale * numbers, the numbers learned."""

    def __init__(self, lm: FrozenLM, n_person: int, n_tokens: dict[str, int], prefix: bool) -> None:
        super().__init__()
        self.n_person = n_person  # vectors are not read, but those of another opinion model are still a mistake
        self.slot = Slot(lm, n_tokens, prefix)
        self.numbers = nn.Parameter(torch.zeros(self.slot.most))

    def forward(self, vectors: Tensor, h: Tensor, format: str) -> Tensor | KeyValues:
        """The same virtual tokens for people (N, D) or (C, N, D) in all C contexts."""
        return self.slot(self.numbers.expand(len(h), vectors.shape[-2], -1), format)
