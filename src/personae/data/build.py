"""What every reader does last: answers become a `Survey`, and the account says what was left out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from personae.data.account import Account, SurveyError
from personae.data.codebook import Entry
from personae.data.survey import Question, Survey, look_up
from personae.data.tables import Column, Table, read_table


def build_survey(
    account: Account,
    questions: Sequence[Question],
    respondents: Sequence[str],
    person: np.ndarray,
    item: np.ndarray,
    option: np.ndarray,
    traits: pd.DataFrame | None = None,
) -> Survey:
    """A survey without questions nobody answered and people without answers, both counted in the account.

    Parameters
    ----------
    account : Account
        Is told what was left out, and becomes ``survey.account``.
    questions, respondents : sequence
        Questions and ids of people that the answers point to.
    person, item, option : array of int, shape (n_answers,)
        The answers.
    traits : DataFrame, optional
        One row a respondent, same order.

    Raises
    ------
    SurveyError
        No answers at all, or whatever `Survey` refuses.
    """
    if not len(option):
        raise SurveyError(f"{Path(account.source).name} holds no answers to any known question")
    asked = np.bincount(item, minlength=len(questions)) > 0
    present = np.bincount(person, minlength=len(respondents)) > 0
    for q, kept in zip(questions, asked, strict=True):
        if not kept:
            account.add("question nobody answered, left out", name=q.id)
    tell_silent([name for name, kept in zip(respondents, present, strict=True) if not kept], account)
    survey = Survey(
        [q for q, kept in zip(questions, asked, strict=True) if kept],
        np.array(respondents, dtype=object)[present],
        (np.cumsum(present) - 1)[person],
        (np.cumsum(asked) - 1)[item],
        option,
        None if traits is None else traits[present],
        account,
    )
    straight = straight_liners(survey)
    account.add(
        "straight-liner kept (the same option position in all of 10 or more questions with the same options)",
        len(straight),
    )
    return survey


def tell_silent(names: Sequence[str], account: Account) -> None:
    """Count people without answers; a few are named, as an account is no list of people."""
    for name in names[: account.shown_examples]:
        account.add("respondent without answers, left out", where=name)
    account.add("respondent without answers, left out", max(0, len(names) - account.shown_examples))


def build_by_columns(
    account: Account,
    questions: Sequence[Question],
    respondents: Sequence[str],
    columns: Sequence[np.ndarray],
    traits: pd.DataFrame | None = None,
) -> Survey:
    """As `build_survey`, from one array (n_respondents,) of option indices a question, negative: no answer."""
    rows = [np.flatnonzero(column >= 0).astype(np.int32) for column in columns]
    item = np.repeat(np.arange(len(columns), dtype=np.int32), [len(r) for r in rows])
    option = np.concatenate([column[r] for column, r in zip(columns, rows, strict=True)])
    return build_survey(account, questions, respondents, np.concatenate(rows), item, option, traits)


def straight_liners(survey: Survey, min_answers: int = 10) -> np.ndarray:
    """Ids of people who chose the same option position in every question of a set with the same options.

    Parameters
    ----------
    survey : Survey
    min_answers : int
        Fewer answers within a set say nothing.

    Examples
    --------
    >>> questions = [Question(f"q{j}", f"Question {j}?", ("yes", "no")) for j in range(10)]
    >>> answers = [0] * 10 + [0] * 9 + [1]
    >>> s = Survey(questions, ["ann", "bob"], [0] * 10 + [1] * 10, [*range(10)] * 2, answers)
    >>> straight_liners(s)
    array(['ann'], dtype=object)
    """
    sets = pd.factorize(pd.Series([q.options for q in survey.questions], dtype=object))[0]
    sizes = np.bincount(sets)
    large = sizes[sets] >= min_answers  # (n_questions,) only these can hold enough answers
    mine = large[survey.question]
    if not mine.any():
        return np.array([], dtype=object)
    key = survey.respondent[mine].astype(np.int64) * len(sizes) + sets[survey.question[mine]]
    order = np.argsort(key, kind="stable")
    key, option = key[order], survey.option[mine][order]
    start = np.flatnonzero(np.diff(key, prepend=-1))
    count = np.diff(np.append(start, len(key)))
    same = np.minimum.reduceat(option, start) == np.maximum.reduceat(option, start)
    people = np.unique(key[start[same & (count >= min_answers)]] // len(sizes))
    return survey.respondent_ids.to_numpy()[people]


def respondent_column(table: Table, account: Account) -> str:
    """Name of the column with the ids: ``respondent`` in any case, else the first one, which the account then says."""
    for name in table.columns:
        if name.casefold() == "respondent":
            return name
    first = next(iter(table.columns))
    account.add("first column taken as the respondent's id", where=f"{table.path.name}: {first}")
    return first


def unique_ids(table: Table, name: str) -> list[str]:
    """Ids of a table with one row a person; raises ``SurveyError`` with the rows of an empty or repeated one."""
    column = table.columns[name]
    empty = np.flatnonzero(column.codes < 0)
    if len(empty):
        raise SurveyError(f"{table.place(int(empty[0]), name)} is empty; every row needs a respondent's id")
    repeated = np.flatnonzero(np.bincount(column.codes) > 1)
    if len(repeated):
        first, second = (int(i) for i in np.flatnonzero(column.codes == repeated[0])[:2])
        raise SurveyError(
            f'{table.path.name}: respondent "{column.labels[repeated[0]]}" stands in rows {table.row(first)} and '
            f"{table.row(second)} of column {name} (repeated ids in all: {len(repeated):,}); one row a person, "
            'with an id of its own in the column named "respondent" or else the first one'
        )
    return list(column.texts())


def read_traits(path: str | Path, ids: Sequence[str], account: Account) -> pd.DataFrame:
    """Read a respondents table and bring it into the order of ``ids``, missing where somebody is not in it.

    Raises
    ------
    SurveyError
        A respondent twice, or none of the table's people among ``ids``.
    """
    table = read_table(path, account)
    id_name = respondent_column(table, account)
    index = pd.Index(unique_ids(table, id_name), dtype=object)
    row = index.get_indexer(pd.Index(ids, dtype=object))  # -1 where not in the table
    known = int((row >= 0).sum())
    if not known:
        raise SurveyError(
            f"none of the {len(index):,} people of {table.path.name} (such as {index[0]}) is a respondent of the "
            f"answers (such as {ids[0]}); do both use the same ids?"
        )
    account.add("person of the respondents table without a row of answers, left out", len(index) - known)
    account.add("respondent who is not in the respondents table, traits missing", len(ids) - known)
    return trait_frame({name: column for name, column in table.columns.items() if name != id_name}, row)


def trait_frame(columns: dict[str, Column], rows: np.ndarray | None = None) -> pd.DataFrame:
    """Columns of text as traits; ``rows`` picks and orders them, -1 for a row of missing cells."""
    frame = {}
    for name, column in columns.items():
        codes = column.codes if rows is None else np.append(column.codes, np.int32(-1))[rows]
        frame[name] = Column(codes, column.labels).texts()
    return pd.DataFrame(frame, index=None if frame or rows is None else range(len(rows)), dtype=object)


def pick_traits(columns: Sequence[str], traits: Sequence[str]) -> list[str]:
    """The given trait names; an unknown one raises with the nearest."""
    look_up(pd.Index(columns, dtype=object), traits, "column")
    return list(traits)


def no_such_option(table: Table, i: int, column: str, label: str, entry: Entry, total: int) -> SurveyError:
    """The error for an answer outside the options: the first place, and how many there are."""
    near = difflib.get_close_matches(label, entry.question.options, n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    others = f"; {total:,} cells of the file are like this" if total > 1 else ""
    return SurveyError(
        f'{table.place(i, column)}: "{label}" is not an option of question "{entry.question.id}"{hint}; it has: '
        f"{entry.listed}{others}; correct the answers or the questions table, and leave the cell empty where there is "
        "no answer"
    )
