"""What methods' replies in personal conversation are worth, always beside four controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd

from personae.evaluation import replies as measure
from personae.evaluation.intervals import Bootstrap, Interval
from personae.evaluation.likeness import BertScore, similarity
from personae.lm.encoder import SentenceEncoder

CONSTANT = "i am . i like to . what do you do for a living ?"
"""Frequent words of ConvAI2's replies; as the answer to everything it beats trained models in F1."""

_Z = 1.96  # 95 % of a normal distribution


@dataclass(frozen=True)
class Examples:
    """The turns that every method replies to.

    Attributes
    ----------
    references : sequence of str (n,)
        The true replies.
    partner : sequence of str (n,)
        What the partner said just before; empty where nothing.
    dialogue : array (n,)
        Which dialogue each turn is of, by any label.
    """

    references: Sequence[str]
    partner: Sequence[str]
    dialogue: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.references), len(self.partner), len(self.dialogue)
        if len(set(n)) > 1 or not n[0]:
            raise ValueError(f"examples are turns with a reference, a partner's utterance and a dialogue each; got {n}")

    @cached_property
    def dialogues(self) -> Bootstrap:
        return Bootstrap(self.dialogue)


@dataclass(frozen=True)
class Replies:
    """A method's replies to all examples, and what its LM says of the true ones, if known.

    Attributes
    ----------
    texts : sequence of str (n,)
    stopped : bool array (n,), optional
        Whether the reply ended by itself, not at the limit of new tokens.
    nll : float array (n,), optional
        -log of the probability of the true reply, summed over its tokens, in nats.
    tokens : int array (n,), optional
        Of the true reply, as many as `nll` sums over; needed with `nll`.
    nll_swapped : float array (n,) or (n, S), optional
        `nll` with the persona of somebody else, chosen at random, in place of the own one; S times.
    """

    texts: Sequence[str]
    stopped: np.ndarray | None = None
    nll: np.ndarray | None = None
    tokens: np.ndarray | None = None
    nll_swapped: np.ndarray | None = None

    def check(self, row: str, n: int) -> None:
        """Refuse anything that has not one entry for each of n examples."""
        for name, values in vars(self).items():
            if values is not None and len(values) != n:
                raise ValueError(f'"{row}" has {len(values):,} {name} for {n:,} examples; every row needs them all')
        if self.nll is not None and self.tokens is None:
            raise ValueError(f'"{row}" has nll without tokens; perplexity is a mean over tokens')
        if self.nll_swapped is not None and self.nll is None:
            raise ValueError(f'"{row}" has nll_swapped without the nll that it is compared with')


def anchors(examples: Examples, seed: int = 0) -> dict[str, Replies]:
    """Four controls without any model: human, constant, copy, random.

    Returns
    -------
    dict
        human: the true replies. constant: `CONSTANT`. copy: the partner's last utterance. random: a true reply of
        another dialogue, each used once, so that its variety is the human one.

    Raises
    ------
    ValueError
        More than half the turns are of one dialogue, so that there are not enough other replies.

    Examples
    --------
    >>> examples = Examples(["fine .", "a cat ."], ["how are you ?", "any pets ?"], np.array([0, 1]))
    >>> {row: replies.texts for row, replies in anchors(examples).items() if row != "constant"}
    {'human': ['fine .', 'a cat .'], 'copy': ['how are you ?', 'any pets ?'], 'random': ['a cat .', 'fine .']}
    """
    n = len(examples.references)
    code = examples.dialogues.person
    if 2 * np.bincount(code).max() > n:
        raise ValueError("more than half the turns are of one dialogue; random replies need others to be taken from")
    # Dialogues in random order, each a block of its replies in random order: half way round is always another block.
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(n), rng.permutation(examples.dialogues.people)[code]))
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, n // 2)
    return {
        "human": Replies(list(examples.references)),
        "constant": Replies([CONSTANT] * n),
        "copy": Replies(list(examples.partner)),
        "random": Replies([examples.references[i] for i in other.tolist()]),
    }


