from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from personae.lm.tiny import tiny_lm
from personae.steering import bench
from personae.steering.bench import converse


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small LM that a benchmark can load by its folder."""
    lm = tiny_lm("llama")
    folder = tmp_path_factory.mktemp("lm")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dialogues") / "talk.txt"
    lines = [
        line
        for i in range(8)
        for line in (f"1 your persona: i am {i} .", f"2 hello {i} ?\tyes {'really ' * i}.", "3 and ?\tno .")
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def here(monkeypatch):
    """Every way in this process, where a test can reach it."""
    monkeypatch.setattr(bench.measure, "apart", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(bench, "_PADDED", 200)


def test_a_step_and_replies_against_the_plain_ways(folder, file, here):
    found = converse(file, contexts=3, prompts=2, tokens=2, chats=5, new_tokens=4, repeats=1, lm=folder)
    assert list(found)[:2] == ["task", "ratio"]
    assert found["ratio"] == pytest.approx(found["plain_cpu_seconds"] / found["cpu_seconds"])
    assert found["ratio_unpadded"] == pytest.approx(found["unpadded_cpu_seconds"] / found["cpu_seconds"])
    assert found["decoding_ratio"] == pytest.approx(found["plain_decoding_cpu_seconds"] / found["decoding_cpu_seconds"])
    assert found["max_difference"] < 1e-4
    assert found["equal_replies"] == 5
    assert len(found["context_tokens"]) == len(found["reply_tokens"]) == 3
    assert {"peak_memory_ratio", "threads", "processor", "versions", "device", "repeats"} <= set(found)


def test_padding_changes_no_loss(folder, file):
    lm = tiny_lm("llama")
    job = bench._Job(folder, bench._some(file, 4), 4, 3, 2, 4, 4)
    network = job.bank(lm)
    losses = [
        bench._step(lm, job, network, way)
        for way in (bench._shared, partial(bench._plain, padded=0), partial(bench._plain, padded=300))
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


def test_ways_that_differ_have_no_ratio(folder, file, here, monkeypatch):
    monkeypatch.setattr(bench, "_by_prompt", lambda lm, job: ["something else"] * job.chats)
    with pytest.raises(RuntimeError, match="in 2 replies"):
        converse(file, contexts=2, prompts=2, tokens=2, chats=2, new_tokens=2, repeats=1, lm=folder)


def test_numbers_and_dialogues_are_checked(file):
    with pytest.raises(ValueError, match="prompts is 0; it must be at least 1"):
        converse(file, prompts=0)
    with pytest.raises(ValueError, match="has 16 replies that follow something; 50 are needed"):
        converse(file, chats=50)
