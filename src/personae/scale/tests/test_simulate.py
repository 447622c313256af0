from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.data.account import SurveyError
from personae.data.survey import Question
from personae.lm.tiny import tiny_lm
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.scale import simulate as module
from personae.scale.simulate import SimulationError, drawn, simulate, uniform
from personae.scale.store import AnswerStore
from personae.scale.tests.conftest import make_survey
from personae.steering.persona_prompt import PersonaPrompt

OPTIONS = ("no", "yes", "perhaps")
NEW = [Question(f"new{j}", f"Should we build {j} more roads?", OPTIONS[: 2 + j % 2]) for j in range(20)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """Sixty people and a steerer for a random LM, all of it on disk, as workers need it."""
    folder = tmp_path_factory.mktemp("simulate")
    lm = tiny_lm()
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    survey = make_survey(60, 6)
    people = OpinionModel(2).fit(survey)
    steerer = PersonaPrompt(str(folder / "lm"), recipe="paper", placement="late", steps=2).fit(
        survey, people, progress=False
    )
    return Bundle.write(folder / "bundle", people, Cohorts(2).fit(people, survey), steerer)


@pytest.fixture(scope="module")
def local(bundle, tmp_path_factory) -> Path:
    """20 questions x 60 people in shards of 16 or 4 questions x 25 or 10 people."""
    folder = tmp_path_factory.mktemp("local") / "out"
    simulate(bundle, NEW, folder, people_per_shard=25)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "answers").iterdir())}


def pairs(folder: Path) -> Counter:
    table = pq.read_table(folder / "answers")
    return Counter(zip(table["respondent"].to_pylist(), table["question"].to_pylist(), strict=True))


def once(bundle: Bundle) -> Counter:
    return Counter((name, q.id) for name in bundle.people.respondent_ids_ for q in NEW)


def test_numbers_are_those_of_the_steerer(bundle, local):
    assert len(files(local)) == 6
    assert pairs(local) == once(bundle)
    table = pd.read_parquet(local / "answers")
    p = bundle.steerer.predict_proba([bundle.people["r7"], bundle.people["r42"]], NEW)
    for i, name in enumerate(("r7", "r42")):
        for j, question in enumerate(NEW):
            (mine,) = table.probabilities[(table.respondent == name) & (table.question == question.id)]
            assert len(mine) == len(question.options)
            np.testing.assert_allclose(mine, p[i, j, : len(question.options)], atol=1e-5)


