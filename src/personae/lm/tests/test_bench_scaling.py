from __future__ import annotations

import sys

import pytest

from personae.lm.bench_scaling import draw, scaling, seconds_each, unit


def found(people: int, questions: int) -> dict[str, object]:
    """A bench whose plain way costs 2 s an answer and whose own way 1 s a question and 0.1 s an answer."""
    answers = 10 * people * questions
    return {
        "task": "simulate",
        "people": 10 * people,
        "questions": questions,
        "answers": answers,
        "device": "cpu",
        "cpu_seconds": questions + 0.1 * answers,
        "plain_cpu_seconds": 2.0 * answers,
        "wall_seconds": 1.0,
        "plain_wall_seconds": 30.0,
    }


def test_one_grows_while_the_other_stays():
    points = scaling(found)["points"]
    sizes = [(p["people_times"], p["questions_times"], p["answers"]) for p in points]
    assert sizes == [(1, 1, 10), (2, 1, 20), (4, 1, 40), (8, 1, 80), (1, 2, 20), (1, 4, 40)]


def test_seconds_of_the_clock_that_counts():
    point = found(1, 1)
    assert seconds_each(point) == pytest.approx((0.2, 2.0))
    assert unit({"points": [point]}) == ("CPU", "answer")
    of_gpu = {**point, "device": "some GPU"}
    assert seconds_each(of_gpu) == pytest.approx((0.1, 3.0))
    assert unit({"points": [of_gpu]}) == ("wall", "answer")


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    draw(scaling(found), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 10_000


def test_the_figure_of_personas(tmp_path):
    pytest.importorskip("matplotlib")

    def generate(people: int, _: int) -> dict[str, object]:
        point = {**found(people, 1), "task": "generate", "personas": people, "reply_tokens": 10 * people}
        return {name: value for name, value in point.items() if name not in ("people", "questions", "answers")}

    result = scaling(generate, (1, 2, 4, 8, 16), ())
    assert unit(result) == ("CPU", "token")
    draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'personae\[eval\]'"):
        draw(scaling(found), tmp_path / "a.png")
