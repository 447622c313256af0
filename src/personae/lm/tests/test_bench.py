from __future__ import annotations

import os

import pytest

from personae.lm import bench
from personae.lm.tiny import tiny_lm
from personae.people.bench import apart

QUESTIONS = [("Roads?", ["yes", "no"]), ("Army or schools, which one?", ["army", "schools", "so so"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small LM that the processes of a benchmark can load."""
    lm = tiny_lm("llama")
    lm.model.set_attn_implementation("sdpa")
    folder = tmp_path_factory.mktemp("lm")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("run", [bench.steer, bench.simulate])
def test_both_ways_are_compared(folder, run, monkeypatch):
    monkeypatch.setattr(bench.measure, "apart", lambda work, *arguments: work(*arguments))
    found = run(QUESTIONS, people=4, tokens=2, repeats=1, plain_people=2, lm=folder)
    assert found["task"] == run.__name__
    assert 0 < found["max_difference"] < 1e-3
    assert (found["answers"], found["plain_rows_measured"], found["plain_scaled_by"]) == (8, 4, 2.0)
    for key in ("ratio", "ratio_encoded_once", "ratio_wall", "ratio_wall_encoded_once", "peak_memory_ratio"):
        assert found[key] >= 0
    assert found["ratio"] == pytest.approx(found["plain_cpu_seconds"] / found["cpu_seconds"])
    assert found["ratio_wall"] == pytest.approx(found["plain_wall_seconds"] / found["wall_seconds"])
    assert len(found["prompt_tokens"]) == 2
    assert {"threads", "processor", "versions", "dtype", "device", "repeats"} <= set(found)


def test_each_way_has_a_process_of_its_own(folder):
    assert apart(os.getpid) != os.getpid()
    found = apart(bench._this_way, bench._Job(folder, QUESTIONS, 2, 1, train=True), 1, 1)
    assert found["cpu"] > 0
    assert found["peak_mib"] >= 0


@pytest.mark.parametrize("train", [True, False])
def test_the_plain_way_is_split_into_batches_without_a_difference(folder, train, monkeypatch):
    job = bench._Job(folder, QUESTIONS, 4, 2, train)
    monkeypatch.setattr(bench, "_PLAIN_BATCH", 3)
    assert bench._difference(job, threads=1) < 1e-4


def test_unequal_ways_have_no_ratio(folder, monkeypatch):
    monkeypatch.setattr(bench.measure, "apart", lambda work, *arguments: 0.5)
    with pytest.raises(RuntimeError, match=r"differ by 0\.5"):
        bench.simulate(QUESTIONS, lm=folder)


def test_people_of_the_plain_way_are_among_the_people(folder):
    with pytest.raises(ValueError, match="from 1 to the 4 people"):
        bench.steer(QUESTIONS, people=4, plain_people=5, lm=folder)
