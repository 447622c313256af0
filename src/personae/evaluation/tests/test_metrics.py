from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from personae.evaluation import metrics
from personae.evaluation.metrics import (
    Bootstrap,
    brier,
    combination_weights,
    combine,
    expected_calibration_error,
    lift,
    macro,
    nll,
    ordinal_error,
    reliability,
    representativeness,
    right,
    scores,
    subgroup_gaps,
    temperature,
    tempered,
)

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


def test_the_first_of_equally_likely_options_is_said():
    assert right(np.array([[0.4, 0.4, 0.2]] * 2), np.array([0, 1])).tolist() == [1, 0]


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
    np.testing.assert_allclose(table["accuracy"], [np.nan, np.nan, 1, 0.5, 1])
    ece = expected_calibration_error(p, np.array([0, 1, 1, 0]), bins=5)
    assert ece == pytest.approx((0.5 + 2 * 0.175 + 0.05) / 4)


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
    assert expected_calibration_error(tempered(p, 0.3), option) > 0.15
    some = expected_calibration_error(p[:200], option[:200])
    assert some > 3 * calibrated  # few answers look badly calibrated


# over people and groups ------------------------------------------------------------------------------------------
def test_macro_and_lift_by_hand():
    values, who = np.array([1.0, 0, 1, 1, 0.5]), np.array(["b", "a", "b", "b", "c"])
    assert macro(values, who) == pytest.approx((0 + 1 + 0.5) / 3)
    assert lift(0.6, 0.5, 0.7) == pytest.approx(0.5)
    assert lift(0.45, 0.5, 0.7) == pytest.approx(-0.25)
    with pytest.raises(ValueError, match=r"ceiling \(0.5\) is not above the majority \(0.5\)"):
        lift(0.6, 0.5, 0.5)
    with pytest.raises(ValueError, match="is nobody's"):
        macro(values, np.array(["b", None, "b", "b", "c"], dtype=object))
    with pytest.raises(ValueError, match="5 values are given for the answers of 4"):
        macro(values, who[:4])


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


# intervals -------------------------------------------------------------------------------------------------------
def test_the_interval_covers():
    rng = np.random.default_rng(0)
    covered, covered_macro = 0, 0
    for trial in range(200):
        ability = rng.uniform(0.3, 0.9, 60)  # people differ, so that their answers hang together
        who = np.repeat(np.arange(60), 10)
        bootstrap, said = Bootstrap(who, 400, seed=trial), rng.random(600) < ability[who]
        low, high = bootstrap.interval(said)[1:]
        covered += low <= 0.6 <= high
        low, high = bootstrap.macro(said)[1:]
        covered_macro += low <= 0.6 <= high
    assert 0.90 <= covered / 200 <= 0.99
    assert 0.90 <= covered_macro / 200 <= 0.99


def test_estimates():
    values, who = np.array([1.0, 0, 1, 1, 0.5]), np.array(["b", "a", "b", "b", "c"])
    bootstrap = Bootstrap(who)
    assert bootstrap.interval(values).estimate == pytest.approx(0.7)
    assert bootstrap.macro(values).estimate == pytest.approx(macro(values, who))
    assert bootstrap.difference(values, np.zeros(5)).estimate == pytest.approx(0.7)
    for found in (bootstrap.interval(values), bootstrap.macro(values)):
        assert found.low <= found.estimate <= found.high


def test_one_sample_by_hand():
    """A resample is its people's answers, each as often as the person was drawn."""
    values, who = np.array([1.0, 0, 1, 0.25, 0.5]), np.array([1, 0, 1, 1, 2])
    bootstrap = Bootstrap(who, resamples=1, seed=3)
    drawn_people = np.repeat(np.arange(3), bootstrap.weights[0].astype(int))
    assert len(drawn_people) == 3
    answers = np.concatenate([values[who == i] for i in drawn_people])
    assert bootstrap.interval(values)[1:] == pytest.approx((answers.mean(),) * 2)
    means = [values[who == i].mean() for i in drawn_people]
    assert bootstrap.macro(values)[1:] == pytest.approx((np.mean(means),) * 2)


def test_answers_of_one_person_count_as_one():
    said = np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1, 1])
    alone, often = Bootstrap(np.arange(10)), Bootstrap(np.repeat(np.arange(10), 100))
    assert often.interval(np.repeat(said, 100)) == pytest.approx(alone.interval(said))


def test_more_people_narrower_interval():
    rng = np.random.default_rng(0)
    said = (rng.random(1000) < 0.6).astype(float)
    widths = [np.subtract(*Bootstrap(np.arange(n)).interval(said[:n])[:0:-1]) for n in (1000, 100, 20)]
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(2 * 1.96 * said.std() / np.sqrt(1000), rel=0.15)


def test_a_clear_difference_and_none():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(200), 5)
    easy = rng.random(200)[who]
    a, b = (rng.random(1000) < easy).astype(float), (rng.random(1000) < easy).astype(float)
    bootstrap = Bootstrap(who)
    same = bootstrap.difference(a, b)
    assert same.low < 0 < same.high
    better = np.where(rng.random(1000) < 0.15, 1, b)
    clear = bootstrap.difference(better, b)
    assert 0 < clear.low < clear.estimate < clear.high
    apart = [bootstrap.interval(x) for x in (better, b)]
    assert apart[0].low < apart[1].high  # two intervals that overlap hide what the paired one shows
    assert bootstrap.difference(a, a) == (0, 0, 0)
    back = bootstrap.difference(b, better)
    assert (back.low, back.high) == pytest.approx((-clear.high, -clear.low))


