"""The map of people: everybody as a point, near those who would answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from personae.data.survey import Question, look_up
from personae.people.figures import COLOURS, GREY, as_text, go, shortened, styled
from personae.people.metric import metric

OTHER = "(other)"  # no value of a trait
_MOST_DRAWN = 10_000  # people of a map


class People(Protocol):
    """What a map shows of `OpinionModel`."""

    vectors_: np.ndarray
    question_factors_: np.ndarray
    prior_covariance_: np.ndarray
    questions_: Sequence[Question]
    traits_: pd.DataFrame

    def __len__(self) -> int: ...

    def covariance(self, rows: np.ndarray) -> np.ndarray: ...


class Groups(Protocol):
    """What a map shows of `Cohorts`."""

    k_: int
    labels_: np.ndarray
    distances_: np.ndarray
    _projection: np.ndarray
    _centres: np.ndarray


class Map(NamedTuple):
    """Where people lie in two dimensions.

    Attributes
    ----------
    points : array, shape (N, 2)
    centres : array, shape (k, 2)
        Of the cohorts; k = 0 without them.
    share : array, shape (2,)
        Of the differences between people's predicted answers that each axis shows.
    strongest : int array, shape (2,)
        The question that each axis follows most; its predicted answer grows to the right, or upwards.
    axes : array, shape (D, 2)
    origin : array, shape (2,)
    """

    points: np.ndarray
    centres: np.ndarray
    share: np.ndarray
    strongest: np.ndarray
    axes: np.ndarray
    origin: np.ndarray

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """Where anybody's vectors (..., D) lie, (..., 2); a covariance C (D, D) becomes axes' C axes."""
        return vectors @ self.axes - self.origin


def coordinates(people: People, cohorts: Groups | None = None) -> Map:
    """The plane on which most of the differences between people's predicted answers are seen.

    Notes
    -----
    Principal components of the vectors in the metric of predicted answers, |(x - x') A| (see `Cohorts`; A is the one
    that the cohorts were formed with, else that of all questions). The sign of an axis is fixed by the question whose
    predicted answer varies most along it: Cov(score, x . q_j) > 0.
    """
    A = metric(people.question_factors_) if cohorts is None else cohorts._projection
    x = (people.vectors_ @ A).astype(np.float64)  # (N, D')
    centre = x.mean(0)
    values, basis = np.linalg.eigh((x - centre).T @ (x - centre))
    axes, spread = basis[:, ::-1][:, :2], np.maximum(values[::-1], 0)
    if axes.shape[1] < 2:  # people differ in one way only
        axes, spread = np.pad(axes, ((0, 0), (0, 1))), np.pad(spread, (0, 1))
    points = (x - centre) @ axes
    slope = points.T @ people.vectors_ @ people.question_factors_.T  # (2, Q)
    strongest = np.abs(slope).argmax(1)
    sign = np.where(slope[[0, 1], strongest] < 0, -1.0, 1.0)
    centres = np.empty((0, 2)) if cohorts is None else (cohorts._centres - centre) @ axes * sign
    seen = spread[:2] / max(spread.sum(), 1e-12)
    return Map(points * sign, centres, seen, strongest, A @ axes * sign, centre @ axes * sign)


def plot_map(
    people: People, cohorts: Groups | None = None, trait: str | None = None, minimum: int = 10, seed: int = 0
) -> go.Figure:
    """Everybody as a point: near are those who would answer alike.

    Parameters
    ----------
    cohorts : Cohorts, optional
        Colours the points, unless ``trait`` does, and marks the centres.
    trait : str, optional
        Colours the points.
    minimum : int
        Groups of fewer people are drawn as "(other)", with the next larger group if they are too few together.
    seed : int
        Of the sample that is drawn of more than 10,000 people.

    Raises
    ------
    SurveyError
        An unknown trait; the nearest ones are named.

    Examples
    --------
    >>> from personae import Cohorts, OpinionModel, load_sample
    >>> people = OpinionModel(n_components=4).fit(load_sample())
    >>> [group.name for group in plot_map(people, Cohorts(k=2).fit(people)).data]
    ['cohort-0', 'cohort-1', 'centres']
    """
    place = coordinates(people, cohorts)
    rows = np.arange(len(people))
    drawn = f"{len(people):,} people"
    if len(people) > _MOST_DRAWN:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_MOST_DRAWN])
        drawn = f"{_MOST_DRAWN:,} of {len(people):,} people, drawn at random"
    uncertainty = np.clip(
        people.covariance(rows).trace(axis1=1, axis2=2) / max(float(np.trace(people.prior_covariance_)), 1e-12), 0, 1
    )
    cohort = distance = None
    hover = "uncertainty %{customdata[0]:.0%}<extra></extra>"
    if cohorts is not None:
        cohort = visible_groups(pd.Series([f"cohort-{c}" for c in cohorts.labels_]), minimum)
        distance = cohorts.distances_[rows]
        hover = "%{text}<br>distance from its centre %{customdata[1]:.2f}<br>" + hover
    group = cohort
    if trait is not None:
        look_up(pd.Index(people.traits_.columns, dtype=object), [trait], "trait")
        group = visible_groups(people.traits_[trait].reset_index(drop=True), minimum)
    elif group is None:
        group = pd.Series("people", index=range(len(people)))
    facts = np.column_stack([uncertainty] if distance is None else [uncertainty, distance]).astype(np.float32)

    figure = go.Figure()
    for name, colour in _colours(group, by_size=trait is not None).items():
        mine = np.flatnonzero(group.to_numpy()[rows] == name)
        at = place.points[rows[mine]].astype(np.float32)
        figure.add_scatter(
            x=at[:, 0],
            y=at[:, 1],
            mode="markers",
            name=as_text(name),
            marker={"color": colour, "size": 6 if len(rows) < 3000 else 4, "opacity": 0.7},
            customdata=facts[mine],
            text=None if cohort is None else cohort.to_numpy()[rows[mine]],
            hovertemplate=hover,
        )
    if cohorts is not None:
        large = np.flatnonzero(np.bincount(cohorts.labels_, minlength=cohorts.k_) >= minimum)
        figure.add_scatter(
            x=place.centres[large, 0],
            y=place.centres[large, 1],
            mode="markers+text",
            name="centres",
            text=[str(c) for c in large],
            textfont={"color": "white", "size": 11},
            marker={"color": "#111", "size": 20, "line": {"color": "white", "width": 1.5}},
            hovertemplate="centre of cohort-%{text}<extra></extra>",
        )
    names = [_axis(people.questions_[j], share) for j, share in zip(place.strongest, place.share, strict=True)]
    corner = {"x": 1, "y": 0, "xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "bottom"}
    figure.add_annotation(text=drawn, showarrow=False, **corner)
    plain = {"showticklabels": False, "zeroline": True, "showgrid": False}
    return styled(
        figure,
        height=600,
        xaxis={"title": names[0], **plain},
        yaxis={"title": names[1], "scaleanchor": "x", **plain},
    )


def visible_groups(labels: pd.Series, minimum: int) -> pd.Series:
    """Labels as text, where groups of fewer than ``minimum`` people, and the missing, are "(other)".

    The smallest groups join it until it is empty or has ``minimum`` people: else those few would be known by what
    is not shown. The same happens to the smallest of more groups than there are colours.

    Examples
    --------
    >>> visible_groups(pd.Series(["a"] * 5 + ["b"] * 3 + ["c"] * 1), minimum=2).value_counts().to_dict()
    {'a': 5, '(other)': 4}
    """
    known, words = labels.notna(), labels.astype(str)
    sizes = words[known].value_counts().sort_index().sort_values(kind="stable")
    other, hidden = int((~known).sum()), 0
    while hidden < len(sizes) and (
        sizes.iloc[hidden] < minimum or 0 < other < minimum or len(sizes) - hidden > len(COLOURS)
    ):
        other += int(sizes.iloc[hidden])
        hidden += 1
    return words.where(known & ~words.isin(sizes.index[:hidden]), OTHER)


def _colours(group: pd.Series, by_size: bool) -> dict[str, str]:
    """A colour for each group: cohorts in the order of their numbers, values of a trait the largest first."""
    names = [str(n) for n in group.value_counts(sort=True).index if n != OTHER]
    if not by_size:
        names.sort(key=lambda name: (len(name), name))  # cohort-2 before cohort-10
    found = dict(zip(names, COLOURS, strict=False))
    return {**found, **({OTHER: GREY} if (group == OTHER).any() else {})}


def _axis(question: Question, share: float) -> str:
    towards = shortened(f"{question.options[-1]}: {question.title or question.id}", 42)
    return f"{share:.0%} of the differences, most of all<br>{towards} →"
