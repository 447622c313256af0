from __future__ import annotations

import numpy as np
import pytest

from personae.data.survey import Question, Survey


@pytest.fixture(scope="session")
def survey() -> Survey:
    """Two camps of sixty people who answer eight questions with opposite leanings."""
    import pandas as pd

    rng = np.random.default_rng(0)
    camp = np.repeat([1, -1], 60)
    lean = np.tile([1, -1], 4)
    said = (rng.random((120, 8)) < 1 / (1 + np.exp(-2 * camp[:, None] * lean))).astype(int)
    person, question = np.nonzero(rng.random(said.shape) < 0.9)
    return Survey(
        [Question(f"q{j}", f"Do you like number {j}?", ("no", "yes"), f"number {j}", "numbers") for j in range(8)],
        [f"r{i:03d}" for i in range(120)],
        person,
        question,
        said[person, question],
        pd.DataFrame({"side": np.where(camp > 0, "left", "right"), "age": ["75+"] * 20 + ["young"] * 100}),
    )
