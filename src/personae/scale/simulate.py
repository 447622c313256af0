"""`simulate`: what any number of people would answer to any questions, as Parquet shards, in one process or on Ray.

A shard is some questions times some people. Its file is named by what it holds and appears when it is complete, so
whatever is killed (a worker, the machine, everything) is started again and computes only the files that are missing.
Questions change last: a worker computes their contexts once for all people that it is given.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.data.survey import Question
from personae.people.persona import Persona
from personae.scale.engine import Engine, connect
from personae.scale.store import place

_FORMAT = 1
_QUESTIONS = 16  # of a shard: as many as a steerer computes in one pass
_NAMES = 1 << 16  # in memory at a time
_RESTARTS = 5  # of one Ray worker, before the run ends
_OTHER = {"bundle": "of another bundle", "questions": "with other questions", "people": "of other people"}


class SimulationError(ValueError):
    """A simulation that cannot be started or finished; the message says why and what to do."""


class Simulated(NamedTuple):
    """What `simulate` wrote.

    Attributes
    ----------
    folder : Path
    people, questions : int
        Each person has each question once.
    shards : int
        Files in ``folder / "answers"``.
    computed : int
        Pairs of person and question that this call computed; the others were there.
    """

    folder: Path
    people: int
    questions: int
    shards: int
    computed: int


class Shard(NamedTuple):
    """Some questions and some people, by number."""

    questions: slice
    people: slice

    @property
    def file(self) -> str:
        return f"q{self.questions.start:05d}-p{self.people.start:09d}.parquet"

    @property
    def pairs(self) -> int:
        return (self.questions.stop - self.questions.start) * (self.people.stop - self.people.start)


@dataclass(frozen=True)
class Plan:
    """Everything that the numbers depend on; ``run.json`` beside the shards."""

    bundle: str  # sha256 of its files
    questions: tuple[Question, ...]
    people: str | tuple[str, ...]  # all, sample, cohorts, or names
    n: int | None  # people of the sample
    seed: int  # of the sample
    draw: int | None  # seed of the drawn answers; None: probabilities
    people_per_shard: int
    threads: int  # the same threads, the same bits
    format: int = _FORMAT

    def everybody(self, bundle: Bundle) -> tuple[int, Callable[[Any], Sequence[str]], Callable[[str], Persona]]:
        """How many, the names that stand in given rows, and who that is."""
        if self.people == "cohorts":
            cohorts = {persona.name: persona for persona in bundle.cohorts}
            return len(cohorts), list(cohorts).__getitem__, cohorts.__getitem__
        if not isinstance(self.people, str):
            return len(self.people), self.people.__getitem__, bundle.persona
        names: Callable[[Any], Sequence[str]]
        if "everybody" in bundle:
            n, names, persona = len(bundle.everybody), bundle.everybody.names, bundle.everybody.__getitem__
        else:
            n, names, persona = len(bundle.people), bundle.people.respondent_ids_.__getitem__, bundle.people.persona
        if self.people == "all":
            return n, names, persona
        if not 1 <= (self.n or 0) <= n:
            raise SimulationError(f"a sample of these {n:,} people has from 1 to {n:,}; give --n")
        place = np.concatenate([uniform(self.seed, names(slice(i, i + _NAMES))) for i in range(0, n, _NAMES)])
        chosen = list(names(np.sort(np.argsort(place, kind="stable")[: self.n])))
        return len(chosen), chosen.__getitem__, persona

    def shards(self, n_people: int) -> Iterator[Shard]:
        """All of them, people before questions."""
        for j in range(0, len(self.questions), _QUESTIONS):
            questions = slice(j, min(j + _QUESTIONS, len(self.questions)))
            for i in range(0, n_people, self.people_per_shard):
                yield Shard(questions, slice(i, min(i + self.people_per_shard, n_people)))

    def write(self, folder: Path) -> None:
        """Write ``run.json`` of a new run; of one that goes on, check that it is this one."""
        file = folder / "run.json"
        if not file.exists():
            if any(path for path in folder.iterdir() if path.name[0] != "."):
                raise SimulationError(f"{folder} holds something else than a simulation; name another folder")
            with _appearing(file) as new:
                new.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")
        there, mine = asdict(Plan.read(folder)), asdict(self)
        if differ := next((name for name in mine if there[name] != mine[name]), None):
            what = _OTHER.get(differ, f"with {differ} {there[differ]}, not {mine[differ]}")
            raise SimulationError(
                f"{folder} holds a simulation {what}; name another folder, or start it as it was started"
            )

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan in ``run.json``."""
        try:
            facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if facts["format"] != _FORMAT:
                raise ValueError
            questions = tuple(Question(**{**q, "options": tuple(q["options"])}) for q in facts["questions"])
            people = facts["people"] if isinstance(facts["people"], str) else tuple(facts["people"])
            return cls(**{**facts, "questions": questions, "people": people})
        except (ValueError, KeyError, TypeError):
            raise SimulationError(f"{folder / 'run.json'} is not that of a simulation; name another folder") from None


