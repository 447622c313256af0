"""What a prediction of held-out answers is worth.

A prediction is an array p (n, K): for each answer the probabilities of its question's options in scale order, zero
beyond the last one. What is measured answer by answer comes as (n,), so that `Bootstrap` can resample the people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import log_softmax, softmax

_FLOOR = 1e-9  # one answer that was thought impossible must not make a mean infinite
_SHARPEST = 20.0  # largest weight of a logarithm; the inverse of the lowest temperature


# answer by answer ------------------------------------------------------------------------------------------------
def right(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Whether the likeliest option (the first of equally likely ones) was given: 1.0 or 0.0, shape (n,).

    Parameters
    ----------
    p : array, shape (n, K)
    option : int array, shape (n,)

    Raises
    ------
    ValueError
        Here and below: a row that does not sum to 1, an option that does not exist, arrays of different lengths.

    Examples
    --------
    >>> right(np.array([[0.7, 0.3], [0.7, 0.3]]), np.array([0, 1]))
    array([1., 0.])
    """
    _given(p, option)
    return (p.argmax(1) == option).astype(np.float64)


def nll(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """-log of the probability of the option given, in nats, shape (n,); at most 20.7 (a probability of 1e-9).

    Examples
    --------
    >>> nll(np.array([[0.5, 0.5], [0.75, 0.25]]), np.array([0, 1])).round(3)
    array([0.693, 1.386])
    """
    return -np.log(np.maximum(_given(p, option), _FLOOR))


def brier(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Squared error of the probabilities, summed over the options, shape (n,): 0 is perfect, 2 the worst.

    Examples
    --------
    >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1]))
    array([0.5, 2. ])
    """
    return (np.asarray(p, np.float64) ** 2).sum(1) - 2 * _given(p, option) + 1


def ordinal_error(p: np.ndarray, option: np.ndarray, n_options: np.ndarray) -> np.ndarray:
    """How far the predicted median is from the option given, in units of the scale's length, 0 to 1, shape (n,).

    The point forecast is the (lower) median of p, not its mode: no other has a smaller expected absolute error.

    Examples
    --------
    >>> p = np.array([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3]])  # the median is option 1, the mode option 0
    >>> ordinal_error(p, np.array([1, 2]), np.array([3, 3]))
    array([0. , 0.5])
    """
    _given(p, option)
    median = (np.cumsum(p, axis=1) >= 0.5 - 1e-6).argmax(1)  # two halves in float32 are a half
    return np.abs(median - option) / (np.asarray(n_options) - 1)


def _given(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Probability (n,) of the option given."""
    if p.ndim != 2 or len(p) != len(option):
        raise ValueError(f"predictions of shape {p.shape} are given for {len(option)} answers; give one row an answer")
    total = p.sum(1, dtype=np.float64)
    wrong = np.flatnonzero(~(np.abs(total - 1) < 0.01) | (p < 0).any(1))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of the predictions is no distribution (sum {total[wrong[0]]:.3g}, rows of that kind: "
            f"{len(wrong):,}); probabilities are not negative and each row sums to 1"
        )
    outside = np.flatnonzero((option < 0) | (option >= p.shape[1]))
    if len(outside):
        raise ValueError(f"answer {outside[0]} gives option {option[outside[0]]}; there are {p.shape[1]}, from 0")
    return p[np.arange(len(p)), option].astype(np.float64)


