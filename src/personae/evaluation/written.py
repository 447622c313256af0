"""What `evaluate` found, as a page for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_ABOUT = {  # of each kind of cell: what is to be predicted
    "seen": "held-out answers of seen people",
    "new": "answers of seen people to questions that were kept out whole",
    "unseen-new": "answers of people who were not fitted to questions that were kept out whole",
}


def markdown_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures.

    Examples
    --------
    >>> print(markdown_table(["row", "n"], [["majority", "3,000"]]))
    | row | n |
    | --- | ---: |
    | majority | 3,000 |
    """
    rows = [headers, ["---", *["---:"] * (len(headers) - 1)], *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def as_markdown(found: dict[str, Any]) -> str:
    """The tables of `evaluate` with their differences, groups and replies as a page.

    Parameters
    ----------
    found : dict
        What `evaluate` returned, or its ``result.json``.
    """
    identity, settings, machine = found["identity"], found["settings"], found["machine"]
    parts = [
        "# Evaluation",
        f"{found['sizes']['train']} to learn from; {identity['lm']['name']} in {identity['dtype']}, at most "
        f"{identity['steps']} steps, seeds {', '.join(map(str, settings['seeds']))}; plan {identity['plan']}. "
        "Intervals are 95 %, by bootstrap over people (of new questions over questions, too).",
        f"Python {machine['python']}, PyTorch {machine['torch']}, transformers {machine['transformers']}, "
        f"{machine['device']}, {machine['threads']} thread(s), {found['seconds'] / 60:.0f} minutes.",
    ]
    for name, table in found["tables"].items():
        if table:
            parts += [f"## {name}: {_about(name, found['sizes'])}", _table(table)]
            parts += _differences(found["differences"].get(name, []))
    if any(found["weights"].values()):
        parts += ["## Weights of combined rows, a seed each", _weights(found["weights"])]
    if found.get("coherence"):
        parts += ["## How much groups have in common", _coherence(found["coherence"])]
    for name, rows in found.get("free_text", {}).items():
        parts += [f"## Stance of replies in a sentence, {name}", _free_text(rows)]
    for name, groups in found.get("groups", {}).items():
        parts += [f"## Everybody's distribution and the widest gaps, {name}", _groups(groups)]
    return "\n\n".join(parts) + "\n"


def _about(name: str, sizes: dict[str, Any]) -> str:
    given = sizes[name].get("given")
    known = "" if given is None else f", of whom {given:.1f} answers are known on average"
    return _ABOUT.get(name, "answers of people who were not fitted") + known


def _between(line: dict[str, Any], form: str) -> str:
    return f"{line['estimate']:{form}} ({line['low']:{form}} to {line['high']:{form}})"


def _table(table: list[dict[str, Any]]) -> str:
    """The rows by accuracy, the best figures bold; with lift where a ceiling is known."""
    best = {"accuracy": max(r["accuracy"] for r in table), "nll": min(r["nll"] for r in table)}
    lifts = any(r.get("lift") is not None for r in table)
    headers = ["", "accuracy", "95 % interval", "a seed", "NLL", "Brier", "ECE", "ordinal error", "n"]
    lines = []
    for row in sorted(table, key=lambda r: -r["accuracy"]):
        accuracy, nll = (
            f"**{text}**" if row[key] == best[key] else text
            for key, text in (("accuracy", f"{row['accuracy']:.1%}"), ("nll", f"{row['nll']:.3f}"))
        )
        seeds = ", ".join(f"{100 * a:.1f}" for a in row.get("accuracy_a_seed") or [])
        rest = [f"{row['brier']:.3f}", f"{row['ece']:.3f}", f"{row['ordinal_error']:.3f}", f"{row['n']:,}"]
        line = [row["row"], accuracy, f"{row['low']:.1%} to {row['high']:.1%}", seeds, nll, *rest]
        lines.append([*line, "" if row.get("lift") is None else f"{row['lift']:.2f}"] if lifts else line)
    return markdown_table([*headers, "lift"] if lifts else headers, lines)


def _differences(differences: list[dict[str, Any]]) -> list[str]:
    """Accuracy (points) and NLL of every row less those that a claim must beat, answer by answer."""
    if not differences:
        return []
    others = list(dict.fromkeys(d["minus"] for d in differences))
    cells: dict[str, dict[str, str]] = {}
    for d in differences:
        points = {end: 100 * value for end, value in d["accuracy"].items()}
        cells.setdefault(d["row"], {})[d["minus"]] = f"{_between(points, '+.1f')}; {_between(d['nll'], '+.3f')}"
    lines = [[row, *(of_row.get(other, "") for other in others)] for row, of_row in cells.items()]
    return [
        "Paired differences, answer by answer: accuracy in points; NLL.",
        markdown_table(["less", *others], lines),
    ]


def _weights(weights: dict[str, dict[str, list[list[float]]]]) -> str:
    lines = [
        [cell, row, "; ".join(" and ".join(f"{w:.2f}" for w in seed) for seed in seeds)]
        for cell, rows in weights.items()
        for row, seeds in rows.items()
        if seeds
    ]
    return markdown_table(["", "row", "weights"], lines)


def _coherence(coherence: list[dict[str, Any]]) -> str:
    headers = ["grouped by", "topic", "groups", "variance of held-out answers explained", "group majority", "majority"]
    lines = [
        [
            c["groups_by"],
            c["topic"],
            f"{c['groups']:.0f}",
            *("" if c[key] is None else f"{c[key]:.1%}" for key in ("explained", "accuracy", "majority")),
        ]
        for c in coherence
    ]
    return markdown_table(headers, lines)


def _free_text(rows: list[dict[str, Any]]) -> str:
    headers = ["", "agreement", "95 % interval", "less shuffled people", "different replies", "n", "for example"]
    lines = []
    for r in rows:
        example = r["examples"][0]["said"].replace("|", " ").replace("\n", " ") if r["examples"] else ""
        between = f"{r['low']:.1%} to {r['high']:.1%}"
        less = _between({name: 100 * value for name, value in r["less_shuffled"].items()}, "+.1f")
        lines.append(
            [r["row"], f"{r['agreement']:.1%}", between, less, str(r["different"]), str(r["n"]), example[:120]]
        )
    return markdown_table(headers, lines)


def _groups(groups: dict[str, Any]) -> str:
    """1 - Wasserstein / max of everybody's shares, and the trait whose groups are predicted least alike."""
    everybody = {line["row"]: line for line in groups["representativeness"] if line["by"] == "everybody"}
    widest: dict[str, dict[str, Any]] = {}
    for line in groups["gaps"]:
        if line["gap"] is not None and line["gap"] > widest.get(line["row"], {"gap": -1.0})["gap"]:
            widest[line["row"]] = line
    lines = []
    for row, line in everybody.items():
        gap = widest.get(row)
        where = "" if gap is None else f"{gap['trait']}: {gap['lowest']} to {gap['highest']}"
        points = "" if gap is None else f"{100 * gap['gap']:.1f}"
        like = "" if line["representativeness"] is None else f"{line['representativeness']:.3f}"
        lines.append([row, like, points, where.replace("|", " ")])
    return markdown_table(["", "representativeness", "widest gap in accuracy, points", "between"], lines)
