from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey


@pytest.fixture(scope="session")
def two_camps() -> Survey:
    """Eighty people of two camps, which a trait tells, on eight questions."""
    rng = np.random.default_rng(0)
    sizes = [2, 3, 2, 4, 2, 2, 3, 2]
    side = np.repeat([1.0, -1.0], 40)[:, None]
    latent = side * np.array([1, -1] * 4) + 0.7 * rng.standard_normal((80, 8))
    said = np.column_stack(
        [np.searchsorted(np.quantile(x, np.arange(1, k) / k), x) for x, k in zip(latent.T, sizes, strict=True)]
    )
    person, question = np.nonzero(rng.random((80, 8)) < 0.9)
    return Survey(
        [Question(f"q{j}", f"Do you like number {j}?", tuple("abcd"[:k])) for j, k in enumerate(sizes)],
        [f"r{i}" for i in range(80)],
        person,
        question,
        said[person, question],
        pd.DataFrame({"side": np.where(side[:, 0] > 0, "left", "right")}),
    )
