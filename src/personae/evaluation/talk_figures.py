"""Figures of conversations: how a bank of prompts is used, and how methods compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from personae.data.dialogues import Example
from personae.evaluation.talk_plan import who

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TURNS, _PEOPLE = 10, 30  # of the heat maps


def use_by_turn(examples: Sequence[Example], p: np.ndarray) -> pd.DataFrame:
    """Mean probability of each prompt by how many own replies came before.

    Parameters
    ----------
    p : float array (n, K)

    Returns
    -------
    DataFrame
        Index turn from 1 (the last one holds all later ones); columns p0, p1, ..., and n.
    """
    before = [1 + sum(turn.speaker == e.speaker for turn in e.history) for e in examples]
    return _mean_by(np.minimum(before, _TURNS), p).rename_axis("turn")


def use_by_person(examples: Sequence[Example], p: np.ndarray) -> pd.DataFrame:
    """The same by who replies; those with the most replies first."""
    found = _mean_by(np.array([who(e) for e in examples]), p).rename_axis("person")
    return found.sort_values("n", ascending=False, kind="stable")


def _mean_by(key: np.ndarray, p: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame(p, columns=[f"p{k}" for k in range(p.shape[1])])
    grouped = table.groupby(key)
    return grouped.mean().assign(n=grouped.size())


def draw_use(by_turn: pd.DataFrame, by_person: pd.DataFrame) -> Figure:
    """Which prompts are used at which turn, and for whom (those with the most replies, alike ones together)."""
    from matplotlib.figure import Figure

    people = by_person.head(_PEOPLE).drop(columns="n")
    people = people.iloc[np.lexsort(people.to_numpy().T[::-1])[::-1]]
    turns = by_turn.drop(columns="n")
    labels = [f"{turn}+" if turn == _TURNS else str(turn) for turn in turns.index]
    figure = Figure(figsize=(9, 2.2 + 0.12 * len(people)), layout="constrained")
    left, right = figure.subplots(1, 2)
    bottom = np.zeros(len(turns))
    for k, name in enumerate(turns):
        left.bar(labels, 100 * turns[name], bottom=bottom, label=str(k))
        bottom += 100 * turns[name].to_numpy()
    left.set(xlabel="own turn", ylabel="use, %", ylim=(0, 100), xlim=(-0.6, max(len(turns), 4) - 0.4))
    left.spines[["top", "right"]].set_visible(False)
    image = right.imshow(100 * people.to_numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    right.set_xticks(range(people.shape[1]), [str(k) for k in range(people.shape[1])])
    right.set_yticks(range(len(people)), [_short(name) for name in people.index], fontsize=6)
    right.set_xlabel("prompt")
    figure.legend(title="prompt", loc="outside left center", frameon=False, fontsize=8)
    figure.colorbar(image, ax=right, label="use, %", shrink=0.7)
    return figure


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures of a table of conversations as PNG."""
    out = folder / "conversations.png"
    compared(found).savefig(out, dpi=150)
    return [out]


def compared(found: dict[str, Any]) -> Figure:
    """NLL of the true reply and normalised F1 of every row with 95 % intervals."""
    from matplotlib.figure import Figure

    shown = {"nll": "NLL of the true reply, nats a token", "f1_normalised": "normalised F1 of the reply"}
    # What people said has no NLL, and an F1 of 1 would leave no room for the others.
    names = list(dict.fromkeys(line["row"] for line in found["table"] if line["row"] != "human"))[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(names)), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), shown.items(), strict=True):
        measured = [line for line in found["table"] if line["metric"] == metric and line["estimate"] is not None]
        lines = {line["row"]: line for line in measured if line["row"] in names}
        places = [names.index(name) for name in lines]
        ends = ("estimate", "low", "high")  # of one dialogue the estimate alone
        estimate, low, high = (np.array([line[end] for line in lines.values()], np.float64) for end in ends)
        axes.errorbar(estimate, places, xerr=[estimate - low, high - estimate], fmt="o", capsize=2, markersize=4)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _short(text: str, width: int = 44) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
