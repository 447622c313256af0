"""`Survey`: respondents x questions with ordered options, sparse and validated."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from personae.data.account import Account, SurveyError


@dataclass(frozen=True)
class Question:
    """A multiple-choice question whose options are in scale order.

    Parameters
    ----------
    id : str
        Short unique name, e.g. ``"natenvir"``.
    text : str
        The wording that a respondent (and the language model) reads.
    options : tuple of str
        At least two different labels, in scale order.
    title : str
        A few words that name the subject, e.g. ``"the environment"``; empty if unknown.
    topic : str
        The group of questions it belongs to; empty if unknown.
    """

    id: str
    text: str
    options: tuple[str, ...]
    title: str = ""
    topic: str = ""

    def option_index(self, label: str) -> int:
        """Index of an option's label; raises ``SurveyError`` naming the options there are."""
        try:
            return self.options.index(label)
        except ValueError:
            known = " | ".join(self.options)
            raise SurveyError(f'"{label}" is not an option of question "{self.id}"; it has: {known}') from None


class Survey:
    """Respondents x questions, most cells empty.

    Parameters
    ----------
    questions : sequence of Question
        Unique ids, each with at least two different options.
    respondents : sequence of str
        Unique ids, one a person.
    respondent, question, option : array of int, shape (n_answers,)
        One entry an answer: row of the person, column of the question, index of the option. Any order;
        at most one answer for a cell.
    traits : DataFrame, optional
        Demographic columns, one row a respondent in the same order (index ignored); cells are text or missing.
    account : Account, optional
        What the reader skipped and why.

    Attributes
    ----------
    respondent, question : int32 array, shape (n_answers,)
    option : int16 array, shape (n_answers,)
        The answers, sorted by person and then question.
    n_options : int array, shape (n_questions,)
    traits : DataFrame, shape (n_respondents, n_traits)
        Indexed by respondent id.

    Raises
    ------
    SurveyError
        Duplicate or empty ids, fewer than two options, an option index out of range, two answers in a cell.

    Examples
    --------
    >>> q = Question("tea", "Tea or coffee?", ("tea", "coffee"))
    >>> s = Survey([q], ["ann", "bob"], respondent=[0, 1], question=[0, 0], option=[0, 1])
    >>> s
    Survey(2 respondents x 1 questions, 2 answers, 100.0% of cells)
    >>> s.option_counts()
    array([[1, 1]])
    """

    def __init__(
        self,
        questions: Sequence[Question],
        respondents: Sequence[str] | pd.Index | np.ndarray,
        respondent: np.ndarray | Sequence[int],
        question: np.ndarray | Sequence[int],
        option: np.ndarray | Sequence[int],
        traits: pd.DataFrame | None = None,
        account: Account | None = None,
    ) -> None:
        self.questions = tuple(questions)
        self.respondent_ids = pd.Index([str(r) for r in respondents], name="respondent", dtype=object)
        self.question_ids = pd.Index([q.id for q in self.questions], name="question", dtype=object)
        self.n_options = np.array([len(q.options) for q in self.questions], dtype=np.int64)
        person, item = np.asarray(respondent, dtype=np.int32), np.asarray(question, dtype=np.int32)
        choice = np.asarray(option, dtype=np.int16)
        _check_names(self.respondent_ids, "respondent")
        _check_names(self.question_ids, "question")
        for q in self.questions:
            _check_options(q)
        _check_answers(person, item, choice, len(self.respondent_ids), self.n_options)
        cell = person.astype(np.int64) * max(len(self.questions), 1) + item
        order = np.argsort(cell, kind="stable")
        repeated = np.flatnonzero(np.diff(cell[order]) == 0)
        if len(repeated):
            i = order[repeated[0]]
            raise SurveyError(
                f'respondent "{self.respondent_ids[person[i]]}" answers question "{self.question_ids[item[i]]}" '
                f"more than once (repeats in all: {len(repeated):,}); keep one answer for each person and question"
            )
        self.respondent, self.question, self.option = person[order], item[order], choice[order]
        if traits is None:
            traits = pd.DataFrame(index=self.respondent_ids)
        if len(traits) != len(self.respondent_ids):
            raise SurveyError(f"traits have {len(traits)} rows for {len(self.respondent_ids)} respondents")
        self.traits = traits.set_axis(self.respondent_ids, axis=0)
        self.account = account or Account("memory", "survey")

    # sizes -----------------------------------------------------------------------------------------------------
    @property
    def n_respondents(self) -> int:
        return len(self.respondent_ids)

    @property
    def n_questions(self) -> int:
        return len(self.questions)

    @property
    def n_answers(self) -> int:
        return len(self.option)

    def __repr__(self) -> str:
        share = self.n_answers / max(1, self.n_respondents * self.n_questions)
        return (
            f"Survey({self.n_respondents:,} respondents x {self.n_questions:,} questions, "
            f"{self.n_answers:,} answers, {share:.1%} of cells)"
        )

    # look-up ---------------------------------------------------------------------------------------------------
    def question_index(self, ids: str | Iterable[str]) -> np.ndarray:
        """Columns of the given question ids, shape (n,); an unknown id raises with the nearest ones."""
        return look_up(self.question_ids, [ids] if isinstance(ids, str) else ids, "question")

    def respondent_index(self, ids: str | Iterable[str]) -> np.ndarray:
        """Rows of the given respondent ids, shape (n,); an unknown id raises with the nearest ones."""
        return look_up(self.respondent_ids, [ids] if isinstance(ids, str) else ids, "respondent")

    def option_counts(self) -> np.ndarray:
        """How often each option was given, shape (n_questions, max options), zero beyond a question's options."""
        width = int(self.n_options.max(initial=0))
        flat = np.bincount(self.question.astype(np.int64) * width + self.option, minlength=self.n_questions * width)
        return flat.reshape(self.n_questions, width)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the content: questions, options, respondents, answers and traits; not of the file."""
        h = hashlib.sha256()
        for q in self.questions:
            h.update("\x1f".join((q.id, q.text, q.title, q.topic, *q.options)).encode() + b"\x1e")
        h.update("\x1f".join(self.respondent_ids).encode())
        for array in (self.respondent, self.question, self.option):
            h.update(np.ascontiguousarray(array).tobytes())
        for name in self.traits.columns:
            column = self.traits[name]
            cells = column.astype(object).where(column.notna(), "\x00")
            h.update(("\x1e" + str(name) + "\x1f" + "\x1f".join(map(str, cells))).encode())
        return h.hexdigest()

    # parts -----------------------------------------------------------------------------------------------------
    def keep_answers(self, mask: np.ndarray) -> Survey:
        """The same people and questions with only the answers where ``mask`` (n_answers,) is true."""
        return Survey(
            self.questions,
            self.respondent_ids,
            self.respondent[mask],
            self.question[mask],
            self.option[mask],
            self.traits,
            self.account,
        )

    def select(self, respondents: Iterable[str] | None = None, questions: Iterable[str] | None = None) -> Survey:
        """The part with the given people and questions, in the given order; all of them where None."""
        rows = np.arange(self.n_respondents) if respondents is None else self.respondent_index(respondents)
        columns = np.arange(self.n_questions) if questions is None else self.question_index(questions)
        new_row = np.full(self.n_respondents, -1)
        new_row[rows] = np.arange(len(rows))
        new_column = np.full(self.n_questions, -1)
        new_column[columns] = np.arange(len(columns))
        person, item = new_row[self.respondent], new_column[self.question]
        kept = (person >= 0) & (item >= 0)
        return Survey(
            [self.questions[j] for j in columns],
            self.respondent_ids[rows],
            person[kept],
            item[kept],
            self.option[kept],
            self.traits.iloc[rows],
            self.account,
        )

    def answers_of(self, respondent: str) -> dict[str, str]:
        """One person's answers, question id to option label."""
        (row,) = self.respondent_index(respondent)
        mine = slice(*np.searchsorted(self.respondent, [row, row + 1]))
        return {
            self.questions[j].id: self.questions[j].options[k]
            for j, k in zip(self.question[mine], self.option[mine], strict=True)
        }

    def to_frame(self) -> pd.DataFrame:
        """Wide table of option labels, respondents x questions, missing where not answered."""
        wide = np.full((self.n_respondents, self.n_questions), None, dtype=object)
        labels = np.full((self.n_questions, int(self.n_options.max(initial=0))), None, dtype=object)
        for j, q in enumerate(self.questions):
            labels[j, : len(q.options)] = q.options
        wide[self.respondent, self.question] = labels[self.question, self.option]
        return pd.DataFrame(wide, index=self.respondent_ids, columns=self.question_ids)


