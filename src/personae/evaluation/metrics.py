"""What a prediction of held-out answers is worth.

A prediction is an array p (n, K): for each answer the probabilities of its question's options in scale order, zero
beyond the last one. What is measured answer by answer comes as (n,), so that people can be resampled (`Bootstrap`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from personae.evaluation.intervals import people_of, same_length

_FLOOR = 1e-9  # one answer that was thought impossible must not make a mean infinite


# answer by answer ------------------------------------------------------------------------------------------------
def right(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Whether the likeliest option was given: 1.0 or 0.0, and of m equally likely ones 1/m, shape (n,).

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
    >>> right(np.array([[0.7, 0.3], [0.7, 0.3], [0.5, 0.5]]), np.array([0, 1, 1]))
    array([1. , 0. , 0.5])
    """
    probability_given(p, option)
    likeliest = p == p.max(1, keepdims=True)  # (n, K)
    return likeliest[np.arange(len(p)), option] / likeliest.sum(1)


def nll(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """-log of the probability of the option given, in nats, shape (n,); at most 20.7 (a probability of 1e-9).

    Examples
    --------
    >>> nll(np.array([[0.5, 0.5], [0.75, 0.25]]), np.array([0, 1])).round(3)
    array([0.693, 1.386])
    """
    return -np.log(np.maximum(probability_given(p, option), _FLOOR))


def brier(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Squared error of the probabilities, summed over the options, shape (n,): 0 is perfect, 2 the worst.

    Examples
    --------
    >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1]))
    array([0.5, 2. ])
    """
    return (np.asarray(p, np.float64) ** 2).sum(1) - 2 * probability_given(p, option) + 1


def ordinal_error(p: np.ndarray, option: np.ndarray, n_options: np.ndarray) -> np.ndarray:
    """How far the predicted median is from the option given, in units of the scale's length, 0 to 1, shape (n,).

    The point forecast is the (lower) median of p, not its mode: no other has a smaller expected absolute error.

    Examples
    --------
    >>> p = np.array([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3]])  # the median is option 1, the mode option 0
    >>> ordinal_error(p, np.array([1, 2]), np.array([3, 3]))
    array([0. , 0.5])
    """
    probability_given(p, option)
    median = (np.cumsum(p, axis=1) >= 0.5 - 1e-6).argmax(1)  # two halves in float32 are a half
    return np.abs(median - option) / (np.asarray(n_options) - 1)


def probability_given(p: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Probability (n,) of the option given; checks the shapes and that rows are distributions."""
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
    probability_given(p, option)
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
    code = people_of(person)
    same_length(values, code)
    same_length(traits, code)
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


def _labelled(group: np.ndarray | pd.Series) -> tuple[np.ndarray, list]:
    """Numbers (n,) and names of groups."""
    code, labels = pd.factorize(np.asarray(group), sort=True)
    names = list(labels)
    return (np.where(code < 0, len(names), code), [*names, "missing"]) if (code < 0).any() else (code, names)
