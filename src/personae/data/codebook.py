"""The questions table, and what can be said about the order of options where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from personae.data.account import Account, SurveyError
from personae.data.no_answer import missing_codes, says_no_answer
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
    """A question and the cell texts that stand for its options.

    Examples
    --------
    >>> tea = Entry(Question("tea", "Do you like tea?", ("yes", "no")), {"yes": 0, "no": 1, "1": 0, "2": 1})
    >>> [tea.meaning(cell) for cell in ("no", "2", "2.0", "YES", "Refused", "99", "often")]
    [1, 1, 1, 0, -1, -1, -2]
    >>> tea.listed
    'yes | no (codes 1 | 2)'
    """

    question: Question
    accepted: dict[str, int]  # cell text -> option index; -1: no answer

    @property
    def listed(self) -> str:
        """The options and their codes, for a message."""
        codes = " | ".join(text for text in self.accepted if text not in self.question.options)
        return " | ".join(self.question.options) + (f" (codes {codes})" if codes else "")

    def meaning(self, cell: str) -> int:
        """Option index of a cell in any spelling that is clear, -1 for no answer, -2 for what is no option."""
        if cell in self.accepted:
            return self.accepted[cell]
        if len(same := {k for text, k in self.accepted.items() if _spelling(text) == _spelling(cell)}) == 1:
            return same.pop()
        return -1 if cell in _no_answers([*self.accepted, cell]) else -2

    def widened(self, counts: Mapping[str, int], account: Account) -> Entry:
        """The same question, which takes every cell (text -> how many) whose meaning is clear; the account says so."""
        found = {cell: self.meaning(cell) for cell in counts if cell not in self.accepted}
        for cell, k in found.items():
            n, is_number = counts[cell], math.isfinite(_number(cell))
            place = f"{self.question.id} ({n:,})"
            if k >= 0 and is_number:
                account.add("number written otherwise than in the options or codes", n, where=place)
            elif k >= 0:
                reason = f'answer spelled otherwise, taken as "{self.question.options[k]}"'
                account.add(reason, n, name=f'{self.question.id} "{cell}" ({n:,})')
            elif k == -1:
                apart = f"number apart from the scale read as missing, {cell} (list it in a questions table to keep it)"
                account.add(apart if is_number else f'label read as missing, "{cell}"', n, name=place)
        return Entry(self.question, {**self.accepted, **{cell: k for cell, k in found.items() if k > -2}})

    def option_codes(self, column: Column) -> np.ndarray:
        """Option index of each cell, shape (n_rows,): -1 where there is no answer, -2 where it is no option."""
        code = [self.accepted.get(label, -2) for label in column.labels]
        return np.array([*code, -1], dtype=np.int16)[column.codes]


def _spelling(label: str) -> str:
    """What all spellings of a label have in common: numbers their value, text its letters."""
    number = _number(label)
    return repr(number) if math.isfinite(number) else " ".join(label.casefold().split())


def _no_answers(labels: Iterable[str]) -> set[str]:
    """Labels of a question that stand for the absence of an answer."""
    number = {label: _number(label) for label in labels}
    codes = missing_codes(n for n in number.values() if math.isfinite(n))
    return {label for label, n in number.items() if n in codes or says_no_answer(label)}


def as_options(counts: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """Labels that may be options with their counts, each in its commonest spelling, and those that are no answers.

    Examples
    --------
    >>> as_options({"yes": 3, "Yes": 5, "NA": 2, "no": 4})
    ({'Yes': 8, 'no': 4}, ['NA'])
    """
    left_out = _no_answers(counts)
    spellings: dict[str, list[str]] = {}
    for label in counts:
        if label not in left_out:
            spellings.setdefault(_spelling(label), []).append(label)
    kept = {max(same, key=lambda s: counts[s]): sum(counts[s] for s in same) for same in spellings.values()}
    return kept, [label for label in counts if label in left_out]


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
        if name.casefold() not in (*known, "remark"):  # the draft of a questions table carries remarks
            account.add("column of the questions table that is not read", name=name)
    cells = {name: table.column(name).texts() for name in known[:3]}
    others = {name.casefold() for name in table.columns} & set(known[3:])
    cells |= {name: table.column(name).texts() for name in others}
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


def infer_questions(path: Path, observed: Mapping[str, Mapping[str, int]], account: Account) -> dict[str, Entry]:
    """Questions from the answers alone: name -> label -> how often it was given.

    Raises
    ------
    SurveyError
        The order of some question's options is unknown.
    """
    entries: dict[str, Entry] = {}
    unknown: list[str] = []
    for name, counts in observed.items():
        given, left_out = as_options(counts)
        labels = list(given)
        if reason := unfit(labels, sum(given.values())):
            place = f"{name} (besides {', '.join(left_out)})" if left_out else name
            account.add(f"skipped, not taken as a question: {reason}", name=place)
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
