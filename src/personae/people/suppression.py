"""Counts that may be shown: small cells are hidden, and so are those from which they could be computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from personae.people.profiles import Profiles

_FIGURES = ["count", "share", "low", "high"]


def hidden_cells(
    counts: np.ndarray, minimum: int, row_totals: np.ndarray | None = None, column_totals: np.ndarray | None = None
) -> np.ndarray:
    """Which cells of a table of counts are not shown.

    Parameters
    ----------
    counts : float array, shape (R, C)
        NaN where unknown.
    minimum : int
        Cells of fewer people are hidden.
    row_totals, column_totals : float array, shape (R,) or (C,), optional
        Totals that a reader knows; NaN, or None, where not.

    Returns
    -------
    bool array, shape (R, C)

    Notes
    -----
    A reader subtracts what is shown from the totals. So more is hidden, the smallest cells first, until every row and
    column that hides anything hides at least ``minimum`` people, and no hidden cell follows from the equations "the
    cells of a line add up to its total" (complementary suppression). With A the equations of the hidden cells, cell i
    follows if the null space of A leaves it fixed: (I - A^+ A)_ii = 0.

    Examples
    --------
    >>> hidden_cells(np.array([[80.0, 30.0, 3.0]]), 10, np.array([113.0])).tolist()
    [[False, True, True]]
    >>> hidden_cells(np.array([[80.0, 30.0, 3.0]]), 10).tolist()
    [[False, False, True]]
    """
    hidden = ~(counts >= minimum)  # NaN too
    known = np.nan_to_num(counts)
    nothing = [np.full(n, np.nan) for n in counts.shape]
    totals = [t if t is not None else n for t, n in zip((row_totals, column_totals), nothing, strict=True)]
    while True:
        before = hidden.sum()
        for axis, total in enumerate(totals):
            cells, hides = (known, hidden) if axis == 0 else (known.T, hidden.T)  # views: one table
            left = total - np.where(hides, 0, cells).sum(1)
            for line in np.flatnonzero(hides.any(1) & (left < minimum)):
                _hide_smallest(cells[line], hides[line])
        for row, column in _following(hidden, *totals):
            if _hide_smallest(known[row], hidden[row]) or _hide_smallest(known[:, column], hidden[:, column]):
                break
        if hidden.sum() == before:
            return hidden


def _hide_smallest(cells: np.ndarray, hides: np.ndarray) -> bool:
    """Hide one more cell of a line, if any is shown."""
    if hides.all():
        return False
    hides[np.where(hides, np.inf, cells).argmin()] = True
    return True


def _following(hidden: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray) -> np.ndarray:
    """Hidden cells that follow from the totals, (n, 2)."""
    at = np.argwhere(hidden)
    A = [at[:, 0] == r for r in np.flatnonzero(~np.isnan(row_totals))]
    A += [at[:, 1] == c for c in np.flatnonzero(~np.isnan(column_totals))]
    if not len(at) or not A:
        return at[:0]
    equations = np.array(A, float)
    fixed = 1 - (np.linalg.pinv(equations) * equations.T).sum(1)  # diagonal of I - A^+ A
    return at[fixed < 1e-9]


def protected(profiles: Profiles, minimum: int = 10) -> Profiles:
    """The same profiles with more cells of answers and traits hidden: those that tell a hidden one by subtraction.

    Everybody's share of a cell of fewer than ``minimum`` people is hidden, too, and so is a number of people ``n``
    below it.
    """
    return replace(
        profiles,
        answers=_protected(profiles.answers, "question", "option", minimum),
        traits=_protected(profiles.traits, "trait", "value", minimum),
    )


def _protected(table: pd.DataFrame, subject: str, cell: str, minimum: int) -> pd.DataFrame:
    """One table a subject, cohorts x cells, whose rows add up to ``n`` and whose columns to everybody's counts."""
    table = table.copy()
    hide, hide_share = np.zeros(len(table), bool), np.zeros(len(table), bool)
    for found in table.groupby(subject, sort=False).indices.values():
        rows = np.asarray(found)
        part = table.iloc[rows]
        k = part.cohort.nunique()
        order = rows[np.lexsort((np.arange(len(rows)), part.cohort))].reshape(k, -1)  # (k, C)
        counts, share, n = (table[c].to_numpy(dtype=float)[order] for c in ("count", "population_share", "n"))
        members = np.nanmax(np.nan_to_num(n), axis=1)
        total = members.sum()
        everybody = np.rint(share[:1] * total)
        no_share = hidden_cells(everybody, minimum, np.array([total]))[0]
        rows_known = np.where(members >= minimum, members, np.nan)
        hide[order] = hidden_cells(counts, minimum, rows_known, np.where(no_share, np.nan, everybody[0]))
        hide_share[order] = no_share
    table["suppressed"] = hide
    table[_FIGURES] = table[_FIGURES].astype(float)
    table.loc[hide, _FIGURES] = np.nan
    table["population_share"] = table.population_share.astype(float).where(~hide_share)
    n = table.n.astype(float)
    table["n"] = n.where(n >= minimum)
    return table