def simulate(
    bundle: Bundle,
    questions: Sequence[Question],
    folder: str | Path,
    people: str | Iterable[str] = "all",
    n: int | None = None,
    seed: int = 0,
    draw: int | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    threads: int = 1,
    people_per_shard: int = 512,
    progress: Callable[[int, int], None] = lambda done, pairs: None,
) -> Simulated:
    """Ask the steered LM what each of these people would answer to each question.

    Parameters
    ----------
    bundle : Bundle
        With a steerer. On Ray, all machines see its folder.
    questions : sequence of Question
        Known or new, with unique ids.
    folder : str or Path
        New, or of the same simulation, which goes on. ``answers`` in it has the shards, long tables that one call
        reads together (`pandas.read_parquet`): ``respondent``, ``question``, and ``probabilities``, a list in the order
        of the question's options, or ``answer``. ``run.json`` says what was asked of whom.
    people : "all", "sample", "cohorts", or names
        Names are those of `Bundle.persona`.
    n, seed : int
        Of a sample: how many, and which. Who is in it depends on the seed and the ids alone; a larger one holds the
        smaller one.
    draw : int, optional
        Write one answer drawn from the probabilities. The draw depends on this seed, the person and the question alone,
        not on who or what else is asked.
    engine : "local" or "ray"
        This process, or workers on the Ray cluster that it is connected to (else that of ``RAY_ADDRESS``, else a new
        one of this machine), each with a language model of its own. On CPUs of one kind both give the same bits.
    workers : int, optional
        Of Ray; as many as it has GPUs, or cores for where there is no GPU.
    threads : int
        Cores of this process or of each worker; another number may change the last digits.
    people_per_shard : int
        Times 16 questions is what is lost when a worker is killed.
    progress
        Called with the number of pairs that are there, and of all.

    Raises
    ------
    SimulationError
        The folder holds something else or another simulation, another process writes it, the sample is larger than
        the bundle, or a worker died again and again.
    BundleError, SurveyError
        The bundle has no steerer; a name is unknown.
    FloatingPointError
        A probability is not finite.
    ImportError
        Ray is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from personae import OpinionModel, PersonaPrompt, load_sample
    >>> from personae.lm.tiny import tiny_lm
    >>> survey, place = load_sample(), Path(tempfile.mkdtemp())
    >>> people = OpinionModel(n_components=2).fit(survey)
    >>> steerer = PersonaPrompt(tiny_lm(), recipe="paper", steps=2).fit(survey, people, progress=False)
    >>> bundle = Bundle.write(place / "bundle", people, steerer=steerer)
    >>> bundle.steerer = steerer  # its LM exists in memory alone
    >>> asked = [Question("bikes", "More bike lanes?", ("no", "yes"))]
    >>> simulate(bundle, asked, place / "out", people="sample", n=5).computed
    5
    >>> table = pd.read_parquet(place / "out" / "answers")
    >>> table.columns.tolist(), len(table), [len(p) for p in table.probabilities]
    (['respondent', 'question', 'probabilities'], 5, [2, 2, 2, 2, 2])
    """
    if engine not in ("local", "ray"):
        raise ValueError(f'there is no engine "{engine}"; the engines are local and ray')
    if "steerer" not in bundle:
        raise BundleError(f"the bundle {bundle.folder} has no language model to ask; train one with: personae steer")
    who = people if isinstance(people, str) else tuple(dict.fromkeys(people))
    if isinstance(who, str) and who not in ("all", "sample", "cohorts"):
        who = (who,)
    ids = [q.id for q in questions]
    if not ids or len(set(ids)) < len(ids):
        raise SimulationError("give at least one question, and each question once")
    plan = Plan(fingerprint(bundle), tuple(questions), who, n, seed, draw, people_per_shard, threads)
    n_people, _, persona = plan.everybody(bundle)
    for name in who if isinstance(who, tuple) else ():
        persona(name)  # an unknown name is said now

    folder = Path(folder).resolve()
    with _alone(folder):
        plan.write(folder)
        shards = list(plan.shards(n_people))
        missing = _missing(folder / "answers", shards)
        pairs, todo = sum(s.pairs for s in shards), sum(s.pairs for s in missing)
        done = pairs - todo
        progress(done, pairs)
        how = _local(bundle, folder, missing) if engine == "local" else _ray(bundle, folder, missing, workers, threads)
        with closing(how) as finished:  # workers go, whatever happens here
            for shard in finished:
                done += shard.pairs
                progress(done, pairs)
    return Simulated(folder, n_people, len(questions), len(shards), todo)


