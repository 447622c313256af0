from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from personae.bundle import Bundle
from personae.data.account import Account
from personae.data.survey import Question, Survey
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(scope="session")
def survey() -> Survey:
    """Two camps of sixty people, eight questions; five people stand alone with a trait, and texts try to be code."""
    rng = np.random.default_rng(0)
    camp = np.repeat([1, -1], 60)
    said = (rng.random((120, 8)) < 1 / (1 + np.exp(-1.3 * camp[:, None] * np.tile([1, -1], 4)))).astype(int)
    person, question = np.nonzero(rng.random(said.shape) < 0.9)
    questions = [Question(f"q{j}", f"Thing {j}? {EVIL}", ("no", "<b>yes</b>"), f"thing {j}") for j in range(8)]
    side = np.where(camp > 0, "left", "right").astype(object)
    side[:5] = "hermit"
    traits = pd.DataFrame({"side": side, "same": "everywhere"})
    account = Account("/home/ann/secret/responses.csv", "wide")
    account.add(f"cell {EVIL} read as missing", count=3)
    ids = [f"person-{i}" for i in range(120)]
    return Survey(questions, ids, person, question, said[person, question], traits, account)


@pytest.fixture(scope="session")
def people(survey: Survey) -> OpinionModel:
    return OpinionModel(n_components=2).fit(survey)


@pytest.fixture(scope="session")
def cohorts(people: OpinionModel) -> Cohorts:
    return Cohorts().fit(people)


@pytest.fixture(scope="session")
def bundle(people, cohorts, survey, tmp_path_factory) -> Bundle:
    """Read only; without a steerer."""
    folder = tmp_path_factory.mktemp("report") / "town"
    source = {"path": "/home/ann/secret/responses.csv", "questions": None}
    Bundle.write(folder, people, cohorts, account=survey.account, source=source)
    return Bundle.open(folder)


class Steerer:
    """As much of one as a bundle keeps."""

    method, placement_, random_state = "persona_prompt", "late", 3
    lm_fingerprint_ = {"name": "tiny", "hidden_size": 32}  # noqa: RUF012
    history_ = [{"step": s, "loss": 3 / s, "nll": 1 / s, "accuracy": 1 - 1 / s} for s in (2, 4)]  # noqa: RUF012

    def save(self, folder: Path) -> None:
        about = {"history": self.history_, "parameters": {"lm": "tiny", "steps": 4}}
        (folder / "steerer.json").write_text(json.dumps(about))


@pytest.fixture(scope="session")
def steered(people, survey, tmp_path_factory) -> Bundle:
    """With a steerer, without cohorts."""
    folder = tmp_path_factory.mktemp("report") / "village"
    return Bundle.write(folder, people, steerer=Steerer(), account=survey.account)
