"""The files of an `OpinionModel`: safetensors, JSON and Parquet; no raw answers, no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from personae.data.survey import Question
from personae.people.als import Factorization, Side, chunks, condense
from personae.people.answers import Scale
from personae.people.readout import Readout

_FORMAT = 1
_FILES = ("opinion_model.json", "opinion_model.safetensors", "respondents.parquet", "questions.parquet")


Model = Any  # an `OpinionModel`, which saves and loads itself by this file


def save(model: Model, folder: Path) -> None:
    """Write a fitted model into a folder, made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(model), folder / "opinion_model.safetensors")
    facts = {
        "format": _FORMAT,
        "params": model.get_params(),
        "n_components": model.n_components_,
        "n_respondents": len(model),
        "n_questions": len(model.questions_),
        "strength": model.strength_,
        "confidence": model.confidence_,
        "validation": model.validation_,
        "fingerprint": model.fingerprint_,
    }
    (folder / "opinion_model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    traits = model.traits_.copy()
    id_name = "__respondent__"  # the first column, under a name that no trait has
    while id_name in traits.columns:
        id_name += "_"
    traits.insert(0, id_name, traits.index)
    traits.to_parquet(folder / "respondents.parquet", index=False)
    columns = ("id", "text", "options", "title", "topic")
    table = pd.DataFrame({c: [getattr(q, c) for q in model.questions_] for c in columns})
    table.to_parquet(folder / "questions.parquet", index=False)


def load(make: Callable[..., Model], folder: Path) -> Model:
    """Open what `save` wrote, ``make`` being the class.

    Raises ``ValueError`` if a file is missing, of another format, or does not fit.
    """
    for name in _FILES:
        if not (folder / name).is_file():
            raise ValueError(f"there is no opinion model in {folder}: {name} is missing")
    facts = json.loads((folder / "opinion_model.json").read_text(encoding="utf-8"))
    if facts.get("format") != _FORMAT:
        found = facts.get("format")
        raise ValueError(
            f"the opinion model in {folder} has format {found}, this version reads {_FORMAT}; fit it again"
        )
    traits = pd.read_parquet(folder / "respondents.parquet")
    traits = traits.set_index(traits.columns[0])
    table = pd.read_parquet(folder / "questions.parquet").to_dict("records")
    t = load_file(folder / "opinion_model.safetensors")
    _check(folder, t, len(traits), len(table), facts)
    d = facts["n_components"]
    model = make(**facts["params"])
    model.strength_, model.validation_ = facts["strength"], facts["validation"]
    model.confidence_ = facts.get("confidence", 1.0)  # earlier files have none: read-outs as they were fitted
    model.fingerprint_, model.survey_ = facts["fingerprint"], None
    model.questions_ = tuple(Question(r["id"], r["text"], tuple(r["options"]), r["title"], r["topic"]) for r in table)
    model.respondent_ids_ = pd.Index(traits.index, name="respondent", dtype=object)
    model.traits_ = traits.set_axis(model.respondent_ids_, axis=0)
    model.typical_covariance_, model._covariance = t["typical_covariance"], t["covariance"]
    model._scale = Scale(t["centre"], t["spread"], np.array([len(q.options) for q in model.questions_]))
    model._readout = Readout(t["weights"], t["intercepts"])
    people = Side(t["people"], np.empty((0, 0), np.float32), t["prior"], d + 1)
    questions = Side(t["questions"], t["question_moments"], t["question_prior"], d)
    model._set(Factorization(people, questions, t["noise"], 0))
    return model


def _tensors(model: Model) -> dict[str, np.ndarray]:
    D = model.vectors_.shape[1]
    covariance = [condense(model.covariance(rows), len(model)) for rows in chunks(len(model), 8 * D * D)]
    people, questions = model._model.people, model._model.questions
    tensors = {
        "people": people.mean,
        "covariance": np.concatenate(covariance).astype(np.float32, copy=False),
        "prior": people.prior,
        "typical_covariance": model.typical_covariance_,
        "questions": questions.mean,
        "question_moments": questions.moment,
        "question_prior": questions.prior,
        "noise": model.noise_,
        "centre": model._scale.mean,
        "spread": model._scale.sd,
        "weights": model._readout.weights,
        "intercepts": model._readout.intercepts,
    }
    return {name: np.ascontiguousarray(t) for name, t in tensors.items()}


def _check(folder: Path, t: dict[str, np.ndarray], n: int, q: int, facts: dict[str, Any]) -> None:
    size = facts["n_components"] + 2
    wanted = {
        "people": (n, size),
        "questions": (q, size),
        "question_moments": (q, size * (size + 1) // 2),
        "noise": (q,),
        "prior": (size - 1, size - 1),
        "typical_covariance": (size - 1, size - 1),
    }
    wrong = [name for name, shape in wanted.items() if name not in t or t[name].shape != shape]
    if wrong or len(t) != 12 or (n, q) != (facts["n_respondents"], facts["n_questions"]):
        raise ValueError(f"the files of the opinion model in {folder} do not belong together; save it again")
