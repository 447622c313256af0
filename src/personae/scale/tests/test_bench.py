from __future__ import annotations

import pytest

from personae.scale import bench as benches


def test_bench_reports_its_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(benches, "apart", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(benches, "_PART", 300)
    stages: list[str] = []
    found = benches.bench((400, 800), 10, 40, d=2, sweeps=2, folder=tmp_path, progress=stages.append)
    assert [p["people"] for p in found["points"]] == [400, 800]
    assert [p["answers"] / p["people"] for p in found["points"]] == pytest.approx([10, 10], rel=0.05)
    for point in (*found["points"], found["in_memory"]):
        assert point["sweep_seconds"] > 0
        assert point["sweep_cpu_seconds"] > 0
    assert all(p["fit_peak_mib"] > 0 and p["store_peak_mib"] > 0 for p in found["points"])
    assert found["in_memory"]["people"] == 400
    assert found["in_memory"]["max_difference"] < 1e-3
    assert stages.count("400 people: fitting in memory") == 1
    assert "800 people: fitting in memory" not in stages
    assert list(tmp_path.iterdir()) == []


def test_medians_leave_the_first_lap_out(monkeypatch):
    walls, cpus = iter([5.0, 6.0, 9.0, 10.0]), iter([1.0, 1.5, 3.5, 4.0])
    monkeypatch.setattr(benches.time, "perf_counter", lambda: next(walls))
    monkeypatch.setattr(benches.time, "process_time", lambda: next(cpus))
    laps = benches._Laps()
    for _ in range(4):
        laps.add()
    assert laps.medians() == {"sweep_seconds": 1.0, "sweep_cpu_seconds": 0.5}
