"""How fast the opinion model is against the plain way, and what every bench measures with.

*This way*: one sparse product builds the Gram matrices of many people, one batched call inverts them.
*The plain way*: what one writes first, the formula in a loop over people. Each way runs in a fresh process; CPU
seconds are those of all threads together.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from personae.data.survey import Question, Survey
from personae.people.als import Factorization, Side, by_row, factorize, pack, unpack
from personae.people.opinion_model import OpinionModel


def bench(
    n_people: int = 138_493,
    n_questions: int = 26_744,
    n_answers: int = 17_800_000,
    d: int = 20,
    repeats: int = 3,
    plain_people: int = 1000,
) -> dict[str, Any]:
    """Time the people's half-step (everybody's vector from their answers), whole sweeps, and the fold-in of one.

    Parameters
    ----------
    n_people, n_questions, n_answers : int
        Of a synthetic survey, questions asked by a power law; the default has the size of MovieLens-20M. Answers
        that fall on the same cell count once, so there may be fewer.
    d : int
        Dimension of the vectors.
    repeats : int
        Timed runs after one that is not timed; medians are reported.
    plain_people : int
        The plain way is run for that many people (or all, if there are fewer) and its seconds are scaled to
        ``n_people``. Its memory has room for everybody's result.

    Returns
    -------
    dict
        ``ratio``: CPU seconds of the plain way's half-step over this way's, both with everybody's covariance;
        ``ratio_vectors_only``: the same for a plain way that solves for the vectors and leaves the covariances out,
        which is less than the model needs; ``ratio_wall``; ``peak_memory_ratio`` (of arrays in a half-step, beside
        the answers); ``max_difference`` (share of the largest cell). ``sweep_seconds`` (wall, both half-steps),
        ``start_seconds`` (spectral start and last half-step), ``process_peak_mib`` (of the whole process while it
        factorises), ``fold_in_microseconds`` (wall, one person with ten answers, d = 16).

    Raises
    ------
    ValueError
        If a size is not positive.
    RuntimeError
        If the two ways differ.
    """
    sizes = {"n_people": n_people, "n_questions": n_questions, "n_answers": n_answers, "d": d}
    for name, size in {**sizes, "repeats": repeats, "plain_people": plain_people}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    job = _Job(**sizes)
    measured = min(plain_people, n_people)
    plain = apart(_plain_way, job, repeats, measured)
    if plain["difference"] > 1e-3:
        raise RuntimeError(f"the two ways differ by {plain['difference']:.2g} of the largest cell, so no ratio")
    this = apart(_this_way, job, repeats)
    scale = n_people / measured
    cpu, wall = plain["cpu"] * scale, plain["wall"] * scale
    return {
        "task": "cf",
        "ratio": cpu / this["cpu"],
        "ratio_vectors_only": plain["vectors_cpu"] * scale / this["cpu"],
        "ratio_wall": wall / this["wall"],
        "peak_memory_ratio": plain["peak_mib"] / max(this["peak_mib"], 1.0),
        "max_difference": plain["difference"],
        "cpu_seconds": this["cpu"],
        "wall_seconds": this["wall"],
        "plain_cpu_seconds": cpu,
        "plain_wall_seconds": wall,
        "sweep_seconds": this["sweep_seconds"],
        "start_seconds": this["start_seconds"],
        "fold_in_microseconds": _fold_in_microseconds(),
        "peak_mib": this["peak_mib"],
        "plain_peak_mib": plain["peak_mib"],
        "process_peak_mib": this["process_peak_mib"],
        "answers": this["answers"],
        "plain_people_measured": measured,
        "plain_scaled_by": scale,
        "people": n_people,
        "questions": n_questions,
        "dimension": d,
        "repeats": repeats,
        "dtype": "float32",
        "device": "cpu",
        **machine(min(8, os.cpu_count() or 1), "numpy", "scipy"),
    }


@dataclass
class _Job:
    """What both ways compute; the same answers and questions wherever it is unpacked."""

    n_people: int
    n_questions: int
    n_answers: int
    d: int

    def answers(self) -> sp.csr_matrix:
        rng = np.random.default_rng(0)
        popularity = 1 / np.arange(1, self.n_questions + 1) ** 0.8
        column = rng.choice(self.n_questions, int(1.35 * self.n_answers), p=popularity / popularity.sum())
        cell = np.unique(rng.integers(0, self.n_people, len(column)) * self.n_questions + column)
        del column
        cell = cell[np.sort(rng.permutation(len(cell))[: self.n_answers])]
        person, question = (i.astype(np.int32) for i in np.divmod(cell, self.n_questions))
        del cell
        z = rng.standard_normal(len(person), np.float32)
        return by_row(person, question, z, (self.n_people, self.n_questions))

    def known(self) -> Factorization:
        """Questions y = [q, 1, c] known without uncertainty, where a half-step is that of plain least squares."""
        y = np.random.default_rng(1).standard_normal((self.n_questions, self.d + 2)).astype(np.float32)  # (Q, R)
        y[:, self.d] = 1
        prior = np.eye(self.d + 1)
        questions = Side(y, pack(y[:, :, None] * y[:, None, :]), prior, constant=self.d)
        nobody = Side(np.empty((0, self.d + 2), np.float32), np.empty((0, 0), np.float32), prior, constant=self.d + 1)
        return Factorization(nobody, questions, noise=np.ones(self.n_questions), sweeps=0)


def _formula_by_person(answers: sp.csr_matrix, known: Factorization, n: int) -> Side:
    """The first n people's posterior by the formula of `factorize`; there is room for everybody's."""
    size = known.questions.mean.shape[1]
    y, second = known.questions.mean, unpack(known.questions.moment, size)  # (Q, R), (Q, R, R)
    precision = np.linalg.inv(known.people.prior).astype(np.float32)
    mean = np.empty((answers.shape[0], size), np.float32)
    moment = np.empty((answers.shape[0], size * (size + 1) // 2), np.float32)
    for i in range(n):
        said = slice(answers.indptr[i], answers.indptr[i + 1])
        j, z = answers.indices[said], answers.data[said]
        gram = second[j].sum(0)
        covariance = np.linalg.inv(precision + gram[:-1, :-1])
        vector = np.append(covariance @ (z @ y[j, :-1] - gram[:-1, -1]), np.float32(1))
        both = np.outer(vector, vector)
        both[:-1, :-1] += covariance
        mean[i], moment[i] = vector, pack(both)
    return Side(mean, moment, known.people.prior, constant=size - 1)


def _solve_by_person(answers: sp.csr_matrix, known: Factorization, n: int) -> np.ndarray:
    """The first n people's vectors [u, b, 1] (N, R) as least squares, which says nothing of their uncertainty."""
    y, precision = known.questions.mean, np.linalg.inv(known.people.prior).astype(np.float32)
    vectors = np.ones((answers.shape[0], y.shape[1]), np.float32)
    for i in range(n):
        said = slice(answers.indptr[i], answers.indptr[i + 1])
        own = y[answers.indices[said]]
        a, target = own[:, :-1], answers.data[said] - own[:, -1]  # (n_i, R - 1), (n_i,)
        vectors[i, :-1] = np.linalg.solve(precision + a.T @ a, a.T @ target)
    return vectors