def test_a_run_that_ends_early_goes_on_where_it_was(bundle, local, tmp_path):
    seen: list[tuple[int, int]] = []

    def stop(done: int, pairs: int) -> None:
        seen.append((done, pairs))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(bundle, NEW, tmp_path / "out", people_per_shard=25, progress=stop)
    assert seen == [(0, 1200), (400, 1200), (800, 1200)]
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "answers").iterdir()}
    assert len(kept) == 2
    (tmp_path / "out" / "answers" / ".q00000-p000000050.parquet.half").write_bytes(b"of a writer that was killed")
    found = simulate(bundle, NEW, tmp_path / "out", people_per_shard=25)
    assert (found.people, found.questions, found.shards, found.computed) == (60, 20, 6, 400)
    assert files(tmp_path / "out") == files(local)
    assert all((tmp_path / "out" / "answers" / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert simulate(bundle, NEW, tmp_path / "out", people_per_shard=25).computed == 0


def test_a_shard_appears_when_it_is_complete(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(module.pq, "write_table", lambda table, path: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate(bundle, NEW, tmp_path / "out", people="cohorts")
    assert list((tmp_path / "out" / "answers").iterdir()) == []


def test_questions_are_computed_once_for_everybody(bundle, tmp_path, monkeypatch):
    bundle.steerer.predict_proba([bundle.people["r0"]], [Question("other", "Something else?", ("no", "yes"))])
    encoded: list[int] = []
    encode = type(bundle.steerer.lm_).encode
    monkeypatch.setattr(
        type(bundle.steerer.lm_), "encode", lambda lm, texts: encoded.append(len(texts)) or encode(lm, texts)
    )
    simulate(bundle, NEW, tmp_path / "out", people_per_shard=7)
    assert len(files(tmp_path / "out")) == 18
    assert sum(encoded) == len(NEW)


# who -------------------------------------------------------------------------------------------------------------
def people_of(folder: Path) -> list[str]:
    return list(dict.fromkeys(pq.read_table(folder / "answers")["respondent"].to_pylist()))


def test_samples_of_one_seed_hold_each_other(bundle, tmp_path):
    for name, n, seed in (("few", 5, 0), ("more", 20, 0), ("others", 20, 1)):
        simulate(bundle, NEW[:1], tmp_path / name, "sample", n, seed)
    few, more, others = (people_of(tmp_path / name) for name in ("few", "more", "others"))
    assert (len(few), len(more), len(others)) == (5, 20, 20)
    assert set(few) < set(more)
    assert set(more) != set(others)


def test_cohorts_and_names(bundle, tmp_path):
    simulate(bundle, NEW[:1], tmp_path / "cohorts", "cohorts")
    assert people_of(tmp_path / "cohorts") == ["cohort-0", "cohort-1"]
    simulate(bundle, NEW[:1], tmp_path / "names", ["0.5*cohort-0+0.5*r3", "r3", "r3"])
    assert people_of(tmp_path / "names") == ["0.5*cohort-0+0.5*r3", "r3"]


# drawn answers ---------------------------------------------------------------------------------------------------
def test_draws_depend_on_seed_person_and_question_alone(bundle, local, tmp_path):
    simulate(bundle, NEW, tmp_path / "all", draw=3, people_per_shard=25)
    simulate(bundle, NEW[7:9][::-1], tmp_path / "some", ["r9", "r3"], draw=3)
    simulate(bundle, NEW, tmp_path / "other", draw=4)

    def said(name: str) -> pd.Series:
        return pd.read_parquet(tmp_path / name / "answers").astype(str).set_index(["respondent", "question"]).answer

    everyone, some = said("all"), said("some")
    assert len(everyone) == 1200
    assert some.to_dict() == everyone[some.index].to_dict()
    assert 0.2 < (everyone != said("other")[everyone.index]).mean() < 0.8
    table = pd.read_parquet(local / "answers").astype({"respondent": str, "question": str})
    first = table.set_index(["respondent", "question"]).probabilities.map(lambda p: p[0])
    share = (everyone == "no")[first.index].mean()
    assert share == pytest.approx(first.mean(), abs=4 * np.sqrt(0.25 / 1200))


def test_drawn_answers_are_long_answers(bundle, tmp_path):
    simulate(bundle, NEW, tmp_path / "out", draw=0)
    store = AnswerStore.write(tmp_path / "out" / "answers", NEW, tmp_path / "store")
    assert (store.n_people, store.n_answers) == (60, 1200)


def test_draws_follow_the_probabilities():
    p = np.tile([0.2, 0.0, 0.5, 0.3], (20_000, 1)).astype(np.float32)
    counts = np.bincount(drawn(p, uniform(0, map(str, range(20_000)), "q")), minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.2, 0.0, 0.5, 0.3], atol=0.015)
    assert drawn(p[:2], np.array([0.0, 1 - 2**-53])).tolist() == [0, 3]


# refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"questions": NEW[:2]}, "holds a simulation with other questions; name another folder"),
        ({"people": "cohorts"}, "holds a simulation of other people"),
        ({"draw": 1}, "holds a simulation with draw None, not 1"),
        ({"people_per_shard": 26}, "with people_per_shard 25, not 26"),
        ({"threads": 2}, "with threads 1, not 2"),
    ],
)
def test_another_simulation_is_refused(bundle, local, change, sentence):
    before = files(local)
    with pytest.raises(SimulationError, match=sentence):
        simulate(bundle, **{"questions": NEW, "folder": local, "people_per_shard": 25, **change})
    assert files(local) == before


def test_another_bundle_is_refused(bundle, local, tmp_path):
    people = OpinionModel(1).fit(make_survey(60, 6))
    other = Bundle.write(tmp_path / "bundle", people, steerer=bundle.steerer)
    with pytest.raises(SimulationError, match="of another bundle"):
        simulate(other, NEW, local, people_per_shard=25)
    with pytest.raises(SimulationError, match="was replaced after the simulation began"):
        module.Worker(str(other.folder), local)


def test_what_cannot_be_simulated(bundle, tmp_path):
    with pytest.raises(SurveyError, match='no persona "r99"'):
        simulate(bundle, NEW, tmp_path / "out", ["r9", "r99"])
    with pytest.raises(SimulationError, match="from 1 to 60; give --n"):
        simulate(bundle, NEW, tmp_path / "out", "sample", 61)
    with pytest.raises(SimulationError, match="each question once"):
        simulate(bundle, [NEW[0], NEW[0]], tmp_path / "out")
    with pytest.raises(ValueError, match='no engine "spark"'):
        simulate(bundle, NEW, tmp_path / "out", engine="spark")  # type: ignore[arg-type]
    plain = Bundle.write(tmp_path / "plain", OpinionModel(1).fit(make_survey(60, 6)))
    with pytest.raises(BundleError, match="train one with: personae steer"):
        simulate(plain, NEW, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_are_left_alone(bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(SimulationError, match="holds something else"):
        simulate(bundle, NEW, tmp_path / "mine")
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(SimulationError, match="is not that of a simulation"):
        simulate(bundle, NEW, tmp_path / "mine")
    simulate(bundle, NEW[:1], tmp_path / "out", "cohorts")
    (tmp_path / "out" / "answers" / "copy.parquet").touch()
    with pytest.raises(SimulationError, match=r"copy\.parquet is none of this simulation's files"):
        simulate(bundle, NEW[:1], tmp_path / "out", "cohorts")
    (tmp_path / "file").touch()
    with pytest.raises(SimulationError, match="is a file; name a folder"):
        simulate(bundle, NEW, tmp_path / "file")


def test_one_process_at_a_time(bundle, tmp_path):
    def second(done: int, pairs: int) -> None:
        with pytest.raises(SimulationError, match="another process is simulating into"):
            simulate(bundle, NEW[:1], tmp_path / "out", "cohorts")

    simulate(bundle, NEW[:1], tmp_path / "out", "cohorts", progress=second)


def test_nothing_that_is_not_finite_is_written(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle.steerer, "predict_proba", lambda people, asked: np.full((len(people), 1, 2), np.nan))
    with pytest.raises(FloatingPointError, match='of "cohort-0" for question "new0" are not finite'):
        simulate(bundle, NEW[:1], tmp_path / "out", "cohorts")
    assert files(tmp_path / "out") == {}


# Ray -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="the engine ray needs personae[scale]")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


def worker_processes() -> list[int]:
    """Ray names the processes of actors after their class."""
    import psutil

    mine = psutil.Process().children(recursive=True)
    return [p.pid for p in mine if p.is_running() and "".join(p.cmdline()[:1]).startswith("ray::Worker")]


def killing(after: int) -> tuple[Callable[[int, int], None], list[int]]:
    """A progress that kills -9 one worker in the middle of its next shard."""
    killed: list[int] = []

    def progress(done: int, pairs: int) -> None:
        if done >= after and not killed:
            killed.append(worker_processes()[0])
            os.kill(killed[0], signal.SIGKILL)

    return progress, killed


def test_ray_gives_the_same_bits_though_a_worker_is_killed(ray, bundle, local, tmp_path):
    simulate(bundle, NEW, tmp_path / "two", people_per_shard=25, engine="ray")
    assert files(tmp_path / "two") == files(local)

    progress, killed = killing(after=400)
    found = simulate(bundle, NEW, tmp_path / "one", people_per_shard=25, engine="ray", workers=1, progress=progress)
    assert len(killed) == 1
    assert found.computed == 1200
    assert files(tmp_path / "one") == files(local)
    assert pairs(tmp_path / "one") == once(bundle)


def test_what_went_wrong_at_a_worker_is_said_here(ray, bundle, tmp_path):
    with pytest.raises(SimulationError, match="2 cores, 1 a worker: there is room for 2 workers, not 3"):
        simulate(bundle, NEW, tmp_path / "out", engine="ray", workers=3)
    broken = PersonaPrompt.load(bundle.folder / "steerer")
    with torch.no_grad():
        for weight in broken.network_.parameters():
            weight.fill_(torch.nan)
    other = Bundle.write(tmp_path / "broken", bundle.people, steerer=broken)
    with pytest.raises(FloatingPointError, match='of "r0" for question "new0" are not finite'):
        simulate(other, NEW, tmp_path / "broken-out", engine="ray", workers=1)
    assert files(tmp_path / "broken-out") == {}
