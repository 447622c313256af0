from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def quick(monkeypatch) -> dict[str, object]:
    """Every bench answers at once; what it was asked last."""
    asked: dict[str, object] = {}

    def fake(task: str, n: str):
        def run(*sizes: object, **settings: object) -> dict[str, object]:
            asked.update(task=task, sizes=sizes, **settings)
            times = {"cpu_seconds": 0.001, "plain_cpu_seconds": 0.01, "peak_mib": 3.5, "plain_peak_mib": 12.0}
            about = {"device": "cpu", "repeats": 3, "prompt_tokens": [104, 106], "versions": {"python": "3.11"}}
            return {"task": task, "ratio": 12.345678, **times, n: 5000, **about}

        return run

    monkeypatch.setattr("personae.people.bench.bench", fake("cf", "answers"))
    monkeypatch.setattr("personae.lm.bench.steer", fake("steer", "answers"))
    monkeypatch.setattr("personae.lm.bench.simulate", fake("simulate", "answers"))
    monkeypatch.setattr("personae.lm.bench_generate.generate", fake("generate", "reply_tokens"))
    monkeypatch.setattr("personae.steering.bench.converse", fake("converse", "contexts"))
    return asked


@pytest.mark.parametrize("what", ["cf", "steer", "simulate", "generate", "converse"])
def test_the_ratio_comes_first(run, quick, what):
    found = json.loads(run("bench", what, "--json").stdout)
    assert (found["task"], found["ratio"]) == (what, 12.345678)
    lines = run("bench", what).stdout.strip().splitlines()
    assert lines[0].startswith("ratio of CPU seconds")
    assert "12.35" in lines[0]
    assert any(line.startswith("peak memory, MiB") and "3.5" in line for line in lines)
    assert any(line.startswith("versions") and "python 3.11" in line for line in lines)
    assert quick["task"] == what


def test_another_lm(run, quick):
    run("bench", "generate", "--lm", "org/model")
    assert quick["lm"] == "org/model"
    assert "cf) has no language model" in run("bench", "cf", "--lm", "org/model", status=2).stderr


def test_whose_contexts(run, quick):
    run("bench", "converse", "--dialogues", "talk.txt")
    assert quick["sizes"] == ("talk.txt",)
    run("bench", "converse")
    assert quick["sizes"] == ("chitchat",)
    assert "takes no dialogues" in run("bench", "steer", "--dialogues", "talk.txt", status=2).stderr
    assert "one size" in run("bench", "converse", "--scaling", status=2).stderr


@pytest.mark.parametrize(
    ("what", "sizes"),
    [
        ("cf", [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4)]),
        ("steer", [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4)]),
        ("simulate", [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4)]),
        ("generate", [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1)]),
    ],
)
def test_scaling_writes_numbers_and_a_figure(run, quick, tmp_path, what, sizes):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "figures"
    result = run("bench", what, "--scaling", "--out", out)
    points = json.loads((out / f"bench-{what}.json").read_text(encoding="utf-8"))["points"]
    assert [(p["people_times"], p["questions_times"]) for p in points] == sizes
    assert (out / f"bench-{what}.png").read_bytes()[:4] == b"\x89PNG"
    assert len([line for line in result.stdout.splitlines() if "10" in line.split()]) == len(sizes)  # the ratio
    again = run("bench", what, "--scaling", "--out", out, "--json").stdout
    assert json.loads(again)["points"] == points


def test_real_points_of_scaling(run, tiny_folder, tmp_path, monkeypatch):
    """The sizes that scaling asks for are sizes that the bench takes."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("personae.people.bench.apart", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr("personae.lm.bench_scaling.PEOPLE", (1, 2))
    monkeypatch.setattr("personae.lm.bench_scaling.QUESTIONS", (1, 4))
    run("bench", "simulate", "--scaling", "--lm", tiny_folder, "--out", tmp_path)
    points = json.loads((tmp_path / "bench-simulate.json").read_text(encoding="utf-8"))["points"]
    assert [(p["people"], p["questions"], p["plain_rows_measured"]) for p in points] == [
        (32, 2, 16),
        (64, 2, 16),
        (32, 8, 16),
    ]


def test_without_matplotlib_nothing_is_measured(run, quick, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    stderr = run("bench", "steer", "--scaling", "--out", tmp_path / "a", status=1).stderr
    assert "pip install 'personae[eval]'" in stderr.splitlines()[-1]
    assert quick == {}
    assert not (tmp_path / "a").exists()


def test_out_goes_with_scaling(run, quick, tmp_path):
    assert "--out is where --scaling writes" in run("bench", "cf", "--out", tmp_path, status=2).stderr


def test_out_of_core(run, monkeypatch):
    point = {"people": 1000, "answers": 25_000, "sweep_seconds": 2.25, "sweep_cpu_seconds": 4.0}
    found = {
        "points": [{**point, "fit_peak_mib": 512.0}],
        "in_memory": {**point, "peak_mib": 1024.0, "max_difference": 1.5e-5},
    }
    monkeypatch.setattr("personae.scale.bench.bench", lambda progress: found)
    lines = run("bench", "cf", "--out-of-core").stdout.splitlines()
    rows = [line.split() for line in lines if "memory" in line or "core" in line]
    assert rows[0] == ["out", "of", "core", "1,000", "25,000", "2.2", "4.0", "512"]
    assert rows[1] == ["in", "memory", "1,000", "25,000", "2.2", "4.0", "1,024"]
    assert "1.5e-05" in lines[-1]
    assert json.loads(run("bench", "cf", "--out-of-core", "--json").stdout) == found
    assert "is a bench of cf" in run("bench", "steer", "--out-of-core", status=2).stderr
    assert "is a bench of cf" in run("bench", "cf", "--scaling", "--out-of-core", status=2).stderr
