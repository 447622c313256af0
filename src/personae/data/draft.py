"""A first version of a questions table, for a person to correct."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from personae.data.account import Account, SurveyError
from personae.data.build import respondent_column
from personae.data.codebook import as_options, order_of, unfit
from personae.data.long import is_long, long_answers
from personae.data.tables import read_table


def draft_questions(path: str | Path, account: Account | None = None) -> pd.DataFrame:
    """Draft the questions table of a wide or long file.

    Parameters
    ----------
    path : str or Path
        A wide or long CSV or Parquet file, as for `read_survey`.
    account : Account, optional
        Is told which columns look like no question and are left out.

    Returns
    -------
    DataFrame
        Columns ``question``, ``title``, ``topic``, ``text``, ``options`` and ``remark``; the last says what to check
        and may stay in the file.

    Raises
    ------
    SurveyError
        The file cannot be read, or a label holds the ``|`` that stands between options.

    Notes
    -----
    Labels such as "Refused", and 99 on a scale from 1 to 5, are no options; the remark names them. Whoever lists them
    among the options makes them options.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "colours.csv"
    >>> _ = file.write_text("respondent,colour\\nann,red\\nbob,blue\\neve,green\\n")
    >>> print(draft_questions(file)[["question", "options", "remark"]].to_string(index=False))
    question        options                                   remark
      colour blue|green|red CHECK the order of the options, write the wording
    """
    account = account or Account(str(path), "draft")
    table = read_table(path, account)
    if is_long(table.columns):
        observed = long_answers(table, account).counts
    else:
        id_name = respondent_column(table, account)
        observed = {name: column.counts() for name, column in table.columns.items() if name != id_name}
    lines = []
    for name, counts in observed.items():
        given, left_out = as_options(counts)
        labels = list(given)
        if reason := unfit(labels, sum(given.values())):
            account.add(f"skipped, not taken as a question: {reason}", name=name)
            continue
        for label in labels:
            if "|" in label:
                raise SurveyError(
                    f'{table.path.name}: the label "{label}" of {name} holds a |, which separates options'
                )
        found = order_of(labels)
        options, how = found if found else (tuple(sorted(labels)), "")
        remark = (
            f"options are {how}; write the wording" if found else "CHECK the order of the options, write the wording"
        )
        if left_out:
            remark += f"; no answers: {', '.join(left_out)}"
        lines.append((name, "", "", name, "|".join(options), remark))
    return pd.DataFrame(lines, columns=["question", "title", "topic", "text", "options", "remark"])
