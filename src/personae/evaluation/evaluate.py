"""Run the rows of the table over the cells of a plan: finished predictions are kept, an interrupted run goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

from personae.evaluation import analyses
from personae.evaluation.figures import draw
from personae.evaluation.fitted import Fitted
from personae.evaluation.free_text import stance_agreement
from personae.evaluation.metrics import lift
from personae.evaluation.plan import Cell, Plan
from personae.evaluation.pool import combination_weights, combine
from personae.evaluation.rows import ROWS, Row, rows_of
from personae.evaluation.table import Run, Scored
from personae.lm.frozen import FrozenLM

_PERSON = "steered LM, person"
# Rows made of other rows with weights learned on the tuning answers: of known questions (False), of new ones (True).
COMBINED: dict[str, dict[bool, tuple[str, ...]]] = {
    f"{_PERSON}, calibrated": {False: (_PERSON,), True: (_PERSON,)},
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
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "evaluation.json"
        identity = json.loads(json.dumps(identity))
        if about.exists():
            saved = json.loads(about.read_text())
            different = sorted(k for k in saved.keys() | identity.keys() if saved.get(k) != identity.get(k))
            if different:
                raise ValueError(
                    f"{folder} holds another evaluation ({', '.join(different)} differ); "
                    "repeat its settings to go on, or give another folder"
                )
        else:
            about.write_text(json.dumps(identity, indent=1))

    def path(self, cell: str, row: str, seed: int) -> Path:
        return (
            self.folder / "predictions" / cell / f"{re.sub('[^a-z0-9]+', '-', row.lower()).strip('-')}-{seed}.parquet"
        )

    def get(self, cell: str, row: str, seed: int) -> Run | None:
        """What was predicted, if it was."""
        path = self.path(cell, row, seed)
        if not path.exists():
            return None
        table = pd.read_parquet(path)
        return Run(table["answer"].to_numpy(), table.drop(columns="answer").to_numpy(np.float32))

    def put(self, cell: str, row: str, seed: int, run: Run) -> None:
        """Written beside and renamed: a crash leaves a whole file or none."""
        path = self.path(cell, row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(run.p, columns=[f"p{k}" for k in range(run.p.shape[1])])
        table.insert(0, "answer", run.at)
        partial = path.with_suffix(".partial")
        table.to_parquet(partial, index=False)
        os.replace(partial, path)


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
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Predict the held-out answers of a plan in every way, and score it.

    Parameters
    ----------
    out : Path
        Predictions, trained steerers, ``result.json`` and figures are kept here; the same call goes on where it was
        interrupted.
    rows : sequence of str, optional
        Names of `personae.evaluation.rows.ROWS`; all of them by default.
    seeds : sequence of int
        Of rows that are trained through the LM; others run once.
    answers, slow_answers : int
        Answers of a cell that are predicted; fewer where an answer costs a whole pass of the LM.
    budget : float, optional
        Minutes for the predictions of slow rows, shared among those that are left; fewer answers are predicted to
        keep it, and ``n`` says how many.
    ceiling : float, optional
        Accuracy of people who were asked again, for ``lift``.
    replies : int
        Answers for which the LM replies in a sentence, whose stance is compared with the option really given.
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
    lm = lm if isinstance(lm, FrozenLM) else FrozenLM.load(lm)
    identity = {"plan": plan.fingerprint, "lm": lm.fingerprint, "steps": steps, "answers": answers}
    kept = Predictions(Path(out), identity)
    cells = {**plan.cells, **({"tuning": plan.tuning} if len(plan.tuning) else {})}
    started = time.monotonic()
    wanted = [
        (seed, name, row)
        for seed in seeds
        for name, cell in cells.items()
        for row in rows_of(plan, cell, rows)
        if (row.trained or seed == seeds[0]) and not (row.slow and name == "tuning")
    ]
    slow_left = sum(row.slow and kept.get(name, row.name, seed) is None for seed, name, row in wanted)
    fitted: dict[int, Fitted] = {}
    for seed, name, row in wanted:
        if kept.get(name, row.name, seed) is not None:
            continue
        if seed not in fitted:  # what another seed has trained is not needed any more
            fitted = {seed: Fitted(plan, lm, steps, seed, Path(out) / "steerers", progress)}
        say(f"{name}: {row.name}" + (f", seed {seed}" if row.trained else ""))
        share = (
            None if budget is None or not row.slow else max(0.0, budget * 60 - (time.monotonic() - started)) / slow_left
        )
        at = np.arange(len(cells[name]))
        if row.slow:
            at = _affordable(fitted[seed], cells[name], row, slow_answers, share)
            slow_left -= 1
        kept.put(name, row.name, seed, Run(at, row.predict(fitted[seed], cells[name][at])))
    first = fitted.get(seeds[0]) or Fitted(plan, lm, steps, seeds[0], Path(out) / "steerers", progress)
    scored = {name: _scored(plan, cell, kept, seeds, rows) for name, cell in plan.cells.items()}
    found = {
        "identity": identity,
        "settings": {**plan.settings, "seeds": list(seeds), "steps": steps, "slow_answers": slow_answers},
        "sizes": {"train": repr(plan.train), **{name: len(cell) for name, cell in cells.items()}},
        "tables": {name: _table(rows, ceiling) for name, (rows, _) in scored.items()},
        "differences": {name: _differences(plan.cells[name], rows) for name, (rows, _) in scored.items()},
        "weights": {name: weights for name, (_, weights) in scored.items()},
        "groups": {
            name: analyses.by_groups(plan.cells[name], rows, analyses.groupings(first, plan.cells[name]))
            for name, (rows, _) in scored.items()
            if name in ("seen", "new")
        },
        "distributions": {
            name: analyses.distributions(plan.cells[name], rows, _DRAWN)
            for name, (rows, _) in scored.items()
            if name in ("seen", "new")
        },
        "coherence": analyses.coherences(first, plan.cells["seen"]) if "seen" in plan.cells else [],
        "free_text": _free_text(first, kept.folder, replies, say) if replies else {},
        "machine": machine(),
        "seconds": time.monotonic() - started,
    }
    (kept.folder / "result.json").write_text(json.dumps(found, indent=1, default=float))
    if importlib.util.find_spec("matplotlib") is None:
        say("figures need matplotlib, which is not installed; run: pip install 'personae[eval]'")
    else:
        draw(found, plan, first.cohorts, kept.folder)
    return found


def _affordable(fitted: Fitted, cell: Cell, row: Row, most: int, seconds: float | None) -> np.ndarray:
    """Places of as many answers as a slow row may predict in the time it has; a smaller number is part of a larger."""
    if seconds is not None and most > _PILOT:
        row.predict(fitted, cell[cell.pairs.sampled(2, 0)])  # what is fitted on the way is not the row's speed
        begin = time.monotonic()
        row.predict(fitted, cell[cell.pairs.sampled(_PILOT, 0)])
        most = int(np.clip(seconds * _PILOT / (time.monotonic() - begin), _PILOT, most))
    return cell.pairs.sampled(most, 0)


def _scored(
    plan: Plan, cell: Cell, kept: Predictions, seeds: Sequence[int], rows: Sequence[str] | None
) -> tuple[dict[str, Scored], dict[str, list[list[float]]]]:
    """Every row of a cell, those made of others included, and the weights these were made with."""
    runs = {
        row.name: [r for r in (kept.get(cell.name, row.name, s) for s in (seeds if row.trained else seeds[:1])) if r]
        for row in rows_of(plan, cell, rows)
    }
    weights = {}
    for row, parts in COMBINED.items():
        runs[row], weights[row] = _combined(cell, parts[cell.new], plan.tuning, kept, seeds)
    return {row: Scored(cell, found) for row, found in runs.items() if found}, weights


def _table(scored: dict[str, Scored], ceiling: float | None) -> list[dict[str, Any]]:
    table = [{"row": row, **one.summary()} for row, one in scored.items()]
    if ceiling is not None and "majority" in scored:
        for line in table:
            line["lift"] = lift(line["accuracy"], float(scored["majority"].right.mean()), ceiling)
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
    """Several rows as one for each seed, with weights learned on the answers kept for choices; a single row is made
    sharper or flatter."""
    runs, weights = [], []
    for seed in seeds:
        of = [(row, seed if ROWS[row].trained else seeds[0]) for row in parts]
        known = [kept.get("tuning", *which) for which in of]
        found = [kept.get(cell.name, *which) for which in of]
        if all(known) and all(found):
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


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
