from __future__ import annotations

import numpy as np
import pytest

from personae.data.account import SurveyError
from personae.people.opinion_model import OpinionModel
from personae.scale.als import fit_store
from personae.scale.everybody import Everybody


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory) -> tuple[OpinionModel, Everybody]:
    """A third of 700 people in memory, all of them in four shards."""
    folder = tmp_path_factory.mktemp("everybody") / "vectors"
    people = fit_store(store, folder, n_components=3, sample=store.n_answers // 3, max_sweeps=3)
    return people, Everybody(folder, people)


def test_names_stand_shard_by_shard(fitted, store):
    _, everybody = fitted
    names = [name for shard in store.shards for name in store.respondents(shard)]
    assert len(everybody) == len(names) == 700
    assert everybody.names(slice(0, 700)) == names
    assert everybody.names(slice(190, 390)) == names[190:390]  # across shards
    assert everybody.names(np.array([0, 3, 698])) == [names[0], names[3], names[698]]
    assert everybody.names(slice(5, 5)) == []


def test_personas_are_those_of_the_model(fitted):
    people, everybody = fitted
    assert len(people) < 300
    for name in people.respondent_ids_[::20]:
        ours, theirs = everybody[name], people[name]
        np.testing.assert_allclose(ours.vector, theirs.vector, atol=1e-6)
        np.testing.assert_allclose(ours.covariance, theirs.covariance, atol=1e-6)
        assert (ours.origin, ours.prior_variance) == (theirs.origin, theirs.prior_variance)
    outside = next(name for name in everybody.names(slice(0, 700)) if name not in people.respondent_ids_)
    assert outside in everybody
    assert everybody[outside].uncertainty < 1


def test_of_very_many_people_the_variances_are_kept(store, tmp_path, monkeypatch):
    monkeypatch.setattr("personae.people.als._MOST_COVARIANCES", 10)
    people = fit_store(store, tmp_path / "vectors", n_components=3, max_sweeps=3)
    ours, theirs = Everybody(tmp_path / "vectors", people)["r7"].covariance, people["r7"].covariance
    np.testing.assert_allclose(ours, np.diag(np.diag(theirs)), atol=1e-6)


def test_who_and_what_is_not_there(fitted, store, tmp_path):
    people, everybody = fitted
    assert "nobody" not in everybody
    with pytest.raises(SurveyError, match='no respondent "nobody" among these 700 people'):
        everybody["nobody"]
    with pytest.raises(SurveyError, match="there are no vectors in"):
        Everybody(tmp_path, people)
    other = OpinionModel(n_components=2).fit(store.survey())
    with pytest.raises(SurveyError, match="are not of this opinion model"):
        Everybody(everybody.folder, other)
