"""Who is in a cohort and what sets it apart, from what people really answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from personae.data.survey import Survey

_BOOTSTRAP = 200
_INTERVAL = (2.5, 97.5)
_BLOCK_CELLS = 20_000_000  # bootstrap counts held at a time
_LABEL_ANSWERS = 2
_TELLING = 5
_STANDING_OUT = 8


@dataclass
class Profiles:
    """Tables about cohorts, one row a cell; every cell is there, small ones are marked and their figures empty.

    Attributes
    ----------
    traits : DataFrame
        trait, value, cohort, count, n (members whose trait is known), share, low, high, population_share, suppressed.
    answers : DataFrame
        question, option, cohort, count, n (members who answered), share, low, high, population_share, suppressed.
    telling : DataFrame
        question, cohort, n, tv, low, high, raw_tv, suppressed: how far a cohort's answers are from everybody's, most
        telling first within a cohort.
    splitting : DataFrame
        question, pairs, tv, low, high, raw_tv, suppressed: how far the cohorts' answers are from each other, mean over
        the pairs of cohorts with enough answers, most splitting first.

    Notes
    -----
    Total variation of two answer distributions is TV = 1/2 sum_k |p_k - p'_k|. That of small groups is biased upwards:
    a random group of n people has E0[TV] = 1/2 sum_k sqrt(2 v_k / pi), v_k = p_k (1 - p_k) (1/n - 1/N). The ``tv``
    columns take it out, sqrt(max(0, TV^2 - E0^2)), as noise adds in quadrature; ``raw_tv`` is as observed. Low and high
    are 95 % percentile intervals over 200 bootstrap samples of people within cohorts, whose second helping of
    noise is taken out in the same way (2 E0^2).
    """

    traits: pd.DataFrame
    answers: pd.DataFrame
    telling: pd.DataFrame
    splitting: pd.DataFrame

    @classmethod
    def of(cls, survey: Survey, labels: np.ndarray, k: int, minimum: int = 10, seed: int = 0) -> Profiles:
        """Profiles of the cohorts ``labels`` (n_respondents,), 0 to k - 1; cells of fewer than ``minimum`` people are
        suppressed."""
        weights = _bootstrap_weights(labels, k, seed)
        answers, telling, splitting = [], [], []
        for block in _question_blocks(survey, k):
            counts = _counts(survey, block, labels, k, weights)  # (1 + B, k, q, K)
            answers.append(_answer_table(survey, block, counts, minimum))
            distance = _Distances(counts, minimum)
            telling.append(distance.to_everybody(survey, block))
            splitting.append(distance.between(survey, block))
        return cls(
            _trait_table(survey.traits, labels, k, weights, minimum),
            pd.concat(answers, ignore_index=True),
            _ranked(pd.concat(telling, ignore_index=True), ["cohort"]),
            _ranked(pd.concat(splitting, ignore_index=True), []),
        )

    def telling_answers(self, cohort: int, n: int = _TELLING) -> pd.DataFrame:
        """Of the questions on which a cohort is furthest from everybody, the answers that gained most.

        Returns
        -------
        DataFrame, at most n rows
            question, option, count, n, share, low, high, population_share; no suppressed cell, and none beside which
            everybody's share is hidden.
        """
        telling, answers = self.telling, self.answers
        order = telling.question[(telling.cohort == cohort) & ~telling.suppressed]
        cells = answers[(answers.cohort == cohort) & ~answers.suppressed & answers.population_share.notna()]
        gain = (cells.share - cells.population_share).groupby(cells.question).idxmax()
        best = cells.loc[gain[[q for q in order if q in gain.index][:n]]]
        return best.drop(columns=["cohort", "suppressed"]).reset_index(drop=True)

    def standing_out(self, cohort: int, n: int = _STANDING_OUT) -> pd.DataFrame:
        """Values of traits whose 95 % interval leaves out everybody's share, the most different first.

        Returns
        -------
        DataFrame, at most n rows
            trait, value, count, n, share, low, high, population_share; no suppressed cell.
        """
        traits = self.traits
        cells = traits[(traits.cohort == cohort) & ~traits.suppressed.astype(bool)]
        cells = cells[(cells.low > cells.population_share) | (cells.high < cells.population_share)]
        away = (cells.share - cells.population_share).abs().sort_values(ascending=False, kind="stable")
        return cells.loc[away.index[:n]].drop(columns=["cohort", "suppressed"]).reset_index(drop=True)

    def mean_differences(self) -> pd.DataFrame:
        """Mean observed answer of each cohort, less everybody's, on a scale from 0 (first option) to 1 (last).

        Returns
        -------
        DataFrame, questions x cohorts
            NaN where a cohort is suppressed.

        Notes
        -----
        It is computed from what a profile shows: where fewer than ten of a cohort chose an option, the options so
        hidden share what is left of its answers as they share everybody's; options of which everybody's share is hidden
        are taken to be equally frequent.
        """
        cells = self.answers
        unknown = cells.population_share.isna().groupby([cells.question, cells.cohort]).transform("sum")
        known = cells.groupby(["question", "cohort"]).population_share.transform("sum")
        cells = cells.assign(population_share=cells.population_share.fillna((1 - known) / unknown.where(unknown > 0)))
        shown = cells.groupby(["question", "cohort"], sort=False)
        position = shown.cumcount() / (shown.share.transform("size") - 1)
        hidden = cells.population_share.where(cells.share.isna())
        all_hidden = hidden.groupby([cells.question, cells.cohort]).transform("sum")
        left = (1 - shown.share.transform("sum")).clip(lower=0)
        share = cells.share.fillna((left * hidden / all_hidden.where(all_hidden > 0)).fillna(0.0))
        away = ((share - cells.population_share) * position).where(shown.share.transform("count") > 0)
        total = away.groupby([cells.question, cells.cohort], sort=False).sum(min_count=1)
        return total.unstack("cohort")

    def label(self, cohort: int, survey: Survey) -> str:
        """A few words from a cohort's most telling answers, e.g. ``"too much: welfare; too little: the military"``."""
        telling = self.telling[(self.telling.cohort == cohort) & ~self.telling.suppressed & (self.telling.tv > 0)]
        words: list[str] = []
        seen: set[str] = set()
        mine = self.answers[(self.answers.cohort == cohort) & ~self.answers.suppressed]
        for name in telling.question:
            question = survey.questions[int(survey.question_index(name)[0])]
            cells = mine[mine.question == name]
            subject = question.title or question.id
            if len(cells) and subject not in seen:
                more = cells.share - cells.population_share
                words.append(f"{cells.option[more.idxmax()]}: {subject}")
                seen.add(subject)
            if len(words) == _LABEL_ANSWERS:
                break
        return "; ".join(words)

    def save(self, folder: Path) -> None:
        """Write the tables as Parquet."""
        for f in fields(self):
            getattr(self, f.name).to_parquet(folder / f"profile_{f.name}.parquet", index=False)

    @classmethod
    def load(cls, folder: Path) -> Profiles:
        """Read what `save` wrote."""
        return cls(**{f.name: pd.read_parquet(folder / f"profile_{f.name}.parquet") for f in fields(cls)})


