"""`TextOpinionModel`: what people would answer to questions that nobody was asked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from personae.data.survey import Survey
from personae.people.new_questions import NewQuestions
from personae.people.persona import Persona

if TYPE_CHECKING:
    from personae.people.opinion_model import OpinionModel

ANCHORS = 5  # a scale is read at five places; options in between are interpolated


class PersonContext(nn.Module):
    """What a person makes of a context: features of a person vector and of a text's embedding.

    Parameters
    ----------
    n_person, n_context : int
        Sizes D of a person vector and F of an embedding.
    width : int
        Features are (2 * width) numbers.
    dropout : float
        Of the embedding's coordinates: there are few questions and many coordinates.

    Notes
    -----
    With z and h standardised::

        a = W_h h,   b = MLP(z),   features = [ b * (1 + a), gelu(W_2 h) ]

    The product lets the same person mean different things to different questions; the second half is what everybody
    answers. A context has several *views* (the ways to put a question); each is standardised by its own statistics.
    """

    def __init__(self, n_person: int, n_context: int, width: int = 128, dropout: float = 0.3, views: int = 1) -> None:
        super().__init__()
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.interaction = nn.Linear(n_context, width)
        self.common = nn.Linear(n_context, width)
        self.person = nn.Sequential(nn.Linear(n_person, width), nn.GELU(), nn.Linear(width, width))
        self.scale_readout = nn.Linear(2 * width, ANCHORS)
        for layer in (self.interaction, self.common):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        self.z_mean: Tensor
        self.z_std: Tensor
        self.h_mean: Tensor
        self.h_std: Tensor
        self.register_buffer("z_mean", torch.zeros(n_person))
        self.register_buffer("z_std", torch.ones(n_person))
        self.register_buffer("h_mean", torch.zeros(views, n_context))
        self.register_buffer("h_std", torch.ones(views, n_context))

    def standardise(self, vectors: np.ndarray, views: Sequence[np.ndarray]) -> None:
        """Take means and scales from training people (N, D) and each view's embeddings (C, F)."""
        people = torch.as_tensor(vectors).float()
        self.z_mean.copy_(people.mean(0))
        self.z_std.copy_(people.std(0).clamp(min=1e-6))
        self.h_mean, self.h_std = _statistics(views)

    def without_dropout(self) -> PersonContext:
        """A copy to be trained further by the LM's feedback, which is better on held-out people without dropout."""
        other = copy.deepcopy(self)
        other.dropout.p = 0.0
        return other

    def forward(self, vectors: Tensor, embeddings: Tensor, view: int = 0) -> Tensor:
        """Features (C, N, 2 * width) of people (N, D), or (C, N, D) where each context has its own, and (C, F)."""
        z = (vectors - self.z_mean) / self.z_std
        h = self.dropout((embeddings - self.h_mean[view]) / self.h_std[view]).clamp(-8, 8)
        a = self.interaction(h)[:, None]  # (C, 1, width)
        b = self.person(z)
        b = b if b.dim() == 3 else b[None]  # (C or 1, N, width)
        common = torch.nn.functional.gelu(self.common(h))[:, None]
        interaction = b * (1 + a)
        return torch.cat([interaction, common.expand(-1, interaction.shape[1], -1)], -1)

    def option_logits(self, features: Tensor, n_options: Sequence[int]) -> Tensor:
        """Logits (C, N, K) of ordered options, -inf beyond a question's own.

        The scale is read at five anchors from first to last option; an option's logit is interpolated at its place,
        so that a question may have any number of options.
        """
        at_anchor = self.scale_readout(features)  # (C, N, anchors)
        k = max(n_options)
        weights = torch.zeros(len(n_options), k, ANCHORS, device=features.device)
        hidden = torch.ones(len(n_options), k, dtype=torch.bool, device=features.device)
        anchors = torch.arange(ANCHORS, device=features.device)
        for c, n in enumerate(n_options):
            place = torch.linspace(0, ANCHORS - 1, n, device=features.device)
            weights[c, :n] = (1 - (place[:, None] - anchors).abs()).clamp(min=0)
            hidden[c, :n] = False
        logits = torch.einsum("cna,cka->cnk", at_anchor, weights)
        return logits.masked_fill(hidden[:, None], float("-inf"))