def compare_replies(
    methods: Mapping[str, Replies],
    examples: Examples,
    encoder: SentenceEncoder | None = None,
    bert: BertScore | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """All measures of several methods' replies to the same turns, under the rows of `anchors`.

    Parameters
    ----------
    methods : mapping of name to Replies
        Each with a reply to every example.
    encoder : SentenceEncoder, optional
        For embedding_similarity, which is left out otherwise.
    bert : BertScore, optional
        For bert_score, which is left out otherwise.
    seed : int
        Of the random row and of the words of equal length.

    Returns
    -------
    DataFrame
        row, metric, estimate, low, high (95 %, missing where there is no sound interval). What was not given (nll,
        stopped, ...) has no line. ``found.set_index(["row", "metric"])["estimate"].unstack(sort=False)`` is the table.

        - f1, f1_normalised, rouge_1, rouge_2, rouge_l, embedding_similarity, bert_score: mean over replies
        - bleu: of all replies together
        - dist_1, dist_2, dist_3; dist_1_equal, ...: at as many words as the row with the fewest has
          (``found.attrs["equal_words"]``)
        - self_bleu
        - length (words), stopped (share), repetition, most_used (share of the most frequent reply; its
          interval is that of this one reply's share)
        - nll (nats a token of the true replies), perplexity
        - persona_gap (by how much `nll` rises, a token, with somebody else's persona), prefers_own (share of replies
          that the own persona makes likelier than somebody else's)

    Notes
    -----
    Means, BLEU and perplexity: bootstrap over dialogues, the same samples for all rows. Where something is counted as
    different or the same among all replies, that would be wrong: a sample with replacement has dialogues twice and
    all in them is a repetition, so that a DIST lies below itself and self-BLEU above. DIST has the jackknife over
    dialogues instead, which errs to the wide side [1]_; self-BLEU and DIST at equal length have no interval.

    References
    ----------
    .. [1] Efron and Stein, "The jackknife estimate of variance", 1981.

    Examples
    --------
    >>> examples = Examples(["fine .", "a cat ."], ["how are you ?", "any pets ?"], np.array([0, 1]))
    >>> found = compare_replies({"mine": Replies(["fine .", "a dog ."])}, examples)
    >>> found.set_index(["row", "metric"])["estimate"].unstack(sort=False)[["f1", "dist_1", "length"]].round(2)
    metric      f1  dist_1  length
    row
    human     1.00    0.80     2.5
    constant  0.17    0.40    15.0
    copy      0.00    0.86     3.5
    random    0.40    0.80     2.5
    mine      0.83    0.80     2.5
    """
    controls = anchors(examples, seed)
    taken = sorted(controls.keys() & methods.keys())
    if taken:
        raise ValueError(f"{', '.join(taken)} are the names of controls; call the methods otherwise")
    rows = {**controls, **methods}
    for name, replies in rows.items():
        replies.check(name, len(examples.references))
    words = min(sum(map(measure.length, replies.texts)) for replies in rows.values())
    likeness: dict[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]] = {}
    if encoder is not None:
        likeness["embedding_similarity"] = lambda a, b: similarity(a, b, encoder)
    if bert is not None:
        likeness["bert_score"] = bert
    found = pd.DataFrame(
        [
            {"row": name, "metric": metric, **interval._asdict()}
            for name, replies in rows.items()
            for part in (
                _of_pairs(replies.texts, examples),
                ((m, of_mean(examples.dialogues, f(replies.texts, examples.references))) for m, f in likeness.items()),
                _of_texts(replies.texts, examples, words, seed),
                of_lm(replies, examples),
            )
            for metric, interval in part
        ]
    )
    found.attrs["equal_words"] = words
    return found


# the parts of a row ----------------------------------------------------------------------------------------------
def _of_pairs(texts: Sequence[str], examples: Examples) -> Iterator[tuple[str, Interval]]:
    pairs = list(zip(texts, examples.references, strict=True))
    mean = partial(of_mean, examples.dialogues)
    yield "f1", mean(np.array([measure.f1(a, b) for a, b in pairs]))
    yield "f1_normalised", mean(np.array([measure.f1(a, b, normalised=True) for a, b in pairs]))
    counts = np.array([measure.bleu_counts(a, b) for a, b in pairs])  # (n, 10)
    yield "bleu", of_sums(examples.dialogues, counts, measure.bleu_of)
    rouge = np.array([measure.rouge(a, b) for a, b in pairs])  # (n, 3)
    for name, values in zip(("rouge_1", "rouge_2", "rouge_l"), rouge.T, strict=True):
        yield name, mean(values)


def _of_texts(texts: Sequence[str], examples: Examples, words: int, seed: int) -> Iterator[tuple[str, Interval]]:
    mean = partial(of_mean, examples.dialogues)
    for n in (1, 2, 3):
        yield f"dist_{n}", distinct_interval(texts, n, examples.dialogue)
    for n in (1, 2, 3):
        yield f"dist_{n}_equal", _alone(measure.distinct_at(texts, n, words, seed) if words else np.nan)
    yield "self_bleu", _alone(measure.self_bleu(texts))
    yield "length", mean(np.array([measure.length(text) for text in texts]))
    yield "repetition", mean(np.array([measure.repetition(text) for text in texts]))
    often, _ = measure.most_used(texts)
    yield "most_used", mean(np.array([text.strip() == often for text in texts], np.float64))  # of this one reply


