"""One wave of the Pew American Trends Panel as released with OpinionQA (Santurkar et al., 2023)."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np

from personae.data.account import Account, SurveyError
from personae.data.build import build_by_columns, trait_frame, unique_ids
from personae.data.codebook import Entry
from personae.data.survey import Question, Survey
from personae.data.tables import Column, Table, read_table

TRAITS = (
    "CREGION",
    "AGE",
    "SEX",
    "EDUCATION",
    "CITIZEN",
    "MARITAL",
    "RELIG",
    "RELIGATTEND",
    "POLPARTY",
    "INCOME",
    "POLIDEOLOGY",
    "RACE",
)
_NO_ANSWER = ("Refused", "nan")


def read_opinionqa(folder: str | Path) -> Survey:
    """Read a folder of ``info.csv`` and ``responses.csv``.

    Parameters
    ----------
    folder : str or Path
        ``info.csv`` has a row a question: ``key``, ``question``, ``references`` (a list of labels) and
        ``option_ordinal`` (a list with the place of each label on the scale; labels beyond it, such as "Refused", are
        no answers). ``responses.csv`` has a column a key with labels, demographic columns, and ``QKEY`` as the id.

    Raises
    ------
    SurveyError
        A file or column is missing, or a list cannot be read.

    Notes
    -----
    Options are sorted by their ordinal, so that "neither" (1.5) stands between the first (1) and the second (2).
    """
    folder = Path(folder)
    account = Account(str(folder), "opinionqa")
    info = read_table(folder / "info.csv", account)
    responses = read_table(folder / "responses.csv", account)
    cells = {name: info.column(name).texts() for name in ("key", "question", "references")}
    cells["option_ordinal"] = (
        info.columns["option_ordinal"].texts() if "option_ordinal" in info.columns else np.full(info.n_rows, None)
    )
    ids = _ids(responses, account)
    questions: list[Question] = []
    columns: list[np.ndarray] = []
    seen: set[str] = set()
    for i in range(info.n_rows):
        key = cells["key"][i]
        if key is None or cells["question"][i] is None:
            raise SurveyError(f"{info.place(i, 'key')}: every question needs a key and a question")
        if key in seen:
            raise SurveyError(f'{info.place(i, "key")}: "{key}" stands in the table twice')
        seen.add(key)
        labels, ordered = _options(info, i, cells["references"][i], cells["option_ordinal"][i])
        if len(labels) < 2 or len(set(labels)) < len(labels):
            account.add("question without two different options, skipped", name=key)
            continue
        if key not in responses.columns:
            account.add("question of info.csv without a column in responses.csv, left out", name=key)
            continue
        if not ordered:
            account.add("question whose options have no order, kept in the order of info.csv", name=key)
        question = Question(key, cells["question"][i], tuple(labels))
        column = responses.columns[key]
        option = Entry(question, {label: k for k, label in enumerate(labels)}).option_codes(column)
        _tell_missing(column, option, key, account)
        columns.append(option)
        questions.append(question)
    traits = [name for name in TRAITS if name in responses.columns]
    for name in responses.columns:
        if name not in (*traits, "QKEY", *(q.id for q in questions)):
            account.add("column of responses.csv that is neither question nor trait", name=name)
    if not questions:
        raise SurveyError(f"{folder.name}: no question of info.csv has a column in responses.csv")
    demographic = {name: _without_refusals(name, responses.columns[name], account) for name in traits}
    return build_by_columns(
        account,
        questions,
        ids,
        columns,
        trait_frame(demographic) if demographic else None,
    )


def _ids(responses: Table, account: Account) -> list[str]:
    if "QKEY" in responses.columns:
        return unique_ids(responses, "QKEY")
    account.add("respondents numbered r1, r2, ... by row, as there is no column QKEY", where=responses.path.name)
    return [f"r{i + 1}" for i in range(responses.n_rows)]


def _options(info: Table, i: int, references: str | None, ordinal: str | None) -> tuple[list[str], bool]:
    """Options of row ``i`` in scale order, and whether the table gives an order at all."""
    labels = [str(label).strip() for label in _literal_list(info, i, "references", references)]
    if ordinal is None:
        return [label for label in labels if label not in _NO_ANSWER], False
    places = _literal_list(info, i, "option_ordinal", ordinal)
    if len(places) > len(labels) or not all(isinstance(x, int | float) and math.isfinite(x) for x in places):
        raise SurveyError(f"{info.place(i, 'option_ordinal')}: {ordinal} does not give a place to each option")
    return [labels[k] for k in sorted(range(len(places)), key=places.__getitem__)], len(set(places)) > 1


def _literal_list(info: Table, i: int, column: str, text: str | None) -> list:
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise SurveyError(f"{info.place(i, column)} should hold a list such as ['Yes', 'No'], not {str(text)[:60]}")
    return value


def _tell_missing(column: Column, option: np.ndarray, key: str, account: Account) -> None:
    counts = np.bincount(column.codes[option == -2], minlength=len(column.labels))
    for label, n in zip(column.labels, counts, strict=True):
        known = label in _NO_ANSWER
        reason = f'"{label}" read as missing' if known else "label that info.csv does not list, read as missing"
        account.add(reason, int(n), where=f"{key} ({n:,})" if known else f'{key} "{label}" ({n:,})')


def _without_refusals(name: str, column: Column, account: Account) -> Column:
    refused = np.isin(column.codes, [k for k, label in enumerate(column.labels) if label in _NO_ANSWER])
    n = int(refused.sum())
    account.add("trait refused, read as missing", n, where=f"{name} ({n:,})")
    return Column(np.where(refused, -1, column.codes), column.labels)
