from __future__ import annotations

import pytest

from personae.serving.backend import Busy, Sampling


def test_busy_says_when_to_come_again():
    assert str(Busy(12.4)) == "too many requests are waiting; try again in 12 seconds"
    assert Busy(12.4).retry_after == 12.4


@pytest.mark.parametrize("good", [{}, {"temperature": 2.0, "top_p": 1.0}, {"seed": 2**63 - 1}, {"stop": ("a", "b")}])
def test_sampling_in_range_is_taken(good):
    Sampling(**good).check()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1; got 0"),
        ({"temperature": -0.1}, "temperature must be at least 0 .* got -0.1"),
        ({"temperature": float("inf")}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\]; got 0.0 and 0.0"),
        ({"top_p": 1.1}, r"top_p in \(0, 1\]"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**63}, "seed must be from 0"),
        ({"stop": ("a", "")}, "a stop string must not be empty"),
    ],
)
def test_sampling_out_of_range_is_refused_with_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**wrong).check()
