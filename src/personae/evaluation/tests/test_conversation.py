from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from personae.evaluation.conversation import (
    CONSTANT,
    Examples,
    Replies,
    anchors,
    compare_replies,
    distinct_interval,
    of_lm,
    persona_gap,
)
from personae.evaluation.replies import bleu, distinct, distinct_at, f1, self_bleu

_WORDS = ["i", "you", "like", "have", "do", "what", "two", "dogs", "cats", "music", "work", "at", "home", ".", "?"]


def some_examples(n_dialogues: int = 12, turns: int = 4) -> Examples:
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(_WORDS, rng.integers(4, 9))) for _ in range(2 * n_dialogues * turns)]
    return Examples(said[::2], said[1::2], np.repeat([f"d{i}" for i in range(n_dialogues)], turns))


@pytest.fixture(scope="module")
def examples() -> Examples:
    return some_examples()


@pytest.fixture(scope="module")
def found(examples) -> pd.DataFrame:
    n = len(examples.references)
    tokens = np.arange(n) % 5 + 3
    mine = Replies(
        [f"i like {text}" for text in examples.references],
        stopped=np.arange(n) % 4 > 0,
        nll=2.0 * tokens,
        tokens=tokens,
        nll_swapped=np.stack([2.5 * tokens, 1.9 * tokens], axis=1),
    )
    return compare_replies({"mine": mine, "human again": Replies(examples.references)}, examples)


def line(found: pd.DataFrame, row: str, metric: str) -> pd.Series:
    return found[(found["row"] == row) & (found["metric"] == metric)].iloc[0]


def test_controls(examples):
    rows = anchors(examples)
    assert list(rows) == ["human", "constant", "copy", "random"]
    assert set(rows["constant"].texts) == {CONSTANT}
    assert rows["copy"].texts == examples.partner
    assert sorted(rows["random"].texts) == sorted(examples.references)
    assert anchors(examples, seed=1)["random"].texts != rows["random"].texts


@pytest.mark.parametrize("sizes", [(1, 1), (5, 1, 4), (3, 3, 1), (1,) * 9, (7, 2, 2, 3)])
def test_random_replies_are_of_other_dialogues(sizes):
    dialogue = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    own = [f"of {d}" for d in dialogue]
    for seed in range(20):
        random = anchors(Examples(own, own, dialogue), seed)["random"].texts
        assert all(a != b for a, b in zip(random, own, strict=True))


def test_one_long_dialogue_has_no_random_replies():
    with pytest.raises(ValueError, match="more than half the turns are of one dialogue"):
        anchors(Examples(["a", "b", "c"], ["a", "b", "c"], np.array([0, 0, 1])))


def test_every_row_has_every_measure(found):
    table = found.set_index(["row", "metric"])["estimate"].unstack(sort=False)
    assert list(table.index) == ["human", "constant", "copy", "random", "mine", "human again"]
    assert table.drop(columns=["stopped", "nll", "perplexity", "persona_gap", "prefers_own"]).notna().all(axis=None)
    of_lm = table[["stopped", "nll", "perplexity", "persona_gap", "prefers_own"]]
    assert of_lm.notna().all(axis=1).tolist() == [row == "mine" for row in table.index]
    np.testing.assert_array_equal(table.loc["human"], table.loc["human again"])
    assert table.loc["human", ["f1", "bleu", "rouge_l"]].tolist() == pytest.approx([1, 1, 1])


def test_estimates_are_those_of_the_measures(found, examples):
    mine = [f"i like {text}" for text in examples.references]
    assert line(found, "mine", "bleu").estimate == pytest.approx(bleu(mine, examples.references))
    pairs = zip(mine, examples.references, strict=True)
    assert line(found, "mine", "f1").estimate == pytest.approx(np.mean([f1(a, b) for a, b in pairs]))
    assert line(found, "mine", "dist_2").estimate == pytest.approx(distinct(mine, 2))
    assert line(found, "mine", "self_bleu").estimate == pytest.approx(self_bleu(mine))
    assert line(found, "constant", "most_used").estimate == 1
    words = min(sum(len(t.split()) for t in texts) for texts in (examples.references, examples.partner))
    assert found.attrs["equal_words"] == words
    assert line(found, "mine", "dist_1_equal").estimate == pytest.approx(distinct_at(mine, 1, words))


