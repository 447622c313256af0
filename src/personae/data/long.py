"""Long tables: one row an answer, with the columns respondent, question and answer."""

from __future__ import annotations

from pathlib import Path

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
        One row an answer, with the columns ``respondent``, ``question`` and ``answer`` (an option label as text).
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
    for name in table.columns:
        if name not in LONG_COLUMNS:
            account.add("column of a long file that is not read", name=name)
    who, what, answer = (table.column(name) for name in LONG_COLUMNS)
    for name, column in zip(LONG_COLUMNS[:2], (who, what), strict=True):
        empty = np.flatnonzero(column.codes < 0)
        if len(empty):
            raise SurveyError(
                f"{table.place(int(empty[0]), name)} is empty; every row needs a respondent and a question"
            )
    rows = np.flatnonzero(answer.codes >= 0)
    account.add("row without an answer", table.n_rows - len(rows))

    pair_of_row, asked, given = answer_pairs(table, rows)
    labels_of = labels_by_question(table, asked, given)
    if questions is None:
        n_answers = np.bincount(what.codes[rows], minlength=len(what.labels))
        observed = {name: (labels_of[name], int(n)) for name, n in zip(what.labels, n_answers, strict=True)}
        entries = infer_questions(table.path, observed, account)
    else:
        entries = read_questions(questions, account)
        for name, labels in labels_of.items():
            if name not in entries:
                account.add(
                    "question that is not in the questions table, skipped", name=f"{name} ({len(labels)} labels)"
                )
        if not any(name in entries for name in labels_of):
            raise SurveyError(
                f"no question of {table.path.name} ({', '.join(what.labels[:5])}, ...) is in {Path(questions).name}"
            )
    column_of = {name: j for j, name in enumerate(entries)}
    item_of_pair = np.array([column_of.get(what.labels[j], -1) for j in asked], dtype=np.int32)
    option_of_pair = np.array(
        [
            entries[what.labels[j]].accepted.get(answer.labels[k], -2) if what.labels[j] in entries else -1
            for j, k in zip(asked, given, strict=True)
        ],
        dtype=np.int16,
    )
    item, option = item_of_pair[pair_of_row], option_of_pair[pair_of_row]
    if (wrong := np.flatnonzero(option == -2)).size:
        i = int(rows[wrong[0]])
        name, label = what.labels[what.codes[i]], answer.labels[answer.codes[i]]
        raise no_such_option(table, i, "answer", label, entries[name].question, len(wrong))
    known = option >= 0
    account.add("answer to a question that was skipped", int((~known).sum()))
    rows, item, option = rows[known], item[known], option[known]
    person = who.codes[rows]
    order = _by_cell(table, person, item, rows, len(entries))
    traits = None if respondents is None else read_traits(respondents, who.labels, account)
    questions_list = [entry.question for entry in entries.values()]
    return build_survey(account, questions_list, who.labels, person[order], item[order], option[order], traits)


def answer_pairs(table: Table, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Millions of rows hold few different (question, answer) pairs, so everything else looks at pairs.

    Returns the pair of each of the ``rows``, and the question code and the answer code of each pair.
    """
    _, what, answer = (table.column(name) for name in LONG_COLUMNS)
    n_labels = max(1, len(answer.labels))
    pair_of_row, pairs = pd.factorize(what.codes[rows].astype(np.int64) * n_labels + answer.codes[rows])
    return pair_of_row, *np.divmod(pairs, n_labels)


def labels_by_question(table: Table, asked: np.ndarray, given: np.ndarray) -> dict[str, list[str]]:
    """The different answers to each question, in the order in which they first occur."""
    _, what, answer = (table.column(name) for name in LONG_COLUMNS)
    labels_of: dict[str, list[str]] = {name: [] for name in what.labels}
    for j, k in zip(asked, given, strict=True):
        labels_of[what.labels[j]].append(answer.labels[k])
    return labels_of


def _by_cell(table: Table, person: np.ndarray, item: np.ndarray, rows: np.ndarray, n_questions: int) -> np.ndarray:
    """Order of the answers by person and question; the same cell twice raises with both rows."""
    cell = person.astype(np.int64) * n_questions + item
    order = np.argsort(cell, kind="stable")
    twice = np.flatnonzero(np.diff(cell[order]) == 0)
    if len(twice):
        first, second = int(rows[order[twice[0]]]), int(rows[order[twice[0] + 1]])
        who, what = (table.columns[name] for name in LONG_COLUMNS[:2])
        raise SurveyError(
            f'{table.path.name}: respondent "{who.labels[who.codes[first]]}" answers question '
            f'"{what.labels[what.codes[first]]}" in row {table.row(first)} and again in row {table.row(second)} '
            f"(repeats in all: {len(twice):,}); keep one answer for each person and question"
        )
    return order
