"""Hold answers out, so that what is claimed is measured on answers that nothing was fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personae.data.survey import Question, Survey


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
        """``n`` of them at random, or all if there are fewer."""
        keep = np.sort(np.random.default_rng(seed).permutation(len(self))[:n])
        return Pairs(self.respondents[keep], self.questions, self.question[keep], self.option[keep])

    def losses(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the likeliest option was given, and -log of the probability of the given one, each (n,)."""
        given = p[np.arange(len(self)), self.option]
        return p.argmax(1) == self.option, -np.log(np.maximum(given, 1e-9))


@dataclass(frozen=True)
class HoldOut:
    """A survey to fit to, and what was kept from it.

    Attributes
    ----------
    train : Survey
        All people; the questions that are not new; the answers that are not held out.
    seen : Pairs
        Held-out answers to questions that others' answers are known for.
    new : Pairs
        Answers to questions that were taken out whole.
    """

    train: Survey
    seen: Pairs
    new: Pairs


def hold_out(survey: Survey, answers: float = 0.2, questions: float = 0.0, seed: int = 0) -> HoldOut:
    """Split a survey at random.

    Parameters
    ----------
    answers : float in (0, 1)
        Share of the answers to predict.
    questions : float in [0, 1)
        Share of the questions to take out whole.

    Examples
    --------
    >>> from personae import load_sample
    >>> held = hold_out(load_sample(), answers=0.2, questions=0.1)
    >>> held.train
    Survey(2,347 respondents x 16 questions, ... answers, ...% of cells)
    >>> held.train.n_answers + len(held.seen) + len(held.new)
    40071
    """
    if not (0 < answers < 1 and 0 <= questions < 1):
        raise ValueError(f"shares to hold out lie between 0 and 1; got {answers} of answers, {questions} of questions")
    rng = np.random.default_rng(seed)
    held = rng.random(survey.n_answers) < answers
    new = np.zeros(survey.n_questions, dtype=bool)
    new[rng.permutation(survey.n_questions)[: round(questions * survey.n_questions)]] = True
    is_new = new[survey.question]

    def pairs(mask: np.ndarray) -> Pairs:
        who = survey.respondent_ids.to_numpy()[survey.respondent[mask]]
        return Pairs(who, survey.questions, survey.question[mask], survey.option[mask].astype(np.int64))

    train = survey.keep_answers(~held & ~is_new)
    if new.any():
        train = train.select(questions=survey.question_ids[~new])
    if train.n_answers == 0:
        raise ValueError("nothing is left to fit to; hold less out")
    return HoldOut(train, pairs(held & ~is_new), pairs(is_new))
