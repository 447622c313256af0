"""`NewQuestions`: the read-out of a question that nobody was asked, from those of questions that read alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

_TEXT, _PLACE = 0.5, 0.05  # at which 1 - cosine of texts, and squared distance of places, likeness is 1/e
_COMMON = 0.1  # likeness of options at one place, whatever the texts
_OTHER = 0.5  # what remains of likeness where scales differ in length
_NOISE = (0.05, 0.3, 2.0, 12.0)  # what an option may have of its own, that no text tells
_JUDGES = 256  # people whose answers to left-out questions choose among these
_MOST = 4000  # options to compare with: a matrix of their squared number is inverted


class NewQuestions(nn.Module):
    """A Gaussian process over the options of questions, whose values are the opinion model's read-outs.

    Parameters
    ----------
    embeddings : Tensor (Q, F)
        Of each question with its options, by a text encoder.
    n_options : sequence of Q int
    intercepts, slopes : Tensor (Q, K), (Q, K, D)
        Of the read-outs, logits = intercepts + slopes . x; beyond a question's own options they are not looked at.
    people : Tensor (N, D)
        Person vectors x; read-outs are learned in their mean and scale.

    Attributes
    ----------
    amplitude : Tensor (1 + D)
        Variance of intercepts and of each slope, in units of the kernel: the most likely one.
    noise : Tensor ()
        Variance of what an option has of its own, in the same units: that of four which predicts left-out questions
        best. So texts that tell little, or too few questions, leave the answers to new ones near even.

    Notes
    -----
    With h the standardised embeddings, options at places s and t in [0, 1] of two scales are alike by::

        exp(-(s - t)^2 / 0.05) * (exp(-(1 - cos(h, h')) / 0.5) + 0.1)

    half of that where the scales differ in length, and every value is relative to the mean of its question's options.
    Predicted is the posterior mean, in closed form. Its variance v at a person flattens the logits by
    1 / sqrt(1 + pi v / 8) (MacKay, "The evidence framework applied to classification networks", 1992): a question
    unlike all others is answered nearly evenly. Left-out questions judge how much noise there is, so that a survey of
    few questions, or an encoder that tells nothing, says little of new ones.

    Examples
    --------
    Texts are angles here, and what people make of a question follows from its angle.

    >>> angle = torch.linspace(0, 3, 40)
    >>> h = torch.stack([angle.cos(), angle.sin()], 1)
    >>> slopes = torch.stack([-h, h], 1)  # (Q, 2 options, D)
    >>> questions = NewQuestions(h, [2] * 40, torch.zeros(40, 2), slopes, torch.eye(2).repeat(50, 1))
    >>> no, yes = questions(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.1]]), [2])[0, 0].softmax(-1)
    >>> bool(yes > 0.9)
    True
    """

    x_mean: Tensor
    x_std: Tensor
    h_mean: Tensor
    h_std: Tensor
    texts: Tensor
    n_options: Tensor
    values: Tensor
    noise: Tensor
    amplitude: Tensor
    _precision: Tensor
    _weights: Tensor
    left_out_means: Tensor
    left_out_variances: Tensor

    def __init__(
        self, embeddings: Tensor, n_options: Sequence[int], intercepts: Tensor, slopes: Tensor, people: Tensor
    ) -> None:
        super().__init__()
        mean, std = people.mean(0), people.std(0).clamp(min=1e-6)
        intercepts = intercepts.nan_to_num(neginf=0.0)
        lines = torch.cat([(intercepts + slopes @ mean)[..., None], slopes * std], -1)  # (Q, K, 1 + D)
        values = [line[:n] - line[:n].mean(0) for line, n in zip(lines, n_options, strict=True)]
        kept = _some(n_options)
        h = embeddings[kept]
        spread = h.std(0) if len(h) > 1 else torch.ones(h.shape[1])
        self._set(
            x_mean=mean,
            x_std=std,
            h_mean=h.mean(0),
            h_std=spread.clamp(min=1e-2 * float(spread.mean()) + 1e-8),  # coordinates that never move stay quiet
            texts=h,
            n_options=torch.tensor(n_options)[kept],
            values=torch.cat([values[j] for j in kept]),
        )
        some = people[:: math.ceil(len(people) / _JUDGES)]
        logits = (intercepts[:, None] + some @ slopes.transpose(1, 2))[..., : max(n_options)]  # (Q, N, K)
        said = logits.masked_fill(_beyond(n_options)[:, None], float("-inf")).softmax(-1)
        losses = []
        for noise in _NOISE:
            self._leave_out(embeddings, n_options, kept, noise)
            log_p = self.left_out(some, torch.arange(len(values)), n_options).log_softmax(-1)
            losses.append(-(said * log_p.masked_fill(said == 0, 0.0)).sum(-1).mean())
        self._leave_out(embeddings, n_options, kept, _NOISE[int(torch.stack(losses).argmin())])

    def _leave_out(self, embeddings: Tensor, n_options: Sequence[int], kept: list[int], noise: float) -> None:
        """What would be believed of each question if it had not been asked: of those kept by a block of the inverse."""
        self._set(noise=torch.tensor(noise))
        precision = self._solve()
        means, variances = self._posterior(embeddings, n_options)
        for j, at in zip(kept, torch.arange(len(self.values)).split(self.n_options.tolist()), strict=True):
            block = torch.linalg.inv(precision[at][:, at])  # (k, k)
            believed = self.values[at] - (block @ (precision[at] @ self.values.double())).float()
            means[j, : len(at)] = _centred(believed, [len(at)])
            variances[j] = _of_a_difference(block.float(), [len(at)])[0]
        self.register_buffer("left_out_means", means, persistent=False)  # (Q, K, 1 + D)
        self.register_buffer("left_out_variances", variances, persistent=False)  # (Q,)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> NewQuestions:
        """What `state_dict` gave, to answer new questions; `left_out` is for learning only."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._set(**state)
        self._solve()
        return self

    def _set(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.register_buffer(name, value.contiguous())

    def _solve(self) -> Tensor:
        """The inverse Gram matrix (I, I) of the I options."""
        n = self.n_options.tolist()
        gram = self._alike(self.texts, n, self.texts, n).double()
        gram = _centred(_centred(gram, n).T, n)
        precision = torch.linalg.inv(gram + self.noise * torch.eye(len(gram), dtype=gram.dtype))
        weights = precision @ self.values.double()
        freedom = max(len(gram) - len(n), 1)  # the values of a question sum to zero
        amplitude = (self.values * weights).sum(0) / freedom
        for name, value in (("_precision", precision), ("_weights", weights), ("amplitude", amplitude)):
            self.register_buffer(name, value.float(), persistent=False)
        return precision

    # answering -------------------------------------------------------------------------------------------------
    def forward(self, vectors: Tensor, embeddings: Tensor, n_options: Sequence[int]) -> Tensor:
        """Logits (C, N, K) of people (N, D) or (C, N, D) for questions (C, F); -inf beyond a question's options."""
        return self._logits(vectors, *self._posterior(embeddings, n_options), n_options)

    def left_out(self, vectors: Tensor, questions: Tensor, n_options: Sequence[int]) -> Tensor:
        """The same for questions that were asked, each as if it alone had not been."""
        return self._logits(vectors, self.left_out_means[questions], self.left_out_variances[questions], n_options)

    def _posterior(self, embeddings: Tensor, n_options: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Means (C, K, 1 + D), and the variances (C,) of a difference between two options in units of the kernel."""
        n, asked = list(n_options), self.n_options.tolist()
        across = self._alike(embeddings, n, self.texts, asked)  # (J, I)
        across = _centred(_centred(across.T, asked).T, n)
        means = torch.zeros(len(n), max(n), self._weights.shape[1], device=across.device)
        for c, mean in enumerate((across @ self._weights).split(n)):
            means[c, : n[c]] = mean
        noise = self.noise * torch.eye(len(across), device=across.device)
        left = self._alike(embeddings, n, embeddings, n) + noise - across @ self._precision @ across.T
        return means, _of_a_difference(left, n)

    def _logits(self, vectors: Tensor, means: Tensor, variances: Tensor, n_options: Sequence[int]) -> Tensor:
        k = max(n_options)
        z = (vectors - self.x_mean) / self.x_std
        z = torch.cat([torch.ones_like(z[..., :1]), z], -1)  # (N, 1 + D) or (C, N, 1 + D)
        logits = z @ means[:, :k].transpose(1, 2)  # (C, N, K)
        variance = (z**2 @ self.amplitude) * variances[:, None]  # (C, N)
        beyond = _beyond(n_options).to(logits.device)
        return (logits / (1 + math.pi / 8 * variance).sqrt()[..., None]).masked_fill(beyond[:, None], float("-inf"))

    def _alike(self, h: Tensor, n: Sequence[int], other: Tensor, m: Sequence[int]) -> Tensor:
        """The kernel (sum n, sum m) of all options of two lists of questions."""
        u, v = (normalize((x - self.h_mean) / self.h_std, dim=-1) for x in (h, other))
        text = torch.exp((u @ v.T - 1) / _TEXT) + _COMMON
        s, t = (torch.cat([torch.linspace(0, 1, k, device=h.device) for k in x]) for x in (n, m))
        i, j = (torch.repeat_interleave(torch.as_tensor(x, device=h.device)) for x in (n, m))
        long, wide = (torch.as_tensor(x, device=h.device) for x in (n, m))
        text = text * torch.where(long[:, None] == wide, 1.0, _OTHER)
        return torch.exp(-((s[:, None] - t) ** 2) / _PLACE) * text[i][:, j]


def _beyond(n_options: Sequence[int]) -> Tensor:
    """Which places (C, K) are beyond a question's options."""
    return torch.arange(max(n_options)) >= torch.tensor(n_options)[:, None]


def _centred(x: Tensor, n: Sequence[int]) -> Tensor:
    """Rows less the mean of their question's n rows."""
    return torch.cat([part - part.mean(0) for part in x.split(list(n))])


def _of_a_difference(covariance: Tensor, n: Sequence[int]) -> Tensor:
    """Variance of the difference of two options, on average over each question's pairs."""
    out, start = [], 0
    for k in n:
        block = covariance[start : start + k, start : start + k]
        out.append(2 * (block.trace() - block.mean() * k) / max(k - 1, 1))
        start += k
    return torch.stack(out)


def _some(n_options: Sequence[int]) -> list[int]:
    """Questions with together not too many options: all, or evenly spaced ones."""
    step = math.ceil(sum(n_options) / _MOST)
    return list(range(0, len(n_options), step))
