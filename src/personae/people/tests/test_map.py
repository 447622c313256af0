from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.people import map as module
from personae.people.cohorts import Cohorts
from personae.people.map import coordinates, plot_map, visible_groups


@pytest.fixture(scope="module")
def cohorts(people) -> Cohorts:
    return Cohorts().fit(people)


def test_axes_are_the_principal_directions_of_predicted_answers(people):
    place = coordinates(people)
    z = people.vectors_ @ people.question_factors_.T.astype(float)  # (N, Q)
    z -= z.mean(0)
    u, s, _ = np.linalg.svd(z / np.sqrt(z.shape[1]), full_matrices=False)
    np.testing.assert_allclose(np.abs(place.points), np.abs(u[:, :2] * s[:2]), atol=1e-3)
    np.testing.assert_allclose(place.share, s[:2] ** 2 / (s**2).sum(), rtol=1e-3)
    for axis, question in enumerate(place.strongest):
        along = place.points[:, axis] @ z
        assert np.abs(along).argmax() == question
        assert along[question] > 0


def test_anybody_has_a_place(people, cohorts):
    for mine in (None, cohorts):
        place = coordinates(people, mine)
        np.testing.assert_allclose(place.place(people.vectors_), place.points, atol=1e-4)
    centroids = place.place(np.stack([p.vector for p in cohorts]))
    np.testing.assert_allclose(centroids, place.centres, atol=1e-3)


def test_the_map_is_the_same_after_loading(people, cohorts, tmp_path):
    people.save(tmp_path / "p")
    cohorts.save(tmp_path / "c")
    again = type(people).load(tmp_path / "p"), Cohorts.load(tmp_path / "c")
    one, other = plot_map(people, cohorts), plot_map(*again)
    for a, b in zip(one.data, other.data, strict=True):
        np.testing.assert_allclose(a.x, b.x, atol=1e-5)
        if a.customdata is not None:
            np.testing.assert_allclose(a.customdata, b.customdata, atol=1e-4)


def test_hover_shows_cohort_distance_and_uncertainty_alone(people, cohorts):
    figure = people.plot_map(cohorts)
    for c in range(len(cohorts)):
        trace, mine = figure.data[c], np.flatnonzero(cohorts.labels_ == c)
        assert trace.name == f"cohort-{c}"
        np.testing.assert_allclose(trace.customdata[:, 1], cohorts.distances_[mine], rtol=1e-6)
        assert trace.customdata[0, 0] == pytest.approx(people[people.respondent_ids_[mine[0]]].uncertainty, rel=1e-4)
        assert set(trace.text) == {f"cohort-{c}"}
    assert '"r0"' not in figure.to_json()


def test_colour_by_trait(people, cohorts):
    found = {t.name: len(t.x) for t in people.plot_map(trait="side").data}
    assert found == people.traits_["side"].value_counts().to_dict()
    with pytest.raises(SurveyError, match="side"):
        people.plot_map(trait="sdie")


@pytest.mark.parametrize(
    ("sizes", "missing", "shown"),
    [
        ({"a": 40, "b": 30}, 0, {"a": 40, "b": 30}),
        ({"a": 40, "b": 30, "c": 9}, 4, {"a": 40, "b": 30, "(other)": 13}),
        ({"a": 40, "b": 30, "c": 9}, 0, {"a": 40, "(other)": 39}),  # nine alone would be known by what is not shown
        ({"a": 40, "b": 30}, 3, {"a": 40, "(other)": 33}),
        ({"a": 9}, 0, {"(other)": 9}),
        ({f"v{i:02}": 20 + i for i in range(14)}, 0, {**{f"v{i:02}": 20 + i for i in range(2, 14)}, "(other)": 41}),
    ],
)
def test_small_groups_are_other(sizes, missing, shown):
    labels = pd.Series([v for v, n in sizes.items() for _ in range(n)] + [None] * missing, dtype=object)
    assert visible_groups(labels, 10).value_counts().to_dict() == shown


def test_a_small_cohort_has_no_name_and_no_centre(people):
    cohorts = Cohorts(k=2).fit(people)
    figure = plot_map(people, cohorts, minimum=int(cohorts.summary_.people.min()) + 1)
    assert [t.name for t in figure.data] == ["(other)", "centres"]
    assert set(figure.data[0].text) == {"(other)"}
    assert len(figure.data[1].x) == 1


def test_of_many_people_a_sample_is_drawn(people, cohorts, monkeypatch):
    monkeypatch.setattr(module, "_MOST_DRAWN", 50)
    figure = plot_map(people, cohorts)
    assert sum(len(t.x) for t in figure.data[:-1]) == 50
    assert "50 of 300 people, drawn at random" in [a.text for a in figure.layout.annotations]


def test_one_dimension_is_a_line(make):
    from personae.people.opinion_model import OpinionModel

    people = OpinionModel(n_components=1).fit(make(n=40, q=6, d=1))
    assert coordinates(people).points.shape == (40, 2)
    assert len(plot_map(people).data) == 1
