"""What the rows of a cell are worth, side by side on the same answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from personae.evaluation import metrics
from personae.evaluation.fitted import Fitted
from personae.evaluation.intervals import Bootstrap
from personae.evaluation.plan import Cell
from personae.evaluation.rows import rows_of


@dataclass(frozen=True)
class Run:
    """Predictions of one row with one seed.

    Attributes
    ----------
    at : int array (n,)
        Places of the answers within the cell, ascending.
    p : float array (n, K)
        Option probabilities.
    """

    at: np.ndarray
    p: np.ndarray


class Scored:
    """A row's runs, measured answer by answer; several seeds by their mean, on the answers that all of them predicted.

    Attributes
    ----------
    right, nll, brier, ordinal : float array (n,)
    """

    def __init__(self, cell: Cell, runs: Sequence[Run]) -> None:
        self.cell, self.at = cell, min((r.at for r in runs), key=len)  # a smaller sample is part of a larger one
        self.runs = runs = [Run(self.at, r.p[np.isin(r.at, self.at)]) for r in runs]
        self.pairs = cell.pairs[self.at]
        self.n_options = np.array([len(q.options) for q in cell.pairs.questions])[self.pairs.question]
        option = self.pairs.option
        self.right = np.mean([metrics.right(r.p, option) for r in runs], axis=0)
        self.nll = np.mean([metrics.nll(r.p, option) for r in runs], axis=0)
        self.brier = np.mean([metrics.brier(r.p, option) for r in runs], axis=0)
        self.ordinal = np.mean([metrics.ordinal_error(r.p, option, self.n_options) for r in runs], axis=0)

    def summary(self) -> dict[str, Any]:
        """accuracy, nll (each with low and high, 95 %), macro_accuracy, brier, ece, ordinal_error, n, people,
        questions, seeds and their accuracies and NLLs.

        Intervals are over people, and for new questions over questions too; they are those of the seeds at hand.
        """
        people = self._bootstrap(self.at)
        accuracy, nll = people.interval(self.right), people.interval(self.nll)
        out: dict[str, Any] = {
            "accuracy": accuracy.estimate,
            "low": accuracy.low,
            "high": accuracy.high,
            "macro_accuracy": people.macro(self.right).estimate,
            "nll": nll.estimate,
            "nll_low": nll.low,
            "nll_high": nll.high,
            "brier": float(self.brier.mean()),
            "ece": float(np.mean([metrics.expected_calibration_error(r.p, self.pairs.option) for r in self.runs])),
            "ordinal_error": float(self.ordinal.mean()),
            "n": len(self.at),
            "people": people.people,
            "questions": len(np.unique(self.pairs.question)),
            "seeds": len(self.runs),
        }
        if len(self.runs) > 1:
            option = self.pairs.option
            out["accuracy_a_seed"] = [float(metrics.right(r.p, option).mean()) for r in self.runs]
            out["nll_a_seed"] = [float(metrics.nll(r.p, option).mean()) for r in self.runs]
        return out

    def minus(self, other: Scored) -> dict[str, Any]:
        """Paired differences to another row on the answers that both predicted: accuracy and nll with intervals."""
        both, mine, theirs = np.intersect1d(self.at, other.at, assume_unique=True, return_indices=True)
        people = self._bootstrap(both)
        return {
            "accuracy": people.difference(self.right[mine], other.right[theirs])._asdict(),
            "nll": people.difference(self.nll[mine], other.nll[theirs])._asdict(),
            "n": len(both),
        }

    def _bootstrap(self, at: np.ndarray) -> Bootstrap:
        pairs = self.cell.pairs[at]
        return Bootstrap(pairs.respondents, question=pairs.question if self.cell.new else None)


def compare(fitted: Fitted, cell: Cell, rows: Iterable[str] | None = None, slow_answers: int = 300) -> pd.DataFrame:
    """Predict a cell's answers in every way that applies to it.

    Parameters
    ----------
    rows : names of `personae.evaluation.rows.ROWS`, optional
        All of them by default; those that do not apply to the cell, or take more cohorts than people can be split into,
        are left out.
    slow_answers : int
        Answers of rows that cost a whole pass of the LM each.

    Returns
    -------
    DataFrame
        row, and what `Scored.summary` gives.
    """
    if len(cell) == 0:
        raise ValueError("there are no answers to compare on; hold more out")
    out = []
    for row in (r for r in rows_of(fitted.plan, cell, rows) if r.possible(fitted)):
        at = cell.pairs.sampled(slow_answers if row.slow else len(cell), 0)
        run = Run(at, row.predict(fitted, cell[at]))
        out.append({"row": row.name, **Scored(cell, [run]).summary()})
    return pd.DataFrame(out)