def test_intervals(found):
    with_one = found[found["low"].notna()]
    assert ((with_one["low"] <= with_one["estimate"] + 1e-9) & (with_one["estimate"] <= with_one["high"] + 1e-9)).all()
    without = set(found[found["low"].isna()]["metric"])
    assert without == {"self_bleu", "dist_1_equal", "dist_2_equal", "dist_3_equal"}
    random = line(found, "random", "bleu")
    assert random.low < random.estimate < random.high
    assert line(found, "human", "bleu").low == pytest.approx(1)


def test_bleu_of_one_sample_by_hand(examples):
    """A sample is its dialogues' replies, each as often as the dialogue was drawn."""
    from personae.evaluation.conversation import of_sums
    from personae.evaluation.intervals import Bootstrap
    from personae.evaluation.replies import bleu_counts, bleu_of

    drawn = Bootstrap(examples.dialogue, resamples=1, seed=3)
    times = drawn.weights[0].astype(int)[drawn.person]
    said, true = (np.repeat(texts, times).tolist() for texts in (examples.partner, examples.references))
    counts = np.array([bleu_counts(a, b) for a, b in zip(examples.partner, examples.references, strict=True)])
    assert of_sums(drawn, counts, bleu_of)[1:] == pytest.approx((bleu(said, true),) * 2)


def test_of_the_true_replies(found):
    assert line(found, "mine", "nll").estimate == pytest.approx(2)
    assert line(found, "mine", "perplexity").estimate == pytest.approx(np.exp(2))
    assert line(found, "mine", "persona_gap").estimate == pytest.approx(0.2)
    assert line(found, "mine", "prefers_own").estimate == 0.5
    assert line(found, "mine", "stopped").estimate == 0.75


def test_gap_by_hand():
    gap, prefers = persona_gap(np.array([5.0, 5.0, 5.0]), np.array([6.0, 4.0, 5.0]))
    assert gap.tolist() == [1, -1, 0]
    assert prefers.tolist() == [1, 0, 0.5]
    with pytest.raises(ValueError, match="2 replies have 1 swapped"):
        persona_gap(np.zeros(2), np.zeros(1))


def test_jackknife_is_dist_without_each_dialogue():
    said = ["i like dogs", "i like cats", "do you like dogs", "no", "i do", "what do you do"]
    dialogue = np.array(["x", "y", "x", "z", "y", "z"])
    for n in (1, 2):
        left = [distinct([t for t, d in zip(said, dialogue, strict=True) if d != g], n) for g in "xyz"]
        error = np.sqrt(2 / 3 * np.sum((np.array(left) - np.mean(left)) ** 2))
        whole = distinct(said, n)
        expected = (whole, whole - 1.96 * error, whole + 1.96 * error)
        assert distinct_interval(said, n, dialogue) == pytest.approx(expected)


def test_jackknife_covers_other_dialogues_in_the_same_number():
    values = np.array([distinct_interval(e.references, 1, e.dialogue) for e in _drawn(60)])
    expected = values[:, 0].mean()
    covered = ((values[:, 1] <= expected) & (expected <= values[:, 2])).mean()
    assert covered >= 0.9


