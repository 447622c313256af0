"""Exports of the Polis opinion platform: statements that people agree with, disagree with or pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from personae.data.account import Account, SurveyError
from personae.data.build import build_by_columns, no_such_option, unique_ids
from personae.data.codebook import Entry
from personae.data.survey import Question, Survey
from personae.data.tables import read_table

OPTIONS = ("disagree", "pass", "agree")
_VOTES = {"-1": 0, "0": 1, "1": 2}
TITLE_LENGTH = 60


def read_polis(folder: str | Path) -> Survey:
    """Read a Polis export folder.

    Parameters
    ----------
    folder : str or Path
        Holds ``comments.csv`` (the statements) and ``participants-votes.csv`` (1 agree, 0 pass, -1 disagree, empty not
        seen), and where wanted ``summary.csv``. Statements that the moderators rejected are left out, with a count.

    Raises
    ------
    SurveyError
        A file or column is missing, a vote is something else, a statement stands twice.
    """
    folder = Path(folder)
    account = Account(str(folder), "polis")
    _tell_conversation(folder / "summary.csv", account)
    comments = read_table(folder / "comments.csv", account)
    votes = read_table(folder / "participants-votes.csv", account)
    texts, moderated = comments.column("comment-body").texts(), comments.column("moderated").texts()
    row_of: dict[str | None, int] = {}
    for i, name in enumerate(comments.column("comment-id").texts()):
        if name in row_of:
            raise SurveyError(
                f'{comments.path.name}: statement "{name}" stands in rows {comments.row(row_of[name])} and '
                f"{comments.row(i)}; remove one"
            )
        row_of[name] = i
    votes.column("participant")
    ids = unique_ids(votes, "participant")
    questions: list[Question] = []
    columns: list[np.ndarray] = []
    for name, column in votes.columns.items():
        if not name.isdecimal():
            if name != "participant":
                account.add("column of participants-votes.csv that is no statement", name=name)
            continue
        n_votes = int((column.codes >= 0).sum())
        i = row_of.get(name, -1)
        if i < 0 or texts[i] is None:
            account.add("statement without a text, left out", name=f"{name} (votes: {n_votes:,})")
            account.add("vote on a statement without a text", n_votes)
        elif moderated[i] == "-1":
            account.add("statement that the moderators rejected, left out", name=f"{name} (votes: {n_votes:,})")
            account.add("vote on a statement that the moderators rejected", n_votes)
        else:
            question = statement_question(name, str(texts[i]))
            option = Entry(question, _VOTES).option_codes(column)
            if (wrong := np.flatnonzero(option == -2)).size:
                row = int(wrong[0])
                label = column.labels[column.codes[row]]
                codes = Question(name, question.text, tuple(_VOTES))
                raise no_such_option(votes, row, name, label, Entry(codes, {}), len(wrong))
            columns.append(option)
            questions.append(question)
    for name in row_of:
        if name not in votes.columns:
            account.add("statement without a column of votes, left out", name=str(name))
    if not questions:
        raise SurveyError(
            f"{folder.name}: no column of participants-votes.csv is an accepted statement of comments.csv"
        )
    return build_by_columns(account, questions, ids, columns)


def statement_question(name: str, statement: str) -> Question:
    """A statement as a question that a language model understands; the title is its beginning.

    Examples
    --------
    >>> statement_question("7", "More bike lanes.").text
    'Do you agree with this statement? "More bike lanes."'
    """
    words = " ".join(statement.split())
    title = words
    if len(words) > TITLE_LENGTH:
        title = words[:TITLE_LENGTH].rsplit(" ", 1)[0].rstrip(",.;:") + "…"
    return Question(name, f'Do you agree with this statement? "{words}"', OPTIONS, title=title)


def _tell_conversation(path: Path, account: Account) -> None:
    """The name of the conversation; its description may hold line ends, so only the first cells are looked at."""
    if not path.exists():
        return
    lines = dict(line.split(",", 1) for line in path.read_text("utf-8", "replace").splitlines() if "," in line)
    name = " ".join(part.strip('"') for part in (lines.get("topic", ""), lines.get("url", "")) if part)
    account.add("Polis conversation", 1, where=name or None)
