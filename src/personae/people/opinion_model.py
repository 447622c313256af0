"""`OpinionModel`: people's vectors from their answers, and anybody's option probabilities from a vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from personae.data.account import SurveyError
from personae.data.survey import Survey, look_up
from personae.people.als import Factorization, Side, by_row, chunks, expand, factorize
from personae.people.answers import Answers, Scale, collect
from personae.people.choice import choose, readout_of
from personae.people.persona import Persona, Personas
from personae.people.readout import Readout
from personae.people.spread import beyond

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from personae.people.map import Groups


class OpinionModel(BaseEstimator):
    """Learn who people are from what they answered, and predict what they would answer.

    Parameters
    ----------
    n_components : int or "auto"
        Dimension d of u and q; a person vector has d + 1 numbers. "auto" doubles it from 4 to at most 32 as long as
        a held-out tenth of the answers is predicted more than 0.2 % better (RMSE).
    random_state : int
        Seeds the starting factors and the inner split.

    Attributes
    ----------
    vectors_ : float32 array, shape (N, D)
        Person vectors [u, b], D = d + 1, posterior means. Sorted by variance, uncorrelated in u.
    question_factors_ : float32 array, shape (Q, D)
        [q, 1], centred and white over the questions in q.
    question_bias_, noise_ : array, shape (Q,)
        c, and the variance of an answer around the prediction (standardised units).
    prior_covariance_ : array, shape (D, D)
        Of somebody who answered nothing; the prior mean is zero.
    typical_covariance_ : array, shape (D, D)
        Mean posterior covariance of the fitted people.
    strength_ : float
        The chosen strength of the read-outs.
    confidence_ : float
        The chosen share, 0 to 1, of the way from a question's marginal to the read-out's logits.
    validation_ : list of dict
        What the inner validation saw.
    questions_, respondent_ids_, traits_
        Of the survey it was fitted to.
    survey_ : Survey or None
        That survey itself, kept in memory only; None after `load`.

    Notes
    -----
    Answers are standardised question by question, z = (position - m_j) / s_j with position in [0, 1] over the
    options, and factorised as z_ij = u_i . q_j + b_i + c_j + noise_j by alternating least squares whose
    regularisation is learned (`personae.people.als.factorize`): there is no strength to tune. The posterior of a person
    given the question factors is Gaussian in closed form, for the fitted and for new people alike. Option
    probabilities come from one shrunken multinomial logit a question (`personae.people.readout.fit_readout`).

    The factors of a small survey fit its own people too well, and with them the read-outs are overconfident. So the
    logits keep only a share of their distance from those of the question's smoothed marginal, and the share is chosen
    by answers that no part of the model saw (`personae.people.choice.choose`): a survey without structure, or too
    small to show it, gets its marginals.

    The squared distance of two person vectors is the mean squared difference of their predicted standardised answers
    over all questions.

    Examples
    --------
    >>> import numpy as np
    >>> from personae.data.survey import Question, Survey
    >>> rng = np.random.default_rng(0)
    >>> side = rng.choice([-1, 1], 300)
    >>> chance = 1 / (1 + np.exp(-2 * side[:, None] * np.tile([1, -1], 5)))
    >>> said = (rng.random((300, 10)) < chance).astype(int)
    >>> person, question = np.nonzero(np.ones_like(said))
    >>> survey = Survey([Question(f"q{j}", f"Do you like {j}?", ("no", "yes")) for j in range(10)],
    ...                 [f"r{i}" for i in range(300)], person, question, said.ravel())
    >>> people = OpinionModel(n_components=2).fit(survey)
    >>> people.vectors_.shape
    (300, 3)
    >>> me = people.fold_in({"q0": "yes", "q1": "no"})
    >>> no, yes = people.predict_proba(me, ["q2"])[0, 0]
    >>> bool(yes > 0.8)
    True
    """

    def __init__(self, n_components: int | Literal["auto"] = "auto", random_state: int = 0) -> None:
        self.n_components = n_components
        self.random_state = random_state

    # learning --------------------------------------------------------------------------------------------------
    def fit(self, survey: Survey, y: None = None) -> OpinionModel:
        """Learn vectors, factors and read-outs from every answer of the survey.

        Raises
        ------
        SurveyError
            The survey has no answers.
        ValueError
            ``n_components`` is neither "auto" nor an integer from 1 to the smaller side of the survey.
        """
        d = self._choose(survey)
        scale = Scale.of(survey)
        model = factorize(scale.answers(survey), d, seed=self.random_state)
        readout = readout_of(model, scale, survey, self.strength_).tempered(self.confidence_, survey)
        return self._learned(survey, scale, model, readout, model.people.mean_covariance())

    def _choose(self, survey: Survey) -> int:
        """The dimension; strength and confidence of the read-outs are set."""
        if survey.n_answers == 0:
            raise SurveyError("the survey has no answers to learn from")
        most = min(survey.n_respondents, survey.n_questions)
        d = self.n_components
        if d != "auto" and not (isinstance(d, (int, np.integer)) and 1 <= d <= most):
            raise ValueError(f'n_components is {d!r}; it is "auto" or an integer from 1 to {most} for this survey')
        chosen = choose(survey, None if d == "auto" else int(d), self.random_state)
        dimension, self.strength_, self.confidence_, self.validation_ = chosen
        return dimension

    def _learned(
        self, survey: Survey, scale: Scale, model: Factorization, readout: Readout, typical: np.ndarray
    ) -> OpinionModel:
        """Keep what was learned; ``model.people`` are those of the survey, in order."""
        self.questions_, self.respondent_ids_ = survey.questions, survey.respondent_ids
        self.survey_: Survey | None = survey
        self.traits_, self.fingerprint_ = survey.traits, survey.fingerprint
        self._scale, self._readout, self.typical_covariance_ = scale, readout, typical
        nothing = np.empty((0, 0), np.float32)  # covariances are computed on demand, not kept for everybody
        people = Side(model.people.mean, nothing, model.people.prior, model.people.constant)
        self._answers: sp.csr_matrix | None = None
        self._set(Factorization(people, model.questions, model.noise, model.sweeps))
        return self

    def _set(self, model: Factorization) -> None:
        D = model.people.mean.shape[1] - 1
        self._model = model
        self.n_components_ = D - 1
        self.vectors_ = np.ascontiguousarray(model.people.mean[:, :D])
        self.question_factors_ = np.ascontiguousarray(model.questions.mean[:, :D])
        self.question_bias_ = model.questions.mean[:, D]
        self.noise_, self.prior_covariance_ = model.noise, model.people.prior
        self._question_ids = pd.Index([q.id for q in self.questions_], dtype=object)

    # people ----------------------------------------------------------------------------------------------------
    def __getitem__(self, respondent: str) -> Persona:
        return self.persona(respondent)

    def __len__(self) -> int:
        return len(self.respondent_ids_)

    def persona(self, respondents: str | Iterable[str], name: str = "", label: str = "") -> Persona:
        """The persona of a fitted respondent, or the centroid of several.

        Raises
        ------
        SurveyError
            An unknown respondent (the nearest ones are named), or none at all.
        """
        check_is_fitted(self)
        if isinstance(respondents, str):
            (row,) = look_up(self.respondent_ids_, [respondents], "respondent")
            origin = {"kind": "respondent", "respondent": respondents}
            return self._persona(
                name or respondents, self.vectors_[row], self.covariance(np.array([row]))[0], origin, label
            )
        rows = look_up(self.respondent_ids_, respondents, "respondent")
        return self.centroid(rows, name or "group", {"kind": "group"}, label)

    def centroid(self, rows: np.ndarray, name: str, origin: dict[str, Any], label: str = "") -> Persona:
        """Mean vector of fitted people, given by row; the covariance is that of a random one of them."""
        if len(rows) == 0:
            raise SurveyError(f'"{name}" has no members')
        vectors = self.vectors_[rows].astype(np.float64)
        mean = vectors.mean(0)
        spread = (vectors - mean).T @ (vectors - mean) / len(rows)
        within = sum(
            self.covariance(rows[part]).sum(0, dtype=np.float64) for part in chunks(len(rows), 8 * len(spread) ** 2)
        )
        return self._persona(name, mean, spread + within / len(rows), {**origin, "people": len(rows)}, label)

    def trait_persona(self, trait: str, value: str, minimum: int = 10) -> Persona:
        """Centroid of the respondents with a trait.

        Raises
        ------
        SurveyError
            An unknown trait or value (the nearest ones are named), or fewer than ``minimum`` people.
        """
        check_is_fitted(self)
        look_up(pd.Index(self.traits_.columns, dtype=object), [trait], "trait")
        column = self.traits_[trait]
        look_up(pd.Index(column.dropna().unique(), dtype=object), [value], f'value of the trait "{trait}"')
        rows = np.flatnonzero((column == value).fillna(False).to_numpy(dtype=bool))
        if len(rows) < minimum:
            raise SurveyError(
                f'only {len(rows)} people have {trait} "{value}"; a trait group needs at least {minimum} '
                "so that nobody is recognisable"
            )
        origin = {"kind": "trait group", "trait": trait, "value": value}
        return self.centroid(rows, f"{trait}={value}", origin, value)

    def covariance(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Posterior covariances of fitted people, (n, D, D), computed on demand.

        After `load` they are the saved ones; of very large surveys only the variances (the diagonal) are saved.
        """
        check_is_fitted(self)
        if self.survey_ is None:
            return expand(self._covariance[rows], self.vectors_.shape[1])
        if self._answers is None:
            self._answers = self._scale.answers(self.survey_)
        return self._model.fold_in(self._answers[rows]).covariance()

    @overload
    def fold_in(self, answers: Mapping[str, str]) -> Persona: ...
    @overload
    def fold_in(self, answers: Iterable[Mapping[str, str]] | Survey) -> list[Persona]: ...
    def fold_in(self, answers: Answers) -> Persona | list[Persona]:
        """Personas of new people, in closed form; the model does not change.

        Parameters
        ----------
        answers : dict of question id to option label, sequence of those, or Survey
            No answers at all give the prior: the average person, with all its uncertainty. Questions of a survey are
            matched by id and options by label.

        Returns
        -------
        Persona, or list of Persona
            One for a dict, a list for the others.

        Raises
        ------
        SurveyError
            An unknown question or option; the nearest ones are named.

        Notes
        -----
        C = (S^-1 + sum_j (f_j f_j' + Cov(f_j)) / s_j^2)^-1 and x = C sum_j f_j (z_j - c_j) / s_j^2, where Cov(f_j) is
        how well the factor of question j is known.
        """
        check_is_fitted(self)
        matrix, names, counts = self._new_answers(answers)
        people = self._model.fold_in(matrix)
        covariance = people.covariance()
        personas = [
            self._persona(name, people.mean[i, :-1], covariance[i], {"kind": "fold-in", "answers": int(n)})
            for i, (name, n) in enumerate(zip(names, counts, strict=True))
        ]
        return personas[0] if isinstance(answers, Mapping) else personas

    def transform(self, survey: Survey) -> np.ndarray:
        """Vectors of new people, (n, D): the fold-in without covariances."""
        check_is_fitted(self)
        return self._model.fold_in(self._new_answers(survey)[0]).mean[:, :-1]

    def _persona(
        self, name: str, vector: np.ndarray, covariance: np.ndarray, origin: dict[str, Any], label: str = ""
    ) -> Persona:
        return Persona(name, vector, covariance, float(np.trace(self.prior_covariance_)), origin, label)

    def _new_answers(self, answers: Answers) -> tuple[sp.csr_matrix, list[str], np.ndarray]:
        """Standardised answers (n, Q), names and numbers of answers."""
        names, person, question, option = collect(answers, self.questions_, self._question_ids)
        shape = (len(names), len(self.questions_))
        return (
            by_row(person, question, self._scale(question, option), shape),
            names,
            np.bincount(person, minlength=shape[0]),
        )

    # answers ---------------------------------------------------------------------------------------------------
    def predict_proba(self, personas: Personas, questions: str | Iterable[str] | None = None) -> np.ndarray:
        """Option probabilities of any people and questions.

        Parameters
        ----------
        personas : Persona, sequence of Persona, or array of shape (D,) or (P, D)
        questions : question id or ids, optional
            All of them where None.

        Returns
        -------
        float32 array, shape (P, Q, K)
            K is the largest number of options of all the model's questions; zero beyond a question's own. Rows sum to
            one.

        Notes
        -----
        The read-outs are calibrated for people as well known as those of the survey. A persona that is less certain
        (two answers) or more spread (a cohort) than they are gets the mean of the probabilities over what exceeds
        their mean covariance: somebody unknown is close to the marginals, a cohort answers like a random member.
        Bare vectors are taken as they are.
        """
        columns = self._columns(questions)
        return self._readout.predict_proba(self._vectors_of(personas), columns, self._excess(personas))

    def predict_proba_pairs(
        self, person: np.ndarray, question: np.ndarray, personas: Personas | None = None
    ) -> np.ndarray:
        """Option probabilities of pairs of row and column, (n, K), without the cube.

        ``person`` indexes ``personas``, or the vectors of the fitted people where None.
        """
        x = self._vectors_of(self.vectors_ if personas is None else personas)
        excess = None if personas is None else self._excess(personas)
        return self._readout.predict_proba_pairs(x, np.asarray(person), np.asarray(question), excess)

    def predict_value(self, personas: Personas, questions: str | Iterable[str] | None = None) -> np.ndarray:
        """Expected answers of the linear model, (P, Q): (u . q + b + c) s + m as fractional option indices."""
        x, columns = self._vectors_of(personas), self._columns(questions)
        z = x @ self.question_factors_[columns].T + self.question_bias_[columns]
        return self._scale.restore(columns, z)

    def predict_value_pairs(
        self, person: np.ndarray, question: np.ndarray, personas: Personas | None = None
    ) -> np.ndarray:
        """Expected answers of pairs, (n,), as option indices."""
        x = self._vectors_of(self.vectors_ if personas is None else personas)
        z = (x[person] * self.question_factors_[question]).sum(1) + self.question_bias_[question]
        return self._scale.restore(question, z)

    def _vectors_of(self, personas: Personas) -> np.ndarray:
        check_is_fitted(self)
        if isinstance(personas, Persona):
            personas = [personas]
        if not isinstance(personas, np.ndarray):
            personas = (
                np.stack([p.vector for p in personas]) if len(personas) else np.empty((0, self.vectors_.shape[1]))
            )
        vectors = np.atleast_2d(personas)
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors_.shape[1]:
            raise ValueError(f"person vectors here have {self.vectors_.shape[1]} numbers, not {vectors.shape[-1]}")
        return vectors

    def _excess(self, personas: Personas) -> np.ndarray | None:
        """Roots of what the personas' covariances exceed the typical one by, (P, D, D); None of bare vectors."""
        if isinstance(personas, np.ndarray) or not (isinstance(personas, Persona) or len(personas)):
            return None
        people = [personas] if isinstance(personas, Persona) else personas
        return beyond(np.stack([p.covariance for p in people]), self.typical_covariance_)

    def question_index(self, questions: str | Iterable[str]) -> np.ndarray:
        """Columns of the given question ids, shape (n,); an unknown id raises with the nearest ones."""
        return look_up(self._question_ids, [questions] if isinstance(questions, str) else questions, "question")

    def _columns(self, questions: str | Iterable[str] | None) -> np.ndarray:
        return np.arange(len(self.questions_)) if questions is None else self.question_index(questions)

    # figures ---------------------------------------------------------------------------------------------------
    def plot_map(self, cohorts: Groups | None = None, trait: str | None = None) -> Figure:
        """Everybody as a point, coloured by cohort or trait: see `personae.people.map.plot_map`."""
        from personae.people.map import plot_map

        check_is_fitted(self)
        return plot_map(self, cohorts, trait)

    # files -----------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write everything but the answers into a folder: safetensors, JSON and Parquet, no pickle."""
        from personae.people.opinion_files import save

        check_is_fitted(self)
        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> OpinionModel:
        """Open what `save` wrote; raises ``ValueError`` if a file is missing, of another format, or does not fit."""
        from personae.people.opinion_files import load

        model: OpinionModel = load(cls, Path(folder))
        return model
