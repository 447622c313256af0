from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from personae.cli.main import main

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run the command line in this process: ``run("fit", "a.csv", status=1)``."""

    def run(*args: object, status: int = 0, input: str | None = None) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in args], input=input)
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture(scope="session")
def survey_folder(tmp_path_factory) -> Path:
    """Two camps of sixty people, eight questions, as the files that a user has."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    camp = np.repeat([1, -1], 60)
    lean = np.tile([1, -1], 4)
    said = np.where(rng.random((120, 8)) < 1 / (1 + np.exp(-2 * camp[:, None] * lean)), "yes", "no, thanks")
    ids = [f"r{i:03d}" for i in range(120)]
    answers = pd.DataFrame(said, columns=[f"q{j}" for j in range(8)])
    answers.insert(0, "respondent", ids)
    answers.to_csv(folder / "responses.csv", index=False)
    questions = [(f"q{j}", f"thing {j}", f"Do you like [thing] {j}?", "no, thanks|yes") for j in range(8)]
    pd.DataFrame(questions, columns=["question", "title", "text", "options"]).to_csv(
        folder / "questions.csv", index=False
    )
    traits = pd.DataFrame({"respondent": ids, "side": np.where(camp > 0, "left", "right")})
    traits.to_csv(folder / "respondents.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def fitted(run, survey_folder, tmp_path_factory) -> Path:
    """A bundle without a steerer; read only."""
    out = tmp_path_factory.mktemp("fitted") / "people"
    run("fit", survey_folder, "--out", out, "--cohorts", 2)
    return out


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A random LM as a folder of Hugging Face files."""
    from personae.lm.tiny import tiny_lm

    folder = tmp_path_factory.mktemp("lm") / "tiny"
    lm = tiny_lm("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def steered(run, survey_folder, tiny_folder, tmp_path_factory) -> Path:
    """A bundle with a steerer for the tiny LM; read only."""
    out = tmp_path_factory.mktemp("steered") / "people"
    run("fit", survey_folder, "--out", out, "--cohorts", 2)
    result = run("steer", out, "--lm", tiny_folder, "--steps", 2, "--json")
    assert json.loads(result.stdout)["steerer"]["lm"]["hidden_size"] == 32
    return out
