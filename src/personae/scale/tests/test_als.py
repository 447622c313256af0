from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from personae.data.account import SurveyError
from personae.people.opinion_model import OpinionModel
from personae.scale import als
from personae.scale.als import fit_store
from personae.scale.engine import each_shard
from personae.scale.store import AnswerStore
from personae.scale.tests.conftest import make_survey, write_long


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory) -> tuple[OpinionModel, Path]:
    folder = tmp_path_factory.mktemp("fitted") / "vectors"
    return fit_store(store, folder, n_components=3), folder


@pytest.fixture(scope="module")
def in_memory(store) -> OpinionModel:
    return OpinionModel(n_components=3).fit(store.survey())


def same(one: OpinionModel, other: OpinionModel, atol: float) -> None:
    assert list(one.respondent_ids_) == list(other.respondent_ids_)
    assert (one.strength_, one.confidence_) == (other.strength_, other.confidence_)
    for name in ("vectors_", "question_factors_", "question_bias_", "noise_"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol, err_msg=name)
    for name in ("prior_covariance_", "typical_covariance_"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol, err_msg=name)
    some = one.vectors_[:50]
    np.testing.assert_allclose(one.predict_proba(some), other.predict_proba(some), atol=atol)
    np.testing.assert_allclose(one.covariance(slice(9)), other.covariance(slice(9)), atol=atol)


def test_equals_the_fit_in_memory(fitted, in_memory):
    same(fitted[0], in_memory, atol=1e-3)
    answers = {"q0": "a", "q5": "d"}
    np.testing.assert_allclose(fitted[0].fold_in(answers).vector, in_memory.fold_in(answers).vector, atol=1e-3)


def test_neither_shards_nor_pieces_matter(fitted, survey, long, tmp_path, monkeypatch):
    monkeypatch.setattr(als, "_PIECE", 37)
    store = AnswerStore.write(long, survey.questions, tmp_path / "store", answers_per_shard=700)
    assert len(store.shards) > 10
    other = fit_store(store, tmp_path / "vectors", n_components=3)
    np.testing.assert_allclose(other.noise_, fitted[0].noise_, atol=1e-3)
    np.testing.assert_allclose(other.question_factors_, fitted[0].question_factors_, atol=2e-3)


def test_everybody_has_a_vector(fitted, store):
    model, folder = fitted
    assert sorted(p.name for p in folder.iterdir()) == [f"{k:05d}.vectors.parquet" for k in range(4)]
    table = pq.read_table(folder)
    assert table.column("respondent").to_pylist() == list(model.respondent_ids_)
    np.testing.assert_array_equal(np.stack(table.column("vector").to_numpy()), model.vectors_)
    uncertainty = [model[name].uncertainty for name in model.respondent_ids_[:20]]
    np.testing.assert_allclose(table.column("uncertainty").to_numpy()[:20], uncertainty, rtol=1e-4)


def test_the_real_sample_equals_too(tmp_path):
    from personae.data.sample import load_sample

    survey = load_sample()
    wide = survey.to_frame().reset_index()
    wide.melt("respondent", var_name="question", value_name="answer").to_parquet(tmp_path / "long.parquet")
    store = AnswerStore.write(tmp_path / "long.parquet", survey.questions, tmp_path / "store", 5000)
    assert store.n_answers == survey.n_answers
    one, other = fit_store(store, tmp_path / "vectors", 4), OpinionModel(4).fit(store.survey())
    np.testing.assert_allclose(one.noise_, other.noise_, atol=1e-3)
    p, q = (m.predict_proba(m.vectors_) for m in (one, other))
    assert np.abs(p - q).max() < 2e-3


def test_read_outs_of_a_sample_predict_held_out_answers_as_well(tmp_path):
    """Factors are those of everybody; a third of the people for the read-outs costs next to nothing."""
    survey = make_survey(2500)
    test = np.random.default_rng(0).random(survey.n_answers) < 0.1
    long = write_long(survey.keep_answers(~test), tmp_path / "long")
    store = AnswerStore.write(long, survey.questions, tmp_path / "store", answers_per_shard=10_000)
    model = fit_store(store, tmp_path / "vectors", 3, sample=store.n_answers // 3)
    in_memory = OpinionModel(3).fit(store.survey())
    assert 0.25 * store.n_people < len(model) < 0.4 * store.n_people
    np.testing.assert_allclose(model.noise_, in_memory.noise_, atol=1e-3)

    held_out = survey.keep_answers(test)
    row = in_memory.respondent_ids_.get_indexer(survey.respondent_ids)[held_out.respondent]
    vectors = np.stack(pq.read_table(tmp_path / "vectors").column("vector").to_numpy())
    p = [m.predict_proba_pairs(row, held_out.question, personas=vectors) for m in (model, in_memory)]
    ours, theirs = (-np.log(x[np.arange(len(x)), held_out.option]).mean() for x in p)
    assert ours < theirs + 0.005
    assert theirs < 1.1  # guessing has 1.39
    again = OpinionModel.load(_saved(model, tmp_path / "saved"))
    np.testing.assert_allclose(again.predict_proba(vectors[:9]), model.predict_proba(vectors[:9]))


def _saved(model: OpinionModel, folder: Path) -> Path:
    model.save(folder)
    return folder


def test_vectors_are_never_mixed(store, fitted):
    with pytest.raises(SurveyError, match="vectors exists; remove it"):
        fit_store(store, fitted[1])


def test_a_fit_that_fails_leaves_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr(als, "readout_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_store(store, tmp_path / "vectors", 2, max_sweeps=1)
    assert list(tmp_path.iterdir()) == []


def test_unknown_engine():
    with pytest.raises(ValueError, match='no engine "spark"'):
        list(each_shard("spark", pow, [1]))  # type: ignore[arg-type]


# Ray -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="the engine ray needs personae[scale]")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


def dying_once(work: str, shard: int, store: AnswerStore, *shared: object) -> object:
    """The worker of shard 2 is killed in its first try, after its work and before its answer."""
    done, flag = getattr(als, work)(shard, store, *shared), store.folder.parent / f"killed{work}"
    if shard == 2 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return done


def test_ray_gives_the_same_bits_though_workers_are_killed(ray, store, fitted, tmp_path, monkeypatch):
    for work in ("_sums", "_finish"):  # replaced here alone: workers have the real ones
        monkeypatch.setattr(als, work, partial(dying_once, work))
    ours, theirs = tmp_path / "vectors", fitted[1]
    same(fit_store(store, ours, n_components=3, engine="ray"), fitted[0], atol=0)
    assert [file.name for file in sorted(ours.iterdir())] == [file.name for file in sorted(theirs.iterdir())]
    for file in ours.iterdir():
        assert pq.read_table(file).equals(pq.read_table(theirs / file.name))
    for work in ("_sums", "_finish"):
        assert (store.folder.parent / f"killed{work}").exists()


def failing(shard: int) -> int:
    raise SurveyError(f"shard {shard} is broken")


def test_errors_of_workers_arrive_as_they_are(ray):
    with pytest.raises(SurveyError, match="shard 3 is broken"):
        list(each_shard("ray", failing, [3]))
