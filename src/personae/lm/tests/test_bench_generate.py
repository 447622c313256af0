from __future__ import annotations

import pytest

from personae.lm import bench_generate
from personae.lm.bench_generate import CHATS, generate
from personae.lm.tiny import tiny_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small LM that a benchmark can load by its folder."""
    lm = tiny_lm("llama")
    folder = tmp_path_factory.mktemp("lm")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(monkeypatch):
    """Both ways in this process, where a test can reach them."""
    monkeypatch.setattr(bench_generate.measure, "apart", lambda work, *arguments: work(*arguments))


def test_one_batch_against_one_persona_at_a_time(folder, here):
    found = generate(personas=5, new_tokens=6, repeats=1, plain_personas=2, lm=folder)
    assert list(found)[:2] == ["task", "ratio"]
    assert (found["personas"], found["plain_personas_measured"]) == (5, 2)
    assert found["dtype"] != "float32" or found["equal_replies"] == 2
    assert found["ratio"] == pytest.approx(found["plain_cpu_seconds"] / found["cpu_seconds"])
    assert found["tokens_per_second"] / found["plain_tokens_per_second"] == pytest.approx(found["ratio_wall"])
    assert found["plain_scaled_by"] > 1
    assert len(found["prompt_tokens"]) == 5
    assert {"peak_memory_ratio", "threads", "processor", "versions", "device", "repeats"} <= set(found)


def test_chats_and_personas_differ(folder):
    job = bench_generate._Job(folder, 9, 2, 4, 1)
    lm = tiny_lm("llama")
    prompts, virtual = job.inputs(lm)
    assert len({p.after for p in prompts}) == len(CHATS) == 8
    assert virtual.shape == (9, 2, lm.hidden_size)
    assert not virtual[0].equal(virtual[8])  # the same chat again, another persona


def test_unequal_replies_have_no_ratio(folder, here, monkeypatch):
    monkeypatch.setattr(bench_generate, "_one_by_one", lambda lm, job: ["something else"] * job.plain)
    with pytest.raises(RuntimeError, match="2 of 2 replies differ"):
        generate(personas=3, new_tokens=2, repeats=1, plain_personas=2, lm=folder)


def test_an_lm_that_says_nothing(folder, here, monkeypatch):
    for way in ("_together", "_one_by_one"):
        monkeypatch.setattr(bench_generate, way, lambda lm, job: [""] * job.personas)
    with pytest.raises(ValueError, match="replies with nothing"):
        generate(personas=1, new_tokens=2, repeats=1, lm=folder)


def test_a_number_is_positive():
    with pytest.raises(ValueError, match="personas is 0; it must be at least 1"):
        generate(personas=0)
