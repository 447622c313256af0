"""Tiny random LMs and surveys whose structure is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from personae.data.survey import Question, Survey
from personae.lm.frozen import FrozenLM
from personae.lm.tiny import tiny_lm
from personae.people.opinion_model import OpinionModel
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering import persona_prompt

SUBJECTS = ("roads", "schools", "the army", "parks", "libraries", "trains", "farms", "taxes")


def make_camps(n: int = 120, q: int = 8, strength: float = 2.0, seed: int = 0, opposed: bool = True) -> Survey:
    """Two camps who answer yes-or-no questions with opposite leanings; the first camp says yes to the first one.

    Without ``opposed`` it says yes to all of them.
    """
    rng = np.random.default_rng(seed)
    subjects = [*SUBJECTS, *(f"number {j}" for j in range(len(SUBJECTS), q))]
    camp, lean = np.repeat([1, -1], n // 2), np.tile([1, -1 if opposed else 1], q)[:q]
    said = (rng.random((n, q)) < 1 / (1 + np.exp(-strength * camp[:, None] * lean))).astype(int)
    person, question = np.nonzero(rng.random((n, q)) < 0.9)
    return Survey(
        [Question(f"q{j}", f"Should we spend more on {s}?", ("no", "yes"), s) for j, s in enumerate(subjects[:q])],
        [f"r{i:03d}" for i in range(n)],
        person,
        question,
        said[person, question],
    )


def make_mixed(n: int = 40, seed: int = 1) -> Survey:
    """Questions of two to five options, one of which everybody answers alike; some people answer little."""
    rng = np.random.default_rng(seed)
    sizes = [2, 5, 3, 2, 4]
    u = rng.standard_normal((n, 1))
    latent = u * np.array([1.0, -1.0, 1.0, 1.0, -1.0]) + 0.5 * rng.standard_normal((n, 5))
    said = np.column_stack(
        [np.searchsorted(np.quantile(x, np.arange(1, k) / k), x) for x, k in zip(latent.T, sizes, strict=True)]
    )
    said[:, 3] = 1
    person, question = np.nonzero(rng.random(said.shape) < 0.8)
    labels = ("never", "seldom, if at all", "sometimes", "often", "at every occasion that there is")
    return Survey(
        [
            Question(f"q{j}", f"Do you use {SUBJECTS[j]}?" + " Think of last year." * (j % 2), labels[:k], SUBJECTS[j])
            for j, k in enumerate(sizes)
        ],
        [f"r{i}" for i in range(n)],
        person,
        question,
        said[person, question],
    )


@pytest.fixture(scope="module", autouse=True)
def quick_warm_start() -> Iterator[None]:
    """Forty steps of warm start, not thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persona_prompt, "TextOpinionModel", partial(TextOpinionModel, width=16, steps=40))
        yield


@pytest.fixture(scope="session")
def lm() -> FrozenLM:
    return tiny_lm("llama")


@pytest.fixture(scope="session")
def camps() -> Callable[..., Survey]:
    return make_camps


@pytest.fixture(scope="session")
def mixed() -> Survey:
    return make_mixed()


@pytest.fixture(scope="session")
def people(mixed: Survey) -> OpinionModel:
    return OpinionModel(n_components=1).fit(mixed)
