"""`PaperFactorization`: the first paper's own factorisation, the yardstick that `OpinionModel` is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from personae.data.account import SurveyError
from personae.data.survey import Survey, look_up
from personae.people.als import Factorization, Side, by_row, pack
from personae.people.answers import Answers, collect
from personae.people.persona import Persona, Personas
from personae.people.readout import fit_readout

_STRENGTH = 100.0
_PATIENCE = 5
_NEW_PERSON_STEPS = 1000


class PaperFactorization(BaseEstimator):
    """Bias-free matrix factorisation by stochastic gradients, as in the paper.

    Parameters
    ----------
    n_components : int
        Dimension of u and q; there is no bias, so a person vector has just so many numbers.
    learning_rate : float
        Of Adam.
    batch_size : int
        Answers a step.
    max_epochs : int
        Stops earlier when a held-out twentieth of the answers gets no better for five epochs. (The paper does not say.)
    random_state : int

    Attributes
    ----------
    vectors_ : float32 array, shape (N, D)
        u, D = n_components.
    question_factors_ : float32 array, shape (Q, D)
    epochs_ : int
        Passes over the answers that were made.
    questions_, respondent_ids_, traits_
        Of the survey it was fitted to.

    Notes
    -----
    Minimises the mean of (r_ij - u_i . q_j)^2 over the answers, r_ij in [0, 1] the position of the answer among the
    options [1]_. Of a new person u alone is fitted, from the mean person, with the same loss and q fixed. The paper
    reads an answer off as the option nearest to u . q (`predict`); `predict_proba` uses the read-out of `OpinionModel`,
    so that likelihoods compare factorisations and nothing else.

    References
    ----------
    .. [1] Li et al., "Steerability of large language models toward data-driven personas", NAACL 2024,
       arXiv 2311.04978, section 3.

    Examples
    --------
    >>> from personae.data.survey import Question, Survey
    >>> said = np.random.default_rng(0).integers(0, 2, (40, 1)) * np.ones((1, 6), int)
    >>> person, question = np.indices(said.shape).reshape(2, -1)
    >>> survey = Survey([Question(f"q{j}", f"Do you like {j}?", ("no", "yes")) for j in range(6)],
    ...                 [f"r{i}" for i in range(40)], person, question, said.ravel())
    >>> paper = PaperFactorization(n_components=2, learning_rate=0.02, batch_size=64).fit(survey)
    >>> bool((paper.predict(paper.vectors_)[:, 0] == said[:, 0]).mean() > 0.9)
    True
    """

    def __init__(
        self,
        n_components: int = 16,
        learning_rate: float = 1e-3,
        batch_size: int = 2048,
        max_epochs: int = 100,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.random_state = random_state

    # learning --------------------------------------------------------------------------------------------------
    def fit(self, survey: Survey, y: None = None) -> PaperFactorization:
        """Learn u and q; raises ``SurveyError`` if the survey has no answers."""
        if survey.n_answers == 0:
            raise SurveyError("the survey has no answers to learn from")
        self.questions_, self.respondent_ids_, self.traits_ = survey.questions, survey.respondent_ids, survey.traits
        self._question_ids = survey.question_ids
        self._top = survey.n_options - 1
        r = (survey.option / self._top[survey.question]).astype(np.float32)
        generator = torch.Generator().manual_seed(self.random_state)
        person, question = torch.from_numpy(survey.respondent).long(), torch.from_numpy(survey.question).long()
        target = torch.from_numpy(r)
        held_out = torch.rand(len(target), generator=generator) < 0.05
        train, test = torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]
        # started so that u . q is near the middle of the scale
        u, q = (
            torch.randn(n, self.n_components, generator=generator) * 0.1 + (0.5 / self.n_components) ** 0.5
            for n in (survey.n_respondents, survey.n_questions)
        )
        u.requires_grad_()
        q.requires_grad_()
        adam = torch.optim.Adam([u, q], lr=self.learning_rate)
        best, waited, self.epochs_ = np.inf, 0, 0
        kept = u.detach().clone(), q.detach().clone()
        while self.epochs_ < self.max_epochs and waited < _PATIENCE:
            with threadpool_limits(1):  # such small steps gain nothing from threads that wait for each other
                for batch in train[torch.randperm(len(train), generator=generator)].split(self.batch_size):
                    adam.zero_grad()
                    _loss(u[person[batch]], q[question[batch]], target[batch]).backward()
                    adam.step()
            self.epochs_ += 1
            with torch.no_grad():
                error = float(_loss(u[person[test]], q[question[test]], target[test])) if len(test) else 0.0
            waited = 0 if error < best else waited + 1
            if error < best:
                best, kept = error, (u.detach().clone(), q.detach().clone())
        self.vectors_, self.question_factors_ = (x.numpy() for x in kept)
        self._calibrate(survey, r)
        return self

    def _calibrate(self, survey: Survey, r: np.ndarray) -> None:
        """The same read-out as `OpinionModel`, on the same leave-one-out vectors."""
        d, n, n_questions = self.n_components, survey.n_respondents, survey.n_questions
        predicted = (self.vectors_[survey.respondent] * self.question_factors_[survey.question]).sum(1)
        noise = np.full(n_questions, np.mean((r - predicted) ** 2))
        y = np.concatenate([self.question_factors_, np.ones((n_questions, 1)), np.zeros((n_questions, 1))], axis=1)
        y = y.astype(np.float32)
        questions = Side(y, pack(y[:, :, None] * y[:, None, :]), np.eye(d + 1), constant=d)
        prior = np.diag(np.append(np.maximum(self.vectors_.var(0), 1e-6), 1e-9))  # no bias: its variance is nil
        empty = Side(np.empty((0, d + 2), np.float32), np.empty((0, 0), np.float32), prior, constant=d + 1)
        self._model = Factorization(empty, questions, noise, self.epochs_)
        answers = by_row(survey.respondent, survey.question, r, (n, n_questions))
        covariance = self._model.fold_in(answers).covariance()
        x = np.concatenate([self.vectors_, np.zeros((n, 1)), np.ones((n, 1))], axis=1).astype(np.float32)
        moment = x[:, :, None] * x[:, None, :]
        moment[:, : d + 1, : d + 1] += covariance
        self._model.people = Side(x, pack(moment), prior, constant=d + 1)
        scores = np.arange(survey.n_options.max()) / self._top[:, None]
        options = by_row(survey.question, survey.respondent, survey.option + 1, (n_questions, n))
        self._readout = fit_readout(self._model, answers.T.tocsr(), options, survey.n_options, scores, _STRENGTH)

    # people ----------------------------------------------------------------------------------------------------
    def __getitem__(self, respondent: str) -> Persona:
        check_is_fitted(self)
        (row,) = look_up(self.respondent_ids_, [respondent], "respondent")
        covariance = self._model.people.covariance(np.array([row]))[0, :-1, :-1]
        origin = {"kind": "respondent", "respondent": respondent}
        return self._persona(respondent, self.vectors_[row], covariance, origin)

    @overload
    def fold_in(self, answers: Mapping[str, str]) -> Persona: ...
    @overload
    def fold_in(self, answers: Iterable[Mapping[str, str]] | Survey) -> list[Persona]: ...
    def fold_in(self, answers: Answers) -> Persona | list[Persona]:
        """Personas of new people: u by gradient descent from the mean person; see `OpinionModel.fold_in`."""
        check_is_fitted(self)
        names, person, question, option = collect(answers, self.questions_, self._question_ids)
        r = option / self._top[question]
        shape = (len(names), len(self.questions_))
        covariance = self._model.fold_in(by_row(person, question, r, shape)).covariance()[:, :-1, :-1]
        vectors = self._descend(len(names), person, question, r)
        personas = [
            self._persona(name, vectors[i], covariance[i], {"kind": "fold-in", "answers": int((person == i).sum())})
            for i, name in enumerate(names)
        ]
        return personas[0] if isinstance(answers, Mapping) else personas

    def transform(self, survey: Survey) -> np.ndarray:
        """Vectors of new people, (n, D)."""
        check_is_fitted(self)
        names, person, question, option = collect(survey, self.questions_, self._question_ids)
        return self._descend(len(names), person, question, option / self._top[question])

    def _descend(self, n: int, person: np.ndarray, question: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Adam on each person's own mean loss, all answers at once; nobody's result depends on the others."""
        u = torch.from_numpy(np.tile(self.vectors_.mean(0), (n, 1))).requires_grad_()
        i, target = torch.from_numpy(person).long(), torch.from_numpy(r.astype(np.float32))
        q = torch.from_numpy(self.question_factors_)[torch.from_numpy(question).long()]
        share = 1 / torch.bincount(i, minlength=n).clamp(min=1)[i]
        adam = torch.optim.Adam([u], lr=self.learning_rate)
        with threadpool_limits(1):
            for _ in range(_NEW_PERSON_STEPS if len(target) else 0):
                adam.zero_grad()
                (share * (target - (u[i] * q).sum(1)) ** 2).sum().backward()
                adam.step()
        return u.detach().numpy()

    def _persona(self, name: str, vector: np.ndarray, covariance: np.ndarray, origin: dict[str, Any]) -> Persona:
        return Persona(name, vector, covariance, float(np.trace(self._model.people.prior)), origin)

    # answers ---------------------------------------------------------------------------------------------------
    def predict(self, personas: Personas, questions: str | Iterable[str] | None = None) -> np.ndarray:
        """The option nearest to u . q, (P, Q): the paper's rule."""
        columns = self._columns(questions)
        r = self._padded(personas)[:, :-1] @ self.question_factors_[columns].T
        return np.clip(np.rint(r * self._top[columns]), 0, self._top[columns]).astype(np.int64)

    def predict_proba(self, personas: Personas, questions: str | Iterable[str] | None = None) -> np.ndarray:
        """Option probabilities, (P, Q, K), zero beyond a question's options."""
        return self._readout.predict_proba(self._padded(personas), self._columns(questions))

    def predict_proba_pairs(
        self, person: np.ndarray, question: np.ndarray, personas: Personas | None = None
    ) -> np.ndarray:
        """Option probabilities of pairs of row and column, (n, K)."""
        x = self._padded(self.vectors_ if personas is None else personas)
        return self._readout.predict_proba_pairs(x, np.asarray(person), np.asarray(question))

    def _padded(self, personas: Personas) -> np.ndarray:
        """Vectors [u, b] with b = 0, (P, D + 1)."""
        if isinstance(personas, Persona):
            personas = [personas]
        rows = personas if isinstance(personas, np.ndarray) else np.stack([p.vector for p in personas])
        vectors = np.atleast_2d(rows)
        return np.concatenate([vectors, np.zeros((len(vectors), 1), vectors.dtype)], axis=1)

    def _columns(self, questions: str | Iterable[str] | None) -> np.ndarray:
        check_is_fitted(self)
        if questions is None:
            return np.arange(len(self.questions_))
        return look_up(
            pd.Index(self._question_ids), [questions] if isinstance(questions, str) else questions, "question"
        )


def _loss(u: torch.Tensor, q: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return ((r - (u * q).sum(1)) ** 2).mean()
