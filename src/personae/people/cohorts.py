"""`Cohorts`: groups of people who answer alike, found in the person vectors."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey
from personae.people.metric import metric
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona, Personas
from personae.people.profiles import Profiles
from personae.people.suppression import hidden_cells, protected

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST = 12  # largest k that "auto" tries
_REFITS = 10  # bootstrap refits behind the stability of one k
_CURVE_PEOPLE = 5_000  # people whom the two curves are drawn with
_STARTS = 4  # K-means starts
_FORMAT = 1


class Cohorts(BaseEstimator):
    """K-means cohorts of respondents, largest first, with personas and profiles.

    Parameters
    ----------
    k : int or "auto"
        Number of cohorts; "auto" chooses from 2 to 12.
    questions : sequence of str, optional
        Group people by what they would answer to these questions only.
    topic : str, optional
        The same for all questions of a topic.
    minimum : int
        Profile cells of fewer people are suppressed, and "auto" proposes no smaller cohort.
    random_state : int
        Same seed, same cohorts in the same order.

    Attributes
    ----------
    k_ : int
    labels_ : int array, shape (N,)
        Cohort of each respondent; cohort 0 is the largest.
    distances_ : array, shape (N,)
        Root mean squared difference, over the questions, between a respondent's and the centroid's predicted
        standardised answers; large for those who fit nowhere.
    personas_ : list of Persona
        Centroids, named "cohort-0" and so on; the covariance is that of a random member.
    summary_ : DataFrame
        cohort, label, people, share, distance (mean of the members).
    curves_ : DataFrame or None
        k, reconstruction, elbow, stability, smallest and score, for "auto".
    profiles_ : Profiles
        Traits, answers, telling and splitting questions, from observed answers.

    Notes
    -----
    Vectors are compared by predicted answers: with F the factors of the Q' questions, |x - x'|^2 = (x - x')' (F'F / Q')
    (x - x'), so that the K-means criterion is the error of predicted answers when each person's vector is replaced by
    the centroid of the cohort, the criterion of [1]_.

    "auto" takes the k with the largest elbow(k) x stability(k). elbow(k) is how far the reconstruction error lies
    below the straight line from k = 1 to the largest k (both axes scaled to [0, 1]; "Kneedle", [2]_), over its largest
    value. stability(k) is the mean adjusted Rand index between the cohorts and those of refits on bootstrap samples
    of people [3]_.

    References
    ----------
    .. [1] Li et al., "Steerability of language models toward data-driven personas", arXiv 2311.04978.
    .. [2] Satopaa et al., "Finding a kneedle in a haystack", ICDCS workshops 2011.
    .. [3] Hennig, "Cluster-wise assessment of cluster stability", 2007.
    """

    def __init__(
        self,
        k: int | Literal["auto"] = "auto",
        questions: Sequence[str] | None = None,
        topic: str | None = None,
        minimum: int = 10,
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.questions = questions
        self.topic = topic
        self.minimum = minimum
        self.random_state = random_state

    # learning --------------------------------------------------------------------------------------------------
    def fit(self, people: OpinionModel, survey: Survey | None = None) -> Cohorts:
        """Group the respondents of an opinion model; profiles come from the survey (the model's own where None).

        Raises
        ------
        SurveyError
            No survey is at hand, it has other respondents, or a question or topic is unknown.
        ValueError
            ``k`` is neither "auto" nor an integer from 1 to the number of respondents, or people differ too little.
        """
        check_is_fitted(people)
        survey = people.survey_ if survey is None else survey
        if survey is None:
            raise SurveyError("a loaded opinion model has no answers; give the survey: Cohorts().fit(people, survey)")
        if not survey.respondent_ids.equals(people.respondent_ids_):
            raise SurveyError("the survey has other respondents than the opinion model; fit the model to this survey")
        if self.k != "auto" and not (isinstance(self.k, (int, np.integer)) and 1 <= self.k <= len(people)):
            raise ValueError(f'k is {self.k!r}; it is "auto" or an integer from 1 to {len(people)}')
        asked = self._asked(people)
        self._projection = metric(people.question_factors_ if asked is None else people.question_factors_[asked])
        points = people.vectors_ @ self._projection  # (N, D')
        self.curves_ = self._curves(points) if self.k == "auto" else None
        self.k_ = int(self.k) if self.curves_ is None else int(self.curves_.k[self.curves_.score.argmax()])
        self.labels_, self._centres = _k_means(points, self.k_, self.random_state)
        found = len(np.unique(self.labels_))
        if found < self.k_:
            raise ValueError(f"these people differ too little for {self.k_} cohorts; {found} can be told apart")
        self.distances_ = np.linalg.norm(points - self._centres[self.labels_], axis=1)
        self.respondent_ids_ = people.respondent_ids_
        self.profiles_ = Profiles.of(survey, self.labels_, self.k_, self.minimum, self.random_state)
        origin = {
            "kind": "cohort",
            "of": self.k_,
            "questions": None if asked is None else [people.questions_[j].id for j in asked],
        }
        self.personas_ = [
            people.centroid(
                np.flatnonzero(self.labels_ == c),
                f"cohort-{c}",
                {**origin, "cohort": c},
                self.profiles_.label(c, survey),
            )
            for c in range(self.k_)
        ]
        self._summarise()
        return self

    def _asked(self, people: OpinionModel) -> np.ndarray | None:
        """Columns of the questions that count, None for all of them."""
        if self.questions is None and self.topic is None:
            return None
        if self.questions is not None and self.topic is not None:
            raise ValueError("give questions or a topic, not both")
        if self.questions is not None:
            return people.question_index(self.questions)
        columns = np.flatnonzero([q.topic == self.topic for q in people.questions_])
        if len(columns) == 0:
            known = ", ".join(sorted({q.topic for q in people.questions_ if q.topic})) or "none"
            raise SurveyError(f'no question has the topic "{self.topic}"; there are: {known}')
        return columns

    def _curves(self, points: np.ndarray) -> pd.DataFrame:
        rng = np.random.default_rng(self.random_state)
        if len(points) > _CURVE_PEOPLE:
            points = points[np.sort(rng.permutation(len(points))[:_CURVE_PEOPLE])]
        samples = [rng.integers(0, len(points), len(points)) for _ in range(_REFITS)]
        rows = []
        for k in range(1, min(_MOST, max(1, len(points) // 2)) + 1):
            labels, centres = _k_means(points, k, self.random_state)
            refits = [_k_means(points[s], k, self.random_state)[1] for s in samples] if k > 1 else []
            agree = [adjusted_rand_score(labels, _nearest(points, c)[0]) for c in refits]
            error = np.mean((points - centres[labels]) ** 2) * points.shape[1]
            smallest = np.bincount(labels, minlength=k).min()
            rows.append((k, error, np.mean(agree) if k > 1 else 1.0, smallest))
        curves = pd.DataFrame(rows, columns=["k", "reconstruction", "stability", "smallest"])
        curves["elbow"] = _elbow(curves.reconstruction.to_numpy())
        score = curves.elbow * curves.stability
        score[(curves.smallest < self.minimum) & (curves.k > 1)] = -1.0
        curves["score"] = score
        return curves

    def _summarise(self) -> None:
        size = np.bincount(self.labels_, minlength=self.k_)
        self.summary_ = pd.DataFrame(
            {
                "cohort": [p.name for p in self.personas_],
                "label": [p.label for p in self.personas_],
                "people": size,
                "share": size / size.sum(),
                "distance": np.bincount(self.labels_, self.distances_, minlength=self.k_) / size,
            }
        )

    # cohorts ---------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        check_is_fitted(self)
        return self.k_

    def __getitem__(self, cohort: int) -> Persona:
        check_is_fitted(self)
        if not -self.k_ <= cohort < self.k_:
            raise IndexError(f"there is no cohort {cohort}; there are {self.k_}, numbered from 0")
        return self.personas_[cohort]

    def __iter__(self) -> Iterator[Persona]:
        check_is_fitted(self)
        return iter(self.personas_)

    def assign(self, personas: Personas) -> np.ndarray:
        """Nearest cohort of anybody's vector, (P,)."""
        check_is_fitted(self)
        if isinstance(personas, Persona):
            personas = [personas]
        vectors = personas if isinstance(personas, np.ndarray) else np.stack([p.vector for p in personas])
        return _nearest(np.atleast_2d(vectors) @ self._projection, self._centres)[0]

    # figures ---------------------------------------------------------------------------------------------------
    def protected(self) -> Cohorts:
        """The same cohorts without what tells a small cell, or the size of a small cohort, by subtraction."""
        cohorts = copy.copy(self)
        cohorts.profiles_ = protected(self.profiles_, self.minimum)
        sizes = self.summary_.people.to_numpy(dtype=float)[None]  # (1, k)
        hide = hidden_cells(sizes, self.minimum, sizes.sum(1))[0]
        cohorts.summary_ = self.summary_.astype({"people": float})
        cohorts.summary_.loc[hide, ["people", "share"]] = np.nan
        return cohorts

    def plot_profile(self, cohort: int, questions: Sequence[Question] = ()) -> Figure:
        """A cohort's telling answers and traits beside everybody's, with 95 % intervals.

        Parameters
        ----------
        cohort : int
        questions : sequence of Question, optional
            For their titles; ids are shown without.

        Raises
        ------
        IndexError
            There is no such cohort.
        """
        from personae.people.figures import plot_profile

        name = self[cohort].name
        return plot_profile(self.profiles_, range(self.k_)[cohort], name, questions)

    def plot_questions(self, questions: Sequence[Question] = (), most: int = 30) -> Figure:
        """Cohorts x the questions that divide them most: who is nearer to the first option, who to the last.

        Parameters
        ----------
        questions : sequence of Question, optional
            For their titles and options; ids are shown without.
        most : int
            Questions drawn.
        """
        from personae.people.figures import plot_questions

        check_is_fitted(self)
        return plot_questions(self.profiles_, questions, most)

    def plot_choice(self) -> Figure:
        """The curves by which the number of cohorts was chosen.

        Raises
        ------
        ValueError
            It was given, not chosen.
        """
        from personae.people.figures import plot_choice

        check_is_fitted(self)
        if self.curves_ is None:
            raise ValueError(
                f'k = {self.k_} was given, so there is nothing to draw; fit Cohorts(k="auto") to choose it'
            )
        return plot_choice(self.curves_, self.k_, self.minimum)

    # files -----------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write everything but the answers into a folder: safetensors, JSON and Parquet, no pickle.

        Of the profiles that is written which gives no small cell away (`protected`): a bundle is handed on.
        """
        check_is_fitted(self)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"projection": self._projection, "centres": self._centres}
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "cohorts.safetensors")
        params = self.get_params()
        params["questions"] = None if self.questions is None else list(self.questions)
        facts = {"format": _FORMAT, "params": params, "personas": [json.loads(p.to_json()) for p in self.personas_]}
        (folder / "cohorts.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        members = {"respondent": self.respondent_ids_, "cohort": self.labels_, "distance": self.distances_}
        pd.DataFrame(members).to_parquet(folder / "cohort_members.parquet", index=False)
        if self.curves_ is not None:
            self.curves_.to_parquet(folder / "cohort_curves.parquet", index=False)
        protected(self.profiles_, self.minimum).save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Cohorts:
        """Open what `save` wrote; raises ``ValueError`` if a file is missing, of another format, or does not fit."""
        folder = Path(folder)
        for name in ("cohorts.json", "cohorts.safetensors", "cohort_members.parquet"):
            if not (folder / name).is_file():
                raise ValueError(f"there are no cohorts in {folder}: {name} is missing")
        facts = json.loads((folder / "cohorts.json").read_text(encoding="utf-8"))
        if facts.get("format") != _FORMAT:
            found = facts.get("format")
            raise ValueError(
                f"the cohorts in {folder} have format {found}, this version reads {_FORMAT}; fit them again"
            )
        self = cls(**facts["params"])
        tensors = load_file(folder / "cohorts.safetensors")
        self._projection, self._centres = tensors["projection"], tensors["centres"]
        self.personas_ = [Persona.from_json(json.dumps(p)) for p in facts["personas"]]
        self.k_ = len(self.personas_)
        members = pd.read_parquet(folder / "cohort_members.parquet")
        self.labels_, self.distances_ = members.cohort.to_numpy(), members.distance.to_numpy()
        self.respondent_ids_ = pd.Index(members.respondent, name="respondent", dtype=object)
        if len(self._centres) != self.k_ or self.labels_.max(initial=-1) >= self.k_:
            raise ValueError(f"the files of the cohorts in {folder} do not belong together; save them again")
        curves = folder / "cohort_curves.parquet"
        self.curves_ = pd.read_parquet(curves) if curves.is_file() else None
        self.profiles_ = Profiles.load(folder)
        self._summarise()
        return self


def _k_means(points: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and centroids (k, D'), the largest cohort first."""
    # one thread, as sums of several come in any order: not the same bits every time
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # people who answer all alike make empty cohorts
        found = KMeans(k, n_init=_STARTS, random_state=seed).fit(points).labels_
    size = np.bincount(found, minlength=k)
    first = np.array([np.argmax(found == c) if size[c] else len(found) for c in range(k)])
    rank = np.argsort(np.lexsort((first, -size)))  # of equally large ones, the one met first
    labels = rank[found]
    centres = np.stack([points[labels == c].mean(0) if (labels == c).any() else points.mean(0) for c in range(k)])
    return labels, centres


def _nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    square = (centres**2).sum(1) - 2 * points @ centres.T  # (N, k), less |x|^2
    return square.argmin(1), square.min(1)


def _elbow(error: np.ndarray) -> np.ndarray:
    """How far a falling curve lies below its chord, from 0 to 1 at the elbow."""
    drop = error[0] - error[-1]
    if len(error) < 3 or drop <= 0:
        return np.zeros(len(error))
    below = np.linspace(1, 0, len(error)) - (error - error[-1]) / drop
    return np.maximum(below, 0) / max(below.max(), 1e-12)
