"""How fast the opinion model is: seconds a sweep, peak memory, microseconds a fold-in."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from personae.data.survey import Question, Survey
from personae.people.als import by_row, factorize
from personae.people.opinion_model import OpinionModel


def bench(
    n_people: int = 138_493, n_questions: int = 26_744, n_answers: int = 17_800_000, d: int = 20, sweeps: int = 2
) -> dict[str, float]:
    """Time the factorisation on synthetic answers (the default has the size of MovieLens-20M) and the fold-in.

    Returns
    -------
    dict
        answers, sweep_seconds (median), start_seconds (spectral start and last half-step), peak_mib (of the whole
        process), fold_in_microseconds (median of one person with ten answers, d = 16).
    """
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, n_questions + 1) ** 0.8
    column = rng.choice(n_questions, int(1.35 * n_answers), p=popularity / popularity.sum()).astype(np.int64)
    cell = np.unique(rng.integers(0, n_people, len(column)) * n_questions + column)
    del column
    cell = cell[np.sort(rng.permutation(len(cell))[:n_answers])]
    person, question = np.divmod(cell, n_questions)
    person, question = person.astype(np.int32), question.astype(np.int32)
    del cell
    answers = by_row(person, question, rng.standard_normal(len(person), np.float32), (n_people, n_questions))
    del person, question
    begin = time.perf_counter()
    laps = [begin]
    factorize(answers, d, max_sweeps=sweeps, tol=0, progress=lambda _: laps.append(time.perf_counter()))
    end = time.perf_counter()
    seconds = np.diff(laps)
    return {
        "answers": answers.nnz,
        "sweep_seconds": float(np.median(seconds[1:])) if len(seconds) > 1 else float(seconds[0]),
        "start_seconds": float(end - begin - seconds[1:].sum() - np.median(seconds)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "fold_in_microseconds": _fold_in_microseconds(),
    }


def _fold_in_microseconds(repeats: int = 200) -> float:
    rng = np.random.default_rng(0)
    said = (rng.standard_normal((500, 16)) @ rng.standard_normal((16, 100)) > 0).astype(int)
    person, question = np.indices(said.shape).reshape(2, -1)
    questions = [Question(f"q{j}", f"Question {j}?", ("no", "yes")) for j in range(100)]
    people = OpinionModel(n_components=16).fit(
        Survey(questions, [f"r{i}" for i in range(500)], person, question, said.ravel())
    )
    answers = {f"q{j}": "yes" for j in range(10)}
    laps = []
    for _ in range(repeats):
        begin = time.perf_counter()
        people.fold_in(answers)
        laps.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(laps))