def _statistics(views: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Mean and scale (views, F) of each view's embeddings; of one question alone the scale is 1."""
    means, scales = [], []
    for view in views:
        h = torch.as_tensor(np.asarray(view)).float()
        spread = h.std(0) if len(h) > 1 else torch.ones(h.shape[1])
        means.append(h.mean(0))
        scales.append(spread.clamp(min=1e-2 * float(spread.mean()) + 1e-8))  # coordinates that never move stay quiet
    return torch.stack(means), torch.stack(scales)


class TextOpinionModel(BaseEstimator):
    """The opinion model with question factors replaced by what a text encoder makes of the question.

    No language model is in the loop: embeddings of the questions go in, which any encoder may have made. Questions
    that were learned from are answered by a small network, whose features also speak to an LM; questions that nobody
    was asked by those that read alike (`NewQuestions`), which a network of so few examples does worse.

    Parameters
    ----------
    width, dropout
        See `PersonContext`.
    steps : int
        Of AdamW with warm-up and linear decay, on 16 questions x 128 people each.
    random_state : int

    Attributes
    ----------
    network_ : PersonContext
    new_ : NewQuestions
    loss_ : list of float
        Cross-entropy every hundredth step.

    Notes
    -----
    The network's targets are the fitted opinion model's option probabilities of all people and questions, observed or
    not: the same signal as the answers with less noise, and nothing that the answers given to ``people`` do not hold.

    Examples
    --------
    >>> from personae import OpinionModel, load_sample
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> embeddings = people.question_factors_  # what a perfect text encoder would make of the questions
    >>> model = TextOpinionModel(width=32, steps=200).fit(survey, people, embeddings)
    >>> me = people.fold_in({"natenvir": "too little", "natarms": "too much"})
    >>> p = model.predict_proba([me], embeddings[:2], [3, 5])  # any number of options
    >>> p.shape, p.sum(-1).round(3).tolist()
    ((1, 2, 5), [[1.0, 1.0]])
    """

    def __init__(self, width: int = 128, dropout: float = 0.3, steps: int = 3000, random_state: int = 0) -> None:
        self.width = width
        self.dropout = dropout
        self.steps = steps
        self.random_state = random_state

    def fit(self, survey: Survey, people: OpinionModel, embeddings: np.ndarray) -> TextOpinionModel:
        """Learn from a fitted opinion model.

        Parameters
        ----------
        survey : Survey
            Its questions are learned from; all must be known to ``people``.
        embeddings : float array, shape (Q, F) or (views, Q, F)
            Of the survey's questions, in order. New questions are compared in the first view.
        """
        views = np.asarray(embeddings, dtype=np.float32)
        views = views if views.ndim == 3 else views[None]
        if views.shape[1] != survey.n_questions:
            raise ValueError(f"{views.shape[1]} embeddings for {survey.n_questions} questions")
        columns, readout = people.question_index(survey.question_ids), people._readout
        rng = np.random.default_rng(self.random_state)
        fork = torch.random.fork_rng(devices=[])
        with fork:
            torch.manual_seed(self.random_state)
            network = PersonContext(people.vectors_.shape[1], views.shape[2], self.width, self.dropout, len(views))
            network.standardise(people.vectors_, list(views))
            vectors, texts = torch.as_tensor(people.vectors_).float(), torch.as_tensor(views)
            ids = survey.question_ids.to_numpy()
            optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
            self.loss_: list[float] = []
            for step in range(self.steps):
                for group in optimiser.param_groups:
                    group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / self.steps)
                asked = rng.choice(len(ids), min(16, len(ids)), replace=False)
                who = rng.choice(len(vectors), min(128, len(vectors)), replace=False)
                view = int(rng.integers(len(views)))
                n_options = survey.n_options[asked].tolist()
                target = torch.as_tensor(people.predict_proba(people.vectors_[who], ids[asked]))  # (N, C, K)
                target = target[..., : max(n_options)].transpose(0, 1)
                logits = network.option_logits(network(vectors[who], texts[view, asked], view), n_options)
                loss = -(target * logits.log_softmax(-1).clamp(min=-50)).sum(-1).mean()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                if step % 100 == 0:
                    self.loss_.append(loss.item())
        self.network_ = network.eval()
        intercepts, slopes = (torch.as_tensor(x[columns]) for x in (readout.intercepts, readout.weights))
        self.new_ = NewQuestions(texts[0], survey.n_options.tolist(), intercepts, slopes, vectors)
        return self

    @torch.no_grad()
    def predict_proba(
        self,
        personas: Sequence[Persona] | np.ndarray,
        embeddings: np.ndarray,
        n_options: Sequence[int],
        view: int = 0,
        known: bool = False,
    ) -> np.ndarray:
        """Option probabilities (P, C, K) for questions given by embeddings (C, F); zero beyond K.

        Questions that were learned from, in any view, are ``known``; others are given by their first view.
        """
        vectors = personas if isinstance(personas, np.ndarray) else np.stack([p.vector for p in personas])
        z, h = torch.as_tensor(vectors).float(), torch.as_tensor(np.asarray(embeddings)).float()
        n = list(n_options)
        logits = self.network_.option_logits(self.network_(z, h, view), n) if known else self.new_(z, h, n)
        return torch.softmax(logits, -1).transpose(0, 1).numpy()


def sharpness(logits: np.ndarray, target: np.ndarray) -> float:
    """The w from 0.05 to 2 with the smallest cross-entropy of softmax(w logits) to the target probabilities.

    Parameters
    ----------
    logits, target : array, shape (..., K)
        -inf and 0 where there is no option.

    Examples
    --------
    >>> logits = np.log([[0.8, 0.2], [0.2, 0.8]])
    >>> round(sharpness(logits, np.array([[2 / 3, 1 / 3], [1 / 3, 2 / 3]])), 2)  # odds of 4 where 2 are true
    0.5
    """
    own = np.isfinite(logits)
    finite = np.where(own, logits, 0.0)

    def loss(w: float) -> float:
        return -float((target * np.where(own, log_softmax(np.where(own, w * finite, -np.inf), -1), 0.0)).sum())

    return float(minimize_scalar(loss, bounds=(0.05, 2.0), method="bounded").x)