@given(seeds)
@few
def test_what_does_not_vary_has_no_width(seed):
    rng = np.random.default_rng(seed)
    constant, who = np.full(40, rng.random()), rng.integers(0, 7, 40)
    bootstrap = Bootstrap(who, 50, seed)
    for found in (bootstrap.interval(constant), bootstrap.macro(constant)):
        assert found == pytest.approx((constant[0],) * 3, abs=1e-12)


def test_order_level_seed():
    rng = np.random.default_rng(0)
    said, who = rng.random(100), np.array([f"r{i}" for i in rng.integers(0, 30, 100)])
    found = Bootstrap(who).interval(said)
    order = rng.permutation(100)
    assert Bootstrap(who[order]).interval(said[order]) == pytest.approx(found, abs=1e-6)
    inner = Bootstrap(who, level=0.5).interval(said)
    assert found.low < inner.low < inner.estimate < inner.high < found.high
    assert Bootstrap(who).interval(said) == found != Bootstrap(who, seed=1).interval(said)
    weights = Bootstrap(who).weights
    assert weights.dtype == np.float32
    assert (weights.sum(1) == 30).all()


def test_bootstrap_refuses():
    with pytest.raises(ValueError, match="no answers"):
        Bootstrap(np.array([]))
    bootstrap = Bootstrap(np.arange(4))
    for ask in (bootstrap.interval, bootstrap.macro, lambda v: bootstrap.difference(np.ones(4), v)):
        with pytest.raises(ValueError, match="3 values are given for the answers of 4"):
            ask(np.ones(3))


# sharper, flatter, together --------------------------------------------------------------------------------------
@given(seeds, st.floats(0.5, 5))
@few
def test_a_temperature_is_undone(seed, t):
    p, _, n_options = predictions(seed)
    there = tempered(p, t)
    np.testing.assert_allclose(there.sum(1), 1)
    assert ((there > 0) == (np.arange(5) < n_options[:, None])).all()
    np.testing.assert_allclose(tempered(there, 1 / t), p, atol=1e-3)
    assert (there.argmax(1) == p.argmax(1)).all()


@pytest.mark.parametrize("t", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(t):
    p, option, _ = predictions(0, n=20_000)
    distorted = tempered(p, 1 / t)
    found = temperature(distorted, option)
    assert found == pytest.approx(t, rel=0.05)
    best = nll(tempered(distorted, found), option).mean()
    for other in (found * 0.97, found * 1.03):
        assert best < nll(tempered(distorted, other), option).mean()


def test_temperature_by_hand_and_at_its_ends():
    """Odds of 4 to 1 where 2 to 1 are true: log 4 / T = log 2."""
    p = np.array([[0.8, 0.2]] * 3)
    assert temperature(p, np.array([0, 0, 1])) == pytest.approx(2, rel=1e-4)
    assert temperature(p, np.array([0, 0, 0])) == pytest.approx(1 / 20, rel=1e-3)
    assert temperature(p, np.array([1, 1, 1])) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="above zero; got 0"):
        tempered(p, 0)


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


def test_one_weight_is_one_over_the_temperature():
    p, option, _ = predictions(3, n=500, sharp=2)
    p = tempered(p, 0.5)
    assert combination_weights([p], option)[0] == pytest.approx(1 / temperature(p, option), rel=1e-3)


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

    monkeypatch.setattr(metrics, "minimize", checked)
    combination_weights([p, q], option)


def test_answers_that_nobody_thought_possible_do_not_count():
    p, option, _ = predictions(6, n=200)
    a, b = p, tempered(p, 2)
    found = combination_weights([a, b], option)
    impossible = np.array([[0.5, 0.5, 0, 0, 0]] * 3)
    more = [np.vstack([x, impossible]) for x in (a, b)]
    longer = np.append(option, [4, 4, 4])
    np.testing.assert_allclose(combination_weights(more, longer), found, atol=1e-6)
    assert temperature(more[0], longer) == pytest.approx(temperature(a, option))
    with pytest.raises(ValueError, match="none of 3 answers is called possible"):
        combination_weights([impossible], np.array([4, 4, 4]))
    with pytest.raises(ValueError, match="none of 0 answers"):
        temperature(p[:0], option[:0])


def test_combination_refuses():
    a, b = np.array([[0.8, 0.2, 0.0]]), np.array([[0.5, 0.5]])
    with pytest.raises(ValueError, match="one shape; got"):
        combine([a, b], [1, 1])
    with pytest.raises(ValueError, match=r"2 predictions are combined by one weight each.*\[1.0\]"):
        combine([a, a], [1])
    with pytest.raises(ValueError, match="none negative"):
        combine([a, a], [1, -1])


# everything at once ----------------------------------------------------------------------------------------------
def test_scores_are_the_measures():
    p, option, n_options = predictions(7, n=300)
    who = np.random.default_rng(0).integers(0, 40, 300)
    bootstrap = Bootstrap(who)
    found = scores(p, option, n_options, bootstrap)
    hits, losses = right(p, option), nll(p, option)
    assert (found["accuracy"], found["accuracy_low"], found["accuracy_high"]) == bootstrap.interval(hits)
    assert (found["nll"], found["nll_low"], found["nll_high"]) == bootstrap.interval(losses)
    assert found["accuracy"] == pytest.approx(hits.mean())
    assert found["macro_accuracy"] == pytest.approx(macro(hits, who))
    assert found["brier"] == pytest.approx(brier(p, option).mean())
    assert found["ece"] == pytest.approx(expected_calibration_error(p, option))
    assert found["ordinal_error"] == pytest.approx(ordinal_error(p, option, n_options).mean())
    assert (found["n"], found["people"]) == (300, len(np.unique(who)))
    with pytest.raises(ValueError, match="299 values are given for the answers of 300"):
        scores(p[1:], option[1:], n_options[1:], bootstrap)