def of_lm(replies: Replies, examples: Examples) -> Iterator[tuple[str, Interval]]:
    """stopped, nll, perplexity, persona_gap and prefers_own, those of them that are known; see `compare_replies`."""
    if replies.stopped is not None:
        yield "stopped", of_mean(examples.dialogues, np.asarray(replies.stopped, np.float64))
    if replies.nll is None or replies.tokens is None:
        return
    sums = np.column_stack([replies.nll, replies.tokens])  # (n, 2)
    nll = of_sums(examples.dialogues, sums, lambda s: s[0] / s[1])
    yield "nll", nll
    yield "perplexity", Interval(*np.exp(nll).tolist())
    if replies.nll_swapped is not None:
        gap, prefers = persona_gap(replies.nll, replies.nll_swapped)
        per_token = np.column_stack([gap, replies.tokens])
        yield "persona_gap", of_sums(examples.dialogues, per_token, lambda s: s[0] / s[1])
        yield "prefers_own", of_mean(examples.dialogues, prefers)


def persona_gap(own: np.ndarray, swapped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether replies fit their own persona better than a random other one, pair by pair.

    Parameters
    ----------
    own : float array (n,)
        NLL of each true reply under its own persona.
    swapped : float array (n,) or (n, S)
        The same under S other personas.

    Returns
    -------
    gap : float array (n,)
        Mean of swapped - own, in nats of the whole reply: above 0 where the own persona makes it likelier.
    prefers_own : float array (n,)
        Share of the S others that are worse; equal ones count half, so that 0.5 is chance.

    Examples
    --------
    >>> persona_gap(np.array([10.0, 12.0]), np.array([[11.0, 13.0], [12.0, 11.0]]))
    (array([ 2. , -0.5]), array([1.  , 0.25]))
    """
    own, swapped = np.asarray(own, np.float64), np.asarray(swapped, np.float64)
    if swapped.ndim == 1:
        swapped = swapped[:, None]
    if len(own) != len(swapped):
        raise ValueError(f"{len(own):,} replies have {len(swapped):,} swapped personas; give each at least one")
    away = swapped - own[:, None]  # (n, S)
    return away.mean(1), ((away > 0) + 0.5 * (away == 0)).mean(1)


# intervals -------------------------------------------------------------------------------------------------------
def distinct_interval(texts: Sequence[str], n: int, dialogue: np.ndarray) -> Interval:
    """DIST-n with a 95 % interval by the jackknife over dialogues.

    Notes
    -----
    Without dialogue g there are V - u_g different n-grams of N - n_g, where u_g are those that only g has. The G
    values without one dialogue give the standard error sqrt((G - 1) / G sum_g (d_g - mean)^2), 1.96 to each side.
    It is about other dialogues in the same number; DIST of more or fewer is another quantity.
    """
    code = pd.factorize(np.asarray(dialogue))[0]
    of = [Counter[tuple[str, ...]]() for _ in range(code.max() + 1)]
    for text, g in zip(texts, code, strict=True):
        of[g].update(measure.ngrams(text.split(), n))
    owners = Counter(gram for counts in of for gram in counts)  # in how many dialogues
    only = np.array([sum(owners[gram] == 1 for gram in counts) for counts in of])
    size = np.array([counts.total() for counts in of])
    total, groups = size.sum(), len(of)
    if groups < 2 or (size == total).any():
        return _alone(len(owners) / total if total else np.nan)
    without = (len(owners) - only) / (total - size)  # (G,)
    error = np.sqrt((groups - 1) / groups * ((without - without.mean()) ** 2).sum())
    estimate = len(owners) / total
    return Interval(float(estimate), float(estimate - _Z * error), float(estimate + _Z * error))


def of_mean(dialogues: Bootstrap, values: np.ndarray) -> Interval:
    """Of a mean over replies; one dialogue says nothing of others, so it has no interval."""
    return dialogues.interval(values) if dialogues.people > 1 else _alone(np.mean(values))


def of_sums(dialogues: Bootstrap, values: np.ndarray, figure: Callable[[np.ndarray], float]) -> Interval:
    """Of a figure that is a function of sums over replies, `values` (n, m), by the bootstrap's samples; none of one
    dialogue."""
    sums = np.zeros((dialogues.people, values.shape[1]))
    np.add.at(sums, dialogues.person, values)
    if dialogues.people < 2:
        return _alone(figure(sums.sum(0)))
    drawn = [figure(sample) for sample in dialogues.weights.astype(np.float64) @ sums]
    low, high = np.quantile(drawn, [(1 - dialogues.level) / 2, (1 + dialogues.level) / 2])
    return Interval(float(figure(sums.sum(0))), float(low), float(high))


def _alone(estimate: float) -> Interval:
    return Interval(float(estimate), np.nan, np.nan)