def look_up(index: pd.Index, ids: Iterable[str], what: str) -> np.ndarray:
    """Positions of ``ids`` in ``index``; raises ``SurveyError`` naming the first unknown one and its neighbours."""
    wanted = list(ids)
    found = index.get_indexer(pd.Index(wanted, dtype=object))
    if (found < 0).any():
        missing = wanted[int(np.flatnonzero(found < 0)[0])]
        near = difflib.get_close_matches(str(missing), [str(i) for i in index[:20_000]], n=3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise SurveyError(f'there is no {what} "{missing}"{hint}')
    return found


def _check_names(ids: pd.Index, what: str) -> None:
    if not ids.is_unique:
        twice = ids[ids.duplicated()][0]
        raise SurveyError(f'{what} "{twice}" occurs more than once; every {what} needs an id of its own')
    empty = np.flatnonzero([not name.strip() for name in ids])
    if len(empty):
        raise SurveyError(f"{what} number {empty[0] + 1} has an empty id")


def _check_options(q: Question) -> None:
    if len(q.options) < 2:
        raise SurveyError(f'question "{q.id}" has {len(q.options)} option(s); at least two are needed')
    if len(set(q.options)) < len(q.options):
        twice = next(o for i, o in enumerate(q.options) if o in q.options[:i])
        raise SurveyError(f'question "{q.id}" lists the option "{twice}" twice')
    if any(not o.strip() for o in q.options):
        raise SurveyError(f'question "{q.id}" has an empty option')


def _check_answers(person: np.ndarray, item: np.ndarray, choice: np.ndarray, n: int, n_options: np.ndarray) -> None:
    if not len(person) == len(item) == len(choice):
        raise SurveyError("respondent, question and option differ in length")
    if not len(person):
        return
    if person.min() < 0 or person.max() >= n:
        raise SurveyError(f"an answer names respondent number {person.max()}, but there are {n}")
    if item.min() < 0 or item.max() >= len(n_options):
        raise SurveyError(f"an answer names question number {item.max()}, but there are {len(n_options)}")
    wrong = np.flatnonzero((choice < 0) | (choice >= n_options[item]))
    if len(wrong):
        i = wrong[0]
        raise SurveyError(f"answer {i} gives option {choice[i]} of a question with {n_options[item[i]]} options")