def fingerprint(bundle: Bundle) -> str:
    """sha256 (hex) of the names and contents of a bundle's files."""
    return hashlib.sha256(json.dumps(bundle.manifest["files"], sort_keys=True).encode()).hexdigest()


def uniform(seed: int, names: Iterable[str], *more: str) -> np.ndarray:
    """A number in [0, 1) of each name, by the seed, the name and what else is given alone; on every machine."""
    return place(np.array(["\x1f".join((str(seed), name, *more)) for name in names], dtype=object))


# what a worker does ----------------------------------------------------------------------------------------------
class Worker:
    """One language model, and whoever it is asked to answer as."""

    def __init__(self, bundle: Bundle | str, folder: Path) -> None:
        self.plan = Plan.read(folder)
        self.bundle = Bundle.open(bundle) if isinstance(bundle, str) else bundle
        if fingerprint(self.bundle) != self.plan.bundle:
            raise SimulationError(f"the bundle {self.bundle.folder} was replaced after the simulation began")
        torch.set_num_threads(self.plan.threads)
        self.folder, self.steerer = folder / "answers", self.bundle.steerer
        _, self.names, self.persona = self.plan.everybody(self.bundle)

    def write(self, shard: Shard) -> None:
        """Compute a shard and write its file."""
        questions, names = self.plan.questions[shard.questions], list(self.names(shard.people))
        p = self.steerer.predict_proba([self.persona(name) for name in names], questions)  # (n, q, K)
        if not np.isfinite(p).all():
            i, j, _ = np.argwhere(~np.isfinite(p))[0]
            raise FloatingPointError(
                f'the probabilities of "{names[i]}" for question "{questions[j].id}" are not finite; '
                "nothing of this shard is written. Was the steerer trained to the end?"
            )
        each = [p[:, j, : len(q.options)] for j, q in enumerate(questions)]
        with _appearing(self.folder / shard.file) as new:
            pq.write_table(_table(names, questions, each, self.plan.draw), new)


def _table(
    names: Sequence[str], questions: Sequence[Question], each: Sequence[np.ndarray], draw: int | None
) -> pa.Table:
    """Rows by question and then person, of probabilities (n, k) of each question."""
    person = np.tile(np.arange(len(names), dtype=np.int32), len(questions))
    question = np.repeat(np.arange(len(questions), dtype=np.int32), len(names))
    columns = {
        "respondent": pa.DictionaryArray.from_arrays(person, pa.array(names, pa.string())),
        "question": pa.DictionaryArray.from_arrays(question, pa.array([q.id for q in questions], pa.string())),
    }
    if draw is None:
        start = np.cumsum([0, *np.repeat([p.shape[1] for p in each], len(names))], dtype=np.int32)
        values = pa.array(np.concatenate([p.ravel() for p in each]))
        return pa.table({**columns, "probabilities": pa.ListArray.from_arrays(start, values)})
    said = [q.options[k] for q, p in zip(questions, each, strict=True) for k in drawn(p, uniform(draw, names, q.id))]
    return pa.table({**columns, "answer": pa.array(said, pa.string()).dictionary_encode()})


