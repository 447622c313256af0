"""The questions table, and what can be said about the order of options where there is none."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from personae.data.account import Account, SurveyError
from personae.data.survey import Question
from personae.data.tables import Column, Table, read_table

MAX_OPTIONS = 15  # a column with more different labels is a number or free text unless a questions table lists it

# Answer scales whose order nobody disputes, in lower case. A column may use some of a scale's labels only.
SCALES = tuple(
    tuple(scale.split("|"))
    for scale in (
        "yes|no",
        "yes|maybe|no",
        "true|false",
        "agree|disagree",
        "agree|neutral|disagree",
        "agree|neither agree nor disagree|disagree",
        "strongly agree|agree|neutral|disagree|strongly disagree",
        "strongly agree|agree|neither agree nor disagree|disagree|strongly disagree",
        "strongly agree|somewhat agree|neither agree nor disagree|somewhat disagree|strongly disagree",
        "strongly agree|agree|slightly agree|neither agree nor disagree|slightly disagree|disagree|strongly disagree",
        "strongly agree|agree|somewhat agree|neither agree nor disagree|somewhat disagree|disagree|strongly disagree",
        "agree strongly|agree|neither agree nor disagree|disagree|disagree strongly",
        "agree strongly|agree somewhat|neither agree nor disagree|disagree somewhat|disagree strongly",
        "strongly favor|favor|neither favor nor oppose|oppose|strongly oppose",
        "strongly support|support|neither support nor oppose|oppose|strongly oppose",
        "very satisfied|satisfied|neutral|dissatisfied|very dissatisfied",
        "very satisfied|satisfied|neither satisfied nor dissatisfied|dissatisfied|very dissatisfied",
        "very satisfied|somewhat satisfied|neither satisfied nor dissatisfied|somewhat dissatisfied|very dissatisfied",
        "very important|important|moderately important|slightly important|not important",
        "very important|somewhat important|not too important|not at all important",
        "extremely important|very important|moderately important|slightly important|not at all important",
        "very likely|likely|neutral|unlikely|very unlikely",
        "very likely|somewhat likely|neither likely nor unlikely|somewhat unlikely|very unlikely",
        "always|often|sometimes|rarely|never",
        "always|usually|sometimes|rarely|never",
        "very often|often|sometimes|rarely|never",
        "excellent|very good|good|fair|poor",
        "very good|good|neutral|bad|very bad",
        "a great deal|a lot|a moderate amount|a little|none at all",
        "a great deal|a fair amount|not too much|not at all",
        "a great deal|only some|hardly any",
        "too little|about right|too much",
        "very happy|pretty happy|not too happy",
        "very liberal|liberal|moderate|conservative|very conservative",
    )
)


class Entry(NamedTuple):
    """A question and the cell texts that stand for its options."""

    question: Question
    accepted: dict[str, int]  # cell text -> option index

    def option_codes(self, column: Column) -> np.ndarray:
        """Option index of each cell, shape (n_rows,): -1 where the cell is empty, -2 where it is no option."""
        code = [self.accepted.get(label, -2) for label in column.labels]
        return np.array([*code, -1], dtype=np.int16)[column.codes]


def read_questions(path: str | Path, account: Account) -> dict[str, Entry]:
    """Read a questions table.

    Parameters
    ----------
    path : str or Path
        CSV or Parquet with the columns ``question`` (the id), ``text`` and ``options`` (joined by ``|``, in scale
        order), and where wanted ``title``, ``topic`` and ``codes``: numbers joined by ``|`` that stand for the options
        in the answers, in the same order and rising or falling all the way.
    account : Account
        Is told which columns were not read.

    Returns
    -------
    dict of str to Entry
        By question id, in the order of the table.

    Raises
    ------
    SurveyError
        A missing column or cell, a question or an option twice, fewer than two options, codes out of order.
    """
    table = read_table(path, account)
    known = ("question", "text", "options", "title", "topic", "codes")
    for name in table.columns:
        if name not in (*known, "remark"):  # the draft of a questions table carries remarks
            account.add("column of the questions table that is not read", name=name)
    cells = {name: table.column(name).texts() for name in known[:3]}
    cells |= {name: table.columns[name].texts() for name in known[3:] if name in table.columns}
    entries: dict[str, Entry] = {}
    for i in range(table.n_rows):
        row = {name: column[i] for name, column in cells.items()}
        for name in known[:3]:
            if row[name] is None:
                raise SurveyError(f"{table.place(i, name)} is empty; every question needs an id, a text and options")
        if row["question"] in entries:
            raise SurveyError(f'{table.place(i, "question")}: "{row["question"]}" stands in the table twice')
        entries[row["question"]] = _entry(table, i, row, account)
    return entries


def _entry(table: Table, i: int, row: dict[str, str | None], account: Account) -> Entry:
    written = (row["options"] or "").split("|")
    options = tuple(label.strip() for label in written)
    blanks = sum(label != option for label, option in zip(written, options, strict=True))
    account.add("option with blanks around its label, blanks removed", blanks, name=row["question"])
    name, place = row["question"], table.place  # the place costs a pass through the file, so only for a message
    if len(options) < 2:
        raise SurveyError(
            f'{place(i, "options")}: question "{name}" has the single option "{options[0]}"; '
            "at least two are needed, joined by |"
        )
    if "" in options:
        raise SurveyError(f'{place(i, "options")}: question "{name}" has an empty option; remove the extra |')
    for k, label in enumerate(options):
        if label in options[:k]:
            raise SurveyError(f'{place(i, "options")}: question "{name}" lists the option "{label}" twice')
    accepted = {label: k for k, label in enumerate(options)}
    if row.get("codes"):
        codes = [code.strip() for code in (row["codes"] or "").split("|")]
        if len(codes) != len(options):
            raise SurveyError(f'{place(i, "codes")}: question "{name}" has {len(options)} options, {len(codes)} codes')
        numbers = [_number(code) for code in codes]
        steps = [b - a for a, b in pairwise(numbers)]
        if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):  # False with NaN in it, too
            raise SurveyError(
                f'{place(i, "codes")}: the codes of question "{name}" ({row["codes"]}) neither rise nor fall all the '
                "way; write options and codes in scale order"
            )
        for k, code in enumerate(codes):
            if accepted.get(code, k) != k:
                raise SurveyError(f'{place(i, "codes")}: "{code}" is both a code and another option of "{name}"')
            accepted[code] = k
    question = Question(name or "", row["text"] or "", options, row.get("title") or "", row.get("topic") or "")
    return Entry(question, accepted)


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def order_of(labels: list[str]) -> tuple[tuple[str, ...], str] | None:
    """Labels in scale order and how that is known; None if it is not.

    Examples
    --------
    >>> order_of(["10", "9", "1"])
    (('1', '9', '10'), 'whole numbers, in numeric order')
    >>> order_of(["Disagree", "Neutral", "Agree"])
    (('Agree', 'Neutral', 'Disagree'), 'a well-known scale')
    >>> order_of(["red", "green", "blue"]) is None
    True
    """
    lower = {label.casefold(): label for label in labels}
    if len(lower) == len(labels):
        for scale in SCALES:
            if set(lower) <= set(scale):
                return tuple(lower[label] for label in scale if label in lower), "a well-known scale"
    numbers = {_number(label): label for label in labels}
    if len(numbers) == len(labels) and all(math.isfinite(x) and x == int(x) for x in numbers):
        return tuple(numbers[x] for x in sorted(numbers)), "whole numbers, in numeric order"
    if len(labels) == 2:
        return tuple(sorted(labels)), "two labels, in alphabetical order"
    return None


def unfit(labels: list[str], n_answers: int) -> str | None:
    """Why answers without a questions table are no multiple-choice question; None if they may be one."""
    if len(labels) < 2:
        return "a single label" if labels else "no answer at all"
    if len(labels) > MAX_OPTIONS:
        return f"more than {MAX_OPTIONS} different labels, so a number or free text"
    if len(labels) > 5 and 2 * len(labels) > n_answers and order_of(labels) is None:
        return "labels that hardly repeat, so free text"
    return None


def infer_questions(path: Path, observed: dict[str, tuple[list[str], int]], account: Account) -> dict[str, Entry]:
    """Questions from the answers alone: name -> (different labels, number of answers).

    Raises
    ------
    SurveyError
        The order of some question's options is unknown.
    """
    entries: dict[str, Entry] = {}
    unknown: list[str] = []
    for name, (labels, n_answers) in observed.items():
        if reason := unfit(labels, n_answers):
            account.add(f"skipped, not taken as a question: {reason}", name=name)
        elif (found := order_of(labels)) is None:
            unknown.append(name)
        else:
            options, how = found
            account.add(f"question that is in no questions table, options ordered as {how}", name=name)
            entries[name] = Entry(Question(name, name, options), {label: k for k, label in enumerate(options)})
    if unknown:
        shown = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise SurveyError(
            f"{path.name}: the order of the options is unknown for {len(unknown)} question(s) ({shown}); write a "
            f"questions table with the options in scale order: personae questions {path.name} > questions.csv "
            "prints a draft to correct"
        )
    if not entries:
        raise SurveyError(
            f"{path.name} holds nothing that looks like a multiple-choice question; "
            "write a questions table that names the questions and their options"
        )
    return entries
