from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey
from personae.scale.store import AnswerStore


def make_survey(n: int = 700, q: int = 30, density: float = 0.5) -> Survey:
    """Answers are cut points of u . q + b + noise."""
    rng = np.random.default_rng(3)
    latent = rng.standard_normal((n, 3)) @ rng.standard_normal((3, q)) + rng.standard_normal((n, q))
    said = np.searchsorted([-1.0, 0.0, 1.0], latent)
    person, question = np.nonzero(rng.random((n, q)) < density)
    questions = [Question(f"q{j}", f"Question {j}?", ("a", "b", "c", "d"), f"subject {j}") for j in range(q)]
    return Survey(questions, [f"r{i}" for i in range(n)], person, question, said[person, question])


def write_long(survey: Survey, folder: Path, files: int = 1) -> Path:
    """The survey as long Parquet files, rows in random order."""
    labels = np.array([q.options for q in survey.questions], dtype=object)
    frame = pd.DataFrame(
        {
            "respondent": survey.respondent_ids.to_numpy()[survey.respondent],
            "question": survey.question_ids.to_numpy()[survey.question],
            "answer": labels[survey.question, survey.option],
        }
    ).sample(frac=1, random_state=0)
    folder.mkdir()
    for i in range(files):
        frame.iloc[i::files].to_parquet(folder / f"part-{i}.parquet", index=False)
    return folder


@pytest.fixture(scope="session")
def survey() -> Survey:
    return make_survey()


@pytest.fixture(scope="session")
def long(survey: Survey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long(survey, tmp_path_factory.mktemp("long") / "answers", files=3)


@pytest.fixture(scope="session")
def store(survey: Survey, long: Path) -> AnswerStore:
    return AnswerStore.write(long, survey.questions, long.parent / "store", answers_per_shard=3000)
