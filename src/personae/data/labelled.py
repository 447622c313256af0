"""SPSS (.sav) and Stata (.dta) files, whose variables carry their wording and value labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from personae.data.account import Account, SurveyError
from personae.data.build import build_by_columns, pick_traits
from personae.data.codebook import MAX_OPTIONS
from personae.data.no_answer import says_no_answer
from personae.data.survey import Question, Survey

LABELLED_ENDINGS = (".sav", ".zsav", ".dta")
_ID_NAMES = ("respondent", "respondent_id", "respid", "resp_id", "caseid", "case_id", "id", "qkey", "uuid", "serial")


def read_labelled(path: str | Path, traits: Sequence[str] = (), id: str | None = None) -> Survey:
    """Read an SPSS or Stata file (needs ``pip install personae[spss]``).

    Parameters
    ----------
    path : str or Path
        A ``.sav``, ``.zsav`` or ``.dta`` file. The text of a question is its variable label, the options are the value
        labels in the order of their codes. On a scale of numbers of which only some are labelled, such as its ends,
        the others are options, too, under their numbers. Values that the file declares missing, and labels such as
        "refused" or "don't know", are no answers; the account lists each with its variable and count.
    traits : sequence of str
        Variables that are traits, not questions.
    id : str, optional
        The variable with the respondent's id; else one is found by its name and unique values, else rows are counted.

    Raises
    ------
    SurveyError
        The file cannot be read, or a named variable is not in it.
    """
    path = Path(path)
    account = Account(str(path), "labelled")
    frame, meta = _read_file(path)
    names = [str(name) for name in frame.columns]
    id_name = _id_variable(path, frame, meta, id, account)
    own_traits = pick_traits(names, traits)
    ids = [f"r{i + 1}" for i in range(len(frame))] if id_name is None else _id_texts(path, frame[id_name], id_name)

    questions: list[Question] = []
    columns: list[np.ndarray] = []
    for name in names:
        if name == id_name or name in own_traits:
            continue
        codes, options_of = _options(name, frame[name], meta, account)
        if reason := _unfit(options_of):
            account.add(f"variable skipped: {reason}", name=name)
            continue
        columns.append(codes)
        text = (meta.column_names_to_labels.get(name) or "").strip()
        if not text:
            account.add("variable without a label, its name taken as the question's text", name=name)
        questions.append(Question(name, text or name, tuple(options_of)))
    if not questions:
        raise SurveyError(f"{path.name} has no variable with 2 to {MAX_OPTIONS} value labels, so no question")
    table = pd.DataFrame({name: _trait(name, frame[name], meta, account) for name in own_traits}, dtype=object)
    return build_by_columns(
        account,
        questions,
        ids,
        columns,
        table if own_traits else None,
    )


def _read_file(path: Path) -> tuple[pd.DataFrame, Any]:
    try:
        import pyreadstat
    except ImportError:
        raise SurveyError(f"{path.name} is an SPSS or Stata file; to read it: pip install personae[spss]") from None
    if not path.is_file():
        raise SurveyError(f"there is no file {path}")
    read = pyreadstat.read_dta if path.suffix.lower() == ".dta" else pyreadstat.read_sav
    try:
        frame, meta = read(path, user_missing=True)
    except (pyreadstat.ReadstatError, pyreadstat.PyreadstatError, UnicodeDecodeError, ValueError) as error:
        raise SurveyError(f"{path.name} is not a readable SPSS or Stata file: {error}") from None
    if not len(frame):
        raise SurveyError(f"{path.name} has variables but no rows; is it the right file?")
    return frame, meta


# the respondent's id -----------------------------------------------------------------------------------------------
def _id_variable(path: Path, frame: pd.DataFrame, meta: Any, given: str | None, account: Account) -> str | None:
    if given is not None:
        pick_traits([str(name) for name in frame.columns], [given])
        return given
    plain = [name for name in frame.columns if name not in meta.variable_value_labels]
    likely = sorted((n for n in plain if n.casefold() in _ID_NAMES), key=lambda n: _ID_NAMES.index(n.casefold()))
    for name in [*likely, *plain]:
        column = frame[name]
        if column.notna().all() and column.is_unique and _like_ids(column):
            account.add("variable with unique values taken as the respondent's id", name=name)
            return str(name)
    account.add("respondents numbered r1, r2, ... by row, as no variable has unique values", where=path.name)
    return None


def _like_ids(column: pd.Series) -> bool:
    """Whole numbers or single words: weights, dates and remarks are unique too, but no ids."""
    kind = pd.api.types.infer_dtype(column)
    if kind in ("integer", "floating"):
        return bool((column == column.round()).all())
    return kind == "string" and bool(column.str.fullmatch(r"\S+").all())


def _id_texts(path: Path, column: pd.Series, name: str) -> list[str]:
    texts = [_plain(value) for value in column]
    for what, wrong in (("empty", [not text for text in texts]), ("repeated", pd.Series(texts).duplicated())):
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise SurveyError(
                f"{path.name}: row {rows[0] + 1}, variable {name} is {what} (such rows in all: {len(rows):,}); "
                "every respondent needs an id of its own, name another variable or leave it to be found"
            )
    return texts


def _plain(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else str(int(value)) if value == int(value) else str(value)
    return "" if value is None else str(value).strip()


# one variable -------------------------------------------------------------------------------------------------------
def _options(name: str, column: pd.Series, meta: Any, account: Account) -> tuple[np.ndarray, list[str]]:
    """Option index of each row (-1: no answer) and the options; what was read as missing goes to the account."""
    labels = {value: str(label).strip() for value, label in meta.variable_value_labels.get(name, {}).items()}
    if not labels:
        return np.empty(0, dtype=np.int64), []
    row_value, values = pd.factorize(column)  # -1 where system-missing
    n_rows = np.bincount(row_value[row_value >= 0], minlength=len(values))
    given = {value: int(n) for value, n in zip(values, n_rows, strict=True) if value != ""}
    if between := _between_labelled(name, labels, given, meta):
        n = sum(given[value] for value in between)
        points = " to ".join(dict.fromkeys(_plain(value) for value in (between[0], between[-1])))
        reason = "answer without a label between labelled ones, its number taken as the option"
        account.add(reason, n, name=f"{name} {points} ({n:,})")
        labels |= {value: _plain(value) for value in between}
    missing: set[Any] = set()
    for value in {**labels, **given}:
        label = labels.get(value, "")
        if _declared_missing(name, value, meta):
            reason = f'value declared missing, "{label or value}"'
        elif value in labels and says_no_answer(label):
            reason = f'label read as missing, "{label}"'
        elif not label:
            reason = "value without a label read as missing"
            label = f"value {_plain(value)}"
        else:
            continue
        missing.add(value)
        if given.get(value):
            what = name if label in reason else f"{name} {label}"
            account.add(reason, given[value], where=f"{what} ({given[value]:,})")
    kept = sorted((value for value in labels if value not in missing), key=lambda v: (isinstance(v, str), v))
    position = {value: k for k, value in enumerate(kept)}
    codes = np.array([*(position.get(value, -1) for value in values), -1])[row_value]
    return codes, [labels[value] for value in kept]


def _between_labelled(name: str, labels: dict[Any, str], given: dict[Any, int], meta: Any) -> list[Any]:
    """Points of a scale that is labelled at its ends alone: whole numbers between two labels that are answers."""

    def is_answer(value: Any) -> bool:
        return not isinstance(value, str) and not _declared_missing(name, value, meta)

    ends = [value for value, label in labels.items() if label and is_answer(value) and not says_no_answer(label)]
    unnamed = [value for value in given if not labels.get(value) and is_answer(value)]
    found = sorted(value for value in unnamed if ends and min(ends) < value < max(ends))
    return found if all(value == int(value) for value in found) else []


def _declared_missing(name: str, value: Any, meta: Any) -> bool:
    if value in meta.missing_user_values.get(name, ()):  # Stata's .a to .z
        return True
    for span in meta.missing_ranges.get(name, ()):
        if isinstance(value, str) == isinstance(span["lo"], str) and span["lo"] <= value <= span["hi"]:
            return True
    return False


def _unfit(options: list[str]) -> str | None:
    if not options:
        return "it has no value labels"
    if len(options) == 1:
        return "it has a single value label besides missing ones"
    if len(options) > MAX_OPTIONS:
        return f"it has more than {MAX_OPTIONS} options"
    if len(set(options)) < len(options):
        return "two of its values share a label"
    return None


def _trait(name: str, column: pd.Series, meta: Any, account: Account) -> np.ndarray:
    if meta.variable_value_labels.get(name):
        codes, labels = _options(name, column, meta, account)
        return np.array([*labels, None], dtype=object)[codes]
    gone = [_declared_missing(name, value, meta) for value in column]
    account.add("value declared missing in a trait", sum(gone), where=f"{name} ({sum(gone):,})")
    return np.array([None if g else _plain(v) or None for g, v in zip(gone, column, strict=True)], dtype=object)
