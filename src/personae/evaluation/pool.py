"""Several predictions of the same answers as one; a single one sharper or flatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from personae.evaluation.metrics import probability_given

_FLOOR = 1e-9  # what one prediction calls impossible and another does not
_SHARPEST = 20.0  # largest weight of a logarithm


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
    some = np.max([probability_given(p, option) for p in ps], axis=0) > 0
    if not some.any():
        raise ValueError(f"none of {len(some)} answers is called possible by any prediction: there is nothing to fit")
    return logs[:, some], own[some], option[some]
