"""From a person vector to calibrated option probabilities: one shrunken multinomial logit a question, all at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from personae.data.survey import Survey
from personae.people.als import Factorization, unpack
from personae.people.spread import normal_points

_INTERCEPT_STRENGTH = 3.0  # a few answers do not move the smoothed marginal
_STEPS = 15
_BLOCK_ANSWERS = 1_000_000  # answers whose leave-one-out vectors are held at a time
_GROUP_CELLS = 2_000_000  # cells of one padded group of questions of similar size

_Group = tuple[np.ndarray, np.ndarray, np.ndarray]  # questions (G,), vectors (G, n, D + 1), options (G, n)


@dataclass
class Readout:
    """Multinomial logits p(k | x, j) = softmax_k(a_jk + w_jk . x).

    Attributes
    ----------
    weights : float32 array, shape (Q, K, D)
    intercepts : float32 array, shape (Q, K)
        Minus infinity beyond a question's options.
    """

    weights: np.ndarray
    intercepts: np.ndarray

    def predict_proba(self, vectors: np.ndarray, questions: np.ndarray, roots: np.ndarray | None = None) -> np.ndarray:
        """Option probabilities of all people and questions, (P, D) and (q,) to (P, q, K).

        With ``roots`` (P, D, D), R R' a covariance, they are the mean over x ~ N(vector, R R'), by 128 fixed points.
        """
        w, a = self.weights[questions], self.intercepts[questions]
        w = w.reshape(-1, w.shape[2]).T  # (D, q K)
        if roots is None:
            return _softmax((vectors.astype(np.float32) @ w).reshape(len(vectors), *a.shape) + a)
        points = normal_points(vectors.shape[1])
        total = np.zeros((len(vectors), *a.shape), np.float32)
        for point in points:
            moved = (vectors + roots @ point).astype(np.float32)
            total += _softmax((moved @ w).reshape(total.shape) + a)
        return total / np.float32(len(points))

    def tempered(self, confidence: float, survey: Survey) -> Readout:
        """Logits that go only this share of the way from the smoothed marginals of this survey's questions."""
        open_ = np.isfinite(self.intercepts)
        share = (survey.option_counts() + open_) / (survey.option_counts().sum(1) + open_.sum(1))[:, None]
        marginal = np.log(np.where(open_, share, 1)).astype(np.float32)
        mixed = marginal + confidence * (np.where(open_, self.intercepts, 0) - marginal)
        return Readout(self.weights * np.float32(confidence), np.where(open_, mixed, -np.inf).astype(np.float32))

    def predict_proba_pairs(
        self, vectors: np.ndarray, person: np.ndarray, question: np.ndarray, roots: np.ndarray | None = None
    ) -> np.ndarray:
        """Option probabilities of pairs: (P, D), (n,), (n,) and ``roots`` to (n, K)."""
        out = np.empty((len(question), self.weights.shape[1]), np.float32)
        order = np.argsort(question, kind="stable")  # one small product a question, no gather of weights
        for rows in np.split(order, np.flatnonzero(np.diff(question[order])) + 1) if len(order) else []:
            j = question[rows[:1]]
            mine, back = np.unique(person[rows], return_inverse=True)
            out[rows] = self.predict_proba(vectors[mine], j, None if roots is None else roots[mine])[back, 0]
        return out


