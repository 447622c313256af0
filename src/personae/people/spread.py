"""How far people may be from their vectors, and the points that stand for everywhere they may be."""

from __future__ import annotations

from functools import cache

import numpy as np


def beyond(covariances: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """Roots R (P, D, D), where R R' is what covariances (P, D, D) have beyond a typical one (D, D).

    Directions in which they have less get nothing.

    >>> root = beyond(np.diag([5.0, 0.5])[None], np.eye(2))[0]
    >>> (root @ root.T).round(6)
    array([[4., 0.],
           [0., 0.]])
    """
    values, basis = np.linalg.eigh(covariances - typical)
    roots: np.ndarray = basis * np.sqrt(np.maximum(values, 0))[..., None, :]
    return roots


@cache
def normal_points(size: int, pairs: int = 64) -> np.ndarray:
    """Points whose mean, covariance and odd moments are those of N(0, I), (2 pairs, size); always the same."""
    half = np.random.default_rng(0).standard_normal((max(pairs, 2 * size), size))
    half = half @ np.linalg.inv(np.linalg.cholesky(half.T @ half / len(half))).T
    return np.concatenate([half, -half])
