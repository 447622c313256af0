"""Long tables: one row an answer, with the columns respondent, question and answer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from personae.data.account import Account, SurveyError
from personae.data.build import build_survey, no_such_option, read_traits
from personae.data.codebook import infer_questions, read_questions
from personae.data.survey import Survey
from personae.data.tables import Table, read_table

LONG_COLUMNS = ("respondent", "question", "answer")


def read_long(path: str | Path, questions: str | Path | None = None, respondents: str | Path | None = None) -> Survey:
    """Read a long CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        One row an answer, with the columns ``respondent``, ``question`` and ``answer`` (an option label as text), named
        in any case.
    questions, respondents : str or Path, optional
        As for `read_wide`.

    Raises
    ------
    SurveyError
        With file, row and column of what is wrong, and what to do.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "tea.csv"
    >>> _ = file.write_text("respondent,question,answer\\nann,tea,agree\\nbob,tea,disagree\\n")
    >>> read_long(file).answers_of("bob")
    {'tea': 'disagree'}
    """
    account = Account(str(path), "long")
    table = read_table(path, account)
    names = [table.name_of(name) for name in LONG_COLUMNS]
    for name in table.columns:
        if name not in names:
            account.add("column of a long file that is not read", name=name)
    who, what, answer = (table.columns[name] for name in names)
    given = long_answers(table, account)
    if questions is None:
        entries = infer_questions(table.path, given.counts, account)
    else:
        entries = read_questions(questions, account)
        for name, counts in given.counts.items():
            if name not in entries:
                account.add(
                    "question that is not in the questions table, skipped", name=f"{name} ({len(counts)} labels)"
                )
        if not any(name in entries for name in given.counts):
            raise SurveyError(
                f"no question of {table.path.name} ({', '.join(what.labels[:5])}, ...) is in {Path(questions).name}"
            )
    understood = {name: e.widened(given.counts.get(name, {}), account) for name, e in entries.items()}
    column_of = {name: j for j, name in enumerate(entries)}
    item_of_pair = np.array([column_of.get(what.labels[j], -1) for j in given.question], dtype=np.int32)
    option_of_pair = np.array(
        [
            understood[what.labels[j]].accepted.get(answer.labels[k], -2) if what.labels[j] in entries else -1
            for j, k in zip(given.question, given.answer, strict=True)
        ],
        dtype=np.int16,
    )
    rows, item, option = given.rows, item_of_pair[given.pair], option_of_pair[given.pair]
    if (wrong := np.flatnonzero(option == -2)).size:
        i = int(rows[wrong[0]])
        name, label = what.labels[what.codes[i]], answer.labels[answer.codes[i]]
        raise no_such_option(table, i, names[2], label, entries[name], len(wrong))
    account.add("answer to a question that was skipped", int((item < 0).sum()))
    known = option >= 0
    rows, item, option = rows[known], item[known], option[known]
    person = who.codes[rows]
    order = _by_cell(table, person, item, rows, len(entries))
    traits = None if respondents is None else read_traits(respondents, who.labels, account)
    questions_list = [entry.question for entry in entries.values()]
    return build_survey(account, questions_list, who.labels, person[order], item[order], option[order], traits)


def is_long(columns: Iterable[str]) -> bool:
    """Whether these are the columns of a long table, in any case."""
    return {name.casefold() for name in columns} >= set(LONG_COLUMNS)


class LongAnswers(NamedTuple):
    """Millions of rows hold few different (question, answer) pairs, so everything else looks at pairs."""

    rows: np.ndarray  # (n,) rows that hold an answer
    pair: np.ndarray  # (n,) the pair of each
    question: np.ndarray  # (n_pairs,) codes of its column
    answer: np.ndarray  # (n_pairs,)
    counts: dict[str, dict[str, int]]  # question -> answer -> how often


def long_answers(table: Table, account: Account) -> LongAnswers:
    """The answers of a long table; raises ``SurveyError`` with the row of a missing respondent or question."""
    names = [table.name_of(name) for name in LONG_COLUMNS]
    who, what, answer = (table.columns[name] for name in names)
    for name, column in zip(names, (who, what), strict=False):
        empty = np.flatnonzero(column.codes < 0)
        if len(empty):
            raise SurveyError(
                f"{table.place(int(empty[0]), name)} is empty; every row needs a respondent and a question"
            )
    rows = np.flatnonzero(answer.codes >= 0)
    account.add("row without an answer", table.n_rows - len(rows))
    n_labels = max(1, len(answer.labels))
    pair, pairs = pd.factorize(what.codes[rows].astype(np.int64) * n_labels + answer.codes[rows])
    asked, given = np.divmod(pairs, n_labels)
    counts: dict[str, dict[str, int]] = {name: {} for name in what.labels}
    for j, k, n in zip(asked, given, np.bincount(pair, minlength=len(pairs)).tolist(), strict=True):
        counts[what.labels[j]][answer.labels[k]] = n
    return LongAnswers(rows, pair, asked, given, counts)


def _by_cell(table: Table, person: np.ndarray, item: np.ndarray, rows: np.ndarray, n_questions: int) -> np.ndarray:
    """Order of the answers by person and question; the same cell twice raises with both rows."""
    cell = person.astype(np.int64) * n_questions + item
    order = np.argsort(cell, kind="stable")
    twice = np.flatnonzero(np.diff(cell[order]) == 0)
    if len(twice):
        first, second = int(rows[order[twice[0]]]), int(rows[order[twice[0] + 1]])
        who, what = (table.column(name) for name in LONG_COLUMNS[:2])
        raise SurveyError(
            f'{table.path.name}: respondent "{who.labels[who.codes[first]]}" answers question '
            f'"{what.labels[what.codes[first]]}" in row {table.row(first)} and again in row {table.row(second)} '
            f"(repeats in all: {len(twice):,}); keep one answer for each person and question"
        )
    return order