def fit_readout(
    model: Factorization,
    answers: sp.csr_matrix,
    options: sp.csr_matrix,
    n_options: np.ndarray,
    scores: np.ndarray,
    strength: float,
    questions: np.ndarray | None = None,
) -> Readout:
    """Fit the read-outs of all questions (or of some, the others staying flat) on leave-one-out person vectors.

    Parameters
    ----------
    model : Factorization
        With its people's posterior.
    answers, options : csr_matrix, shape (Q, N)
        Standardised answers, one row a question; the same cells with the option's index + 1.
    n_options : int array, shape (Q,)
    scores : array, shape (Q, K)
        The standardised value of each option.
    strength : float
        Precision of the prior on a slope, in units of the coordinate's standard deviation over people.

    Notes
    -----
    The factorisation says z | x ~ N(x . f + c, s^2), which implies a read-out: log p(k | x) = log pi_k +
    z_k (x . f + c) / s^2 - z_k^2 r / (2 s^2) + const. That is the prior mean of the logits, with pi the question's
    smoothed marginal, s^2 its leave-one-out error and r the variance of its predictions. The square keeps a question
    that is predicted well from going to the outermost option, whether anybody chose it or not.
    Slopes may leave it at the cost of a ridge. So a rare question keeps the factorisation's own answer, and a common
    one learns options that are not evenly spaced or not even ordered.

    The optimum is found for many questions at once by accelerated steps with the bound Hessian <= X'X / 2 (Böhning,
    "Multinomial logistic regression algorithm", 1992), inverted once.
    """
    Q, K = scores.shape
    weights = np.zeros((Q, K, model.people.mean.shape[1] - 1), np.float32)
    intercepts = np.zeros((Q, K), np.float32)
    closed = np.arange(K) >= n_options[:, None]
    intercepts[closed] = -np.inf
    unit = np.mean(model.people.mean[:, :-1] ** 2, axis=0)  # (D,) variance over people
    ridge = np.append(strength * np.maximum(unit, 1e-9), _INTERCEPT_STRENGTH).astype(np.float32)

    def solve(piece: _Group) -> None:
        group, x, y = piece
        given = (y[:, :, None] == np.arange(K)).astype(np.float32)  # (G, n, K)
        prior = _prior_mean(model, group, x, given, n_options[group], scores[group].astype(np.float32))
        both = _maximise(x, given, prior, ridge, intercepts[group])
        weights[group], intercepts[group] = both[:, :, :-1], both[:, :, -1] + intercepts[group]

    chosen = np.arange(Q) if questions is None else questions
    with threadpool_limits(1), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for block in _blocks(chosen, np.diff(answers.indptr)[chosen]):
            list(pool.map(solve, _groups(model, answers[block], options[block], block)))
    return Readout(weights, intercepts)


def _maximise(x: np.ndarray, given: np.ndarray, prior: np.ndarray, ridge: np.ndarray, closed: np.ndarray) -> np.ndarray:
    """Slopes and intercepts (G, K, D + 1) of the penalised likelihood; rows of zeros in ``x`` do not count."""
    bound = np.linalg.inv(0.5 * x.transpose(0, 2, 1) @ x + np.diag(ridge))  # (G, D + 1, D + 1)
    current = ahead = prior
    for step in range(_STEPS):
        p = _softmax(x @ ahead.transpose(0, 2, 1) + closed[:, None])  # (G, n, K)
        p -= given
        gradient = p.transpose(0, 2, 1) @ x + ridge * (ahead - prior)
        last, current = current, ahead - gradient @ bound
        ahead = current + step / (step + 3) * (current - last)
    return current


