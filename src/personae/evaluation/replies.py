"""What replies are worth as texts: nearness to the true reply, variety, length, repetition.

All measures are shares or scores from 0 to 1, BLEU too (papers print them times 100), except `length`, in words. Words
are what stands between blanks, so that "you?" is another word than "you", unless a measure says otherwise.

Two traps. Nearness to one true reply says little: a constant of frequent words beats trained models in F1. Variety
falls as the replies become more and rises as they become shorter. Neither shows in a method's figure alone; hence the
controls beside every method in `personae.evaluation.conversation`.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ORDERS = range(1, 5)  # of BLEU's n-grams
_DRAWS = 5  # orders of the replies that `distinct_at` averages


class Rouge(NamedTuple):
    """F-measures of one pair, each from 0 to 1."""

    one: float
    two: float
    longest: float


# nearness to the true reply --------------------------------------------------------------------------------------
def f1(reply: str, reference: str, normalised: bool = False) -> float:
    """Harmonic mean of the shares of the reply's and of the reference's words that the other has, too.

    Parameters
    ----------
    reply, reference : str
    normalised : bool
        In lower case and without ASCII punctuation and English articles, as in SQuAD; as it stands otherwise.

    Returns
    -------
    float
        0 to 1. Two texts without words are equal: 1.

    Notes
    -----
    2 c / (a + b) for texts of a and b words that share c, a word as often as both have it. Punctuation that stands
    alone is a word of the raw form: on ConvAI2 the reply ". ?" alone has a mean F1 of 0.127. SQuAD's normalisation
    takes punctuation out ("i'm" becomes "im"); ParlAI's puts a blank in its place, which gives about 0.01 more on
    ConvAI2. The two cannot be compared.

    Examples
    --------
    >>> round(f1("I like the dogs .", "i like dogs ."), 3), f1("I like the dogs .", "i like dogs .", normalised=True)
    (0.667, 1.0)
    """
    a, b = (Counter((normalise(text) if normalised else text).split()) for text in (reply, reference))
    words = a.total() + b.total()
    return 2 * (a & b).total() / words if words else 1.0


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single blanks.

    Examples
    --------
    >>> normalise("I'm the owner of  a cat !")
    'im owner of cat'
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def bleu(replies: Sequence[str], references: Sequence[str]) -> float:
    """sacreBLEU of all replies together, one reference each, 0 to 1.

    Notes
    -----
    The library's defaults [1]_: up to four words, tokenizer 13a, case kept, exponential smoothing. It is a measure of
    the corpus: counts are summed before they are divided, so that a mean over replies is another figure.

    References
    ----------
    .. [1] Post, "A call for clarity in reporting BLEU scores", WMT 2018.

    Examples
    --------
    >>> round(bleu(["i like my two dogs .", "hello"], ["i like my two cats .", "hi there"]), 4)
    0.4482
    """
    same_number(replies, references)
    return bleu_of(sum((bleu_counts(a, b) for a, b in zip(replies, references, strict=True)), np.zeros(10)))


def bleu_counts(reply: str, reference: str) -> np.ndarray:
    """What a pair adds to BLEU, int array (10,): common n-grams and the reply's for n = 1 to 4, the two lengths."""
    score = _sacrebleu().corpus_score([reply], [[reference]])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len])


def bleu_of(counts: np.ndarray) -> float:
    """BLEU, 0 to 1, of a sum of `bleu_counts`."""
    *grams, replied, expected = (int(x) for x in counts)
    score = _sacrebleu().compute_bleu(grams[:4], grams[4:], replied, expected, smooth_method="exp").score
    return min(score / 100, 1.0)  # exp(log) leaves a hair above 1


def rouge(reply: str, reference: str) -> Rouge:
    """ROUGE-1, ROUGE-2 and ROUGE-L: F-measures of common words, pairs of words and the longest common subsequence.

    Notes
    -----
    The library rouge-score without stemming. Words are runs of a-z and 0-9 in lower case, so that it sees nothing of
    other scripts. A text of one word has no pair of words: its ROUGE-2 is 0 even against itself.

    Examples
    --------
    >>> rouge("i like dogs .", "I like my dogs")  # 3 words and 1 pair in common
    Rouge(one=0.857..., two=0.4, longest=0.857...)
    """
    found = _rouge().score(reference, reply)
    return Rouge(*(float(found[kind].fmeasure) for kind in ("rouge1", "rouge2", "rougeL")))


# variety ---------------------------------------------------------------------------------------------------------
def distinct(replies: Sequence[str], n: int) -> float:
    """DIST-n: different n-grams of words as a share of all, over all replies together.

    Returns
    -------
    float
        0 to 1; NaN where no reply has n words.

    Notes
    -----
    Li et al. 2016 (arXiv 1510.03055). It falls as the replies become more (of ConvAI2's true replies, DIST-1 is 0.20
    for the first 500 and 0.05 for all 7,801) and rises as they become shorter: compare equal numbers of replies, and
    look at `distinct_at`.

    Examples
    --------
    >>> distinct(["i like dogs", "i like cats"], 1), distinct(["i like dogs", "i like cats"], 2)
    (0.666..., 0.75)
    """
    found = Counter(gram for reply in replies for gram in ngrams(reply.split(), n))
    return len(found) / found.total() if found else math.nan


