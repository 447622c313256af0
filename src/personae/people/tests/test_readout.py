import numpy as np
import pytest

from personae.people import readout as module
from personae.people.als import by_row, factorize, unpack
from personae.people.answers import Scale
from personae.people.readout import Readout, fit_readout, leave_one_out


@pytest.fixture(scope="module")
def parts(make, halve):
    train, test = halve(make(n=400, q=30))
    scale = Scale.of(train)
    answers = scale.answers(train)
    options = by_row(train.question, train.respondent, train.option + 1, (30, 400))
    return train, test, scale, factorize(answers, 3), answers, options


def fitted(parts, strength=100.0, questions=None):
    train, _, scale, model, answers, options = parts
    return fit_readout(model, answers.T.tocsr(), options, train.n_options, scale.scores(), strength, questions)


def test_leave_one_out_equals_solving_without_the_answer(parts):
    """The answer's term w f f' and its target leave the normal equations; the regularisation stays."""
    _, _, _, model, answers, _ = parts
    vectors = leave_one_out(model, answers)
    y, second = model.questions.mean.astype(float), unpack(model.questions.moment, 5).astype(float)
    for i in (0, 123):
        row = answers[i]
        for k, without in enumerate(row.indices[:4]):
            precision, target = np.linalg.inv(model.people.prior), np.zeros(4)
            for j, z in zip(row.indices, row.data, strict=True):
                f, cov = y[j, :4], second[j] - np.outer(y[j], y[j])
                precision += cov[:4, :4] / model.noise[j]
                target -= cov[:4, 4] / model.noise[j]
                if j != without:
                    precision += np.outer(f, f) / model.noise[j]
                    target += f * (z - y[j, 4]) / model.noise[j]
            expected = np.linalg.solve(precision, target)
            assert np.allclose(vectors[answers.indptr[i] + k], expected, atol=2e-3)


def test_probabilities_are_calibrated_on_answers_not_given(parts):
    _, test, _, model, _, _ = parts
    p = fitted(parts).predict_proba_pairs(model.people.mean[:, :-1], test.respondent, test.question)
    hit = np.arange(4) == test.option[:, None]
    order = np.argsort(p.ravel())
    for part in np.array_split(order, 8):
        assert abs(p.ravel()[part].mean() - hit.ravel()[part].mean()) < 0.06


def test_the_optimum_has_no_gradient(parts, monkeypatch):
    monkeypatch.setattr(module, "_STEPS", 300)
    exact = fitted(parts)
    monkeypatch.undo()
    quick = fitted(parts)
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32) * 0.5
    everything = np.arange(30)
    assert np.abs(exact.predict_proba(x, everything) - quick.predict_proba(x, everything)).max() < 0.02


def test_very_strong_prior_is_the_factorisations_own_answer(parts):
    """Slopes are z_k f / s^2: proportional to the factor of the question and to the option's value."""
    _, _, scale, model, _, _ = parts
    weights = fitted(parts, strength=1e7).weights
    for j in (0, 7):
        expected = np.outer(scale.scores()[j], model.questions.mean[j, :4])
        ratio = (weights[j] * expected).sum() / (expected**2).sum()
        assert np.allclose(weights[j], ratio * expected, atol=0.02)


def test_some_questions_only_are_the_same_as_all(parts):
    some = np.array([3, 17])
    assert np.allclose(fitted(parts, questions=some).weights[some], fitted(parts).weights[some], atol=1e-4)


def test_pairs_equal_the_cube_with_and_without_covariances():
    rng = np.random.default_rng(0)
    intercepts = rng.standard_normal((5, 4)).astype(np.float32)
    intercepts[2, 2:] = -np.inf
    readout = Readout(rng.standard_normal((5, 4, 3)).astype(np.float32), intercepts)
    x, roots = rng.standard_normal((6, 3)), rng.standard_normal((6, 3, 3))
    person, question = np.array([0, 5, 2, 2, 0]), np.array([4, 2, 2, 0, 2])
    for spread in (None, roots):
        cube = readout.predict_proba(x, np.arange(5), spread)
        assert np.allclose(cube.sum(2), 1, atol=1e-5)
        assert (cube[:, 2, 2:] == 0).all()
        pairs = readout.predict_proba_pairs(x, person, question, spread)
        assert np.allclose(pairs, cube[person, question], atol=1e-6)


def test_mean_over_uncertainty_is_close_to_sampling():
    rng = np.random.default_rng(0)
    readout = Readout(rng.standard_normal((1, 4, 6)).astype(np.float32), np.array([[1, 0, -1, 0]], np.float32))
    x, root = rng.standard_normal(6), rng.standard_normal((6, 6)) / 2
    truth = readout.predict_proba(x + rng.standard_normal((100_000, 6)) @ root.T, np.array([0])).mean(0)
    assert np.allclose(readout.predict_proba(x[None], np.array([0]), root[None])[0], truth, atol=0.03)
