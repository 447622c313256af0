"""`read_survey`: recognises what a file or folder is and calls its reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from personae.data.account import SurveyError
from personae.data.labelled import LABELLED_ENDINGS, read_labelled
from personae.data.long import is_long, read_long
from personae.data.opinionqa import read_opinionqa
from personae.data.polis import read_polis
from personae.data.sample import load_sample
from personae.data.survey import Survey
from personae.data.tables import TABLE_ENDINGS, is_table, read_header
from personae.data.wide import read_wide

FORMATS = ("wide", "long", "labelled", "polis", "opinionqa")
_ACCEPTED = (
    "a wide or long table (.csv, .csv.gz, .tsv, .parquet), an SPSS or Stata file (.sav, .dta), a folder with "
    "responses.csv (and questions.csv, respondents.csv), a Polis export (comments.csv and participants-votes.csv), "
    'an OpinionQA wave (info.csv and responses.csv), or the word "sample"'
)


def read_survey(
    path: str | Path,
    questions: str | Path | None = None,
    respondents: str | Path | None = None,
    traits: Sequence[str] | None = None,
    format: str | None = None,
) -> Survey:
    """Read a survey of any known format; ``survey.account`` says which, and what was skipped and why.

    Parameters
    ----------
    path : str or Path
        A wide or long table, an SPSS or Stata file, a folder, or ``"sample"`` for the embedded one. A folder holds
        ``responses`` (and ``questions``, ``respondents``) as CSV or Parquet, a Polis export or an OpinionQA wave.
    questions, respondents : str or Path, optional
        The two tables that go with a wide or long one; in a folder they are found by their names.
    traits : sequence of str, optional
        Columns of a wide table or variables of an SPSS or Stata file that are traits, not questions.
    format : str, optional
        ``wide``, ``long``, ``labelled``, ``polis`` or ``opinionqa`` where the guess would be wrong.

    Returns
    -------
    Survey

    Raises
    ------
    SurveyError
        Nothing is recognised, or the file is wrong; the message says where and what to do.

    Examples
    --------
    >>> survey = read_survey("sample")
    >>> survey
    Survey(2,347 respondents x 18 questions, 40,071 answers, 94.9% of cells)
    >>> survey.account.format
    'sample'
    """
    if isinstance(traits, str):
        traits = [traits]
    if format is not None and format not in FORMATS:
        raise SurveyError(f'there is no format "{format}"; the formats are {", ".join(FORMATS)}')
    if str(path) == "sample" and format is None:
        _refuse("the sample", questions=questions, respondents=respondents, traits=traits)
        return load_sample()
    path = Path(path)
    if not path.exists():
        raise SurveyError(f"there is no file or folder {path}")
    kind = format or _recognise(path)
    if kind == "polis":
        _refuse("a Polis export", questions=questions, respondents=respondents, traits=traits)
        return read_polis(path)
    if kind == "opinionqa":
        _refuse("an OpinionQA wave", questions=questions, respondents=respondents, traits=traits)
        return read_opinionqa(path)
    if kind == "labelled":
        _refuse("an SPSS or Stata file", questions=questions, respondents=respondents)
        return read_labelled(path, traits or ())
    if path.is_dir():
        questions = questions or _member(path, "questions")
        respondents = respondents or _member(path, "respondents")
        path = _member(path, "responses") or path
    if kind == "long":
        _refuse("a long table (give a respondents table)", traits=traits)
        return read_long(path, questions, respondents)
    return read_wide(path, questions, respondents, traits or ())


def _recognise(path: Path) -> str:
    if path.is_dir():
        held = {file.name for file in path.iterdir()}
        if {"comments.csv", "participants-votes.csv"} <= held:
            return "polis"
        if {"info.csv", "responses.csv"} <= held:
            return "opinionqa"
        responses = _member(path, "responses")
        if responses is None:
            shown = ", ".join(sorted(held)[:6]) or "nothing"
            raise SurveyError(f"the folder {path} is no survey (it holds {shown}); accepted are {_ACCEPTED}")
        return _recognise(responses)
    if path.name.lower().endswith(LABELLED_ENDINGS):
        return "labelled"
    if is_table(path):
        return "long" if is_long(read_header(path)) else "wide"
    raise SurveyError(f"{path.name} is not a file that can be read as a survey; accepted are {_ACCEPTED}")


def _member(folder: Path, stem: str) -> Path | None:
    """The table ``stem`` of a folder, e.g. responses.csv.gz; two of them raise."""
    found = [folder / (stem + ending) for ending in TABLE_ENDINGS if (folder / (stem + ending)).exists()]
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise SurveyError(f"the folder {folder} holds {names}; keep the one that is meant")
    return found[0] if found else None


def _refuse(what: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None and value != ():
            raise SurveyError(f"{what} takes no {name}; leave it out")
