"""How long a sweep out of core takes, and that its memory does not grow with the number of people."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from personae.data.survey import Question
from personae.people.als import THREADS, factorize
from personae.people.answers import Scale
from personae.people.bench import apart, forget_peak, machine, peak_mib
from personae.scale.als import fit_store, pieces
from personae.scale.store import AnswerStore

_OPTIONS = ("very little", "little", "some", "much", "very much")
_PART = 20_000  # people of one long file


def bench(
    n_people: Sequence[int] = (1_000_000, 2_000_000, 4_000_000),
    answers_each: int = 25,
    n_questions: int = 1000,
    d: int = 16,
    sweeps: int = 2,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Write synthetic long answers, shard them, and fit the opinion model out of core, at several numbers of people.

    Parameters
    ----------
    n_people : sequence of int
        One run each; the smallest is factorised in memory, too.
    answers_each : int
        On average; some questions are asked 30 times as often as others.
    n_questions, d : int
    sweeps : int
        So many are timed, after one that is not.
    folder : Path, optional
        Where the answers are written and removed again, about 30 bytes an answer; the temporary folder by default.
    progress
        Called with what comes next.

    Returns
    -------
    dict
        Beside sizes, date and machine: ``points``, for each number of people ``store_seconds`` (check and shard),
        ``sweep_seconds`` (median), ``fit_seconds`` (with choices, start, all sweeps, read-outs and everybody's
        vector), the same in CPU seconds of all threads, and the most memory of the two processes, ``store_peak_mib``
        and ``fit_peak_mib``. ``in_memory``: the smallest one by `factorize`, its sweeps' seconds, ``peak_mib``, and
        ``max_difference``, the largest relative one of the questions' noise.
    """
    points = []
    in_memory: dict[str, Any] = {}
    for n in sorted(n_people):
        with tempfile.TemporaryDirectory(prefix="personae-bench-", dir=folder) as place:
            progress(f"{n:,} people: writing answers")
            apart(_write_long, Path(place), n, answers_each, n_questions, d)
            progress(f"{n:,} people: sharding")
            stored = apart(_store, Path(place), n_questions)
            progress(f"{n:,} people: fitting out of core")
            fitted = apart(_fit, Path(place), d, sweeps)
            if not in_memory:
                progress(f"{n:,} people: fitting in memory")
                in_memory = {"people": n, **apart(_factorize, Path(place), d, sweeps)}
                noise = in_memory.pop("noise")
                in_memory["max_difference"] = float(np.abs(fitted["noise"] / noise - 1).max())
            points.append({"people": n, **stored, **{k: v for k, v in fitted.items() if k != "noise"}})
    return {
        "task": "cf out of core",
        "points": points,
        "in_memory": in_memory,
        "questions": n_questions,
        "dimension": d,
        "sweeps": sweeps,
        "date": datetime.date.today().isoformat(),
        **machine(THREADS, "numpy", "scipy", "pandas", "pyarrow"),
    }


def _questions(n: int) -> list[Question]:
    return [Question(f"q{j}", f"Question {j}?", _OPTIONS) for j in range(n)]


# each of these runs in a process of its own ----------------------------------------------------------------------
def _write_long(place: Path, n_people: int, answers_each: int, n_questions: int, d: int) -> None:
    """Answers are cut points of u . q + b + noise."""
    rng = np.random.default_rng(0)
    often = 1 / np.sqrt(np.arange(1, n_questions + 1))
    chance = (answers_each * often / often.sum()).astype(np.float32)  # of each question, for everybody
    factors = rng.standard_normal((n_questions, d), np.float32) / np.float32(np.sqrt(d))
    names, labels = (pa.array(texts) for texts in ([f"q{j}" for j in range(n_questions)], _OPTIONS))
    (place / "long").mkdir()
    for first in range(0, n_people, _PART):
        n = min(_PART, n_people - first)
        person, question = np.nonzero(rng.random((n, n_questions), np.float32) < chance)
        latent = np.einsum("ij,ij->i", rng.standard_normal((n, d), np.float32)[person], factors[question])
        latent += 0.3 * rng.standard_normal(n, np.float32)[person] + rng.standard_normal(len(person), np.float32)
        said = np.searchsorted([-1.5, -0.5, 0.5, 1.5], latent)
        ids = pa.array([f"r{i}" for i in range(first, first + n)])
        columns = {"respondent": (person, ids), "question": (question, names), "answer": (said, labels)}
        table = {
            c: pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), of)
            for c, (codes, of) in columns.items()
        }
        pq.write_table(pa.table(table), place / "long" / f"{first:010d}.parquet")


def _store(place: Path, n_questions: int) -> dict[str, Any]:
    forget_peak()
    start, cpu = time.perf_counter(), time.process_time()
    store = AnswerStore.write(place / "long", _questions(n_questions), place / "store")
    return {
        "answers": store.n_answers,
        "shards": len(store.shards),
        "store_seconds": time.perf_counter() - start,
        "store_cpu_seconds": time.process_time() - cpu,
        "store_peak_mib": peak_mib(),
    }


def _fit(place: Path, d: int, sweeps: int) -> dict[str, Any]:
    forget_peak()
    laps = _Laps()
    start, cpu = time.perf_counter(), time.process_time()
    model = fit_store(
        AnswerStore.open(place / "store"),
        place / "vectors",
        d,
        max_sweeps=sweeps + 1,
        progress=lambda stage, _: laps.add() if stage == "sweep" else None,
    )
    return {
        **laps.medians(),
        "fit_seconds": time.perf_counter() - start,
        "fit_cpu_seconds": time.process_time() - cpu,
        "fit_peak_mib": peak_mib(),
        "noise": model.noise_,
    }


def _factorize(place: Path, d: int, sweeps: int) -> dict[str, Any]:
    store = AnswerStore.open(place / "store")
    scores = Scale.of_counts(store.counts, store.n_options).scores().astype(np.float32)
    answers = sp.vstack([a for shard in store.shards for a in pieces(shard, store, scores)], format="csr")
    forget_peak()
    laps = _Laps()
    model = factorize(answers, d, max_sweeps=sweeps + 1, progress=lambda _: laps.add())
    return {"answers": answers.nnz, **laps.medians(), "peak_mib": peak_mib(), "noise": model.noise}


class _Laps:
    """Wall and CPU seconds between calls of `add`; the first lap, which holds the start, does not count."""

    def __init__(self) -> None:
        self.clocks: list[tuple[float, float]] = []

    def add(self) -> None:
        self.clocks.append((time.perf_counter(), time.process_time()))

    def medians(self) -> dict[str, float]:
        wall, cpu = np.median(np.diff(self.clocks, axis=0), axis=0)
        return {"sweep_seconds": float(wall), "sweep_cpu_seconds": float(cpu)}
