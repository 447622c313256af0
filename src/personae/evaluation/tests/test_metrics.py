from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from personae.evaluation.metrics import (
    brier,
    expected_calibration_error,
    lift,
    nll,
    ordinal_error,
    reliability,
    representativeness,
    right,
    subgroup_gaps,
)
from personae.evaluation.pool import combine

P = np.array([[0.5, 0.3, 0.2], [0.1, 0.25, 0.65], [0.6, 0.4, 0.0]])  # the last question has two options
OPTION = np.array([0, 1, 1])
N_OPTIONS = np.array([3, 3, 2])


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


seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


# answer by answer ------------------------------------------------------------------------------------------------
def test_answer_by_answer_by_hand():
    assert right(P, OPTION).tolist() == [1, 0, 0]
    np.testing.assert_allclose(nll(P, OPTION), -np.log([0.5, 0.25, 0.4]))
    np.testing.assert_allclose(brier(P, OPTION), [0.25 + 0.09 + 0.04, 0.01 + 0.5625 + 0.4225, 0.36 + 0.36])
    np.testing.assert_allclose(ordinal_error(P, OPTION, N_OPTIONS), [0, 0.5, 1])


def test_an_impossible_answer_costs_much_and_not_infinitely():
    assert nll(P, np.array([0, 0, 2]))[2] == pytest.approx(9 * np.log(10))


def test_equally_likely_options_share_what_is_right():
    """Else "uniform" would be as good as the first option is frequent."""
    assert right(np.array([[0.4, 0.4, 0.2]] * 3), np.array([0, 1, 2])).tolist() == [0.5, 0.5, 0]


def test_the_median_is_the_best_point_forecast():
    p = np.array([0.4, 0.05, 0.15, 0.4])  # mode 0, mean 1.55, median 2
    expected = [float(np.abs(np.arange(4) - k) @ p) for k in range(4)]
    assert np.argmin(expected) == 2
    assert ordinal_error(p[None], np.array([2]), np.array([4]))[0] == 0
    halves = np.full((1, 2), 0.5, np.float32) * np.float32(1 - 1e-7)
    assert ordinal_error(halves, np.array([0]), np.array([2]))[0] == 0


@given(seeds)
@few
def test_ranges(seed):
    p, option, n_options = predictions(seed)
    assert ((brier(p, option) >= 0) & (brier(p, option) <= 2)).all()
    assert ((ordinal_error(p, option, n_options) >= 0) & (ordinal_error(p, option, n_options) <= 1)).all()
    assert (nll(p, option) >= 0).all()
    sure = np.eye(5)[option]
    assert right(sure, option).all()
    assert not brier(sure, option).any()
    assert not nll(sure, option).any()
    assert not ordinal_error(sure, option, n_options).any()
    np.testing.assert_allclose(brier(p, option), ((p - sure) ** 2).sum(1))


@pytest.mark.parametrize("measure", [right, nll, brier])
def test_refused(measure):
    with pytest.raises(ValueError, match=r"shape \(3, 3\) are given for 2 answers"):
        measure(P, OPTION[:2])
    with pytest.raises(ValueError, match="answer 1 gives option 3; there are 3"):
        measure(P, np.array([0, 3, 0]))
    with pytest.raises(ValueError, match="answer 0 gives option -1"):
        measure(P, np.array([-1, 0, 0]))
    with pytest.raises(ValueError, match=r"row 1 of the predictions is no distribution \(sum nan"):
        measure(np.where(np.arange(3)[:, None] == 1, np.nan, P), OPTION)
    with pytest.raises(ValueError, match="row 0 of the predictions is no distribution"):
        measure(np.log(P + 0.1), OPTION)


