"""Biased alternating least squares with posterior covariances, for millions of answers on a few cores.

The model of a standardised answer is z_ij = u_i . q_j + b_i + c_j + noise_j. Both sides are written as vectors of
the same length, people v = [u, b, 1] and questions y = [q, 1, c], so that the prediction is v . y and a half-step
is the same formula for either side: some coordinates are free, one is the constant 1.

A sweep needs of people only `Sums`, which add up over any split of them: `alternate` does not ask whether one call in
memory made them or many machines (`personae.scale.als`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

THREADS = min(8, os.cpu_count() or 1)  # cores of a half-step; who gives each process one core sets it to 1
_CHUNK_CELLS = 16_000_000  # float32 cells of the widest temporary of one chunk (64 MB)
_CHUNK_ROWS = 256  # small enough to keep every core busy on a small survey
_DENSE_FROM = 0.1  # from this density on, a dense matrix product beats a sparse one
_MOST_COVARIANCES = 50_000_000  # at most so many numbers are saved (200 MB); beyond, only the variances


def pack(matrices: np.ndarray) -> np.ndarray:
    """Upper triangles of symmetric matrices, (n, R, R) to (n, R (R + 1) / 2)."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def unpack(triangles: np.ndarray, size: int) -> np.ndarray:
    """Symmetric matrices of upper triangles, (n, R (R + 1) / 2) to (n, R, R)."""
    place = np.zeros((size, size), dtype=np.intp)
    rows, columns = np.triu_indices(size)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    return triangles[..., place]


def condense(covariance: np.ndarray, people: int) -> np.ndarray:
    """What files hold of covariances (n, D, D): upper triangles, or of very many people the variances (n, D) alone."""
    size = covariance.shape[-1]
    whole = people * size * (size + 1) // 2 <= _MOST_COVARIANCES
    return pack(covariance) if whole else covariance.diagonal(axis1=1, axis2=2)


def expand(saved: np.ndarray, size: int) -> np.ndarray:
    """Covariances (n, D, D) of what `condense` left."""
    if saved.shape[1] > size:
        return unpack(saved, size)
    return saved[:, :, None] * np.eye(size, dtype=np.float32)