def drawn(p: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The option (n,) in whose share of [0, 1) of the probabilities (n, k) each u (n,) falls.

    Examples
    --------
    >>> drawn(np.array([[0.25, 0.0, 0.75]] * 3), np.array([0.2, 0.25, 0.999]))
    array([0, 2, 2])
    """
    upper = np.cumsum(p, axis=1, dtype=np.float64)
    return (u[:, None] * upper[:, -1:] >= upper[:, :-1]).sum(1)


# engines: each computes the shards and says which are done -------------------------------------------------------
def _local(bundle: Bundle, folder: Path, shards: Sequence[Shard]) -> Generator[Shard, None, None]:
    if not shards:
        return  # and no language model is loaded
    before = torch.get_num_threads()
    try:
        worker = Worker(bundle, folder)
        for shard in shards:
            worker.write(shard)
            yield shard
    finally:
        torch.set_num_threads(before)


def _ray(
    bundle: Bundle, folder: Path, shards: Sequence[Shard], workers: int | None, threads: int
) -> Generator[Shard, None, None]:
    if not shards:
        return
    ray = connect()
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    room = gpus or int(there.get("CPU", 1)) // threads
    if not 1 <= (workers or room) <= room:
        what = f"{gpus} GPUs" if gpus else f"{int(there.get('CPU', 1))} cores, {threads} a worker"
        raise SimulationError(f"the Ray cluster has {what}: there is room for {room} workers, not {workers or 1}")
    needs = {"num_gpus": 1} if gpus else {"num_cpus": threads}
    # A worker that dies is started again, reads the bundle again, and gets again what it had not finished.
    actor = ray.remote(max_restarts=_RESTARTS, max_task_retries=-1, **needs)(Worker)
    team = [actor.remote(str(bundle.folder), folder) for _ in range(min(workers or room, len(shards)))]
    rest, running = iter(shards), {}

    def send(worker: Any) -> None:
        if (shard := next(rest, None)) is not None:
            running[worker.write.remote(shard)] = worker, shard

    try:
        for worker in 2 * team:  # the next shard waits at the worker
            send(worker)
        while running:
            (done,), _ = ray.wait(list(running))
            worker, shard = running.pop(done)
            ray.get(done)
            send(worker)
            yield shard
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        why = str(error).strip().splitlines()[-1]
        raise SimulationError(
            f"a Ray worker ended and could not be started again ({why}); what is written stays: when the reason is "
            "mended (often memory: fewer --workers), the same command goes on"
        ) from None
    finally:
        for worker in team:
            ray.kill(worker)


# the folder ------------------------------------------------------------------------------------------------------
@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes off the folder, which is made where there is none."""
    if folder.exists() and not folder.is_dir():
        raise SimulationError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise SimulationError(f"another process is simulating into {folder}; wait for it") from None
    finally:
        os.close(lock)


def _missing(answers: Path, shards: Sequence[Shard]) -> list[Shard]:
    """Shards that are not there yet; what a killed writer left is removed, and anything else refused."""
    answers.mkdir(exist_ok=True)
    there = {path.name for path in answers.iterdir()}
    for name in [name for name in there if name[0] == "."]:
        (answers / name).unlink(missing_ok=True)
        there.discard(name)
    if foreign := sorted(there - {shard.file for shard in shards}):
        raise SimulationError(f"{answers / foreign[0]} is none of this simulation's files; move it away")
    return [shard for shard in shards if shard.file not in there]


@contextmanager
def _appearing(file: Path) -> Iterator[Path]:
    """A hidden file beside it to write to, which takes its place when it is complete and on the disk."""
    new = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        yield new
        handle = os.open(new, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        new.rename(file)
    finally:
        new.unlink(missing_ok=True)
