"""Run the rows of the table over the cells of a plan: finished predictions are kept, an interrupted run goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

import personae
from personae.evaluation import analyses
from personae.evaluation.figures import draw
from personae.evaluation.fitted import Fitted
from personae.evaluation.free_text import stance_agreement
from personae.evaluation.kept import claim, slug, write
from personae.evaluation.metrics import lift
from personae.evaluation.plan import Cell, Plan
from personae.evaluation.pool import combination_weights, combine
from personae.evaluation.rows import ROWS, Row, rows_of
from personae.evaluation.table import Run, Scored
from personae.evaluation.written import as_markdown
from personae.lm.frozen import FrozenLM
from personae.people.bench import machine

_PERSON = "steered LM, person"
# Rows made of other rows: of known questions (False) with weights learned on the tuning answers, and of new ones (True)
# with equal weights, as the tuning answers are to questions that their models were trained on.
COMBINED: dict[str, dict[bool, tuple[str, ...]]] = {
    f"{_PERSON}, calibrated": {False: (_PERSON,)},
    "hybrid": {False: (_PERSON, "opinion model"), True: (_PERSON, "opinion model on the question's text")},
}
REFERENCES = {  # rows to which every other is compared, answer by answer
    False: ("majority", "opinion model", "steered LM, shuffled people"),
    True: (
        "uniform",
        "opinion model on the question's text",
        "raw LM",
        "LM with traits as text",
        "steered LM, shuffled people",
    ),
}
_DRAWN = ("raw LM", _PERSON, "opinion model", "opinion model on the question's text")  # beside what was observed
_PILOT = 32  # answers by which the speed of a row is known
_MORE = 1.5  # so many times the time that kept answers took is worth predicting anew


class Cost(NamedTuple):
    """Of the answers that are kept of a slow row: how many, seconds for them, and seconds with the pilot."""

    answers: int
    predicting: float
    spent: float


class Predictions:
    """Option probabilities of every row, cell and seed, as Parquet files in a folder.

    Parameters
    ----------
    folder : Path
    identity : dict
        Plain values that a run must share with the one it goes on from.

    Raises
    ------
    ValueError
        The folder holds another evaluation.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        claim(folder, identity)

    def path(self, cell: str, row: str, seed: int) -> Path:
        return self.folder / "predictions" / cell / f"{slug(row)}-{seed}.parquet"

    def get(self, cell: str, row: str, seed: int) -> Run | None:
        """What was predicted, if it was."""
        path = self.path(cell, row, seed)
        if not path.exists():
            return None
        table = pd.read_parquet(path)
        return Run(table["answer"].to_numpy(), table.drop(columns="answer").to_numpy(np.float32))

    def answers(self, cell: str, row: str, seed: int) -> int:
        """How many answers were predicted."""
        path = self.path(cell, row, seed)
        return pq.read_metadata(path).num_rows if path.exists() else 0

    def cost(self, cell: str, row: str, seed: int) -> Cost | None:
        """What was kept of a slow row has taken; None where nothing was, or it does not say."""
        path = self.path(cell, row, seed)
        kept = pd.read_parquet(path).attrs.get("cost") if path.exists() else None
        return None if kept is None else Cost(*kept)

    def put(self, cell: str, row: str, seed: int, run: Run, cost: Cost | None = None) -> None:
        """Keep what was predicted."""
        table = pd.DataFrame(run.p, columns=[f"p{k}" for k in range(run.p.shape[1])])
        table.insert(0, "answer", run.at)
        table.attrs["cost"] = cost
        write(self.path(cell, row, seed), table)