def _drawn(times: int) -> list[Examples]:
    """Dialogues with words of their own, of a vocabulary with a long tail."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(times):
        words = (1 / rng.random((40, 30))).astype(int) + rng.integers(0, 5, (40, 1))
        texts = [" ".join(map(str, row)) for row in words]
        out.append(Examples(texts, texts, np.arange(40)))
    return out


def test_a_single_dialogue_has_no_interval():
    assert np.isnan(distinct_interval(["a b", "b"], 1, np.zeros(2))[1:]).all()
    assert np.isnan(distinct_interval(["a", "b"], 2, np.arange(2))).all()
    alone = Examples(["a b", "c"], ["", ""], np.zeros(2))
    known = Replies([], np.array([True, False]), np.ones(2), np.ones(2), np.full(2, 2.0))
    for metric, (estimate, low, high) in dict(of_lm(known, alone)).items():
        assert np.isfinite([estimate, low, high]).tolist() == [True, False, False], metric


def test_silent_methods_are_measured(examples):
    silent = compare_replies({"silent": Replies([""] * len(examples.references))}, examples)
    assert line(silent, "silent", "f1").estimate == line(silent, "silent", "bleu").estimate == 0
    assert np.isnan(line(silent, "silent", "dist_1").estimate)
    assert np.isnan(line(silent, "human", "dist_1_equal").estimate)  # no words to compare at


def test_likeness_is_named_by_what_it_is(examples):
    from transformers import BertConfig, BertModel

    from personae.evaluation.likeness import BertScore
    from personae.lm.encoder import SentenceEncoder
    from personae.lm.tiny import tiny_tokenizer

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=340, **size)), tiny_tokenizer())
    table = compare_replies({}, examples, encoder, BertScore(encoder, 1))
    for metric in ("embedding_similarity", "bert_score"):
        assert line(table, "human", metric).estimate == pytest.approx(1, abs=1e-4)
        assert line(table, "random", metric).estimate < 1


def test_what_does_not_fit_together_is_refused(examples):
    n = len(examples.references)
    texts = list(examples.references)
    for method, message in [
        (Replies(texts[1:]), f'"mine" has {n - 1} texts for {n} examples'),
        (Replies(texts, stopped=np.ones(2)), '"mine" has 2 stopped'),
        (Replies(texts, nll=np.ones(n)), "nll without tokens"),
        (Replies(texts, nll_swapped=np.ones(n)), "nll_swapped without the nll"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare_replies({"mine": method}, examples)
    with pytest.raises(ValueError, match="copy, human are the names of controls"):
        compare_replies({"human": Replies(texts), "copy": Replies(texts)}, examples)
    with pytest.raises(ValueError, match="got \\(1, 2, 1\\)"):
        Examples(["a"], ["a", "b"], np.zeros(1))


# ConvAI2 ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def convai2() -> Examples:
    path = Path(__file__).resolve().parents[5] / "shared" / "data" / "convai2" / "valid_self_original.txt"
    if not path.is_file():
        pytest.skip(f"ConvAI2, which stands beside the project, is not here ({path})")
    partner, true, dialogue = [], [], []
    number, last = 0, 0
    for row in path.read_text(encoding="utf-8").splitlines():
        at, text = row.split(" ", 1)
        number += int(at) <= last  # the numbers of lines start again with each dialogue
        last = int(at)
        if "\t" in text:
            partner.append(text.split("\t")[0])
            true.append(text.split("\t")[1])
            dialogue.append(number)
    assert (len(true), number + 1) == (7801, 1000)
    return Examples(true, partner, np.array(dialogue))


@pytest.mark.shared
def test_controls_on_convai2(convai2):
    """In per cent: F1 raw and normalised, BLEU, DIST-1, DIST-2.

    Human, constant and copy are exact to two decimals. Which replies a random row takes is chance: over sixteen seeds
    F1 has mean 12.09 and standard deviation 0.083, normalised 8.15 and 0.085, BLEU 0.37 and 0.044. The figures expected
    are one draw and ours another, so that their difference has sqrt(2) of that, and three of these are allowed (the
    next reply of the same dialogue would be 3.6 off in F1). The random row's DIST is the human one, exactly.
    """
    rows = anchors(convai2)
    expected = {
        "human": (100, 100, 100, 5.41, 36.43),
        "constant": (23.27, 17.49, 2.15, 0.01, 0.01),
        "copy": (16.34, 13.16, 1.43, 5.33, 36.07),
        "random": (12.25, 8.26, 0.38, 5.41, 36.43),
    }
    for row, figures in expected.items():
        texts = rows[row].texts
        pairs = list(zip(texts, convai2.references, strict=True))
        found = [
            np.mean([f1(a, b) for a, b in pairs]),
            np.mean([f1(a, b, normalised=True) for a, b in pairs]),
            bleu(texts, convai2.references),
            distinct(texts, 1),
            distinct(texts, 2),
        ]
        chance = (0.35, 0.36, 0.19) if row == "random" else (0, 0, 0)
        for value, figure, more in zip(found, figures, (*chance, 0, 0), strict=True):
            assert abs(100 * value - figure) <= 0.005 + more, row
    assert round(100 * distinct(convai2.references[:500], 1), 1) == 20.3
    assert round(100 * np.mean([f1(". ?", b) for b in convai2.references]), 1) == 12.7
