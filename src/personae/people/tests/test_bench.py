from __future__ import annotations

import numpy as np
import pytest

from personae.people import bench as benches
from personae.people.bench import bench

SMALL = {"n_people": 300, "n_questions": 50, "n_answers": 3000, "d": 3, "repeats": 1, "plain_people": 40}


@pytest.fixture
def here(monkeypatch):
    """Both ways in this process, where a test can reach them."""
    monkeypatch.setattr(benches, "apart", lambda work, *arguments: work(*arguments))


def test_bench_reports_its_figures(here):
    found = bench(**SMALL)
    assert list(found)[:2] == ["task", "ratio"]
    assert 0 < found["answers"] <= 3000
    assert (found["people"], found["questions"], found["plain_scaled_by"]) == (300, 50, 7.5)
    assert found["ratio"] == pytest.approx(found["plain_cpu_seconds"] / found["cpu_seconds"])
    assert 0 <= found["max_difference"] < 1e-4
    for name in ("ratio_vectors_only", "ratio_wall", "sweep_seconds", "peak_mib", "plain_peak_mib", "process_peak_mib"):
        assert found[name] > 0
    assert found["fold_in_microseconds"] > 0
    assert found["processor"]
    assert set(found["versions"]) == {"python", "numpy", "scipy"}


def test_the_plain_way_may_be_larger_than_the_survey(here):
    assert bench(**SMALL | {"plain_people": 1000})["plain_people_measured"] == 300


def test_both_plain_ways_are_the_half_step():
    job = benches._Job(30, 20, 200, 3)
    answers, known = job.answers(), job.known()
    ours = known.fold_in(answers)
    by_formula = benches._formula_by_person(answers, known, 30)
    np.testing.assert_allclose(by_formula.mean, ours.mean, atol=1e-5)
    np.testing.assert_allclose(by_formula.moment, ours.moment, atol=1e-5)
    np.testing.assert_allclose(benches._solve_by_person(answers, known, 30), ours.mean, atol=1e-5)


def test_unequal_ways_have_no_ratio(here, monkeypatch):
    monkeypatch.setattr(benches, "_solve_by_person", lambda answers, known, n: np.zeros((n, 5), np.float32))
    with pytest.raises(RuntimeError, match="the two ways differ by"):
        bench(**SMALL)


def test_a_size_is_positive():
    with pytest.raises(ValueError, match="plain_people is 0; it must be at least 1"):
        bench(**SMALL | {"plain_people": 0})


def test_median_of_the_timed_runs(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 6.0, 6.0, 9.0])
    monkeypatch.setattr(benches.time, "perf_counter", lambda: next(clock))
    runs: list[int] = []
    assert benches.median_seconds(lambda: runs.append(1), 3)[1] == 3.0
    assert len(runs) == 4