class _Distances:
    """Total variation of cohorts' answers, observed (row 0) and in every bootstrap sample (the others)."""

    def __init__(self, counts: np.ndarray, minimum: int) -> None:
        self.minimum = minimum
        self.n = counts.sum(3)  # (1 + B, k, q)
        self.share = counts / np.maximum(self.n, 1)[..., None]
        total = counts.sum(1)
        self.all_n = np.maximum(total.sum(2), 1)  # (1 + B, q)
        self.all_share = total / self.all_n[..., None]
        self.noise = np.sqrt(2 / np.pi * self.all_share * (1 - self.all_share)).sum(2) / 2  # E0[TV] sqrt(n), (1 + B, q)
        self.helpings = np.where(np.arange(len(counts)) == 0, 1, 2)[:, None]

    def to_everybody(self, survey: Survey, block: np.ndarray) -> pd.DataFrame:
        k = self.n.shape[1]
        tables = []
        for c in range(k):
            n = self.n[:, c]
            raw = np.abs(self.share[:, c] - self.all_share).sum(2) / 2  # (1 + B, q)
            part = np.maximum(1 / np.maximum(n, 1) - 1 / self.all_n, 0)
            columns = self._interval(raw, part)
            table = pd.DataFrame(
                {"question": survey.question_ids[block].astype(str), "cohort": c, "n": n[0], **columns}
            )
            tables.append(_suppress(table, n[0] < self.minimum, ["n", *columns]))
        return pd.concat(tables, ignore_index=True)

    def between(self, survey: Survey, block: np.ndarray) -> pd.DataFrame:
        enough = self.n[0] >= self.minimum  # (k, q)
        k, q = enough.shape
        raw, part, pairs = np.zeros((len(self.n), q)), np.zeros((len(self.n), q)), np.zeros(q)
        square = np.zeros((len(self.n), q))
        for a in range(k):
            for b in range(a):
                both = enough[a] & enough[b]
                tv = np.abs(self.share[:, a] - self.share[:, b]).sum(2) / 2
                part = 1 / np.maximum(self.n[:, a], 1) + 1 / np.maximum(self.n[:, b], 1)
                raw += np.where(both, tv, 0)
                square += np.where(both, self._correct(tv, part), 0)
                pairs += both
        many = np.maximum(pairs, 1)
        columns = self._summary(raw / many, square / many)
        table = pd.DataFrame(
            {"question": survey.question_ids[block].astype(str), "pairs": pairs.astype(int), **columns}
        )
        return _suppress(table, pairs == 0, list(columns))

    def _correct(self, raw: np.ndarray, part: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(raw**2 - self.helpings * self.noise**2 * part, 0))

    def _interval(self, raw: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
        return self._summary(raw, self._correct(raw, part))

    @staticmethod
    def _summary(raw: np.ndarray, corrected: np.ndarray) -> dict[str, np.ndarray]:
        low, high = np.percentile(corrected[1:], _INTERVAL, axis=0)
        return {"tv": corrected[0], "low": low, "high": high, "raw_tv": raw[0]}


def _bootstrap_weights(labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """How often each person is drawn, (1 + B, N): everybody once in row 0, then samples within cohorts."""
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + _BOOTSTRAP, len(labels)), np.float32)
    for c in range(k):
        members = np.flatnonzero(labels == c)
        if len(members):
            weights[1:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), _BOOTSTRAP)
    return weights


