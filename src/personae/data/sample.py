"""The embedded sample: opinions on national spending from the General Social Survey 2018."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from personae.data.account import Account
from personae.data.build import build_by_columns, unique_ids
from personae.data.codebook import read_questions
from personae.data.survey import Survey
from personae.data.tables import read_table

SOURCE = "NORC, General Social Survey 2018"
_FOLDER = Path(__file__).parent / "samples"


def load_sample() -> Survey:
    """Load the opinions of 2,347 people on 18 fields of national spending, with ten traits.

    Returns
    -------
    Survey
        Options in scale order: too little, about right, too much. ``survey.account.source`` names the source;
        ``samples/README.md`` beside this file says how the table was made.

    Examples
    --------
    >>> survey = load_sample()
    >>> survey.answers_of("r0001")["natenvir"]
    'about right'
    >>> survey.traits.loc["r0001", "age"]
    '30-44'
    """
    reading = Account(SOURCE, "sample")  # what reading our own files changes is nobody's concern
    table = read_table(_FOLDER / "gss_spending.parquet", reading)
    entries = read_questions(_FOLDER / "gss_spending_questions.csv", reading)
    labels = read_table(_FOLDER / "gss_spending_traits.csv", reading)
    label_of: dict[str, dict[str, str]] = {}
    cells = (labels.column(name).texts() for name in ("trait", "code", "label"))
    for trait, code, label in zip(*cells, strict=True):
        label_of.setdefault(trait, {})[code] = label
    traits = pd.DataFrame(
        {trait: [names.get(code) for code in table.column(trait).texts()] for trait, names in label_of.items()},
        dtype=object,
    )
    questions = [entry.question for entry in entries.values()]
    columns = [entry.option_codes(table.column(name)) for name, entry in entries.items()]
    return build_by_columns(Account(SOURCE, "sample"), questions, unique_ids(table, "respondent"), columns, traits)
