"""Who and what is held out: one plan, made once, under which everything is fitted and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from personae.data.survey import Question, Survey

GIVEN = (1, 5, 10, 20, 50, 100)  # answers of unseen people that may be known, as in the paper's Table 6


@dataclass(frozen=True)
class Pairs:
    """Answers to predict: who, which question, which option.

    Attributes
    ----------
    respondents : array of str, shape (n,)
    questions : tuple of Question
        All questions of the survey the pairs were taken from.
    question, option : int array, shape (n,)
        Index into ``questions``, and of the option given.
    """

    respondents: np.ndarray
    questions: tuple[Question, ...]
    question: np.ndarray
    option: np.ndarray

    def __len__(self) -> int:
        return len(self.option)

    def sample(self, n: int, seed: int) -> Pairs:
        """``n`` of them at random, or all if there are fewer; a smaller sample is part of a larger one."""
        return self[self.sampled(n, seed)]

    def sampled(self, n: int, seed: int) -> np.ndarray:
        """Places of `sample`, ascending."""
        return np.sort(np.random.default_rng(seed).permutation(len(self))[:n])

    def __getitem__(self, keep: np.ndarray) -> Pairs:
        return Pairs(self.respondents[keep], self.questions, self.question[keep], self.option[keep])


@dataclass(frozen=True)
class Cell:
    """Answers of one kind to predict.

    Attributes
    ----------
    name : str
    pairs : Pairs
    given : Survey or None
        What is known of people who were not fitted; None where they were.
    new : bool
        Whether the questions were kept out of training.
    """

    name: str
    pairs: Pairs
    given: Survey | None = None
    new: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, keep: np.ndarray) -> Cell:
        """Some of its answers; all of them are the cell itself."""
        return self if len(keep) == len(self) else replace(self, pairs=self.pairs[keep])


@dataclass(frozen=True)
class Plan:
    """A survey to fit to, and the answers kept from it.

    Attributes
    ----------
    train : Survey
        The people to fit, the questions that are not new, the answers that are not held out.
    cells : dict of str to Cell
        ``seen`` (held-out answers of fitted people), ``new`` (their answers to questions kept out whole),
        ``unseen-K`` (people who were not fitted, from K of their answers or all if they gave fewer) and ``unseen-new``
        (the same people and new questions, from the most answers given); those that have answers.
    tuning : Cell
        Held-out answers of fitted people who are in no other cell: for weights and temperatures, never for a claim.
    traits : DataFrame
        Of everybody, fitted or not.
    settings : dict
        How the plan was made.
    """

    train: Survey
    cells: dict[str, Cell]
    tuning: Cell
    traits: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def sample(self, n: int, seed: int = 0) -> Plan:
        """The plan with ``n`` answers a cell at random; cells of the same answers keep the same ones."""
        pairs = {id(c.pairs): c.pairs.sample(n, seed) for c in (*self.cells.values(), self.tuning)}
        cells = {name: replace(cell, pairs=pairs[id(cell.pairs)]) for name, cell in self.cells.items()}
        return replace(self, cells=cells, tuning=replace(self.tuning, pairs=pairs[id(self.tuning.pairs)]))

    @property
    def fingerprint(self) -> str:
        """Of everything that is fitted to and predicted: sha256, 16 hexadecimal digits."""
        digest = hashlib.sha256(self.train.fingerprint.encode())
        for name, cell in {**self.cells, "tuning": self.tuning}.items():
            digest.update(name.encode())
            digest.update("\0".join(cell.pairs.respondents.tolist()).encode())
            digest.update("\0".join(q.id for q in cell.pairs.questions).encode())
            digest.update(np.stack([cell.pairs.question, cell.pairs.option]).astype("<i8").tobytes())
            digest.update(cell.given.fingerprint.encode() if cell.given else b"")
        return digest.hexdigest()[:16]


def make_plan(
    survey: Survey,
    answers: float = 0.2,
    people: float = 0.0,
    questions: float = 0.0,
    tuning: float = 0.0,
    given: Sequence[int] = GIVEN,
    seed: int = 0,
) -> Plan:
    """Split a survey at random.

    Parameters
    ----------
    answers : float in (0, 1)
        Share of the answers to predict, of fitted people and of those who are not.
    people, questions : float in [0, 1)
        Share of the people, and of the questions, to take out whole.
    tuning : float in [0, 1)
        Share of the fitted people whose held-out answers serve choices instead of claims.
    given : sequence of int
        For people who were not fitted: how many of their other answers are known, as far as they gave so many; a number
        that adds no answer is left out. The answers to predict are the same for each number, and those known with a
        smaller number are among those known with a larger one.

    Examples
    --------
    >>> from personae import load_sample
    >>> plan = make_plan(load_sample(), answers=0.2, people=0.1, questions=0.1, given=(1, 5))
    >>> plan.train
    Survey(2,112 respondents x 16 questions, ... answers, ...% of cells)
    >>> list(plan.cells)
    ['seen', 'new', 'unseen-1', 'unseen-5', 'unseen-new']
    """
    shares = {"answers": answers, "people": people, "questions": questions, "tuning": tuning}
    if not (0 < answers < 1 and all(0 <= share < 1 for share in shares.values())):
        raise ValueError(f"shares to hold out lie between 0 and 1; got {shares}")
    if any(k < 1 for k in given):
        raise ValueError(f"people who were not fitted are known by at least one answer each; got given={list(given)}")
    rng = np.random.default_rng(seed)
    held = rng.random(survey.n_answers) < answers
    new_questions = _some(rng, survey.n_questions, questions)
    unseen_people = _some(rng, survey.n_respondents, people)
    new, unseen = new_questions[survey.question], unseen_people[survey.respondent]
    tuned = _some(rng, survey.n_respondents, tuning)[survey.respondent]
    rank = _rank(rng, survey.respondent, ~held & ~new)  # among each person's answers that may be known

    def pairs(mask: np.ndarray) -> Pairs:
        who = survey.respondent_ids.to_numpy()[survey.respondent[mask]]
        return Pairs(who, survey.questions, survey.question[mask], survey.option[mask].astype(np.int64))

    def part(mask: np.ndarray) -> Survey:
        """People and questions that have answers under the mask."""
        ids = survey.respondent_ids[np.unique(survey.respondent[mask])]
        return survey.keep_answers(mask).select(ids, survey.question_ids[np.unique(survey.question[mask])])

    known = ~held & ~new & ~unseen
    if not known.any():
        raise ValueError("nothing is left to fit to; hold less out")
    train = survey.keep_answers(known).select(
        survey.respondent_ids[~unseen_people], survey.question_ids[~new_questions]
    )
    test = held & ~new & ~tuned
    cells = [Cell("seen", pairs(test & ~unseen)), Cell("new", pairs(new & ~unseen & ~tuned), new=True)]
    later = pairs(held & ~new & unseen)
    if given and unseen.any():
        known_by = {k: unseen & (rank < k) for k in sorted(given)}
        more = [
            k
            for k, last in zip(known_by, [0, *known_by], strict=False)
            if not last or (known_by[k] ^ known_by[last]).any()
        ]
        cells += [Cell(f"unseen-{k}", later, part(known_by[k])) for k in more]
        most = part(unseen & (rank < max(given)))
        cells.append(Cell("unseen-new", pairs(new & unseen), most, new=True))
    settings = {**shares, "given": sorted(given), "seed": seed, "survey": survey.fingerprint}
    tuning_cell = Cell("tuning", pairs(held & ~new & tuned & ~unseen))
    return Plan(train, {c.name: c for c in cells if len(c)}, tuning_cell, survey.traits, settings)


def _some(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """A random share of n things, as flags."""
    out = np.zeros(n, dtype=bool)
    out[rng.permutation(n)[: round(share * n)]] = True
    return out


def _rank(rng: np.random.Generator, person: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Place of each allowed answer in a random order of its person's; beyond all numbers where not allowed."""
    order = rng.permutation(len(person))
    order = order[np.lexsort((~allowed[order], person[order]))]  # by person, allowed ones first, else random
    first = np.searchsorted(person[order], person[order])
    rank = np.empty(len(person), dtype=np.int64)
    rank[order] = np.arange(len(person)) - first
    return np.where(allowed, rank, np.iinfo(np.int64).max)
