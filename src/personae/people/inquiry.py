"""Which question to ask next, so that few answers say most about somebody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from personae.data.survey import Question
from personae.people.als import unpack
from personae.people.opinion_model import OpinionModel


class Inquiry(NamedTuple):
    """A question that is worth asking.

    Attributes
    ----------
    question : Question
    uncertainty : float
        Share of the prior variance that will be left once it is answered, 0 to 1 (see `Persona.uncertainty`).
    """

    question: Question
    uncertainty: float


def next_question(
    people: OpinionModel, answers: Mapping[str, str], among: Iterable[str] | None = None
) -> Inquiry | None:
    """The question whose answer tells most about somebody who gave these answers.

    Parameters
    ----------
    answers : dict of question id to option label
        What is known already; may be empty.
    among : iterable of question ids, optional
        Ask one of these; all of the model's where None.

    Returns
    -------
    Inquiry or None
        None if all of them are answered.

    Raises
    ------
    SurveyError
        An unknown question or option; the nearest ones are named.

    Notes
    -----
    With C the posterior covariance so far, an answer to question j leaves (`OpinionModel.fold_in`)::

        C_j = (C^-1 + M_j)^-1,   M_j = (f_j f_j' + Cov(f_j)) / s_j^2

    whatever the answer is. Asked is the j with the smallest trace of C_j: the expected squared error of the predicted
    answers to all questions ("A-optimal" design).

    Examples
    --------
    >>> from personae import OpinionModel, load_sample
    >>> people = OpinionModel(n_components=4).fit(load_sample())
    >>> answers = {}
    >>> for _ in range(3):
    ...     asked = next_question(people, answers)
    ...     print(asked.question.id, round(asked.uncertainty, 2))
    ...     answers[asked.question.id] = asked.question.options[0]
    natenvir 0.79
    natrace 0.68
    natheal 0.62
    """
    columns = np.arange(len(people.questions_)) if among is None else people.question_index(among)
    C = people.fold_in(answers).covariance
    if answers:
        columns = columns[~np.isin(columns, people.question_index(answers))]
    if not len(columns):
        return None
    C_j = np.linalg.inv(np.linalg.inv(C) + _information(people, columns))  # (q, D, D)
    left = C_j.trace(axis1=1, axis2=2)
    best = int(left.argmin())
    prior = float(np.trace(people.prior_covariance_))
    share = float(np.clip(left[best] / prior, 0, 1)) if prior > 0 else 0.0
    return Inquiry(people.questions_[columns[best]], share)


def _information(people: OpinionModel, columns: np.ndarray) -> np.ndarray:
    """M_j of questions, (q, D, D)."""
    D = people.vectors_.shape[1]
    moments = unpack(people._model.questions.moment[columns].astype(np.float64), D + 1)[:, :D, :D]
    return moments / people.noise_[columns, None, None]
