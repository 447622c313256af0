from personae.people.bench import bench


def test_bench_reports_its_figures():
    figures = bench(n_people=300, n_questions=50, n_answers=3000, d=3, sweeps=2)
    assert 0 < figures["answers"] <= 3000
    assert all(figures[name] > 0 for name in ("sweep_seconds", "peak_mib", "fold_in_microseconds"))
