"""What `OpinionModel` leaves to validation: the dimension of the vectors, strength and confidence of the read-outs."""

from __future__ import annotations

from typing import Any

import numpy as np

from personae.data.survey import Survey
from personae.people.als import Factorization, by_row, factorize
from personae.people.answers import Scale
from personae.people.readout import Readout, fit_readout

DIMENSIONS = (4, 8, 16, 32)
STRENGTHS = (100.0, 300.0, 1000.0)
CONFIDENCES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
_CONFIDENCE_STRENGTH = 4.0  # nats that the held-out answers must bring for full confidence
_JUDGED = 5000  # held-out answers are enough from here on
_WORTH_DOUBLING = 0.998  # a doubled dimension must bring the error below this share
_SWEEPS = 6  # enough to compare dimensions
_STRENGTH_ANSWERS = 50_000  # the strength is chosen on random questions with about so many answers


def choose(survey: Survey, dimension: int | None, seed: int) -> tuple[int, float, float, list[dict[str, Any]]]:
    """Dimension (unless given), strength, confidence, and what was seen on the way.

    Everything, the standardisation included, is fitted to nine tenths of the answers and judged by the rest: the
    dimension by RMSE, then strength and confidence together by the likelihood. A large survey needs one such split;
    a small one gets up to ten, until about `_JUDGED` answers have been held out.

    Notes
    -----
    The factors of a small survey fit its people better than they fit anybody, which leave-one-out vectors do not show
    because the factors saw the answer left out. Answers that no part of the model saw do, so they choose how far the
    logits go from the question's marginal. The losses get a penalty that grows with the square of the confidence but
    not with the answers (a normal prior around 0), so that a few lucky answers do not vouch for the factors.
    """
    rng = np.random.default_rng(seed)
    fold = (10 * rng.random(survey.n_answers)).astype(int)
    splits = [(survey.keep_answers(fold != k), survey.keep_answers(fold == k)) for k in range(_n_folds(survey))]
    splits = [(train, test) for train, test in splits if train.n_answers and test.n_answers]
    most = min(survey.n_respondents, survey.n_questions)
    dimensions = [dimension] if dimension else [d for d in DIMENSIONS if d <= most] or [1]
    if not splits:
        return dimensions[0], STRENGTHS[0], CONFIDENCES[0], []
    scales = [Scale.of(train) for train, _ in splits]
    models, seen = _best_dimension(splits, scales, dimensions, seed)
    questions = rng.permutation(survey.n_questions)
    count = np.bincount(splits[0][0].question, minlength=survey.n_questions)[questions]
    some = np.sort(questions[: 1 + np.searchsorted(np.cumsum(count), _STRENGTH_ANSWERS)])
    best, least = (STRENGTHS[0], CONFIDENCES[0]), np.inf
    for strength in STRENGTHS:
        losses, n = np.zeros(len(CONFIDENCES)), 0
        for model, scale, (train, test) in zip(models, scales, splits, strict=True):
            asked = np.isin(test.question, some)
            readout = readout_of(model, scale, train, strength, some)
            losses += [
                _loss(readout.tempered(confidence, train), model.people.mean[:, :-1], test.keep_answers(asked))
                for confidence in CONFIDENCES
            ]
            n += int(asked.sum())
        penalised = losses + _CONFIDENCE_STRENGTH * np.square(CONFIDENCES)
        at = int(np.argmin(penalised))
        seen.append({"strength": strength, "confidence": CONFIDENCES[at], "nll": float(losses[at] / max(n, 1))})
        if penalised[at] < least:
            best, least = (strength, CONFIDENCES[at]), penalised[at]
    return models[0].people.mean.shape[1] - 2, *best, seen


def _n_folds(survey: Survey) -> int:
    return min(10, -(-10 * _JUDGED // max(survey.n_answers, 1)))


def _loss(readout: Readout, vectors: np.ndarray, test: Survey) -> float:
    p = readout.predict_proba_pairs(vectors, test.respondent, test.question)
    return float(-np.log(p[np.arange(len(p)), test.option] + 1e-12).sum())


def _best_dimension(
    splits: list[tuple[Survey, Survey]], scales: list[Scale], dimensions: list[int], seed: int
) -> tuple[list[Factorization], list[dict[str, Any]]]:
    """Go up as long as it pays; the factorisations of the best dimension, one a split."""
    answers = [scale.answers(train) for scale, (train, _) in zip(scales, splits, strict=True)]
    best: list[Factorization] = []
    least, seen = np.inf, []
    for d in dimensions:
        models = [factorize(a, d, max_sweeps=_SWEEPS, seed=seed) for a in answers]
        misses = [
            (model.people.mean[test.respondent] * model.questions.mean[test.question]).sum(1) - scale.values(test)
            for model, scale, (_, test) in zip(models, scales, splits, strict=True)
        ]
        error = float(np.sqrt(np.mean(np.concatenate(misses) ** 2)))
        seen.append({"n_components": d, "rmse": error})
        if best and error > _WORTH_DOUBLING * least:
            break
        best, least = models, error
    return best, seen


def readout_of(
    model: Factorization, scale: Scale, survey: Survey, strength: float, questions: np.ndarray | None = None
) -> Readout:
    """The read-outs of a factorisation of this survey."""
    shape = (survey.n_questions, survey.n_respondents)
    answers = by_row(survey.question, survey.respondent, scale.values(survey), shape)
    options = by_row(survey.question, survey.respondent, survey.option + 1, shape)
    return fit_readout(model, answers, options, survey.n_options, scale.scores(), strength, questions)
