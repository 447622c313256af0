from __future__ import annotations

import numpy as np
import pytest

from personae.evaluation.prompt_use import mutual_information, prompt_use


def test_use_by_hand():
    use = prompt_use(np.array([0, 0, 0, 1]), n_prompts=3)
    assert use.share.tolist() == [0.75, 0.25, 0]
    assert use.entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert use.effective == pytest.approx(np.exp(use.entropy))
    assert use.undecided == 0
    assert prompt_use(np.zeros(5, int)).effective == 1
    assert prompt_use(np.arange(4)).effective == pytest.approx(4)


def test_probabilities_tell_even_use_from_indecision():
    firm = prompt_use(np.tile(np.eye(2), (10, 1)))
    vague = prompt_use(np.full((20, 2), 0.5))
    assert firm.entropy == vague.entropy == pytest.approx(np.log(2))
    assert (firm.undecided, vague.undecided) == (0, pytest.approx(np.log(2)))


def test_choices_are_firm_probabilities():
    chosen = np.random.default_rng(0).integers(0, 3, 60)
    who = np.repeat(np.arange(12), 5)
    assert prompt_use(np.eye(3)[chosen]).entropy == prompt_use(chosen).entropy
    assert mutual_information(who, np.eye(3)[chosen]) == mutual_information(who, chosen)


def test_information_by_hand():
    # ann: 0 0 1, bob: 1 -> joint 1/2, 1/4, 1/4 of (ann, 0), (ann, 1), (bob, 1)
    found = mutual_information(np.array(["ann", "ann", "ann", "bob"]), np.array([0, 0, 1, 1]))
    expected = 0.5 * np.log(0.5 / (0.75 * 0.5)) + 0.25 * np.log(0.25 / (0.75 * 0.5)) + 0.25 * np.log(0.25 / 0.125)
    assert found.estimate == pytest.approx(expected)
    assert found.excess == pytest.approx(found.estimate - found.by_chance)


def test_chance_takes_the_bias_of_many_people_out():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(300), 8)
    nobody = mutual_information(who, rng.integers(0, 4, 2400))
    assert nobody.estimate > 0.15  # though prompts are independent of people
    assert nobody.by_chance == pytest.approx(299 * 3 / (2 * 2400), rel=0.2)
    assert abs(nobody.excess) < 0.02
    assert nobody.p > 0.02
    somebody = mutual_information(who, np.where(rng.random(2400) < 0.5, who % 4, rng.integers(0, 4, 2400)))
    assert somebody.excess > 0.2
    assert somebody.p < 0.01
    one_each = mutual_information(np.arange(2400), rng.integers(0, 4, 2400))
    assert one_each.excess == pytest.approx(0, abs=1e-9)
    assert one_each.p == 1


@pytest.mark.parametrize(
    ("prompts", "size", "message"),
    [
        ([], None, "there are no replies"),
        ([0, 4], 4, "from 0 to 3; got int64 values from 0 to 4"),
        ([0, -1], 4, "from -1 to 0"),
        ([0.0, 1.0], 4, "got float64"),
        ([[0.5, 0.4]], None, "row 0 of the prompts' probabilities is no distribution"),
        ([[0.5, np.nan]], None, "no distribution"),
        ([[0.5, 0.5]], 3, "probabilities of 2 prompts are given for a bank of 3"),
    ],
)
def test_what_is_no_use_of_prompts_is_refused(prompts, size, message):
    with pytest.raises(ValueError, match=message):
        prompt_use(np.array(prompts), size)


def test_people_must_match():
    with pytest.raises(ValueError, match="need one person each; got 1"):
        mutual_information(np.array(["ann"]), np.array([0, 1]))
    with pytest.raises(ValueError, match="1 missing"):
        mutual_information(np.array(["ann", None], dtype=object), np.array([0, 1]))