def distinct_at(replies: Sequence[str], n: int, words: int, seed: int = 0) -> float:
    """DIST-n at a given number of words, so that the lengths of replies do not decide.

    Parameters
    ----------
    words : int
        How many words are taken, at most all of the replies. n-grams stay within a reply.

    Notes
    -----
    The replies are put into a random order and taken until there are `words` words; the last one is cut. Mean over
    five orders, which `seed` and the number of replies fix: several methods' replies to the same turns are taken in
    the same orders.

    Examples
    --------
    >>> round(distinct_at(["i like dogs", "i like cats"], 1, words=4), 3)  # i, like, x, i
    0.75
    """
    split = [reply.split() for reply in replies]
    there = sum(map(len, split))
    if not 0 < words <= there:
        raise ValueError(f"{words:,} words cannot be taken from {len(split):,} replies of {there:,} words together")
    rng = np.random.default_rng(seed)
    return float(np.mean([distinct(_first(split, rng.permutation(len(split)), words), n) for _ in range(_DRAWS)]))


def _first(split: list[list[str]], order: np.ndarray, words: int) -> list[str]:
    """Replies in that order until there are so many words."""
    taken = []
    for i in order:
        taken.append(" ".join(split[i][:words]))
        words -= len(split[i])
        if words <= 0:
            break
    return taken


def self_bleu(replies: Sequence[str]) -> float:
    """BLEU of the replies where the references of each are all the others, 0 (all differ) to 1 (all the same).

    Notes
    -----
    After Zhu et al. 2018 (Texygen, arXiv 1802.01886), there a mean over sentences; here counts are summed over the
    replies as in `bleu`, which needs no smoothing of short ones. It is exact and linear in the number of replies: an
    n-gram that a reply has k times counts min(k, most in any other reply), and as only the reply with the most can
    have more than that, this is min(k, second largest of all replies). It grows with the number of replies.

    Examples
    --------
    >>> self_bleu(["i like my two dogs"] * 2 + ["what do you do"]), self_bleu(["i like my two dogs", "what do you do"])
    (0.695..., 0.0)
    """
    if len(replies) < 2:
        raise ValueError(f"self-BLEU compares replies with each other; there are {len(replies)}")
    tokens = [_sacrebleu().tokenizer(reply.rstrip()).split() for reply in replies]
    common, total = [], []
    for n in _ORDERS:
        counts = [Counter(ngrams(words, n)) for words in tokens]
        most: Counter[tuple[str, ...]] = Counter()
        second: Counter[tuple[str, ...]] = Counter()
        for of_one in counts:
            for gram, k in of_one.items():
                most[gram], second[gram] = max(most[gram], k), max(second[gram], min(most[gram], k))
        common.append(sum((of_one & second).total() for of_one in counts))
        total.append(sum(of_one.total() for of_one in counts))
    lengths = Counter(map(len, tokens))
    nearest = {  # length of another reply, the shorter of two equally near ones
        a: min((abs(a - b), b) for b in lengths if b != a or lengths[a] > 1)[1] for a in lengths
    }
    expected = sum(nearest[a] * times for a, times in lengths.items())
    return bleu_of(np.array([*common, *total, sum(map(len, tokens)), expected]))


def most_used(replies: Sequence[str]) -> tuple[str, float]:
    """The reply given most often (the first of equally frequent ones, without blanks around) and its share.

    Examples
    --------
    >>> most_used(["i do not know .", "hi", "i do not know . ", "yes"])
    ('i do not know .', 0.5)
    """
    if not replies:
        raise ValueError("there are no replies, so none is used most")
    text, times = Counter(reply.strip() for reply in replies).most_common(1)[0]
    return text, times / len(replies)


# one reply -------------------------------------------------------------------------------------------------------
def length(reply: str) -> int:
    """Number of words.

    Examples
    --------
    >>> length("i like my two dogs .")
    6
    """
    return len(reply.split())


def repetition(reply: str, n: int = 3) -> float:
    """Share of a reply's n-grams of words that it has said before, 0 to 1; 0 for a reply of fewer than n words.

    Notes
    -----
    1 - different n-grams / n-grams, the seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319); they take n = 4 for long
    texts, replies are short.

    Examples
    --------
    >>> repetition("yes yes yes yes yes"), repetition("i like dogs and i like cats")
    (0.666..., 0.0)
    """
    grams = list(ngrams(reply.split(), n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Runs of n words, in order.

    Examples
    --------
    >>> list(ngrams(["i", "like", "dogs"], 2))
    [('i', 'like'), ('like', 'dogs')]
    """
    return zip(*(words[i:] for i in range(n)), strict=False)


# libraries -------------------------------------------------------------------------------------------------------
@lru_cache(1)
def _sacrebleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError("BLEU needs sacrebleu; install it with: pip install 'personae[eval]'") from error
    return BLEU(force=True)  # without a warning that the texts are already in tokens, as ConvAI2's are


@lru_cache(1)
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("ROUGE needs rouge-score; install it with: pip install 'personae[eval]'") from error
    return RougeScorer(["rouge1", "rouge2", "rougeL"])


def same_number(replies: Sequence[str], references: Sequence[str]) -> None:
    """Refuse replies that have not one reference each."""
    if len(replies) != len(references):
        raise ValueError(f"{len(replies):,} replies are given for {len(references):,} references; give one each")
