"""The metric of people: how differently they would answer."""

from __future__ import annotations

import numpy as np


def metric(factors: np.ndarray) -> np.ndarray:
    """A (D, D') with A A' = F'F / Q', so that |(x - x') A| compares predicted answers to the questions of F."""
    values, basis = np.linalg.eigh(factors.T.astype(np.float64) @ factors / len(factors))
    kept = values > 1e-9 * values.max()
    return (basis[:, kept] * np.sqrt(values[kept])).astype(np.float32)
