"""How a bank of prompts is used: by how many, how evenly, and whether by whom."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import entr


class PromptUse(NamedTuple):
    """Use of K prompts over n replies; entropies in nats.

    Attributes
    ----------
    share : float array (K,)
        Of each prompt; they sum to 1.
    entropy : float
        Of the shares, 0 (one prompt does everything) to log K (all are used alike).
    effective : float
        exp(entropy), 1 to K: as many prompts, used alike, would have this entropy.
    undecided : float
        Mean entropy of a single reply's probabilities: 0 where every choice is firm, so for choices. What the context
        decides is entropy - undecided.
    """

    share: np.ndarray
    entropy: float
    effective: float
    undecided: float


class MutualInformation(NamedTuple):
    """What a person says about the prompt, in nats.

    Attributes
    ----------
    estimate : float
        As counted, 0 to the entropy of the prompts; biased upwards.
    by_chance : float
        Mean estimate when the prompts are shuffled over the replies.
    excess : float
        estimate - by_chance: about 0 where person and prompt are independent.
    p : float
        Share of the shuffles, the true order among them, in which the estimate is as large.
    """

    estimate: float
    by_chance: float
    excess: float
    p: float


def prompt_use(prompts: np.ndarray, n_prompts: int | None = None) -> PromptUse:
    """Shares of the prompts of a bank and the entropy of their use.

    Parameters
    ----------
    prompts : int array (n,) or float array (n, K)
        The prompt chosen for each reply, from 0, or the probabilities of the prompts.
    n_prompts : int, optional
        Size of the bank; needed to see those never chosen. Probabilities say it by themselves.

    Raises
    ------
    ValueError
        No replies, choices outside the bank, or rows that are no distributions.

    Examples
    --------
    >>> use = prompt_use(np.array([0, 0, 1, 1]), n_prompts=4)
    >>> use.share, round(use.effective, 3), use.undecided
    (array([0.5, 0.5, 0. , 0. ]), 2.0, 0.0)
    """
    p = _probabilities(prompts, n_prompts)
    share = p.mean(0)
    entropy = float(entr(share).sum())
    return PromptUse(share, entropy, float(np.exp(entropy)), float(entr(p).sum(1).mean()))


def mutual_information(
    person: np.ndarray, prompts: np.ndarray, permutations: int = 200, seed: int = 0
) -> MutualInformation:
    """Whether different people get different prompts.

    Parameters
    ----------
    person : array (n,)
        Who replies (or which dialogue it is).
    prompts : int array (n,) or float array (n, K)
        As in `prompt_use`.

    Notes
    -----
    I = sum_ik p_ik log(p_ik / (p_i p_k)) of the shares in the sample. It is never negative, so with few replies a
    person it is large for any retriever: about (people - 1)(K - 1) / 2n for independent ones [1]_, 0.19 nats for four
    prompts and a thousand people of eight replies. Hence the shuffles. They take the replies of a person as
    exchangeable: whatever stays the same in a dialogue, its topic say, counts as the person.

    References
    ----------
    .. [1] Miller, "Note on the bias of information estimates", 1955.

    Examples
    --------
    >>> who = np.repeat(["ann", "bob"], 20)
    >>> found = mutual_information(who, np.repeat([0, 1], 20))  # everybody has a prompt: log 2
    >>> round(found.estimate, 3), found.by_chance < 0.03, found.p < 0.01
    (0.693, True, True)
    """
    p = _probabilities(prompts)
    code = pd.factorize(np.asarray(person))[0]
    if len(code) != len(p) or (code < 0).any():
        raise ValueError(f"{len(p):,} prompts need one person each; got {len(code):,}, {(code < 0).sum():,} missing")
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; at least one shuffle is needed to say what chance gives")
    replies_of = csr_matrix((np.ones(len(p)), (code, np.arange(len(p)))))  # (people, n)
    marginals = entr(np.asarray(replies_of.sum(1)) / len(p)).sum() + entr(p.mean(0)).sum()

    def information(order: np.ndarray) -> float:
        return float(marginals - entr(replies_of @ p[order] / len(p)).sum())  # H(person) + H(prompt) - H(both)

    rng = np.random.default_rng(seed)
    estimate = information(np.arange(len(p)))
    chance = np.array([information(rng.permutation(len(p))) for _ in range(permutations)])
    as_large = 1 + (chance >= estimate - 1e-12).sum()
    return MutualInformation(
        estimate, float(chance.mean()), float(estimate - chance.mean()), float(as_large / (permutations + 1))
    )


class WorthOfChoice(NamedTuple):
    """What choosing among K prompts is worth on n replies; NLLs in nats a token.

    Attributes
    ----------
    random, chosen, best : float
        NLL under a prompt at random, under the likeliest one, and under the one that is best for the reply, which is
        known only afterwards: random - best is all that a choice of one prompt could bring.
    agrees, commonest : float
        Shares of the replies, 0 to 1, for which the likeliest prompt is the best, and for which the prompt that is
        best most often is.
    """

    random: float
    chosen: float
    best: float
    agrees: float
    commonest: float


def worth_of_choice(nll: np.ndarray, p: np.ndarray, tokens: np.ndarray) -> WorthOfChoice:
    """Compare a bank's choice with the best one and with chance.

    Parameters
    ----------
    nll : float array (n, K)
        Of each reply under each prompt, in nats.
    p : float array (n, K)
        Probabilities of the prompts; where several are the likeliest, each counts alike.
    tokens : int array (n,)
        Of the replies.

    Examples
    --------
    >>> nll, p = np.array([[2.0, 6.0], [8.0, 4.0]]), np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> found = worth_of_choice(nll, p, np.array([2, 2]))
    >>> found.random, found.chosen, found.best, found.agrees
    (2.5, 2.5, 1.5, 0.5)
    """
    likeliest = p == p.max(1, keepdims=True)
    likeliest = likeliest / likeliest.sum(1, keepdims=True)
    best = np.eye(p.shape[1])[nll.argmin(1)]
    per_token = 1 / tokens.sum()
    return WorthOfChoice(
        float(nll.mean(1).sum() * per_token),
        float((likeliest * nll).sum() * per_token),
        float(nll.min(1).sum() * per_token),
        float((likeliest * best).sum(1).mean()),
        float(best.mean(0).max()),
    )


def _probabilities(prompts: np.ndarray, n_prompts: int | None = None) -> np.ndarray:
    """Choices as firm probabilities; float array (n, K)."""
    prompts = np.asarray(prompts)
    if len(prompts) == 0:
        raise ValueError("there are no replies, so no use of prompts")
    if prompts.ndim == 1:
        size = int(prompts.max()) + 1 if n_prompts is None else n_prompts
        if not np.issubdtype(prompts.dtype, np.integer) or prompts.min() < 0 or prompts.max() >= size:
            raise ValueError(
                f"choices are numbers of prompts from 0 to {size - 1}; got {prompts.dtype} values from "
                f"{prompts.min()} to {prompts.max()}"
            )
        return np.eye(size)[prompts]
    if n_prompts not in (None, prompts.shape[1]):
        raise ValueError(f"probabilities of {prompts.shape[1]} prompts are given for a bank of {n_prompts}")
    wrong = np.flatnonzero(~(np.abs(prompts.sum(1) - 1) < 0.01) | (prompts < 0).any(1))
    if len(wrong):
        raise ValueError(f"row {wrong[0]} of the prompts' probabilities is no distribution: {prompts[wrong[0]]}")
    return prompts.astype(np.float64)
