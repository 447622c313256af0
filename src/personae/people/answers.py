"""Answers as arrays: standardisation, and what people not in the survey said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from personae.data.survey import Question, Survey, look_up
from personae.people.als import by_row

Answers = Mapping[str, str] | Iterable[Mapping[str, str]] | Survey
"""One person's question id to option label, several of those, or a survey."""

_LEAN = 10.0  # a question's mean and variance lean on those of all answers with so many answers' weight


class Scale:
    """Standardisation of positions in [0, 1], question by question, learned from the answers of one survey."""

    def __init__(self, mean: np.ndarray, sd: np.ndarray, n_options: np.ndarray) -> None:
        self.mean, self.sd, self.n_options = mean, sd, n_options

    @classmethod
    def of(cls, survey: Survey) -> Scale:
        return cls.of_counts(survey.option_counts(), survey.n_options)

    @classmethod
    def of_counts(cls, counts: np.ndarray, n_options: np.ndarray) -> Scale:
        """From how often each option was given, (Q, K).

        Means and variances lean on those of all answers, so that a question answered once has some too.
        """
        position = np.arange(counts.shape[1]) / (n_options - 1)[:, None]  # (Q, K)
        count, overall = counts.sum(1) + _LEAN, (counts * position).sum() / counts.sum()
        mean = overall + (counts * (position - overall)).sum(1) / count
        square = counts * (position - mean[:, None]) ** 2
        variance = (square.sum(1) + _LEAN * square.sum() / counts.sum()) / count
        return cls(mean, np.maximum(np.sqrt(variance), 0.05), n_options)

    def __call__(self, question: np.ndarray, option: np.ndarray) -> np.ndarray:
        return (option / (self.n_options[question] - 1) - self.mean[question]) / self.sd[question]

    def values(self, survey: Survey) -> np.ndarray:
        return self(survey.question, survey.option)

    def answers(self, survey: Survey) -> sp.csr_matrix:
        return by_row(
            survey.respondent, survey.question, self.values(survey), (survey.n_respondents, survey.n_questions)
        )

    def scores(self) -> np.ndarray:
        """Standardised value of every option, (Q, K)."""
        option = np.arange(self.n_options.max())
        return (option / (self.n_options - 1)[:, None] - self.mean[:, None]) / self.sd[:, None]

    def restore(self, question: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Option indices (fractional) of standardised values, within the options."""
        return np.clip(z * self.sd[question] + self.mean[question], 0, 1) * (self.n_options[question] - 1)


def collect(
    answers: Answers, questions: Sequence[Question], ids: pd.Index
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names of new people, and the person, question and option index of each answer.

    Raises ``SurveyError`` for a question that is not in ``ids`` or a label that is not among its options.
    """
    if isinstance(answers, Survey):
        column = look_up(ids, answers.question_ids, "question")
        place = np.zeros((len(column), int(answers.n_options.max(initial=0))), np.int64)
        for row, (theirs, j) in enumerate(zip(answers.questions, column, strict=True)):
            place[row, : len(theirs.options)] = [questions[j].option_index(o) for o in theirs.options]
        option = place[answers.question, answers.option]
        return list(answers.respondent_ids), answers.respondent, column[answers.question], option
    single = isinstance(answers, Mapping)
    people: list[Mapping[str, str]] = [answers] if isinstance(answers, Mapping) else list(answers)
    names = ["new person"] if single else [f"new person {i}" for i in range(len(people))]
    person = np.repeat(np.arange(len(people)), [len(p) for p in people])
    column = look_up(ids, [j for p in people for j in p], "question")
    labels = [label for p in people for label in p.values()]
    option = np.array([questions[j].option_index(o) for j, o in zip(column, labels, strict=True)], np.int64)
    return names, person, column, option
