"""What `OpinionModel` leaves to validation: the dimension of the vectors and the strength of the read-outs."""

from __future__ import annotations

from typing import Any

import numpy as np

from personae.data.survey import Survey
from personae.people.als import Factorization, by_row, factorize
from personae.people.answers import Scale
from personae.people.readout import Readout, fit_readout

DIMENSIONS = (4, 8, 16)
STRENGTHS = (100.0, 300.0, 1000.0)
_WORTH_DOUBLING = 0.998  # a doubled dimension must bring the error below this share
_SWEEPS = 6  # enough to compare dimensions
_STRENGTH_ANSWERS = 50_000  # the strength is chosen on random questions with about so many answers


def choose(survey: Survey, dimension: int | None, seed: int) -> tuple[int, float, list[dict[str, Any]]]:
    """Dimension (unless given), strength, and what was seen on the way.

    One split: everything, the standardisation included, is fitted to nine tenths of the answers and judged by the
    rest; the dimension by RMSE, then the strength by the likelihood.
    """
    rng = np.random.default_rng(seed)
    held_out = rng.random(survey.n_answers) < 0.1
    train, test = survey.keep_answers(~held_out), survey.keep_answers(held_out)
    most = min(survey.n_respondents, survey.n_questions)
    dimensions = [dimension] if dimension else [d for d in DIMENSIONS if d <= most] or [1]
    if train.n_answers == 0 or test.n_answers == 0:
        return dimensions[0], STRENGTHS[0], []
    scale = Scale.of(train)
    model, seen = _best_dimension(train, test, scale, dimensions, seed)
    questions = rng.permutation(survey.n_questions)
    count = np.bincount(train.question, minlength=survey.n_questions)[questions]
    some = np.sort(questions[: 1 + np.searchsorted(np.cumsum(count), _STRENGTH_ANSWERS)])
    asked = np.isin(test.question, some)
    losses = []
    for strength in STRENGTHS:
        readout = readout_of(model, scale, train, strength, some)
        x = model.people.mean[:, :-1]
        p = readout.predict_proba_pairs(x, test.respondent[asked], test.question[asked])
        said = p[np.arange(len(p)), test.option[asked]]
        losses.append(float(-np.log(said + 1e-12).mean()) if len(said) else 0.0)
        seen.append({"strength": strength, "nll": losses[-1]})
    return model.people.mean.shape[1] - 2, STRENGTHS[int(np.argmin(losses))], seen


def _best_dimension(
    train: Survey, test: Survey, scale: Scale, dimensions: list[int], seed: int
) -> tuple[Factorization, list[dict[str, Any]]]:
    """Go up as long as it pays."""
    answers, z = scale.answers(train), scale.values(test)
    best, least, seen = None, np.inf, []
    for d in dimensions:
        model = factorize(answers, d, max_sweeps=_SWEEPS, seed=seed)
        predicted = (model.people.mean[test.respondent] * model.questions.mean[test.question]).sum(1)
        error = float(np.sqrt(np.mean((predicted - z) ** 2)))
        seen.append({"n_components": d, "rmse": error})
        if best is not None and error > _WORTH_DOUBLING * least:
            break
        best, least = model, error
    assert best is not None
    return best, seen


def readout_of(
    model: Factorization, scale: Scale, survey: Survey, strength: float, questions: np.ndarray | None = None
) -> Readout:
    """The read-outs of a factorisation of this survey."""
    shape = (survey.n_questions, survey.n_respondents)
    answers = by_row(survey.question, survey.respondent, scale.values(survey), shape)
    options = by_row(survey.question, survey.respondent, survey.option + 1, shape)
    return fit_readout(model, answers, options, survey.n_options, scale.scores(), strength, questions)
