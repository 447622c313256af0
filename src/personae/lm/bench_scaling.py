"""How a bench grows with people and with questions: the same comparison at several sizes, and a figure of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PEOPLE, QUESTIONS = (1, 2, 4, 8), (1, 2, 4)  # times the base

_THIS, _PLAIN = "#4c78a8", "#8c8c8c"


def scaling(
    run: Callable[[int, int], dict[str, Any]], people: Sequence[int] = PEOPLE, questions: Sequence[int] = QUESTIONS
) -> dict[str, Any]:
    """Run a bench at so many times its base of people, and of questions; one grows while the other stays.

    Parameters
    ----------
    run : callable
        The bench at (times the people, times the questions).
    people, questions : sequence of int
        Both start with 1.

    Returns
    -------
    dict
        ``task`` and ``points``: what the bench found at each size, with ``people_times`` and ``questions_times``.

    Examples
    --------
    >>> found = scaling(lambda people, questions: {"task": "t", "ratio": people / questions}, (1, 2), (1, 2))
    >>> [(p["people_times"], p["questions_times"], p["ratio"]) for p in found["points"]]
    [(1, 1, 1.0), (2, 1, 2.0), (1, 2, 0.5)]
    """
    sizes = [(p, 1) for p in people] + [(1, q) for q in questions if q > 1]
    points = [{"people_times": p, "questions_times": q, **run(p, q)} for p, q in sizes]
    return {"task": points[0]["task"], "points": points}


def unit(found: dict[str, Any]) -> tuple[str, str]:
    """The clock that counts, ``CPU`` or (on a GPU) ``wall``, and what is counted, ``answer`` or ``token``."""
    base = found["points"][0]
    return "CPU" if base["device"] == "cpu" else "wall", "answer" if "answers" in base else "token"


def seconds_each(point: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the clock that counts per answer or token, this way and the plain way."""
    clock = "cpu" if point["device"] == "cpu" else "wall"
    n = point["answers" if "answers" in point else "reply_tokens"]
    return point[f"{clock}_seconds"] / n, point[f"plain_{clock}_seconds"] / n


def draw(found: dict[str, Any], path: Path) -> None:
    """Two panels: seconds per answer of both ways, and their ratio, against what grows.

    Parameters
    ----------
    found : dict
        Of `scaling`.
    path : Path
        A file name that ends in a format of matplotlib's, ``.png`` or ``.svg``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullLocator

    base = found["points"][0]
    clock, each = unit(found)
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for grows, other, line in (("people", "questions", "o-"), ("questions", "people", "s--")):
        points = [p for p in found["points"] if p[f"{other}_times"] == 1]
        if len(points) < 2:
            continue
        times = [p[f"{grows}_times"] for p in points]
        this, plain = zip(*map(seconds_each, points), strict=True)
        name = grows if grows in base else "personas"
        style = {"ms": 5, "lw": 1.6}
        left.plot(times, plain, line, color=_PLAIN, label=f"plain way, more {name}", **style)
        left.plot(times, this, line, color=_THIS, label=f"this way, more {name}", **style)
        ratio = [b / a for a, b in zip(this, plain, strict=True)]
        right.plot(times, ratio, line, color=_THIS, label=f"more {name}", **style)
    one = {"people": "person", "personas": "persona", "questions": "question"}
    sizes = " and ".join(f"{base[name]:,} {one[name] if base[name] == 1 else name}" for name in one if name in base)
    left.set_title(f"{found['task']}: {clock} seconds per {each}", loc="left", fontsize=11)
    right.set_title(f"ratio: plain way / this way ({clock} seconds)", loc="left", fontsize=11)
    ticks = sorted({p[f"{grows}_times"] for p in found["points"] for grows in ("people", "questions")})
    for axis, written in ((left, EngFormatter(unit="s")), (right, "{x:g}")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(ticks, [f"×{t}" for t in ticks])
        axis.set_xlabel(f"size; ×1 is {sizes}")
        steps = _steps([y for line in axis.get_lines() for y in line.get_ydata()])
        axis.set_yticks(steps)
        axis.set_ylim(steps[0], steps[-1])
        axis.yaxis.set_major_formatter(written)
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(axis="y", color="#e6e6e6", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _steps(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, 20, ... from just below the smallest value to just above the largest.

    Examples
    --------
    >>> _steps([3, 40])
    [2.0, 5.0, 10.0, 20.0, 50.0]
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = [float(f"{m}e{e}") for e in range(low, high + 1) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= min(values))
    last = min(i for i, step in enumerate(steps) if step >= max(values))
    return steps[first : max(last, first + 1) + 1]


def require_matplotlib() -> None:
    """Say in a sentence what is missing; before minutes are spent measuring."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the figure needs matplotlib, which is not installed; run: pip install 'personae[eval]'"
        ) from error
