"""Synthetic people whose structure is known, and the real survey if it stands beside the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey
from personae.people.opinion_model import OpinionModel

SHARED = Path(__file__).parents[5] / "shared"


def make_survey(
    n: int = 300, q: int = 40, d: int = 3, k: int = 4, density: float = 0.6, noise: float = 0.7, seed: int = 0
) -> Survey:
    """Answers are cut points of u . q + b + noise; the trait says on which side of the first dimension one is."""
    rng = np.random.default_rng(seed)
    u, f = rng.standard_normal((n, d)), rng.standard_normal((q, d))
    latent = u @ f.T / np.sqrt(d) + 0.3 * rng.standard_normal((n, 1)) + noise * rng.standard_normal((n, q))
    cuts = np.quantile(latent, np.arange(1, k) / k)
    said = np.searchsorted(cuts, latent)
    person, question = np.nonzero(rng.random((n, q)) < density)
    questions = [
        Question(f"q{j}", f"Question {j}?", tuple(f"level {i}" for i in range(k)), f"subject {j}", f"topic {j % 2}")
        for j in range(q)
    ]
    traits = pd.DataFrame({"side": np.where(u[:, 0] > 0, "left", "right")})
    return Survey(questions, [f"r{i}" for i in range(n)], person, question, said[person, question], traits)


def split(survey: Survey, share: float = 0.2, seed: int = 0) -> tuple[Survey, Survey]:
    """Two surveys of the same people: the answers to learn from, and the held-out ones."""
    held_out = np.random.default_rng(seed).random(survey.n_answers) < share
    return survey.keep_answers(~held_out), survey.keep_answers(held_out)


@pytest.fixture(scope="session")
def survey() -> Survey:
    return make_survey()


@pytest.fixture(scope="session")
def people(survey: Survey) -> OpinionModel:
    return OpinionModel(n_components=3).fit(survey)


@pytest.fixture(scope="session")
def make() -> Callable[..., Survey]:
    return make_survey


@pytest.fixture(scope="session")
def halve() -> Callable[..., tuple[Survey, Survey]]:
    return split


@pytest.fixture(scope="session")
def gss() -> Survey:
    folder = SHARED / "data" / "gss-2018"
    if not folder.is_dir():
        pytest.skip("the General Social Survey does not stand beside the project")
    from personae.data.read import read_survey

    return read_survey(folder / "responses.csv.gz", questions=folder / "questions.csv")
