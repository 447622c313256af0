"""What lies behind the figures of a table: groups, calibration, distributions, and how coherent groups are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from personae.evaluation.coherence import coherence, crossed, random_groups
from personae.evaluation.fitted import Fitted, by_question
from personae.evaluation.metrics import reliability, representativeness, subgroup_gaps
from personae.evaluation.plan import Cell
from personae.evaluation.rows import COHORTS
from personae.evaluation.table import Scored

_SHOWN = 6  # questions whose distributions are kept
_MINIMUM = 10  # people of a group that may be shown


def groupings(fitted: Fitted, cell: Cell) -> dict[str, pd.Series]:
    """The groups that people are looked at by: respondent id to label, for cohorts and every trait."""
    group = fitted.group(cell)
    who = pd.Index(cell.pairs.respondents)
    cohort = pd.Series([f"cohort-{c}" for c in fitted.cohorts.assign(group.vectors[group.row])], index=who)
    traits = fitted.plan.traits.loc[who.unique()]
    return {"cohort": cohort[~who.duplicated()], **{str(t): traits[t] for t in traits.columns}}


def by_groups(cell: Cell, scored: Mapping[str, Scored], groups: Mapping[str, pd.Series]) -> dict[str, Any]:
    """Representativeness of everybody and of groups and calibration, of every row's first seed, and the widest gaps, of
    the mean over its seeds."""
    near: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    curves: dict[str, list[dict[str, Any]]] = {}
    for row, one in scored.items():
        pairs, p = one.pairs, one.runs[0].p
        for name, labels in {"everybody": None, **groups}.items():
            mine = None if labels is None else labels.loc[pairs.respondents].to_numpy()
            found = representativeness(p, pairs.option, pairs.question, one.n_options, mine, _MINIMUM)
            near += [{"row": row, "by": name, **_plain(line)} for _, line in found.iterrows()]
        traits = pd.DataFrame({name: labels.loc[pairs.respondents].to_numpy() for name, labels in groups.items()})
        widest = subgroup_gaps(one.right, pairs.respondents, traits, _MINIMUM)
        gaps += [{"row": row, **_plain(line)} for _, line in widest.iterrows()]
        curves[row] = [_plain(line) for _, line in reliability(p, pairs.option).iterrows()]
    return {"representativeness": near, "gaps": gaps, "reliability": curves}


def distributions(cell: Cell, scored: Mapping[str, Scored], rows: Iterable[str]) -> list[dict[str, Any]]:
    """Observed and predicted option shares of the questions with the most answers."""
    out = []
    for j, at in sorted(by_question(cell.pairs), key=lambda question: -len(question[1]))[:_SHOWN]:
        question = cell.pairs.questions[j]
        k = len(question.options)
        shares = {"observed": np.bincount(cell.pairs.option[at], minlength=k) / len(at)}
        for row in rows:
            if row in scored and len(scored[row].at) == len(cell):
                shares[row] = scored[row].runs[0].p[at, :k].mean(0)
        out.append(
            {
                "question": question.id,
                "text": question.text,
                "options": list(question.options),
                "n": len(at),
                "shares": {name: np.round(s, 4).tolist() for name, s in shares.items()},
            }
        )
    return out


def coherences(fitted: Fitted, cell: Cell) -> list[dict[str, Any]]:
    """How much of held-out answers cohorts, traits, pairs of traits and random groups explain; overall and by topic."""
    train, seed = fitted.train, fitted.random_state
    ids = train.respondent_ids
    cohorts = {len(fitted.cohorts): fitted.cohorts}
    cohorts |= {k: some for k in COHORTS if (some := fitted.cohorts_of(k)) is not None}
    groups = {f"{k} cohorts": pd.Series(c.labels_, index=ids) for k, c in sorted(cohorts.items())}
    traits = [str(t) for t in train.traits.columns if train.traits[t].nunique() > 1]
    groups |= {t: train.traits[t] for t in traits}
    found = [line for name, g in groups.items() for line in _coherence(train, cell, name, g)]
    known = [f for f in found if f["groups_by"] in traits and f["explained"] is not None]
    best = sorted(known, key=lambda f: -f["explained"])[:2]
    if len(best) == 2:
        names = [b["groups_by"] for b in best]
        groups[" x ".join(names)] = both = crossed(train.traits, names)
        found += _coherence(train, cell, " x ".join(names), both)
    for name in (*(b["groups_by"] for b in best[:1]), f"{len(fitted.cohorts)} cohorts"):
        found += _coherence(train, cell, f"random, sizes of {name}", random_groups(groups[name], seed))
    asked = {cell.pairs.questions[j].id for j in np.unique(cell.pairs.question)}
    for topic in sorted({q.topic for q in train.questions if q.topic}):
        mine = [q.id for q in train.questions if q.topic == topic]
        if asked & set(mine):
            name = f"{len(fitted.cohorts)} cohorts"
            found += _coherence(train, cell, name, groups[name], mine, topic)
    return found


def _coherence(
    train: Any, cell: Cell, name: str, groups: pd.Series, topic: list[str] | None = None, about: str = ""
) -> list[dict[str, Any]]:
    """One line; none where no held-out answer can be predicted so, as by a trait that only two people have."""
    try:
        line = coherence(train, cell.pairs, groups, topic).iloc[0]
    except ValueError:
        return []
    return [{"groups_by": name, "topic": about, **_plain(line)}]


def _plain(line: pd.Series) -> dict[str, Any]:
    """A row of a table as plain values; what is missing is None."""
    return {
        str(key): None if pd.isna(value) else value.item() if hasattr(value, "item") else value
        for key, value in line.items()
    }