@dataclass
class Side:
    """Posterior of one side, people or questions.

    Attributes
    ----------
    mean : float32 array, shape (n, R)
        E[v], R = d + 2, constant coordinate included.
    moment : float32 array, shape (n, R (R + 1) / 2)
        E[v v'] = mean mean' + covariance, packed.
    prior : float64 array, shape (R - 1, R - 1)
        Covariance of the free coordinates before any answer; their prior mean is zero.
    constant : int
        The coordinate that is 1.
    """

    mean: np.ndarray
    moment: np.ndarray
    prior: np.ndarray
    constant: int

    @property
    def free(self) -> np.ndarray:
        return np.delete(np.arange(self.mean.shape[1]), self.constant)

    def covariance(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Posterior covariances of the free coordinates, (n, R - 1, R - 1)."""
        mean = self.mean[rows]
        full = unpack(self.moment[rows], mean.shape[1]) - mean[:, :, None] * mean[:, None, :]
        return full[:, self.free[:, None], self.free]

    def mean_covariance(self) -> np.ndarray:
        """Posterior covariance of the free coordinates, mean over the rows, (R - 1, R - 1)."""
        mean = self.mean[:, self.free].astype(np.float64)
        second = unpack(self.moment.mean(0, dtype=np.float64), self.mean.shape[1])[self.free[:, None], self.free]
        return second - mean.T @ mean / len(mean)


@dataclass
class Sums:
    """What a sweep needs to know of some people and their answers; ``+`` gives those of more people, in float64.

    Attributes
    ----------
    people : int
    second : float64 array, shape (R (R + 1) / 2,)
        Sum of E[v v'] over the people, packed.
    answers : int array, shape (Q,)
        The number of answers of each question, over which the next three are summed.
    gram, target, squares : array, shapes (Q, R (R + 1) / 2), (Q, R) and (Q,)
        E[v v'] packed, z E[v], z^2.
    """

    people: int
    second: np.ndarray
    answers: np.ndarray
    gram: np.ndarray
    target: np.ndarray
    squares: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.people + other.people,
            self.second + other.second,
            self.answers + other.answers,
            np.add(self.gram, other.gram, dtype=np.float64),
            np.add(self.target, other.target, dtype=np.float64),
            np.add(self.squares, other.squares, dtype=np.float64),
        )


@dataclass
class Factorization:
    """Everything that `factorize` learns; ``noise`` (n_questions,) is the variance of an answer around v . y."""

    people: Side
    questions: Side
    noise: np.ndarray
    sweeps: int

    def fold_in(self, answers: sp.csr_matrix) -> Side:
        """Posterior of other people who gave these standardised answers (n, Q), the questions staying as they are."""
        return people_step(answers, *self._weighted, self.people.prior)

    @cached_property
    def _weighted(self) -> tuple[np.ndarray, np.ndarray]:
        return weighted(self.questions, self.noise)


def by_row(row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Answers as a sparse matrix, one row a person (or a question, if called the other way round)."""
    return sp.csr_matrix((value.astype(np.float32, copy=False), (row, column)), shape=shape)


def factorize(
    answers: sp.csr_matrix,
    d: int,
    max_sweeps: int = 30,
    tol: float = 1e-3,
    seed: int = 0,
    progress: Callable[[float], None] = lambda noise: None,
) -> Factorization:
    """Fit both sides, the priors and the noise; no regularisation strength is left to choose.

    Parameters
    ----------
    answers : csr_matrix, shape (N, Q)
        Standardised answers; every stored cell is an answer, also a stored zero.
    d : int
        Dimension of u and q.
    max_sweeps, tol
        Stop when a sweep changes the mean noise variance by less than this share.
    progress
        Called after each sweep with the mean noise variance.

    Notes
    -----
    Mean-field variational Bayes of the biased factorisation [1]_, whose half-steps are those of alternating least
    squares. With w_j = 1 / noise_j, the people's half-step is::

        A_i = S^-1 + sum_j w_j E[y_j y_j'],   mean_i = A_i^-1 sum_j w_j (z_ij - c_j) y_j   (free coordinates)

    E[y y'] = y y' + Cov(y): the second term regularises a person by a learned matrix for each answer, which is what
    the number-weighted lambda of ALS-WR [2]_ does by a tuned scalar. Priors and noise are re-estimated in closed form.

    References
    ----------
    .. [1] Lim and Teh, "Variational Bayesian approach to movie rating prediction", KDD Cup 2007.
    .. [2] Zhou et al., "Large-scale parallel collaborative filtering for the Netflix prize", AAIM 2008.
    """
    by_question = answers.T.tocsr()

    def sweep(questions: Side, noise: np.ndarray, prior: np.ndarray) -> Sums:
        return sums_over(by_question, people_step(answers, *weighted(questions, noise), prior))

    start = spectral_start(lambda block: answers.T @ (answers @ block), answers.shape[1], d, seed)
    questions, noise, prior, sweeps = alternate(sweep, start, max_sweeps, tol, progress)
    people = people_step(answers, *weighted(questions, noise), prior)
    return Factorization(people, questions, noise, sweeps)


def alternate(
    sweep: Callable[[Side, np.ndarray, np.ndarray], Sums],
    questions: Side,
    max_sweeps: int = 30,
    tol: float = 1e-3,
    progress: Callable[[float], None] = lambda noise: None,
) -> tuple[Side, np.ndarray, np.ndarray, int]:
    """The loop of `factorize`: questions, noise, people's prior in canonical coordinates, and the number of sweeps.

    ``sweep`` takes the people's half-step given questions, noise and people's prior, and says what it sums up to.
    """
    noise, prior = np.ones(len(questions.mean)), np.eye(len(questions.free))
    sweeps = 0
    while sweeps < max_sweeps:
        sweeps += 1
        sums = sweep(questions, noise, prior)
        prior = _prior(sums.second, sums.people, constant=len(prior))
        questions, error = _questions_step(sums, noise, questions.prior)
        second = questions.moment.sum(0, dtype=np.float64)
        questions.prior = _prior(second, len(questions.mean), questions.constant)
        before, overall = noise.mean(), error.sum() / max(sums.answers.sum(), 1)
        noise = np.maximum((error + 10 * overall) / (sums.answers + 10), 1e-3)  # rare questions lean on all the others
        progress(float(noise.mean()))
        if abs(noise.mean() - before) < tol * before:
            break
    questions, prior = _canonical(questions, prior)
    return questions, noise, prior, sweeps


def people_step(answers: sp.csr_matrix, mean: np.ndarray, moment: np.ndarray, prior: np.ndarray) -> Side:
    """Closed-form posterior of people, given the questions' E[y] and E[y y'] over their noise (`weighted`)."""
    people = _empty(answers.shape[0], mean.shape[1], prior, constant=mean.shape[1] - 1)

    def step(rows: slice) -> None:
        gram, target, _ = _sums(answers[rows], mean, moment)
        people.mean[rows], people.moment[rows] = _posterior(gram, target, prior, people.constant)

    _in_chunks(step, answers.shape, moment.shape[1])
    return people


def weighted(questions: Side, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[y] and E[y y'] of the questions over the noise of their answers."""
    weight = (1 / noise).astype(np.float32)[:, None]
    return questions.mean * weight, questions.moment * weight


def sums_over(answers: sp.csr_matrix, people: Side) -> Sums:
    """Sums over people whose answers stand one row a question, (Q, N)."""
    n, (size, triangle) = answers.shape[0], (people.mean.shape[1], people.moment.shape[1])
    gram, target = np.empty((n, triangle), np.float32), np.empty((n, size), np.float32)
    squares = np.empty(n, np.float32)

    def step(rows: slice) -> None:
        gram[rows], target[rows], squares[rows] = _sums(answers[rows], people.mean, people.moment)

    _in_chunks(step, answers.shape, triangle)
    second = people.moment.sum(0, dtype=np.float64)
    return Sums(len(people.mean), second, np.diff(answers.indptr), gram, target, squares)


def _questions_step(sums: Sums, noise: np.ndarray, prior: np.ndarray) -> tuple[Side, np.ndarray]:
    """The other half-step; also the expected squared error of each question, summed over its answers."""
    n, size = sums.target.shape
    questions = _empty(n, size, prior, constant=size - 2)
    error = np.zeros(n)
    twice = pack(2 - np.eye(size, dtype=np.float32))  # off-diagonal cells count twice in an inner product

    def step(rows: slice) -> None:
        gram, target = sums.gram[rows], sums.target[rows]
        weight = (1 / noise[rows]).astype(np.float32)[:, None]
        mean, moment = _posterior(_single(gram * weight), _single(target * weight), prior, questions.constant)
        # sum_i E (z - v.y)^2 needs no second pass over the answers
        error[rows] = sums.squares[rows] - 2 * (target * mean).sum(1) + (gram * moment * twice).sum(1)
        questions.mean[rows], questions.moment[rows] = mean, moment

    _in_chunks(step, (n, 0), sums.gram.shape[1])
    return questions, np.maximum(error, 0)


def _sums(answers: sp.csr_matrix, mean: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row: sum of E[y y'] (packed), sum of z y, sum of z^2 over its answers."""
    given = sp.csr_matrix((np.ones_like(answers.data), answers.indices, answers.indptr), shape=answers.shape)
    squares = np.asarray(answers.multiply(answers).sum(1)).ravel()
    if answers.nnz > _DENSE_FROM * answers.shape[0] * answers.shape[1]:
        return given.toarray() @ moment, answers.toarray() @ mean, squares
    return given @ moment, answers @ mean, squares


def _posterior(gram: np.ndarray, target: np.ndarray, prior: np.ndarray, constant: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, R) and packed second moment of vectors whose ``constant`` coordinate is 1."""
    size = target.shape[1]
    free = np.delete(np.arange(size), constant)
    gram = unpack(gram, size)
    covariance = np.linalg.inv(gram[:, free[:, None], free] + np.linalg.inv(prior).astype(np.float32))
    mean = np.ones_like(target)
    mean[:, free] = (covariance @ (target[:, free] - gram[:, free, constant])[:, :, None])[:, :, 0]
    moment = mean[:, :, None] * mean[:, None, :]
    moment[:, free[:, None], free] += covariance
    return mean, pack(moment)


def _prior(total: np.ndarray, n: int, constant: int) -> np.ndarray:
    """Mean of E[v v'] over n rows, leaning a little on a multiple of the identity so that few rows are no trouble."""
    size = int(np.sqrt(2 * len(total)))  # R of a packed (R, R)
    free = np.delete(np.arange(size), constant)
    second = unpack(total / n, size)[free[:, None], free]
    lean = len(second) / (n + len(second))
    return (1 - lean) * second + lean * np.trace(second) / len(second) * np.eye(len(second))


def _canonical(questions: Side, prior: np.ndarray) -> tuple[Side, np.ndarray]:
    """Coordinates in which the question factors are centred and white and people's coordinates uncorrelated.

    Predictions stay the same, and the squared distance of two people becomes the mean squared difference of their
    predicted standardised answers over all questions. Coordinates are sorted by people's variance, signs are fixed.
    """
    size = questions.mean.shape[1]
    d = size - 2
    q = questions.mean[:, :d].astype(np.float64)
    values, basis = np.linalg.eigh(np.cov(q.T, bias=True).reshape(d, d))
    whiten = basis / np.sqrt(np.maximum(values, 1e-6 * np.mean(q**2) + 1e-12))  # (d, d)
    change = np.eye(size)  # y_new = y @ change; the constant 1 of y carries the centring
    change[:d, :d], change[d, :d] = whiten, -q.mean(0) @ whiten
    back = np.linalg.inv(change[: d + 1, : d + 1]).T  # x_new = x @ back for x = [u, b]
    spread = back.T @ prior @ back
    values, rotation = np.linalg.eigh(spread[:d, :d])
    rotation = rotation[:, ::-1]
    skew = ((q @ change[:d, :d] + change[d, :d]) @ rotation) ** 3
    rotation = rotation * np.where(skew.sum(0) < 0, -1.0, 1.0)
    change[:, :d] = change[:, :d] @ rotation
    back = np.linalg.inv(change[: d + 1, : d + 1]).T
    turned = change.astype(np.float32)
    moment = turned.T @ unpack(questions.moment, size) @ turned
    free = questions.free
    inner = change[np.ix_(free, free)]
    new = Side(questions.mean @ turned, pack(moment), inner.T @ questions.prior @ inner, questions.constant)
    return new, back.T @ prior @ back


def spectral_start(
    product: Callable[[np.ndarray], np.ndarray], n_questions: int, d: int, seed: int, rounds: int = 4
) -> Side:
    """Question factors from the leading right singular vectors of the zero-filled answers A (subspace iteration).

    ``product`` of a block (Q, d) is A' A block; it adds up over people, too.
    """
    block = np.random.default_rng(seed).standard_normal((n_questions, d)).astype(np.float32)
    with threadpool_limits(1):
        for _ in range(rounds):
            block = np.linalg.qr(product(block))[0]
    mean = np.zeros((n_questions, d + 2), np.float32)
    mean[:, :d] = block * np.sqrt(n_questions / d) * 0.5
    mean[:, d] = 1
    return Side(mean, pack(mean[:, :, None] * mean[:, None, :]), 0.3 * np.eye(d + 1), constant=d)


def _single(sums: np.ndarray) -> np.ndarray:
    """In single precision, like all factors, where many sums were added in double."""
    return sums.astype(np.float32, copy=False)


def _empty(n: int, size: int, prior: np.ndarray, constant: int) -> Side:
    triangle = size * (size + 1) // 2
    return Side(np.empty((n, size), np.float32), np.empty((n, triangle), np.float32), prior, constant)


def chunks(n: int, width: int) -> Iterator[slice]:
    """Slices of n rows such that a chunk of ``width`` cells a row stays within the memory bound."""
    step = max(1, min(_CHUNK_ROWS, _CHUNK_CELLS // max(width, 1)))
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _in_chunks(step: Callable[[slice], None], shape: tuple[int, int], triangle: int) -> None:
    """Run a half-step over chunks of rows, one core a chunk (NumPy and SciPy release the lock)."""
    pieces = list(chunks(shape[0], max(4 * triangle, shape[1] // 8)))
    if len(pieces) == 1:  # a pool would cost more than the fold-in of one person
        step(pieces[0])
        return
    with threadpool_limits(1), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(step, pieces))
