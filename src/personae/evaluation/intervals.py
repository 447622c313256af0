"""Intervals by resampling people: a person's answers are not independent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix


class Interval(NamedTuple):
    """A figure and its percentile interval."""

    estimate: float
    low: float
    high: float


class Bootstrap:
    """Intervals by resampling people, as a person's answers are not independent.

    The people are drawn once: whatever is compared is compared on the same samples.

    Parameters
    ----------
    person : array, shape (n,)
        Who gave each answer.
    resamples : int
        Memory is 4 bytes x resamples x people.
    level : float in (0, 1)
    question : array, shape (n,), optional
        Which question each answer is to. Where given, questions are resampled, too: for claims about questions that
        nobody was asked, of which the ones at hand are a sample.

    Examples
    --------
    >>> right = np.tile([1.0, 1.0, 0.0, 1.0], 50)
    >>> Bootstrap(np.arange(200)).interval(right)  # two hundred people
    Interval(estimate=0.75, low=0.685, high=0.81)
    >>> Bootstrap(np.arange(200) // 20).interval(right)  # ten people, who are all alike
    Interval(estimate=0.75, low=0.75, high=0.75)
    """

    def __init__(
        self,
        person: np.ndarray,
        resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        question: np.ndarray | None = None,
    ) -> None:
        self.person = people_of(person)
        if not len(self.person):
            raise ValueError("there are no answers, so there are no people to resample")
        self.people = int(self.person.max()) + 1
        self.level = level
        rng = np.random.default_rng(seed)
        self.weights = np.empty((resamples, self.people), np.float32)  # how often each person is drawn
        for drawn in self.weights:
            drawn[:] = np.bincount(rng.integers(0, self.people, self.people), minlength=self.people)
        self.question = np.zeros(len(self.person), np.int64) if question is None else people_of(question)
        questions = int(self.question.max()) + 1
        self._times = np.ones((resamples, 1), np.float32)  # how often each question is drawn
        if question is not None:
            self._times = rng.multinomial(questions, np.full(questions, 1 / questions), resamples).astype(np.float32)
        self._answers = np.maximum(self._sums(np.ones(len(self.person))), 1.0)

    def interval(self, values: np.ndarray) -> Interval:
        """Of the mean over answers."""
        same_length(values, self.person)
        estimate = np.mean(values, dtype=np.float64)
        return self._around(estimate, self._sums(values - estimate) / self._answers)

    def macro(self, values: np.ndarray) -> Interval:
        """Of the mean over people of each person's mean."""
        total, count = by_person(values, self.person)
        mean = total / count
        away = (self.weights @ (mean - mean.mean()).astype(np.float32)).astype(np.float64)
        return self._around(mean.mean(), away / self.people)

    def difference(self, a: np.ndarray, b: np.ndarray) -> Interval:
        """Of the mean of a - b, two measures of the same answers: what they share cancels."""
        same_length(a, self.person)
        same_length(b, self.person)
        return self.interval(np.subtract(a, b, dtype=np.float64))

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the answers of each sample, sum_i person's times x question's times x value, (resamples,)."""
        shape = (self.people, self._times.shape[1])
        each = csr_matrix((np.asarray(values, np.float64), (self.person, self.question)), shape)  # adds what is doubled
        return np.einsum("rq,rq->r", (each.T @ self.weights.T).T, self._times)

    def _around(self, estimate: float, away: np.ndarray) -> Interval:
        """Deviations are summed, not values: float32 is then exact enough, and what does not vary has no width."""
        low, high = estimate + np.quantile(away, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(float(estimate), float(low), float(high))


def people_of(person: np.ndarray) -> np.ndarray:
    """Numbers from 0, shape (n,), the same whatever the order of the answers."""
    code = pd.factorize(np.asarray(person), sort=True)[0]
    if (code < 0).any():
        raise ValueError(f"answer {np.argmax(code < 0)} is nobody's: its person is missing")
    return code


def by_person(values: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of the answers of each person."""
    same_length(values, code)
    return np.bincount(code, values), np.bincount(code)


def same_length(values: np.ndarray | pd.DataFrame, code: np.ndarray) -> None:
    if len(values) != len(code):
        raise ValueError(f"{len(values):,} values are given for the answers of {len(code):,}; give one an answer")
