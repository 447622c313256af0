"""Tables of the report: plain rows of text, and those of an evaluation from its `result.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from personae.lm.names import is_hub_id

_CELLS = {
    "seen": "held-out answers of people who were fitted",
    "new": "questions that nobody was asked in training",
    "unseen-new": "people who were not fitted, and questions that nobody was asked",
}


@dataclass
class Table:
    """Rows of text under headers; headers that start with ``>`` are right-aligned.

    Attributes
    ----------
    title : str
    headers : list of str
    rows : list of list of str
    bold : set of (row, column)
        Cells that stand out.
    folded : bool
        Shown when it is asked for, and in print.
    """

    title: str
    headers: Sequence[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    folded: bool = False


def percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}%"


def between(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"


def file_name(name: str) -> str:
    """A file or folder without the folders it lies in, which are nobody's business; a hub id stays whole."""
    return name if is_hub_id(name) else Path(name).name


# an evaluation ---------------------------------------------------------------------------------------------------
def read_evaluation(folder: Path) -> dict[str, Any]:
    """The `result.json` that `personae evaluate` left in a folder.

    Raises
    ------
    ValueError
        There is none, or it is not that of an evaluation.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(f"there is no result.json in {folder}; make one with: personae evaluate --out {folder.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("tables"), dict):
        raise ValueError(f"{path} is not the result of an evaluation; run personae evaluate again")
    return found


def about_evaluation(found: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """What was evaluated, and whether it is the survey of a bundle, of whose manifest ``data`` is a part."""
    settings = found.get("settings", {})
    lm = file_name(found.get("identity", {}).get("lm", {}).get("name", "an unknown LM"))
    about = f"Models were fitted anew to a part of the survey and judged on the rest, with the LM {lm}. "
    if settings.get("survey") == data["fingerprint"]:
        return about + "It is the survey of this bundle."
    return about + (
        f"It is not the survey of this bundle, or a part of it was held out: its fingerprint is "
        f"{str(settings.get('survey'))[:12]}, the bundle's {data['fingerprint'][:12]}."
    )


def evaluation_tables(found: Mapping[str, Any]) -> list[Table]:
    """Everything of a `result.json` that is a table."""
    out: list[Table] = []
    for cell, lines in found["tables"].items():
        if lines:
            out.append(_scores(_title(cell), lines))
            out += _if_any(_differences(found.get("differences", {}).get(cell, [])))
    for cell, groups in found.get("groups", {}).items():
        out += _if_any(_gaps(_title(cell), groups.get("gaps", [])))
    out += _if_any(_coherence(found.get("coherence", [])))
    for cell, lines in (found.get("free_text") or {}).items():
        out += _if_any(_free_text(_title(cell), lines))
    return out


def _title(cell: str) -> str:
    known = cell.removeprefix("unseen-")
    if known.isdigit():
        return f"people who were not fitted, from {known} of their answers"
    return _CELLS.get(cell, cell)


def _if_any(table: Table) -> list[Table]:
    return [table] if table.rows else []


def _scores(title: str, lines: Iterable[Mapping[str, Any]]) -> Table:
    lines = sorted(lines, key=lambda line: -line["accuracy"])
    lifted = any("lift" in line for line in lines)
    headers = ["", ">accuracy", ">95 %", ">NLL", ">95 %", ">ECE", *([">lift"] if lifted else []), ">n", ">seeds"]
    rows = [
        [
            line["row"],
            percent(line["accuracy"], 1),
            f"{percent(line['low'], 1)} to {percent(line['high'], 1)}",
            f"{line['nll']:.3f}",
            f"{line['nll_low']:.3f} to {line['nll_high']:.3f}",
            f"{line['ece']:.3f}",
            *([percent(line.get("lift"))] if lifted else []),
            f"{line['n']:,}",
            str(line["seeds"]),
        ]
        for line in lines
    ]
    best = {1: max(line["accuracy"] for line in lines), 3: min(line["nll"] for line in lines)}
    bold = {(i, 1) for i, line in enumerate(lines) if line["accuracy"] == best[1]}
    bold |= {(i, 3) for i, line in enumerate(lines) if line["nll"] == best[3]}
    return Table(title, headers, rows, bold)


def _differences(lines: Iterable[Mapping[str, Any]]) -> Table:
    rows = [
        [
            line["row"],
            line["minus"],
            *(_signed(line["accuracy"], lambda x: f"{100 * x:+.1f}")),
            *(_signed(line["nll"], lambda x: f"{x:+.3f}")),
            f"{line['n']:,}",
        ]
        for line in lines
    ]
    headers = ["row", "less", ">accuracy, points", ">95 %", ">NLL", ">95 %", ">n"]
    return Table("differences, answer by answer", headers, rows, folded=True)


def _signed(found: Mapping[str, float], form: Any) -> list[str]:
    return [form(found["estimate"]), f"{form(found['low'])} to {form(found['high'])}"]


def _gaps(title: str, lines: Iterable[Mapping[str, Any]]) -> Table:
    rows = [
        [
            line["row"],
            line["trait"],
            f"{line['lowest']} ({percent(line['lowest_mean'])})",
            f"{line['highest']} ({percent(line['highest_mean'])})",
            f"{100 * line['gap']:.1f}",
        ]
        for line in lines
        if line.get("gap") is not None
    ]
    headers = ["row", "groups by", "worst predicted", "best predicted", ">gap, points"]
    return Table(f"accuracy of groups: {title}", headers, rows, folded=True)


def _coherence(lines: Iterable[Mapping[str, Any]]) -> Table:
    rows = [
        [
            line["groups_by"] + (f" ({line['topic']})" if line["topic"] else ""),
            f"{line['groups']:,.0f}",
            percent(line["explained"], 1),
            percent(line["accuracy"], 1),
            percent(line["majority"], 1),
            f"{line['answers']:,.0f}",
        ]
        for line in lines
    ]
    headers = ["groups by", ">groups", ">variance explained", ">accuracy", ">of the majority", ">answers"]
    return Table("how coherent groups are: held-out answers told by the group alone", headers, rows)


def _free_text(title: str, lines: Iterable[Mapping[str, Any]]) -> Table:
    rows = [
        [
            line["row"],
            percent(line["agreement"], 1),
            f"{percent(line['low'], 1)} to {percent(line['high'], 1)}",
            f"{line['different']:,}",
            f"{line['n']:,}",
        ]
        for line in lines
    ]
    headers = ["", ">stance agrees", ">95 %", ">different replies", ">n"]
    return Table(f"replies in a sentence: {title}", headers, rows)
