"""Figures of an evaluation, from what `evaluate` returns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from personae.evaluation.plan import Plan
from personae.people.cohorts import Cohorts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = ("majority", "opinion model", "steered LM, person", "steered LM, shuffled people", "hybrid")
_CURVES = ("raw LM", "opinion model", "steered LM, person", "steered LM, person, calibrated")
_QUESTIONS = 20  # of the heat map


def draw(found: dict[str, Any], plan: Plan, cohorts: Cohorts, folder: Path) -> list[Path]:
    """Write every figure that there are figures for, as PNG."""
    made: list[tuple[str, Figure | None]] = [
        ("given", by_answers_given(found)),
        ("reliability", reliability(found)),
        ("cohorts", cohorts_by_question(plan, cohorts)),
        ("distributions", distributions(found)),
    ]
    out = []
    for name, figure in made:
        if figure is not None:
            out.append(folder / f"{name}.png")
            figure.savefig(out[-1], dpi=150)
    return out


def by_answers_given(found: dict[str, Any]) -> Figure | None:
    """Accuracy on people who were not fitted, against how many of their answers are known."""
    cells = {
        int(n.removeprefix("unseen-")): t for n, t in found["tables"].items() if n.removeprefix("unseen-").isdigit()
    }
    if not cells:
        return None
    figure, axes = _figure(6, 4)
    known = sorted(cells)
    for name in _LINES:
        rows = [next((r for r in cells[k] if r["row"] == name), None) for k in known]
        if all(rows):
            line = axes.plot(known, [100 * r["accuracy"] for r in rows if r], marker="o", label=name)[0]
            low, high = ([100 * r[end] for r in rows if r] for end in ("low", "high"))
            axes.fill_between(known, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(known, [str(k) for k in known])
    axes.minorticks_off()
    axes.set_xlabel("answers known of a person who was not fitted")
    axes.set_ylabel("accuracy, % (95 % intervals)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def reliability(found: dict[str, Any]) -> Figure | None:
    """How often the likeliest option was given, against how likely it was said to be; held-out answers."""
    found_curves = found["groups"].get("seen", {}).get("reliability", {})
    curves = {name: found_curves[name] for name in _CURVES if name in found_curves}
    if not curves:
        return None
    figure, axes = _figure(4.5, 4.5)
    axes.plot([0, 100], [0, 100], color="0.7", linewidth=1)
    for name, curve in curves.items():
        points = [b for b in curve if b["n"] >= 20]  # fewer are noise
        axes.plot([100 * b["confidence"] for b in points], [100 * b["accuracy"] for b in points], "o-", label=name)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="probability of the likeliest option, %", ylabel="it was given, %")
    axes.legend(frameon=False, fontsize=8)
    return figure


def cohorts_by_question(plan: Plan, cohorts: Cohorts) -> Figure:
    """Mean observed answer of each cohort, less everybody's, for the questions that divide the cohorts most."""
    train = plan.train
    place = train.option / (train.n_options[train.question] - 1)  # 0 is the first option, 1 the last
    cell = cohorts.labels_[train.respondent] * train.n_questions + train.question
    shape = (len(cohorts), train.n_questions)
    n = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cell, place, shape[0] * shape[1]).reshape(shape)
    with np.errstate(invalid="ignore"):
        away = total / np.where(n >= 10, n, np.nan) - total.sum(0) / n.sum(0)  # (C, Q); small cells are suppressed
    spread = np.nan_to_num(np.nanmax(away, 0) - np.nanmin(away, 0))
    most = np.argsort(-spread, kind="stable")[:_QUESTIONS]
    figure, axes = _figure(2.6 + 0.6 * len(cohorts), 0.9 + 0.28 * len(most))
    widest = float(np.nanmax(np.abs(away[:, most]))) or 1.0
    image = axes.imshow(away[:, most].T, cmap="RdBu_r", vmin=-widest, vmax=widest, aspect="auto")
    axes.set_xticks(range(len(cohorts)), [c.name for c in cohorts], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(
        range(len(most)), [(train.questions[j].title or train.questions[j].id)[:44] for j in most], fontsize=8
    )
    figure.colorbar(image, ax=axes, label="mean answer, less everybody's", shrink=0.8)
    return figure


def distributions(found: dict[str, Any]) -> Figure | None:
    """Observed and predicted option shares of the questions with the most held-out answers."""
    from matplotlib.figure import Figure

    some = found["distributions"].get("seen", [])
    if not some:
        return None
    columns = min(3, len(some))
    lines = -(-len(some) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, one in zip(grid.flat, some, strict=False):
        width = 0.8 / len(one["shares"])
        for i, (name, shares) in enumerate(one["shares"].items()):
            places = np.arange(len(shares)) + (i - (len(one["shares"]) - 1) / 2) * width
            axes.bar(places, 100 * np.array(shares), width, label=name, color="0.3" if name == "observed" else None)
        axes.set_xticks(range(len(one["options"])), [o[:14] for o in one["options"]], fontsize=7)
        axes.set_title(f"{one['question']} (n = {one['n']})", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(some) :]:
        axes.axis("off")
    grid[0, 0].set_ylabel("%")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
