import numpy as np
import pytest

from personae.people import als
from personae.people.als import by_row, factorize, pack, unpack


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n, q, d = 200, 30, 2
    z = rng.standard_normal((n, d)) @ rng.standard_normal((d, q)) + 0.5 * rng.standard_normal((n, q))
    person, question = np.nonzero(rng.random((n, q)) < 0.5)
    return by_row(person, question, z[person, question], (n, q)), z


@pytest.fixture(scope="module")
def model(data):
    return factorize(data[0], 2)


def test_pack_and_unpack():
    full = np.random.default_rng(0).standard_normal((3, 4, 4))
    full = full + full.transpose(0, 2, 1)
    assert np.array_equal(unpack(pack(full), 4), full)


@pytest.mark.parametrize("dense_from", [0.0, 2.0])
def test_sums_equal_the_naive_loop(data, model, monkeypatch, dense_from):
    monkeypatch.setattr(als, "_DENSE_FROM", dense_from)
    answers = data[0]
    gram, target, squares = als._sums(answers, model.questions.mean, model.questions.moment)
    second = unpack(model.questions.moment, 4)
    for i in (0, 7, 199):
        row = answers[i]
        assert np.allclose(unpack(gram[i], 4), sum(second[j] for j in row.indices), atol=1e-4)
        assert np.allclose(
            target[i], sum(z * model.questions.mean[j] for j, z in zip(row.indices, row.data, strict=True)), atol=1e-4
        )
        assert np.isclose(squares[i], (row.data**2).sum(), rtol=1e-5)


def test_posterior_is_bayes_formula(data, model):
    """Linear regression with a Gaussian prior, done directly for one person; Cov(y) joins the precision."""
    answers, _ = data
    y, second = model.questions.mean.astype(float), unpack(model.questions.moment, 4).astype(float)
    row = answers[5]
    precision, target = np.linalg.inv(model.people.prior), np.zeros(3)
    for j, z in zip(row.indices, row.data, strict=True):
        precision += second[j][:3, :3] / model.noise[j]
        target += (z * y[j, :3] - second[j][:3, 3]) / model.noise[j]
    covariance = np.linalg.inv(precision)
    assert np.allclose(model.people.mean[5, :3], covariance @ target, atol=1e-4)
    assert np.allclose(model.people.covariance(np.array([5]))[0], covariance, atol=1e-5)


def test_fold_in_of_the_fitted_answers_gives_the_fitted_vectors(data, model):
    assert np.array_equal(model.fold_in(data[0]).mean, model.people.mean)


def test_constants_stay_one(model):
    assert (model.people.mean[:, 3] == 1).all()
    assert np.allclose(model.questions.mean[:, 2], 1)


def test_recovers_what_was_not_given(data, model):
    answers, z = data
    hidden = answers.toarray() == 0
    predicted = model.people.mean @ model.questions.mean.T
    assert np.mean((predicted - z)[hidden] ** 2) < 0.25 * np.mean(z[hidden] ** 2)
    assert 0.15 < model.noise.mean() < 0.45  # the truth is 0.25


def test_canonical_coordinates(model):
    q, people = model.questions.mean[:, :3], model.people
    assert np.allclose(q.T @ q / len(q), np.eye(3), atol=1e-4)
    assert np.isclose(people.prior[0, 1], 0, atol=1e-8)
    assert people.prior[0, 0] >= people.prior[1, 1]


def test_stops_at_max_sweeps_and_reports(data):
    seen = []
    assert factorize(data[0], 2, max_sweeps=3, tol=0, progress=seen.append).sweeps == 3
    assert len(seen) == 3


def test_chunks_do_not_matter(data, model, monkeypatch):
    monkeypatch.setattr(als, "_CHUNK_ROWS", 17)
    other = factorize(data[0], 2)
    assert np.allclose(other.people.mean, model.people.mean, atol=1e-3)


def test_compares_well_with_cmfrec(data):
    cmfrec = pytest.importorskip("cmfrec")
    import pandas as pd

    rng = np.random.default_rng(1)
    n, q, d = 300, 80, 4
    z = (
        rng.standard_normal((n, d)) @ rng.standard_normal((d, q))
        + rng.standard_normal((n, 1))
        + rng.standard_normal((n, q))
    )
    person, question = np.nonzero(rng.random((n, q)) < 0.3)
    test = rng.random(len(person)) < 0.2
    value = z[person, question].astype(np.float32)
    ours = factorize(by_row(person[~test], question[~test], value[~test], (n, q)), d)
    predicted = (ours.people.mean[person[test]] * ours.questions.mean[question[test]]).sum(1)
    table = pd.DataFrame({"UserId": person[~test], "ItemId": question[~test], "Rating": value[~test]})
    errors = []
    for strength in (0.03, 0.1, 0.3):
        theirs = cmfrec.CMF(k=d, lambda_=strength, scale_lam=True, verbose=False, nthreads=1, random_state=0).fit(table)
        miss = theirs.predict(person[test], question[test]) - value[test]
        errors.append(np.sqrt(np.mean(miss**2)))
    assert np.sqrt(np.mean((predicted - value[test]) ** 2)) < min(errors) * 1.02
