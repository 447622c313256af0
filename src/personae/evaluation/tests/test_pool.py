from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.evaluation import pool
from personae.evaluation.metrics import nll
from personae.evaluation.pool import combination_weights, combine

seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


def predictions(
    seed: int, n: int = 60, width: int = 5, sharp: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random p, options drawn from it, and numbers of options."""
    rng = np.random.default_rng(seed)
    n_options = rng.integers(2, width + 1, n)
    p = np.exp(sharp * rng.standard_normal((n, width))) * (np.arange(width) < n_options[:, None])
    p /= p.sum(1, keepdims=True)
    return p, drawn(p, rng), n_options


def drawn(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random((len(p), 1)) > np.cumsum(p, 1)[:, :-1]).sum(1)


@given(seeds)
@few
def test_weight_one_alone_is_the_prediction_itself(seed):
    (a, _, n_options), (b, _, _) = predictions(seed), predictions(seed + 1)
    own = np.arange(5) < n_options[:, None]
    b = (b + 0.01) * own
    b /= b.sum(1, keepdims=True)
    np.testing.assert_allclose(combine([a, b], [1, 0]), a, atol=1e-8)
    np.testing.assert_allclose(combine([a, b], [0, 1]), b, atol=1e-8)
    np.testing.assert_allclose(combine([a, b], [0, 0]), own / own.sum(1, keepdims=True))
    np.testing.assert_allclose(combine([a, b], [0.3, 0.8]), combine([b, a], [0.8, 0.3]))
    assert (combine([a, b], [0.3, 0.8])[~own] == 0).all()


def test_combination_by_hand():
    """Odds multiply: (4 to 1) x (1 to 2) = 2 to 1."""
    a, b = np.array([[0.8, 0.2, 0.0]]), np.array([[1 / 3, 2 / 3, 0.0]])
    np.testing.assert_allclose(combine([a, b], [1, 1]), [[2 / 3, 1 / 3, 0]])
    np.testing.assert_allclose(combine([a, b], [0.5, 0]), [[2 / 3, 1 / 3, 0]])


def test_what_one_calls_impossible_is_left_to_the_other():
    a, b = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(combine([a, b], [1, 1]), [[0.5, 0.5, 0]])
    assert combine([a, b], [1, 0.5])[0, 0] > 0.99


def test_combination_weights_find_what_is_known():
    """Two sources, each of which sees its own half of what decides: the truth is their product."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20_000, 3))

    def soft(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    option = drawn(soft(x + 0.5 * y), rng)
    parts = [soft(x), soft(y), soft(rng.standard_normal((20_000, 3)))]
    w = combination_weights(parts, option)
    np.testing.assert_allclose(w, [1, 0.5, 0], atol=0.05)
    together = nll(combine(parts, w), option).mean()
    assert together < min(nll(p, option).mean() for p in parts) - 0.02
    for i in range(2):
        for step in (-0.03, 0.03):
            assert together < nll(combine(parts, w + step * np.eye(3)[i]), option).mean()


def test_weights_are_never_negative():
    p, option, _ = predictions(4, n=300, width=2, sharp=2)
    wrong = p[:, ::-1]
    assert combination_weights([wrong], option).tolist() == [0]
    w = combination_weights([np.eye(2)[option]], option)
    assert 0 < w[0] <= 20


def test_the_gradient(monkeypatch):
    from scipy.optimize import check_grad, minimize

    p, option, _ = predictions(5, n=50)
    q = (p + 0.1) / (p + 0.1).sum(1, keepdims=True)

    def checked(loss, start, **how):
        for at in (start, np.array([0.2, 1.4])):
            assert check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], at) < 1e-5
        return minimize(loss, start, **how)

    monkeypatch.setattr(pool, "minimize", checked)
    combination_weights([p, q], option)


def test_answers_that_nobody_thought_possible_do_not_count():
    p, option, _ = predictions(6, n=200)
    a, b = p, combine([p], [0.5])
    found = combination_weights([a, b], option)
    impossible = np.array([[0.5, 0.5, 0, 0, 0]] * 3)
    more = [np.vstack([x, impossible]) for x in (a, b)]
    longer = np.append(option, [4, 4, 4])
    np.testing.assert_allclose(combination_weights(more, longer), found, atol=1e-6)
    with pytest.raises(ValueError, match="none of 3 answers is called possible"):
        combination_weights([impossible], np.array([4, 4, 4]))
    with pytest.raises(ValueError, match="none of 0 answers"):
        combination_weights([p[:0]], option[:0])


def test_combination_refuses():
    a, b = np.array([[0.8, 0.2, 0.0]]), np.array([[0.5, 0.5]])
    with pytest.raises(ValueError, match="one shape; got"):
        combine([a, b], [1, 1])
    with pytest.raises(ValueError, match=r"2 predictions are combined by one weight each.*\[1.0\]"):
        combine([a, a], [1])
    with pytest.raises(ValueError, match="none negative"):
        combine([a, a], [1, -1])


@given(seeds, st.floats(0.5, 5))
@few
def test_one_weight_is_undone_by_its_inverse(seed, w):
    p, _, n_options = predictions(seed)
    there = combine([p], [1 / w])
    np.testing.assert_allclose(there.sum(1), 1)
    assert ((there > 0) == (np.arange(5) < n_options[:, None])).all()
    np.testing.assert_allclose(combine([there], [w]), p, atol=1e-3)


@pytest.mark.parametrize("w", [0.4, 1.0, 2.5])
def test_a_single_prediction_is_calibrated(w):
    p, option, _ = predictions(0, n=20_000)
    assert combination_weights([combine([p], [w])], option)[0] == pytest.approx(1 / w, rel=0.05)


def test_one_weight_by_hand_and_at_its_ends():
    """Odds of 4 to 1 where 2 to 1 are true: w log 4 = log 2."""
    p = np.array([[0.8, 0.2]] * 3)
    assert combination_weights([p], np.array([0, 0, 1]))[0] == pytest.approx(0.5, rel=1e-3)
    assert combination_weights([p], np.array([0, 0, 0]))[0] > 5
    assert combination_weights([p], np.array([1, 1, 1]))[0] == 0
