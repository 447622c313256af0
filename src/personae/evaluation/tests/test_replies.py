from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.evaluation import replies
from personae.evaluation.replies import (
    bleu,
    bleu_counts,
    bleu_of,
    distinct,
    distinct_at,
    f1,
    length,
    most_used,
    normalise,
    repetition,
    rouge,
    self_bleu,
)

texts = st.lists(st.text("abc ", min_size=1, max_size=14), min_size=2, max_size=8)


def test_f1_by_hand():
    assert f1("i am fine .", "fine . and you ?") == pytest.approx(2 * 2 / 9)
    assert f1("do do do", "do you") == pytest.approx(2 * 1 / 5)  # as often as both have it
    assert f1("Fine", "fine") == 0
    assert f1("i'm fine !", "im FINE", normalised=True) == 1
    assert f1("the dog", "a dog .", normalised=True) == 1
    assert f1("", "fine") == f1("fine", "") == 0
    assert f1("", "") == f1("!", "?", normalised=True) == 1


def test_articles_are_whole_words():
    assert normalise("The theatre has another a-team: an ant") == "theatre has another ateam ant"


def test_bleu_by_hand():
    # 5 of 7 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 runs of four; 7 words for 8
    expected = (5 / 7 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25 * math.exp(1 - 8 / 7)
    assert bleu(["i like my two dogs .", "hello"], ["i like my two cats .", "hi there"]) == pytest.approx(expected)
    assert bleu(["i like my two dogs"], ["i like my two dogs"]) == 1
    assert bleu(["", ""], ["hi", "you"]) == 0


def test_bleu_is_that_of_the_library():
    from sacrebleu import corpus_bleu

    said = ["i like my two dogs .", "What do you do?", "", "no i don't"]
    true = ["i like my cats .", "what do you do for a living ?", "hi", "yes , I do ."]
    expected = corpus_bleu(said, [true], force=True).score / 100
    assert bleu(said, true) == pytest.approx(expected)
    assert bleu_of(sum(bleu_counts(a, b) for a, b in zip(said, true, strict=True))) == pytest.approx(expected)


def test_rouge_by_hand():
    found = rouge("the big dog sleeps", "the dog sleeps well here")
    assert found.one == pytest.approx(2 * 3 / 9)
    assert found.two == pytest.approx(2 * 1 / 7)  # "dog sleeps"
    assert found.longest == pytest.approx(2 * 3 / 9)
    assert rouge("dog the", "the dog").longest == pytest.approx(0.5)
    assert rouge("dogs", "dog").one == 0  # no stemming
    assert rouge("", "dog") == (0, 0, 0)


def test_distinct_by_hand():
    said = ["i like dogs", "i like cats and i like dogs"]
    assert distinct(said, 1) == 5 / 10
    assert distinct(said, 2) == 5 / 8  # i like, like dogs, like cats, cats and, and i
    assert distinct(said, 3) == 5 / 6  # "i like dogs" twice; none over the border of two replies
    assert math.isnan(distinct(["hi", ""], 2))


def test_distinct_at_equal_length():
    short, long = ["a b"] * 10 + ["c d"] * 10, ["a b c d"] * 20
    assert distinct(short, 1) == 2 * distinct(long, 1)  # though both use four words
    assert distinct_at(short, 1, words=40) == distinct_at(long, 1, words=40) == 0.1
    assert distinct_at(long, 1, words=6) == 4 / 6  # the last one is cut
    assert distinct_at(long, 2, words=80) == distinct(long, 2)
    assert distinct_at(short, 1, 7, seed=1) == distinct_at(short, 1, 7, seed=1)
    for words in (0, 81):
        with pytest.raises(ValueError, match=f"{words} words cannot be taken from 20 replies of 80 words"):
            distinct_at(long, 1, words)


def test_self_bleu_by_hand():
    # words 10 of 14, pairs 8 of 11, triples 6 of 8, fours 4 of 5; the reply of four has others of five words only
    expected = (10 / 14 * 8 / 11 * 6 / 8 * 4 / 5) ** 0.25 * math.exp(1 - 15 / 14)
    assert self_bleu(["i like my two dogs", "i like my two dogs", "what do you do"]) == pytest.approx(expected)
    assert self_bleu(["i like my two dogs"] * 3) == 1
    with pytest.raises(ValueError, match="compares replies with each other; there are 1"):
        self_bleu(["hi"])


@given(texts)
@settings(max_examples=40, deadline=None)
def test_self_bleu_is_the_librarys_with_all_others_as_references(said):
    from sacrebleu import corpus_bleu

    others = [[said[(i + k) % len(said)] for i in range(len(said))] for k in range(1, len(said))]
    assert self_bleu(said) == pytest.approx(min(corpus_bleu(said, others, force=True).score / 100, 1))


def test_a_repeated_reply_is_found():
    varied = [f"i have {n} {what} at home" for n, what in enumerate(("dogs", "cats", "cars", "sons"))]
    assert self_bleu(varied) < self_bleu(["i have 1 dog at home"] * 4)
    assert most_used([*varied, " i have 1 cats at home "]) == ("i have 1 cats at home", 0.4)
    with pytest.raises(ValueError, match="no replies"):
        most_used([])


def test_one_reply():
    assert (length("i like  dogs ."), length("")) == (4, 0)
    assert repetition("a b a b a b") == pytest.approx(1 - 2 / 4)
    assert repetition("a b a b a b", n=1) == pytest.approx(1 - 2 / 6)
    assert repetition("a b", n=3) == repetition("") == 0


def test_numbers_must_match():
    with pytest.raises(ValueError, match="2 replies are given for 1 references"):
        bleu(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("package", "measured"),
    [("sacrebleu.metrics", lambda: bleu(["a"], ["a"])), ("rouge_score.rouge_scorer", lambda: rouge("a", "a"))],
)
def test_missing_libraries_are_named(monkeypatch, package, measured):
    for cached in (replies._sacrebleu, replies._rouge):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'personae\[eval\]'"):
        measured()


def test_permutations_of_replies_change_no_variety():
    said = ["i like dogs", "hi", "i like cats and i like dogs"]
    order = np.array([2, 0, 1])
    assert self_bleu(said) == pytest.approx(self_bleu([said[i] for i in order]))
