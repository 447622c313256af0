"""Steerers of tiny random LMs, trained for two steps: exports are about equality, not about skill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from personae.bundle import Bundle
from personae.data.account import Account
from personae.data.survey import Question, Survey
from personae.lm.frozen import FrozenLM
from personae.lm.tiny import tiny_lm
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering import persona_prompt
from personae.steering.persona_prompt import PersonaPrompt

Train = Callable[..., PersonaPrompt]


@pytest.fixture(scope="session")
def survey() -> Survey:
    """Two camps of sixty people, eight questions, in a file whose folder is nobody's business."""
    rng = np.random.default_rng(0)
    camp = np.repeat([1, -1], 60)
    said = (rng.random((120, 8)) < 1 / (1 + np.exp(-2 * camp[:, None] * np.tile([1, -1], 4)))).astype(int)
    person, question = np.nonzero(rng.random(said.shape) < 0.9)
    account = Account("/home/ann/secret/responses.csv", "wide")
    account.add("don't know | no answer read as missing", count=3)
    return Survey(
        [Question(f"q{j}", f"Should we spend more on thing {j}?", ("no", "yes"), f"thing {j}") for j in range(8)],
        [f"person-{i:03d}" for i in range(120)],
        person,
        question,
        said[person, question],
        pd.DataFrame({"side": np.where(camp > 0, "left", "right")}),
        account,
    )


@pytest.fixture(scope="session")
def people(survey: Survey) -> OpinionModel:
    return OpinionModel(n_components=2).fit(survey)


@pytest.fixture(scope="session")
def cohorts(people: OpinionModel, survey: Survey) -> Cohorts:
    return Cohorts(k=2).fit(people, survey)


@pytest.fixture(scope="session")
def train(survey: Survey, people: OpinionModel) -> Train:
    """``train("llama", recipe="paper", placement="before")``; each is trained once."""
    done: dict[Any, PersonaPrompt] = {}

    def train(lm: str | FrozenLM = "llama", **how: Any) -> PersonaPrompt:
        key = (lm, *sorted(how.items()))
        if key not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(persona_prompt, "TextOpinionModel", partial(TextOpinionModel, width=16, steps=20))
                named = lm if isinstance(lm, FrozenLM) else tiny(lm)
                done[key] = PersonaPrompt(named, steps=2, **how).fit(survey, people, progress=False)
        return done[key]

    return train


def tiny(architecture: str) -> FrozenLM:
    # These know nothing of shared keys; left in their configuration, the number would mislead whoever reads it.
    own = {"num_key_value_heads": 4} if architecture in ("gpt2", "gpt_neox", "opt") else {}
    return tiny_lm(architecture, **own)


@pytest.fixture
def bundle(tmp_path: Path, people: OpinionModel, cohorts: Cohorts, survey: Survey, train: Train) -> Bundle:
    """With a steerer whose LM is said to be one of the hub."""
    lm = tiny("llama")
    lm.name = "org/tiny"
    source = {"path": "/home/ann/secret/responses.csv", "questions": None, "traits": ["side"]}
    return Bundle.write(tmp_path / "town", people, cohorts, train(lm), survey.account, source)