def _prior_mean(
    model: Factorization, group: np.ndarray, x: np.ndarray, given: np.ndarray, n_options: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """The read-out that the factorisation implies, (G, K, D + 1)."""
    line = model.questions.mean[group]  # (G, D + 1), [q, 1, c]: the prediction is [x, 1] . line
    predicted, taken = (x @ line[:, :, None])[:, :, 0], given.sum(2)  # (G, n)
    miss = (given @ scores[:, :, None])[:, :, 0] - predicted
    count = taken.sum(1)
    variance = ((miss**2 * taken).sum(1) + 10 * _expected_error(model, group)) / (count + 10)
    marginal = (given.sum(1) + 1) / (count + n_options)[:, None]
    average = (predicted * taken).sum(1) / np.maximum(count, 1)
    line[:, -1] -= average  # the marginal is that of the average prediction
    explained = ((predicted - average[:, None]) ** 2 * taken).sum(1) / np.maximum(count, 1)
    prior = scores[:, :, None] * (line / variance[:, None])[:, None, :]
    prior[:, :, -1] += np.log(marginal) - scores**2 * (explained / (2 * variance))[:, None]
    return (prior * (np.arange(scores.shape[1]) < n_options[:, None])[:, :, None]).astype(np.float32)


def _expected_error(model: Factorization, group: np.ndarray) -> np.ndarray:
    """Noise, and what the uncertainty of a question's factor adds to it on average over people, (G,)."""
    size = model.people.mean.shape[1]
    y = model.questions.mean[group]
    uncertainty = unpack(model.questions.moment[group], size) - y[:, :, None] * y[:, None, :]
    people = unpack(model.people.moment.mean(0, dtype=np.float64), size)
    return model.noise[group] + np.maximum((uncertainty * people).sum((1, 2)), 0)


def leave_one_out(model: Factorization, answers: sp.csr_matrix) -> np.ndarray:
    """For each stored answer of (N, Q), in order, the person's vector [u, b] without that answer, (n, D).

    With C the posterior covariance, s^2 the noise and e the residual of the answer, taking the answer out of the
    person's normal equations is a rank-one downdate (Sherman-Morrison): x - C f e / (s^2 - f'C f).
    """
    D = model.people.mean.shape[1] - 1
    f, c, x = model.questions.mean[:, :D], model.questions.mean[:, D], model.people.mean[:, :D]
    out = np.empty((answers.nnz, D), np.float32)
    active = np.flatnonzero(np.diff(answers.indptr))
    for rows in (active[i : i + 1000] for i in range(0, len(active), 1000)):
        for i, covariance in zip(rows, model.people.covariance(rows), strict=True):
            mine = slice(answers.indptr[i], answers.indptr[i + 1])
            j = answers.indices[mine]
            cf = f[j] @ covariance  # (n_i, D)
            miss = answers.data[mine] - c[j] - f[j] @ x[i]
            out[mine] = x[i] - cf * (miss / (model.noise[j] - (cf * f[j]).sum(1)))[:, None]
    return out


def _blocks(questions: np.ndarray, count: np.ndarray) -> Iterator[np.ndarray]:
    """Questions in runs with a bounded number of answers."""
    run = (np.cumsum(count) - 1).clip(0) // _BLOCK_ANSWERS
    return (questions[run == r] for r in np.unique(run))


def _groups(
    model: Factorization, answers: sp.csr_matrix, options: sp.csr_matrix, questions: np.ndarray
) -> Iterator[_Group]:
    """Questions of similar size with their padded leave-one-out vectors [x, 1] and options, -1 where empty."""
    place = sp.csr_matrix((np.arange(answers.nnz), answers.indices, answers.indptr), answers.shape).T.tocsr()
    mine = answers.T.tocsr()
    mine = sp.csr_matrix((mine.data, questions[mine.indices], mine.indptr), (answers.shape[1], len(model.noise)))
    vectors = np.empty((answers.nnz, model.people.mean.shape[1] - 1), np.float32)
    vectors[place.data] = leave_one_out(model, mine)  # from person-major to question-major order
    count = np.diff(answers.indptr)
    order = np.argsort(-count, kind="stable")
    while len(order):
        longest = max(int(count[order[0]]), 16)
        group = order[: max(1, _GROUP_CELLS // (longest * (vectors.shape[1] + 1)))]
        group = group[count[group] >= longest // 2] if count[group[0]] > 16 else group
        order = order[len(group) :]
        x = np.zeros((len(group), longest, vectors.shape[1] + 1), np.float32)
        y = np.full((len(group), longest), -1, np.int16)
        for k, j in enumerate(group):
            cells = slice(answers.indptr[j], answers.indptr[j + 1])
            x[k, : count[j], :-1], x[k, : count[j], -1] = vectors[cells], 1
            y[k, : count[j]] = options.data[cells] - 1
        yield questions[group], x, y


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    return logits
