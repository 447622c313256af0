"""Wide tables: one row a respondent, one column a question, cells are option labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from personae.data.account import Account, SurveyError
from personae.data.build import (
    build_by_columns,
    no_such_option,
    pick_traits,
    read_traits,
    respondent_column,
    trait_frame,
    unique_ids,
)
from personae.data.codebook import Entry, infer_questions, read_questions
from personae.data.survey import Survey
from personae.data.tables import Table, read_table


def read_wide(
    path: str | Path,
    questions: str | Path | None = None,
    respondents: str | Path | None = None,
    traits: Sequence[str] = (),
) -> Survey:
    """Read a wide CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        One row a respondent: the id (a column named ``respondent``, else the first), then one column a question. Cells
        are option labels as text, empty where there is no answer.
    questions : str or Path, optional
        The questions table (see `read_questions`). Without it the order of the options must be obvious: whole numbers,
        a well-known scale, or two labels. Cells such as "Refused" or 99 on a scale from 1 to 5, and options in another
        spelling, are understood where the table does not list them; the account says so.
    respondents : str or Path, optional
        A table with ``respondent`` and one column a trait.
    traits : sequence of str
        Columns of the wide file that are traits, not questions.

    Raises
    ------
    SurveyError
        With file, row and column of what is wrong, and what to do.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "tea.csv"
    >>> _ = file.write_text("respondent,tea,sex\\nann,agree,f\\nbob,disagree,m\\n")
    >>> read_wide(file, traits=["sex"])
    Survey(2 respondents x 1 questions, 2 answers, 100.0% of cells)
    """
    account = Account(str(path), "wide")
    table = read_table(path, account)
    id_name = respondent_column(table, account)
    ids = unique_ids(table, id_name)
    own_traits = pick_traits([name for name in table.columns if name != id_name], traits)
    candidates = [name for name in table.columns if name != id_name and name not in own_traits]
    if questions is None:
        entries = infer_questions(table.path, {name: table.columns[name].counts() for name in candidates}, account)
    else:
        entries = read_questions(questions, account)
        for name in candidates:
            if name not in entries:
                account.add("column that is not in the questions table, skipped", name=name)
        for name in entries:
            if name not in candidates:
                account.add("question of the questions table without a column, left out", name=name)
        entries = {name: entries[name] for name in entries if name in candidates}
        if not entries:
            raise SurveyError(
                f"no column of {table.path.name} ({', '.join(candidates[:5])}, ...) is a question of "
                f"{Path(questions).name}; its column question must hold the column names"
            )
    columns = _option_columns(table, entries, account)
    frames = [trait_frame({name: table.columns[name] for name in own_traits})] if own_traits else []
    if respondents is not None:
        frames.append(read_traits(respondents, ids, account))
    both = pd.concat(frames, axis=1) if frames else None
    if both is not None and not both.columns.is_unique:
        twice = both.columns[both.columns.duplicated()][0]
        raise SurveyError(
            f'the trait "{twice}" stands both in {table.path.name} and in the respondents table; take one'
        )
    return build_by_columns(account, [entry.question for entry in entries.values()], ids, columns, both)


def _option_columns(table: Table, entries: dict[str, Entry], account: Account) -> list[np.ndarray]:
    """Option indices (n_rows,) of each question; an answer outside the options raises with the first place."""
    columns = []
    first, n_wrong = (table.n_rows, ""), 0
    for name, entry in entries.items():
        column = table.columns[name]
        option = entry.widened(column.counts(), account).option_codes(column)
        if (wrong := np.flatnonzero(option == -2)).size:
            first, n_wrong = min(first, (int(wrong[0]), name)), n_wrong + len(wrong)
        columns.append(option)
    if n_wrong:
        i, name = first
        column = table.columns[name]
        raise no_such_option(table, i, name, column.labels[column.codes[i]], entries[name], n_wrong)
    return columns