# calibration -----------------------------------------------------------------------------------------------------
def reliability(p: np.ndarray, option: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """How often the likeliest option is given, by how likely it was said to be.

    The bins have equal widths: they are the same for every prediction, so that two curves can be laid over each other.

    Returns
    -------
    DataFrame, one row a bin (low, high]
        low, high, confidence (mean), accuracy, n; confidence and accuracy are missing where n is 0.

    Examples
    --------
    >>> reliability(np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]]), np.array([0, 0, 0]), bins=2)
       low  high  confidence  accuracy  n
    0  0.0   0.5         NaN       NaN  0
    1  0.5   1.0    0.733333  0.666667  3
    """
    confidence = p.max(1).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    n = np.bincount(place, minlength=bins)
    count = np.where(n > 0, n, np.nan)
    return pd.DataFrame(
        {
            "low": np.arange(bins) / bins,
            "high": np.arange(1, bins + 1) / bins,
            "confidence": np.bincount(place, confidence, bins) / count,
            "accuracy": np.bincount(place, right(p, option), bins) / count,
            "n": n,
        }
    )


def expected_calibration_error(p: np.ndarray, option: np.ndarray, bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the bins of `reliability`, each with its n, in [0, 1].

    Notes
    -----
    ECE = sum_b n_b / n |accuracy_b - confidence_b| [1]_. It is biased upwards, as noise in a bin counts as
    error: a perfectly calibrated prediction of n answers scores around 0.3 sqrt(bins / n). Compare at equal n.

    References
    ----------
    .. [1] Guo et al., "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    >>> p = np.array([[0.75, 0.25]] * 4)
    >>> expected_calibration_error(p, np.array([0, 0, 0, 1])), expected_calibration_error(p, np.array([0, 0, 1, 1]))
    (0.0, 0.25)
    """
    table = reliability(p, option, bins)
    gap = (table["accuracy"] - table["confidence"]).abs().to_numpy()
    return float(np.nansum(gap * table["n"]) / len(option))


# over people and groups ------------------------------------------------------------------------------------------
def macro(values: np.ndarray, person: np.ndarray) -> float:
    """Mean over people of each person's mean: everybody counts the same, however many answers they gave.

    Examples
    --------
    >>> macro(np.array([1.0, 1.0, 1.0, 0.0]), np.array(["ann", "ann", "ann", "bob"]))
    0.5
    """
    total, count = _by_person(values, _people(person))
    return float((total / count).mean())


def lift(accuracy: float, majority: float, ceiling: float) -> float:
    """Share of the way from always saying each question's most frequent option (0) to a ceiling (1).

    Examples
    --------
    >>> round(lift(accuracy=0.62, majority=0.56, ceiling=0.64), 3)
    0.75
    """
    if not ceiling > majority:
        raise ValueError(f"the ceiling ({ceiling}) is not above the majority ({majority}): there is no way to go")
    return (accuracy - majority) / (ceiling - majority)


def representativeness(
    p: np.ndarray,
    option: np.ndarray,
    question: np.ndarray,
    n_options: np.ndarray,
    group: np.ndarray | pd.Series | None = None,
    minimum: int = 10,
) -> pd.DataFrame:
    """How near the predicted answers of a group are, together, to those it gave: 1 is the same distribution.

    Parameters
    ----------
    question : int array, shape (n,)
    n_options : int array, shape (n,)
        Of each answer's question.
    group : array, shape (n,), optional
        Label of whoever gave the answer; missing ones make a group "missing". Everybody is one group where None.
    minimum : int
        Questions with fewer answers in the group are left out; few answers make any prediction look worse.

    Returns
    -------
    DataFrame
        group, representativeness (0 to 1, missing where no question is left), questions, answers (that count),
        left_out (questions with too few answers).

    Notes
    -----
    1 - W / (K - 1), mean over the questions [1]_, where W is the Wasserstein distance between the mean of p and the
    shares of the options given, the K options being one apart: W = sum_k |P_k - O_k| of the cumulative shares.

    References
    ----------
    .. [1] Santurkar et al., "Whose opinions do language models reflect?", arXiv 2303.17548.

    Examples
    --------
    >>> p = np.array([[0.5, 0.5, 0.0]] * 20)
    >>> given, all_the_same = np.repeat([1, 2], 10), np.zeros(20, int)
    >>> representativeness(p, given, all_the_same, np.full(20, 3))  # half a scale too low
           group  representativeness  questions  answers  left_out
    0  everybody                 0.5          1       20         0
    """
    _given(p, option)
    label, names = _labelled(np.full(len(p), "everybody") if group is None else group)
    asked = np.unique(question, return_inverse=True)[1]
    shape = (len(names), int(asked.max(initial=-1)) + 1)  # (G, Q)
    cell = label * shape[1] + asked
    cells = shape[0] * shape[1]
    n = np.bincount(cell, minlength=cells)
    longest = np.full(cells, np.nan)  # K - 1
    longest[cell] = np.asarray(n_options) - 1
    predicted = csr_matrix((np.ones(len(p)), (cell, np.arange(len(p)))), (cells, len(p))) @ p  # (G * Q, K), not mean
    given = np.bincount(cell * p.shape[1] + option, minlength=cells * p.shape[1]).reshape(cells, -1)
    near = 1 - np.abs(np.cumsum(predicted - given, axis=1)).sum(1) / np.maximum(n, 1) / longest
    near, n = near.reshape(shape), n.reshape(shape)
    kept = n >= max(minimum, 1)
    questions = kept.sum(1)
    return pd.DataFrame(
        {
            "group": names,
            "representativeness": np.where(kept, near, 0).sum(1) / np.where(questions > 0, questions, np.nan),
            "questions": questions,
            "answers": np.where(kept, n, 0).sum(1),
            "left_out": ((n > 0) & ~kept).sum(1),
        }
    )


def subgroup_gaps(values: np.ndarray, person: np.ndarray, traits: pd.DataFrame, minimum: int = 10) -> pd.DataFrame:
    """For each trait the groups with the lowest and the highest mean of what was measured answer by answer.

    Parameters
    ----------
    values, person : array, shape (n,)
    traits : DataFrame, n rows
        The traits of whoever gave each answer, in the same order (index ignored).
    minimum : int
        Groups of fewer people are suppressed.

    Returns
    -------
    DataFrame
        trait, lowest, lowest_mean, highest, highest_mean, gap (these five missing where fewer than two groups can be
        shown), groups (shown), suppressed (groups), unknown (people whose trait is missing). Chance alone opens a gap,
        a wider one the more and the smaller the groups.

    Examples
    --------
    >>> traits = pd.DataFrame({"side": ["left"] * 20 + ["right"] * 30})
    >>> subgroup_gaps(np.repeat([0.5, 0.75], [20, 30]), np.arange(50), traits).T[0].to_dict()
    {'trait': 'side', 'lowest': 'left', 'lowest_mean': 0.5, 'highest': 'right', 'highest_mean': 0.75, 'gap': 0.25,
     'groups': 2, 'suppressed': 0, 'unknown': 0}
    """
    code = _people(person)
    _same_length(values, code)
    _same_length(traits, code)
    rows = []
    for trait in traits.columns:
        answers = pd.DataFrame({"group": np.asarray(traits[trait]), "person": code, "value": values})
        found = answers.groupby("group").agg(mean=("value", "mean"), people=("person", "nunique"))
        means = found["mean"][found["people"] >= minimum]
        some = len(means) > 1
        rows.append(
            {
                "trait": trait,
                "lowest": means.idxmin() if some else None,
                "lowest_mean": means.min() if some else np.nan,
                "highest": means.idxmax() if some else None,
                "highest_mean": means.max() if some else np.nan,
                "gap": means.max() - means.min() if some else np.nan,
                "groups": len(means),
                "suppressed": len(found) - len(means),
                "unknown": answers["person"][answers["group"].isna()].nunique(),
            }
        )
    return pd.DataFrame(rows)


def _people(person: np.ndarray) -> np.ndarray:
    """Numbers from 0, shape (n,), the same whatever the order of the answers."""
    code = pd.factorize(np.asarray(person), sort=True)[0]
    if (code < 0).any():
        raise ValueError(f"answer {np.argmax(code < 0)} is nobody's: its person is missing")
    return code


def _labelled(group: np.ndarray | pd.Series) -> tuple[np.ndarray, list]:
    """Numbers (n,) and names of groups."""
    code, labels = pd.factorize(np.asarray(group), sort=True)
    names = list(labels)
    return (np.where(code < 0, len(names), code), [*names, "missing"]) if (code < 0).any() else (code, names)


def _by_person(values: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of the answers of each person."""
    _same_length(values, code)
    return np.bincount(code, values), np.bincount(code)


def _same_length(values: np.ndarray | pd.DataFrame, code: np.ndarray) -> None:
    if len(values) != len(code):
        raise ValueError(f"{len(values):,} values are given for the answers of {len(code):,}; give one an answer")


# intervals -------------------------------------------------------------------------------------------------------
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

    Examples
    --------
    >>> right = np.tile([1.0, 1.0, 0.0, 1.0], 50)
    >>> Bootstrap(np.arange(200)).interval(right)  # two hundred people
    Interval(estimate=0.75, low=0.685, high=0.81)
    >>> Bootstrap(np.arange(200) // 20).interval(right)  # ten people, who are all alike
    Interval(estimate=0.75, low=0.75, high=0.75)
    """

    def __init__(self, person: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        self.person = _people(person)
        if not len(self.person):
            raise ValueError("there are no answers, so there are no people to resample")
        self.people = int(self.person.max()) + 1
        self.level = level
        rng = np.random.default_rng(seed)
        self.weights = np.empty((resamples, self.people), np.float32)  # how often each person is drawn
        for drawn in self.weights:
            drawn[:] = np.bincount(rng.integers(0, self.people, self.people), minlength=self.people)
        self._answers = self._sums(np.bincount(self.person))

    def interval(self, values: np.ndarray) -> Interval:
        """Of the mean over answers."""
        total, count = _by_person(values, self.person)
        estimate = total.sum() / count.sum()
        return self._around(estimate, self._sums(total - estimate * count) / self._answers)

    def macro(self, values: np.ndarray) -> Interval:
        """Of the mean over people of each person's mean."""
        total, count = _by_person(values, self.person)
        mean = total / count
        return self._around(mean.mean(), self._sums(mean - mean.mean()) / self.people)

    def difference(self, a: np.ndarray, b: np.ndarray) -> Interval:
        """Of the mean of a - b, two measures of the same answers: what they share cancels."""
        _same_length(a, self.person)
        _same_length(b, self.person)
        return self.interval(np.subtract(a, b, dtype=np.float64))

    def _sums(self, of_people: np.ndarray) -> np.ndarray:
        """Sum over the people of each sample, (resamples,)."""
        return (self.weights @ of_people.astype(np.float32)).astype(np.float64)

    def _around(self, estimate: float, away: np.ndarray) -> Interval:
        """Deviations are summed, not values: float32 is then exact enough, and what does not vary has no width."""
        low, high = estimate + np.quantile(away, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(float(estimate), float(low), float(high))


# sharper, flatter, together --------------------------------------------------------------------------------------
def combine(ps: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Several predictions of the same answers as one, softmax(sum_i w_i log p_i), shape (n, K).

    This "logarithmic opinion pool" of weights 1, 0, ... is the first prediction; one of a single prediction sharpens
    it (w > 1) or flattens it. What all call impossible stays so; what only some do is taken as 1e-9 there.

    Parameters
    ----------
    ps : sequence of array (n, K)
    weights : sequence of float >= 0
        One a prediction.

    Examples
    --------
    >>> a, b = np.array([[0.8, 0.2, 0.0]]), np.array([[0.5, 0.5, 0.0]])
    >>> combine([a, b], [1, 0]).round(3), combine([a, a], [1, 1]).round(3)
    (array([[0.8, 0.2, 0. ]]), array([[0.941, 0.059, 0.   ]]))
    """
    w = np.asarray(weights, np.float64)
    if w.shape != (len(ps),) or not (w >= 0).all():
        raise ValueError(f"{len(ps)} predictions are combined by one weight each, none negative; got {w.tolist()}")
    logs, own = _logarithms(ps)
    return softmax(np.where(own, np.tensordot(w, logs, 1), -np.inf), axis=1)


def combination_weights(ps: Sequence[np.ndarray], option: np.ndarray) -> np.ndarray:
    """Weights for `combine`, each from 0 to 20, under which the options given are likeliest, shape (len(ps),).

    The loss is convex, so there is one best value, found with its gradient, E_q[log p_i] - log p_i(given).

    Raises
    ------
    ValueError
        No answers, or only such as all predictions call impossible (those say nothing about the weights).

    Examples
    --------
    >>> knows, guesses = np.array([[0.8, 0.2]] * 5), np.array([[0.1, 0.9]] * 2 + [[0.9, 0.1]] * 3)
    >>> combination_weights([knows, guesses], np.array([0, 0, 0, 0, 1])).round(2) + 0.0
    array([1., 0.])
    """
    logs, own, option = _possible(ps, option)
    rows = np.arange(len(option))
    said = logs[:, rows, option].mean(1)  # (m,)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        q = log_softmax(np.where(own, np.tensordot(w, logs, 1), -np.inf), axis=1)  # (n, K)
        expected = np.einsum("nk,mnk->m", np.exp(q), logs) / len(rows)
        return -q[rows, option].mean(), expected - said

    start = np.full(len(ps), 1 / len(ps))
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, _SHARPEST)] * len(ps)).x


def tempered(p: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) over the options that are possible, shape (n, K): flatter for T > 1, sharper below.

    Examples
    --------
    >>> tempered(np.array([[0.8, 0.2, 0.0]]), 2.0).round(3)
    array([[0.667, 0.333, 0.   ]])
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is above zero; got {temperature}")
    return combine([p], [1 / temperature])


def temperature(p: np.ndarray, option: np.ndarray) -> float:
    """The temperature for `tempered`, from 1/20 to 20, under which the options given are likeliest.

    Raises
    ------
    ValueError
        As in `combination_weights`.

    Examples
    --------
    >>> sure = np.array([[0.95, 0.05]] * 4)
    >>> t = temperature(sure, np.array([0, 0, 0, 1]))  # right three times of four
    >>> tempered(sure, t)[0].round(3)
    array([0.75, 0.25])
    """
    logs, own, option = _possible([p], option)
    rows = np.arange(len(option))

    def loss(log_t: float) -> float:
        q = log_softmax(np.where(own, logs[0] / np.exp(log_t), -np.inf), axis=1)
        return -q[rows, option].mean()

    widest = np.log(_SHARPEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-widest, widest), method="bounded").x))


def _logarithms(ps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """log p_i (m, n, K), 0 where all call an option impossible, and where they do not (n, K)."""
    shapes = {np.shape(p) for p in ps}
    if len(shapes) != 1:
        raise ValueError(f"predictions to combine have one shape; got {sorted(shapes)}")
    p = np.stack(ps).astype(np.float64)
    own = np.any(p > 0, axis=0)
    return np.where(own, np.log(np.maximum(p, _FLOOR)), 0.0), own


def _possible(ps: Sequence[np.ndarray], option: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_logarithms` and options of the answers that some prediction calls possible."""
    logs, own = _logarithms(ps)
    some = np.max([_given(p, option) for p in ps], axis=0) > 0
    if not some.any():
        raise ValueError(f"none of {len(some)} answers is called possible by any prediction: there is nothing to fit")
    return logs[:, some], own[some], option[some]


# everything at once ----------------------------------------------------------------------------------------------
def scores(p: np.ndarray, option: np.ndarray, n_options: np.ndarray, bootstrap: Bootstrap) -> dict[str, float]:
    """The row of a table: every measure of one prediction.

    Parameters
    ----------
    bootstrap : Bootstrap
        Of the people who gave the answers; the same one for all rows of a table.

    Returns
    -------
    dict
        accuracy, accuracy_low, accuracy_high, macro_accuracy, nll, nll_low, nll_high, brier, ece, ordinal_error,
        n (answers), people.

    Examples
    --------
    >>> p, option = np.array([[0.75, 0.25]] * 8), np.array([0, 0, 0, 1] * 2)
    >>> found = scores(p, option, np.full(8, 2), Bootstrap(np.repeat(["ann", "bob"], 4)))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'accuracy': 0.75, 'accuracy_low': 0.75, 'accuracy_high': 0.75, 'macro_accuracy': 0.75,
     'nll': 0.562, 'nll_low': 0.562, 'nll_high': 0.562, 'brier': 0.375, 'ece': 0.0, 'ordinal_error': 0.25,
     'n': 8, 'people': 2}
    """
    hits, losses = right(p, option), nll(p, option)
    accuracy, loss = bootstrap.interval(hits), bootstrap.interval(losses)
    return {
        "accuracy": accuracy.estimate,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "macro_accuracy": macro(hits, bootstrap.person),
        "nll": loss.estimate,
        "nll_low": loss.low,
        "nll_high": loss.high,
        "brier": float(brier(p, option).mean()),
        "ece": expected_calibration_error(p, option),
        "ordinal_error": float(ordinal_error(p, option, n_options).mean()),
        "n": len(option),
        "people": bootstrap.people,
    }