def _question_blocks(survey: Survey, k: int) -> Iterator[np.ndarray]:
    width = int(survey.n_options.max()) * max((1 + _BOOTSTRAP) * k, survey.n_respondents)
    step = max(1, _BLOCK_CELLS // width)
    return (np.arange(j, min(j + step, survey.n_questions)) for j in range(0, survey.n_questions, step))


def _counts(survey: Survey, block: np.ndarray, labels: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
    """Weighted numbers of answers, (1 + B, k, q, K)."""
    width = int(survey.n_options.max())
    mine = (survey.question >= block[0]) & (survey.question <= block[-1])
    given = np.zeros((survey.n_respondents, len(block) * width), np.float32)
    column = (survey.question[mine] - block[0]).astype(np.int64) * width + survey.option[mine]
    given[survey.respondent[mine], column] = 1
    out = np.empty((len(weights), k, len(block), width), np.float32)
    for c in range(k):
        members = np.flatnonzero(labels == c)
        out[:, c] = (weights[:, members] @ given[members]).reshape(len(weights), len(block), width)
    return out


def _answer_table(survey: Survey, block: np.ndarray, counts: np.ndarray, minimum: int) -> pd.DataFrame:
    k = counts.shape[1]
    n = counts.sum(3, keepdims=True)
    share = counts / np.maximum(n, 1)
    low, high = np.percentile(share[1:], _INTERVAL, axis=0)
    everybody = counts[0].sum(0)
    population = everybody / np.maximum(everybody.sum(1, keepdims=True), 1)  # (q, K)
    q, o = np.nonzero(np.arange(counts.shape[3]) < survey.n_options[block, None])
    tables = []
    for c in range(k):
        table = pd.DataFrame(
            {
                "question": survey.question_ids[block[q]].astype(str),
                "option": [survey.questions[j].options[i] for j, i in zip(block[q], o, strict=True)],
                "cohort": c,
                "count": counts[0, c, q, o],
                "n": n[0, c, q, 0],
                "share": share[0, c, q, o],
                "low": low[c, q, o],
                "high": high[c, q, o],
                "population_share": population[q, o],
            }
        )
        small = (counts[0, c, q, o] < minimum) | (n[0, c, q, 0] < minimum)
        tables.append(_suppress(table, small, ["count", "share", "low", "high"]))
    return pd.concat(tables, ignore_index=True)


def _trait_table(traits: pd.DataFrame, labels: np.ndarray, k: int, weights: np.ndarray, minimum: int) -> pd.DataFrame:
    tables = []
    for trait in traits.columns:
        codes, values = pd.factorize(traits[trait], sort=True)
        has = (codes[:, None] == np.arange(len(values))).astype(np.float32)  # (N, V)
        population = has.sum(0) / max(has.sum(), 1)
        for c in range(k):
            members = np.flatnonzero(labels == c)
            counts = weights[:, members] @ has[members]  # (1 + B, V)
            n = counts.sum(1, keepdims=True)
            share = counts / np.maximum(n, 1)
            low, high = np.percentile(share[1:], _INTERVAL, axis=0)
            table = pd.DataFrame(
                {
                    "trait": trait,
                    "value": values.astype(str),
                    "cohort": c,
                    "count": counts[0],
                    "n": n[0, 0],
                    "share": share[0],
                    "low": low,
                    "high": high,
                    "population_share": population,
                }
            )
            tables.append(_suppress(table, counts[0] < minimum, ["count", "share", "low", "high"]))
    if not tables:
        columns = ["trait", "value", "cohort", "count", "n", "share", "low", "high", "population_share", "suppressed"]
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)


def _suppress(table: pd.DataFrame, small: np.ndarray, columns: list[str]) -> pd.DataFrame:
    """Keep the rows of small cells, empty their figures, and say so."""
    table["suppressed"] = small
    table[columns] = table[columns].astype(np.float64).where(~table.suppressed)
    return table


def _ranked(table: pd.DataFrame, within: list[str]) -> pd.DataFrame:
    ascending = [True] * len(within) + [False]
    return table.sort_values([*within, "tv"], ascending=ascending, kind="stable", ignore_index=True)