# each of these runs in a process of its own ----------------------------------------------------------------------
def _this_way(job: _Job, repeats: int) -> dict[str, float]:
    answers, known = job.answers(), job.known()
    forget_peak()
    cpu, wall = median_seconds(lambda: known.fold_in(answers), repeats)
    laps = [time.perf_counter()]
    factorize(answers, job.d, max_sweeps=repeats + 1, tol=0, progress=lambda _: laps.append(time.perf_counter()))
    whole, sweeps = time.perf_counter() - laps[0], np.diff(laps)
    sweep = float(np.median(sweeps[1:]))  # the first lap holds the start
    return {
        "cpu": cpu,
        "wall": wall,
        "sweep_seconds": sweep,
        "start_seconds": max(0.0, float(whole - sweeps[1:].sum() - sweep)),
        "process_peak_mib": peak_mib(),
        "peak_mib": _arrays_mib(lambda: known.fold_in(answers)),
        "answers": answers.nnz,
    }


def _plain_way(job: _Job, repeats: int, people: int) -> dict[str, float]:
    answers, known = job.answers(), job.known()
    with threadpool_limits(1):  # matrices this small are slower on several threads
        cpu, wall = median_seconds(lambda: _formula_by_person(answers, known, people), repeats)
        vectors_cpu, _ = median_seconds(lambda: _solve_by_person(answers, known, people), repeats)
        plain, vectors = _formula_by_person(answers, known, people), _solve_by_person(answers, known, people)
    ours = known.fold_in(answers[:people])
    pairs = ((ours.mean, plain.mean), (ours.moment, plain.moment), (ours.mean, vectors))
    return {
        "cpu": cpu,
        "wall": wall,
        "vectors_cpu": vectors_cpu,
        "peak_mib": _arrays_mib(lambda: _formula_by_person(answers, known, people)),
        "difference": max(float(np.abs(a - b[:people]).max() / np.abs(a).max()) for a, b in pairs),
    }


def _arrays_mib(run: Callable[[], object]) -> float:
    """The most memory that arrays take during a run, MiB; exact where the process' own memory grows in leaps."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def _fold_in_microseconds(repeats: int = 200) -> float:
    rng = np.random.default_rng(0)
    said = (rng.standard_normal((500, 16)) @ rng.standard_normal((16, 100)) > 0).astype(int)
    person, question = np.indices(said.shape).reshape(2, -1)
    questions = [Question(f"q{j}", f"Question {j}?", ("no", "yes")) for j in range(100)]
    people = OpinionModel(n_components=16).fit(
        Survey(questions, [f"r{i}" for i in range(500)], person, question, said.ravel())
    )
    answers = {f"q{j}": "yes" for j in range(10)}
    return 1e6 * median_seconds(lambda: people.fold_in(answers), repeats)[1]


# what every bench measures with ----------------------------------------------------------------------------------
def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process, so that neither way inherits the other's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def median_seconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """CPU and wall seconds, after one run that is not timed."""
    run()
    laps = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        laps.append((time.process_time() - cpu, time.perf_counter() - wall))
    return statistics.median(c for c, _ in laps), statistics.median(w for _, w in laps)


def forget_peak() -> float:
    """Loading has a peak of its own, which would hide a smaller one; Linux can forget it. MiB from now on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    """The most memory this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def machine(threads: int, *packages: str) -> dict[str, Any]:
    """What a result depends on beside the code."""
    return {
        "threads": threads,
        "processor": _processor(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
