from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.evaluation.intervals import Bootstrap

seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


def test_the_interval_covers():
    rng = np.random.default_rng(0)
    covered, covered_macro = 0, 0
    for trial in range(200):
        ability = rng.uniform(0.3, 0.9, 60)  # people differ, so that their answers hang together
        who = np.repeat(np.arange(60), 10)
        bootstrap, said = Bootstrap(who, resamples=400, seed=trial), rng.random(600) < ability[who]
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
    assert bootstrap.macro(values).estimate == pytest.approx((0 + 1 + 0.5) / 3)
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


def test_questions_are_a_sample_too():
    """Ten questions of which half are answered right by everybody: people say nothing about the other questions."""
    person, question = np.indices((200, 10)).reshape(2, -1)
    right = (question % 2).astype(float)
    people_only = Bootstrap(person).interval(right)
    both = Bootstrap(person, question=question).interval(right)
    assert people_only[1:] == (0.5, 0.5)
    assert both.estimate == 0.5
    assert both.high - both.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(10), rel=0.2)


def test_one_question_drawn_is_no_other_interval():
    rng = np.random.default_rng(0)
    person, values = rng.integers(0, 30, 400), rng.random(400)
    assert Bootstrap(person, question=np.zeros(400)).interval(values) == pytest.approx(
        Bootstrap(person).interval(values)
    )