# calibration -----------------------------------------------------------------------------------------------------
def test_reliability_by_hand():
    p = np.array([[0.7, 0.3], [0.65, 0.35], [0.05, 0.95], [0.5, 0.5]])
    table = reliability(p, np.array([0, 1, 1, 0]), bins=5)
    assert table["n"].tolist() == [0, 0, 1, 2, 1]  # a half is in (0.4, 0.6]
    np.testing.assert_allclose(table["low"], [0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(table["high"], [0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(table["confidence"], [np.nan, np.nan, 0.5, 0.675, 0.95])
    np.testing.assert_allclose(table["accuracy"], [np.nan, np.nan, 0.5, 0.5, 1])
    ece = expected_calibration_error(p, np.array([0, 1, 1, 0]), bins=5)
    assert ece == pytest.approx((2 * 0.175 + 0.05) / 4)


def test_calibration_of_the_sure():
    sure = np.eye(2)[[0, 1, 1, 0]]
    assert expected_calibration_error(sure, np.array([0, 1, 1, 0])) == 0
    assert expected_calibration_error(sure, np.array([1, 0, 0, 1])) == 1


@given(seeds, st.integers(1, 30))
@few
def test_calibration_error_is_a_share(seed, bins):
    p, option, _ = predictions(seed)
    table = reliability(p, option, bins)
    assert table["n"].sum() == len(p)
    inside = table[table["n"] > 0]
    assert ((inside["confidence"] > inside["low"] - 1e-9) & (inside["confidence"] <= inside["high"] + 1e-9)).all()
    assert 0 <= expected_calibration_error(p, option, bins) <= 1


def test_the_calibrated_are_found_calibrated_with_many_answers_and_the_overconfident_are_not():
    p, option, _ = predictions(0, n=20_000)
    calibrated = expected_calibration_error(p, option)
    assert calibrated < 0.012
    assert expected_calibration_error(combine([p], [3.0]), option) > 0.15
    some = expected_calibration_error(p[:200], option[:200])
    assert some > 3 * calibrated  # few answers look badly calibrated


# over people and groups ------------------------------------------------------------------------------------------
def test_lift_by_hand():
    assert lift(0.6, 0.5, 0.7) == pytest.approx(0.5)
    assert lift(0.45, 0.5, 0.7) == pytest.approx(-0.25)
    with pytest.raises(ValueError, match=r"ceiling \(0.5\) is not above the majority \(0.5\)"):
        lift(0.6, 0.5, 0.5)


def test_representativeness_by_hand():
    """Question 0 (three options): predicted (.5, .3, .2), given (1/2, 0, 1/2): cumulative .5 .8 against .5 .5, so that
    W = .3 of 2. Question 1 (two options): predicted (.6, .4), given (0, 1): W = .6 of 1."""
    p = np.array([[0.4, 0.4, 0.2], [0.6, 0.2, 0.2], [0.6, 0.4, 0.0]])
    option, question, n_options = np.array([0, 2, 1]), np.array([7, 7, 3]), np.array([3, 3, 2])
    found = representativeness(p, option, question, n_options, minimum=1)
    assert found.to_dict("records") == [
        {
            "group": "everybody",
            "representativeness": pytest.approx((0.85 + 0.4) / 2),
            "questions": 2,
            "answers": 3,
            "left_out": 0,
        }
    ]
    found = representativeness(p, option, question, n_options, minimum=2)
    assert found["representativeness"][0] == pytest.approx(0.85)
    assert found[["questions", "answers", "left_out"]].iloc[0].tolist() == [1, 2, 1]
    nothing = representativeness(p, option, question, n_options)
    assert np.isnan(nothing["representativeness"][0])
    assert nothing[["questions", "answers", "left_out"]].iloc[0].tolist() == [0, 0, 2]


def test_representativeness_of_groups_is_that_of_each_alone():
    p, option, n_options = predictions(0, n=400)
    question = n_options - 2  # one question a length
    group = pd.Series(np.random.default_rng(0).choice(["left", "right", None], 400))
    found = representativeness(p, option, question, n_options, group).set_index("group")
    assert found.index.tolist() == ["left", "right", "missing"]
    assert found["answers"].sum() == 400
    for name, mine in (("left", group == "left"), ("right", group == "right"), ("missing", group.isna())):
        alone = representativeness(p[mine], option[mine], question[mine], n_options[mine])
        assert alone.drop(columns="group").iloc[0].tolist() == pytest.approx(found.loc[name].tolist())


@given(seeds)
@few
def test_representativeness_is_the_wasserstein_distance(seed):
    p, option, _ = predictions(seed, n=30)
    n_options = np.full(30, 5)
    found = representativeness(p, option, np.zeros(30, int), n_options)["representativeness"][0]
    assert found == pytest.approx(1 - wasserstein_distance(np.arange(5), option, p.mean(0)) / 4)
    assert 0 <= found <= 1


@given(st.integers(2, 6), st.integers(10, 30))
@few
def test_representativeness_of_the_perfect_and_of_the_opposite(k, n):
    option = np.random.default_rng(n).integers(0, k, n)
    shares = np.bincount(option, minlength=k) / n
    same = np.zeros(n, int), np.full(n, k)
    assert representativeness(np.tile(shares, (n, 1)), option, *same)["representativeness"][0] == pytest.approx(1)
    low, highest = np.tile(np.eye(k)[0], (n, 1)), np.full(n, k - 1)
    assert representativeness(low, highest, *same)["representativeness"][0] == pytest.approx(0)


def test_subgroup_gaps_by_hand():
    who = np.repeat(np.arange(35), 2)
    traits = pd.DataFrame(
        {
            "side": np.repeat(["left"] * 10 + ["middle"] * 9 + ["right"] * 12 + [None] * 4, 2),
            "place": np.repeat(["town"] * 30 + ["farm"] * 5, 2),
            "empty": [None] * 70,
        }
    )
    values = np.zeros(70)
    values[:20:2] = 1  # left: one of two
    values[20:38] = 1  # middle: all, but too few people
    values[38:44] = 1  # right: a quarter
    found = subgroup_gaps(values, who, traits).set_index("trait")
    side = found.loc["side"].to_dict()
    assert side == {
        "lowest": "right",
        "lowest_mean": 0.25,
        "highest": "left",
        "highest_mean": 0.5,
        "gap": 0.25,
        "groups": 2,
        "suppressed": 1,
        "unknown": 4,
    }
    assert subgroup_gaps(values, who, traits, minimum=9)["highest"][0] == "middle"
    assert found.loc["place", ["groups", "suppressed", "unknown"]].tolist() == [1, 1, 0]
    assert found.loc["empty", ["groups", "suppressed", "unknown"]].tolist() == [0, 0, 35]
    assert found["gap"].isna().tolist() == [False, True, True]
    assert found["lowest"].isna().tolist() == [False, True, True]


def test_a_group_is_as_large_as_its_people_not_as_its_answers():
    traits = pd.DataFrame({"side": ["left"] * 50 + ["right"] * 50})
    found = subgroup_gaps(np.ones(100), np.repeat(np.arange(10), 10), traits)
    assert found["suppressed"][0] == 2
    with pytest.raises(ValueError, match="100 values are given for the answers of 99"):
        subgroup_gaps(np.ones(99), np.arange(99), traits)