def evaluate(
    plan: Plan,
    out: Path,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    answers: int = 3000,
    slow_answers: int = 300,
    budget: float | None = None,
    lm: str | FrozenLM = "smollm2-135m",
    steps: int = 400,
    ceiling: float | None = None,
    replies: int = 0,
    about: dict[str, Any] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Predict the held-out answers of a plan in every way, and score it.

    Parameters
    ----------
    out : Path
        Predictions, trained steerers, ``result.json``, ``result.md`` and figures are kept here; the same call goes
        on where it was interrupted.
    rows : sequence of str, optional
        Names of `personae.evaluation.rows.ROWS` or `COMBINED` to run; by default all that are not costly. The tables
        have every row whose predictions are in the folder.
    seeds : sequence of int
        Of rows that are trained through the LM; others run once.
    answers, slow_answers : int
        Answers of a cell that are predicted; fewer where an answer costs a whole pass of the LM.
    budget : float, optional
        Minutes for the predictions of slow rows, their training not counted, shared among those that are left; fewer
        answers are predicted to keep it, and ``n`` says how many. A later call with a clearly larger one predicts more.
    ceiling : float, optional
        Accuracy of people who were asked again, for ``lift``.
    replies : int
        Answers for which the LM replies in a sentence, whose stance is compared with the option really given.
    about : dict, optional
        Plain values to keep in ``settings``: where the survey came from.
    say : callable
        Told what is being done.

    Returns
    -------
    dict
        ``tables`` (a list of dicts a cell), ``differences`` to the rows that a claim must beat, ``weights`` of combined
        rows, ``groups`` (representativeness, gaps, calibration), ``distributions``, ``coherence``, ``free_text``, and
        what is needed to do it again.
    """
    plan = plan.sample(answers, seed=int(plan.settings.get("seed", 0)))
    if ceiling is not None and not 0 < ceiling <= 1:
        raise ValueError(f"the ceiling is an accuracy from 0 to 1; got {ceiling}")
    named = None if rows is None else list(dict.fromkeys(r for row in rows for r in _parts(row)))
    lm = lm if isinstance(lm, FrozenLM) else FrozenLM.load(lm)
    identity = {
        "plan": plan.fingerprint,
        "lm": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "steps": steps,
        "answers": answers,
        "version": personae.__version__,
    }
    kept = Predictions(Path(out), identity)
    cells = {**plan.cells, **({"tuning": plan.tuning} if len(plan.tuning) else {})}
    started, slow_seconds = time.monotonic(), 0.0
    left = [
        (seed, cell, row)
        for seed in seeds
        for cell in cells.values()
        for row in rows_of(plan, cell, named)
        if (row.trained or seed == seeds[0])
        and not (row.slow and cell is plan.tuning)
        and (
            kept.answers(cell.name, row.name, seed) < (min(slow_answers, len(cell)) if row.slow else len(cell))
            or (row.slow and budget is not None)  # which shares the budget, finished or not
        )
    ]
    first = fitted = Fitted(plan, lm, steps, seeds[0], Path(out) / "steerers", progress)
    for name in dict.fromkeys(row.name for _, _, row in left if not row.possible(first)):
        say(f"{name}: left out, since people are too few or differ too little for so many cohorts")
        left = [each for each in left if each[2].name != name]
    slow_left = sum(row.slow for _, _, row in left)
    for seed, cell, row in left:
        if seed != fitted.seed:
            fitted = first.with_seed(seed)
        what = f"{cell.name}: {row.name}" + (f", seed {seed}" if row.trained else "")
        if not row.slow:
            say(what)
            kept.put(cell.name, row.name, seed, Run(np.arange(len(cell)), row.predict(fitted, cell)))
            continue
        seconds = None if budget is None else max(0.0, budget * 60 - slow_seconds) / slow_left
        slow_left -= 1
        wanted = most = min(slow_answers, len(cell))
        if seconds is not None and (n := kept.answers(cell.name, row.name, seed)):
            before = kept.cost(cell.name, row.name, seed) or Cost(n, np.inf, 0.0)  # who does not say is left as it is
            most = int(min(wanted, seconds * n / before.predicting))
            if n >= wanted or seconds < _MORE * before.predicting:
                if n < wanted:
                    say(f"{what}: the budget does not allow clearly more than the {n:,} answers that are kept")
                slow_seconds += before.spent
                continue
            seconds = None
        say(what)
        run, cost = _slowly(fitted, cell, row, most, seconds)
        kept.put(cell.name, row.name, seed, run, cost)
        slow_seconds += cost.spent
    scored = {name: _scored(plan, cell, kept, seeds) for name, cell in plan.cells.items()}
    shown = {n: (plan.cells[n], rows_of_cell) for n, (rows_of_cell, _) in scored.items() if n in ("seen", "new")}
    taken_on = machine(torch.get_num_threads(), "torch", "transformers")
    versions = taken_on.pop("versions")
    found: dict[str, Any] = {
        "identity": identity,
        "settings": {
            **plan.settings,
            "seeds": list(seeds),
            "rows": None if rows is None else list(rows),
            "slow_answers": slow_answers,
            "budget": budget,
            "ceiling": ceiling,
            "replies": replies,
            **(about or {}),
        },
        "sizes": _sizes(plan, cells),
        "tables": {name: _table(rows_of_cell, ceiling) for name, (rows_of_cell, _) in scored.items()},
        "differences": {n: _differences(plan.cells[n], rows_of_cell) for n, (rows_of_cell, _) in scored.items()},
        "weights": {name: weights for name, (_, weights) in scored.items()},
        "machine": {**taken_on, **versions, "device": str(lm.device)},
    }
    result = kept.folder / "result.json"
    result.write_text(json.dumps(found, indent=1, default=float))  # the tables are safe before more is computed
    found["groups"] = {n: analyses.by_groups(c, r, analyses.groupings(first, c)) for n, (c, r) in shown.items()}
    found["distributions"] = {n: analyses.distributions(c, r, _DRAWN) for n, (c, r) in shown.items()}
    found["coherence"] = analyses.coherences(first, plan.cells["seen"]) if "seen" in plan.cells else []
    steered = any(_PERSON in rows_of_cell for rows_of_cell, _ in scored.values())
    found["free_text"] = _free_text(first, kept.folder, replies, say) if replies and steered else {}
    found["seconds"] = time.monotonic() - started
    result.write_text(json.dumps(found, indent=1, default=float))
    (kept.folder / "result.md").write_text(as_markdown(found), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        say("figures need matplotlib, which is not installed; run: pip install 'personae[eval]'")
    else:
        draw(found, plan, first.cohorts, kept.folder)
    return found


def _parts(row: str) -> list[str]:
    """The rows that must be run for a row."""
    return [part for parts in COMBINED[row].values() for part in parts] if row in COMBINED else [row]


def _sizes(plan: Plan, cells: dict[str, Cell]) -> dict[str, Any]:
    """How much there is of everything; of unseen people also how many of their answers are known on average."""
    sizes: dict[str, Any] = {"train": repr(plan.train)}
    for name, cell in cells.items():
        sizes[name] = {
            "answers": len(cell),
            "people": len(np.unique(cell.pairs.respondents)),
            "questions": len(np.unique(cell.pairs.question)),
        }
        if cell.given is not None:
            sizes[name]["given"] = cell.given.n_answers / cell.given.n_respondents
    return sizes


def _slowly(fitted: Fitted, cell: Cell, row: Row, most: int, seconds: float | None) -> tuple[Run, Cost]:
    """Predictions of a slow row for as many answers as it has time for."""
    row.predict(fitted, cell[cell.pairs.sampled(2, 0)])  # what is trained on the way is not the row's speed
    begin = time.monotonic()
    at = _affordable(fitted, cell, row, most, seconds)
    middle = time.monotonic()
    run = Run(at, row.predict(fitted, cell[at]))
    end = time.monotonic()
    return run, Cost(len(at), end - middle, end - begin)


def _affordable(fitted: Fitted, cell: Cell, row: Row, most: int, seconds: float | None) -> np.ndarray:
    """Places of as many answers as a slow row may predict in the time it has; a smaller number is part of a larger."""
    if seconds is not None and most > _PILOT:
        begin = time.monotonic()
        row.predict(fitted, cell[cell.pairs.sampled(_PILOT, 0)])
        most = int(np.clip(seconds * _PILOT / (time.monotonic() - begin), _PILOT, most))
    return cell.pairs.sampled(most, 0)


def _scored(
    plan: Plan, cell: Cell, kept: Predictions, seeds: Sequence[int]
) -> tuple[dict[str, Scored], dict[str, list[list[float]]]]:
    """Every row that is kept of a cell, those made of others included, and the weights these were made with."""
    runs = {
        row.name: [r for r in (kept.get(cell.name, row.name, s) for s in (seeds if row.trained else seeds[:1])) if r]
        for row in rows_of(plan, cell, ROWS)
    }
    weights = {}
    for row, parts in COMBINED.items():
        if cell.new not in parts:
            continue
        runs[row], weights[row] = _combined(cell, parts[cell.new], plan.tuning, kept, seeds)
    return {row: Scored(cell, found) for row, found in runs.items() if found}, weights


def _table(scored: dict[str, Scored], ceiling: float | None) -> list[dict[str, Any]]:
    table = [{"row": row, **one.summary()} for row, one in scored.items()]
    if ceiling is not None and "majority" in scored:
        for line, one in zip(table, scored.values(), strict=True):
            majority = float(scored["majority"].right[np.isin(scored["majority"].at, one.at)].mean())
            line["lift"] = lift(line["accuracy"], majority, ceiling) if ceiling > majority else None
    return table


def _differences(cell: Cell, scored: dict[str, Scored]) -> list[dict[str, Any]]:
    """Of every row to those that a claim must beat, answer by answer."""
    return [
        {"row": row, "minus": other, **one.minus(scored[other])}
        for row, one in scored.items()
        for other in REFERENCES[cell.new]
        if other in scored and other != row
    ]


def _combined(
    cell: Cell, parts: Sequence[str], tuning: Cell, kept: Predictions, seeds: Sequence[int]
) -> tuple[list[Run], list[list[float]]]:
    """Several rows as one for each seed, with weights learned on the answers kept for choices (equal ones for new
    questions); a single row is made sharper or flatter."""
    runs, weights = [], []
    for seed in seeds:
        of = [(row, seed if ROWS[row].trained else seeds[0]) for row in parts]
        known = [kept.get("tuning", *which) for which in of]
        found = [kept.get(cell.name, *which) for which in of]
        if all(found) and (cell.new or all(known)):
            w = np.full(len(parts), 1 / len(parts))
            if not cell.new:
                w = combination_weights(_same_width([run.p for run in known if run]), tuning.pairs.option)
            runs.append(Run(np.arange(len(cell)), combine(_same_width([run.p for run in found if run]), w)))
            weights.append(np.round(w, 4).tolist())
    return runs, weights


def _free_text(fitted: Fitted, folder: Path, n: int, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Stance agreement on known and on new questions; what is finished is kept."""
    path = folder / f"free-text-{fitted.seed}-{n}.json"
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    for name in ("seen", "new"):
        if name in fitted.plan.cells and name not in found:
            say(f"{name}: replies in a sentence")
            found[name] = stance_agreement(fitted, fitted.plan.cells[name], n)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found, indent=1))
            os.replace(partial, path)
    return found


def _same_width(ps: Sequence[np.ndarray]) -> list[np.ndarray]:
    k = max(p.shape[1] for p in ps)
    return [np.pad(p, ((0, 0), (0, k - p.shape[1]))) for p in ps]
