"""Losses of a bank of K soft prompts and of the retriever that chooses among them for a context.

First those of selective prompt tuning as published [1]_, then ours, which mend what keeps its prompts from
specialising. Everywhere b runs over the B replies of a batch and k over the K prompts, and l_bk, ``nll`` (B, K), is the
mean NLL a token, in nats, of reply b under prompt k: of `reply_nlls`, or from `personae.lm.reading.text_log_probs`.

.. [1] Huang et al., "Selective Prompting Tuning for Personalized Conversations with LLMs", arXiv 2406.18187.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGIT_ROWS = 128  # positions x prompts whose full-vocabulary logits exist at one time, near the processor


# as published ----------------------------------------------------------------------------------------------------
def paper_scores(context: Tensor, prompts: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores s (B, K) of the prompts for contexts, 0.313 to 1.313.

    Parameters
    ----------
    context : Tensor (B, H)
        Mean word embedding of each context, which must not hold the reply or padding.
    prompts : Tensor (K, H)
        Mean row of each prompt.
    weight, bias : Tensor (D, H) and (D,)
        One projection for both.

    Notes
    -----
    ``s_bk = softplus(cos(W c_b + b, W p_k + b))``. A plain softplus keeps the cosines' order; that of the authors'
    code, with beta 10 and threshold 1, jumps down from 0.131 to 0.1 where the cosine passes 0.1. With either, two
    scores differ by 1 at most, so at temperature 1 no prompt of four gets more than e / (e + 3) = 0.475.

    Examples
    --------
    >>> context, prompts = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> paper_scores(context, prompts, torch.eye(2), torch.zeros(2))
    tensor([[1.3133, 0.6931, 0.3133]])
    """
    return F.softplus(_cosine(F.linear(context, weight, bias), F.linear(prompts, weight, bias)))


def reply_nlls(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, reply: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """NLL a token of each reply under each prompt (B, K), and under the aggregated prediction (B,).

    Parameters
    ----------
    logits : function of Tensor (..., H) to Tensor (..., V)
        The LM's head, such as `FrozenLM.logits`.
    hidden : Tensor (R, K, H)
        Under each prompt, the hidden states that predict the R tokens of all replies; no padding.
    targets : int Tensor (R,)
        Those tokens, and with them the token that ends a reply, or the LM never learns to stop.
    reply : int Tensor (R,)
        Whose token it is, 0 to B - 1.
    scores : Tensor (B, K)
        Weights of the prompts in the aggregated prediction.

    Raises
    ------
    ValueError
        A reply without tokens, or one that has no scores.

    Notes
    -----
    With z_tk the logits of token t under prompt k, and T_b tokens in reply b::

        l_bk    = 1/T_b sum_t -log softmax(z_tk)[target_t]
        fused_b = 1/T_b sum_t -log softmax(sum_k s_bk z_tk)[target_t]

    As published, the scores weigh logits and do not sum to one: their sum acts as an inverse temperature, so four equal
    prompts with scores of 0.7 predict 2.8 times as sharply together as each of them does alone. Both NLLs are read from
    the same logits, which are the most expensive thing here; gradients go to the hidden states and to the scores.

    Examples
    --------
    >>> hidden = torch.tensor([[[0.5, 0.25], [0.25, 0.5]]]).log()  # one token, two prompts, two words
    >>> nll, fused = reply_nlls(torch.nn.Identity(), hidden, torch.tensor([0]), torch.tensor([0]), torch.ones(1, 2))
    >>> nll.exp(), fused.exp()
    (tensor([[1.5000, 3.0000]]), tensor([2.]))
    """
    b, k = scores.shape
    if hidden.shape[:2] != (len(targets), k) or len(reply) != len(targets):
        raise ValueError(
            f"hidden states {tuple(hidden.shape)} are not (tokens, prompts, width) for {len(targets)} targets, "
            f"{len(reply)} places in replies and {k} prompts; give each token its states, its target and its reply"
        )
    n_tokens = torch.bincount(reply, minlength=b)  # (B,)
    if len(n_tokens) > b or not n_tokens.all():
        raise ValueError(
            f"{b} replies have scores, and tokens are given for {int((n_tokens > 0).sum())} replies up to number "
            f"{len(n_tokens) - 1}; every reply needs scores and at least one token"
        )

    def chunk(h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        z = logits(h)  # (r, K, V)
        each = F.cross_entropy(z.flatten(0, 1), t.repeat_interleave(k), reduction="none").view(-1, k)
        fused = F.cross_entropy(torch.einsum("rk,rkv->rv", s.to(z.dtype), z), t, reduction="none")
        return torch.cat([each, fused[:, None]], 1)  # (r, K + 1)

    rows = max(_LOGIT_ROWS // k, 1)
    pieces = []
    for part in zip(hidden.split(rows), targets.split(rows), scores[reply].split(rows), strict=True):
        # Recomputed in the backward pass rather than kept: [tokens, prompts, vocabulary] is the largest thing there is.
        again = torch.is_grad_enabled() and len(targets) > rows
        pieces.append(checkpoint(chunk, *part, use_reentrant=False) if again else chunk(*part))
    token = torch.cat(pieces)  # (R, K + 1)
    mean = token.new_zeros(b, k + 1).index_add(0, reply, token) / n_tokens[:, None]
    return mean[:, :k], mean[:, k]


def lm_loss(nll: Tensor) -> Tensor:
    """Mean NLL of all replies under all prompts, ``1/(BK) sum_bk l_bk``; 0 to infinity.

    It trains every prompt alike on everything, so nothing makes prompts differ; `mixture_loss` is our remedy.

    >>> lm_loss(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    tensor(3.)
    """
    return nll.mean()


def fusion_loss(fused: Tensor) -> Tensor:
    """Mean NLL under the aggregated prediction, ``1/B sum_b fused_b`` with (B,) of `reply_nlls`; 0 to infinity.

    >>> fusion_loss(torch.tensor([1.0, 2.0]))
    tensor(1.5000)
    """
    return fused.mean()


def selection_loss(scores: Tensor, nll: Tensor, temperature: float = 1.0) -> Tensor:
    """The LM's feedback to the retriever: how far its choice is from the prompts under which the reply is likely.

    Parameters
    ----------
    scores, nll : Tensor (B, K)
        No gradient goes to ``nll``: prompts are not made worse to please the retriever.

    Notes
    -----
    ``1/B sum_b KL( softmax(-l_b / tau) || softmax(s_b / tau) )``, 0 to infinity. Noise that is to blur the target
    belongs on l: added to the probabilities, it makes some of them negative and the loss NaN.

    Examples
    --------
    >>> selection_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]]))
    tensor(0.)
    """
    _matching(scores, nll)
    target = torch.log_softmax(-nll.detach() / temperature, -1)
    # kl_div(log q, log p) is KL(p || q): what is to be learned comes second.
    return F.kl_div(torch.log_softmax(scores / temperature, -1), target, reduction="batchmean", log_target=True)


def contrastive_loss(scores: Tensor, similarity: Tensor, threshold: float = 20.0, margin: float = 0.0) -> Tensor:
    """Context-prompt contrast: like texts are to have like scores, unlike texts different ones.

    Parameters
    ----------
    scores : Tensor (B, K)
    similarity : Tensor (B, B)
        Of the texts; BLEU, 0 to 100, as published. Read above the diagonal, so that each pair counts once.

    Notes
    -----
    Over the pairs i < j, with M the similarity; 0 for a batch of one, which has none::

        mean_ij  1 - cos(s_i, s_j)               where M_ij > threshold
                 max(0, cos(s_i, s_j) - margin)  elsewhere

    0 to 1, since scores are positive. Unlike texts keep a cosine of 0.45 or more with `paper_scores`, whatever is
    learned, as these are never near 0; and no more than K texts can be at right angles to each other.

    Examples
    --------
    >>> contrastive_loss(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.full((2, 2), 5.0))
    tensor(1.)
    """
    b = len(scores)
    if similarity.shape != (b, b):
        raise ValueError(f"similarity {tuple(similarity.shape)} is not that of {b} texts with each other: ({b}, {b})")
    i, j = torch.triu_indices(b, b, offset=1, device=scores.device)
    target = torch.where(similarity[i, j] > threshold, 1.0, -1.0)
    return F.cosine_embedding_loss(scores[i], scores[j], target, margin, reduction="sum") / max(len(i), 1)


# Of the four in the published sum, for OPT; for Llama-2 the last two, which the paper calls lambda, are 1.
PAPER_WEIGHTS = {"lm": 1.0, "fusion": 1.0, "selection": 0.4, "contrastive": 0.4}


# ours ------------------------------------------------------------------------------------------------------------
def choice_log_probs(context: Tensor, prompts: Tensor, temperature: float = 0.05) -> Tensor:
    """log p (B, K) of each prompt for contexts (B, H), with prompts (K, H) in the same space.

    ``p_b = softmax_k(cos(c_b, p_k) / temperature)``: weights that sum to one, in the cosines' order, and as firm as
    they have to be. At 0.05 the ratio of two of them is up to e^40, where it is e at most for `paper_scores`.

    Examples
    --------
    >>> choice_log_probs(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), temperature=0.5).exp()
    tensor([[0.8808, 0.1192]])
    """
    return torch.log_softmax(_cosine(context, prompts) / temperature, -1)


def mixture_loss(log_p: Tensor, nll: Tensor, n_tokens: Tensor) -> Tensor:
    """NLL of the replies under the mixture of the prompts, in nats a token; 0 to infinity.

    Parameters
    ----------
    log_p : Tensor (B, K)
        Of the prompts, from the context alone (`choice_log_probs`).
    nll : Tensor (B, K)
    n_tokens : Tensor (B,), the lengths T_b

    Notes
    -----
    ``1/B sum_b 1/T_b (-log sum_k p_bk P_k(reply_b))`` with ``P_k(reply_b) = exp(-T_b l_bk)``.

    One prompt says the whole reply, so its tokens' log-probabilities are summed within the mixture: with their mean
    there it would be no likelihood, and prompts would share every reply nearly evenly. Only the result is divided by
    the length, so that replies weigh alike and it reads beside `lm_loss`, which it equals for K = 1. It takes the place
    of the LM, selection and fusion losses: a prompt learns a reply as far as it is responsible for it, and the
    retriever learns who was.

    Examples
    --------
    >>> p, likelihood = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.1]])
    >>> mixture_loss(p.log(), -likelihood.log(), torch.tensor([1])).neg().exp()  # 0.125 + 0.075
    tensor(0.2000)
    """
    return (-_joint(log_p, nll, n_tokens).logsumexp(1) / n_tokens).mean()


def expected_loss(log_p: Tensor, nll: Tensor) -> Tensor:
    """NLL of the replies under one prompt, drawn by the choice, in nats a token; 0 to infinity.

    Parameters
    ----------
    log_p : Tensor (B, K)
        Of the prompts, from the context alone (`choice_log_probs`).
    nll : Tensor (B, K)

    Notes
    -----
    ``1/B sum_b sum_k p_bk l_bk``. What a bank is worth of which one prompt speaks: a prompt learns a reply as far as it
    is chosen for it, and the retriever learns which prompts do well. Under `mixture_loss` prompts specialise in replies
    that no context tells apart, and one that was chosen alone would have to be good at what another one learned.

    Examples
    --------
    >>> expected_loss(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[2.0, 1.0]]))
    tensor(1.2500)
    """
    _matching(log_p, nll)
    return (log_p.exp() * nll).sum(1).mean()


def entropy_of_use(log_p: Tensor) -> Tensor:
    """Entropy, in nats, of the prompts' mean share over a batch of finite log p (B, K): 0 (one does all) to log K.

    >>> entropy_of_use(torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log())
    tensor(0.6931)
    """
    log_share = log_p.logsumexp(0) - math.log(len(log_p))  # (K,)
    return -(log_share.exp() * log_share).sum()


def effective_prompts(log_p: Tensor) -> Tensor:
    """exp of `entropy_of_use`, 1 to K: as many prompts, used alike, would have this entropy.

    >>> effective_prompts(torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log())
    tensor(2.)
    """
    return entropy_of_use(log_p).exp()


def load_balance(log_p: Tensor) -> Tensor:
    """How unevenly a batch, with log p (B, K), uses the prompts: 0 (all alike) to log K (one does all).

    ``KL(1/B sum_b p_b || uniform) = log K - entropy_of_use``. A single reply may be as firm as it likes: only the mean
    is held even. A prompt that nothing chooses learns nothing from `mixture_loss`; this keeps all of them in use.

    >>> load_balance(torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log())
    tensor(0.1308)
    """
    return math.log(log_p.shape[1]) - entropy_of_use(log_p)


def same_person(person: Tensor) -> Tensor:
    """Which two contexts of a batch are turns of one person, bool (B, B), from each context's person, int (B,).

    >>> same_person(torch.tensor([4, 7, 4]))[0]
    tensor([False, False,  True])
    """
    return (person[:, None] == person) & ~torch.eye(len(person), dtype=torch.bool, device=person.device)


def person_contrast(context: Tensor, positive: Tensor, temperature: float = 0.1) -> Tensor:
    """Contexts (B, H) are to lie closer to a person's other turns than to other people's; 0 to infinity.

    Parameters
    ----------
    context : Tensor (B, H), as the retriever compares them: after its projection
    positive : bool Tensor (B, B), as of `same_person`

    Notes
    -----
    Over the contexts i that have positives P_i, with c the cosine::

        mean_i 1/|P_i| sum_{j in P_i} -log( exp(c_ij / temperature) / sum_{a != i} exp(c_ia / temperature) )

    In place of the paper's `contrastive_loss`, whose positives (BLEU of two personas above 20) hardly exist and whose K
    scores have no room for many people. 0 where nobody in the batch has two turns: draw batches in which people have.

    Examples
    --------
    >>> context = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> person_contrast(context, same_person(torch.tensor([0, 0, 1])), temperature=1.0)  # log(1 + 1/e)
    tensor(0.3133)
    """
    b = len(context)
    if positive.shape != (b, b) or positive.diagonal().any():
        raise ValueError(f"positives {tuple(positive.shape)} must pair {b} contexts with others, never with themselves")
    if not positive.any():
        return _cosine(context, context).sum() * 0  # nothing to learn, but differentiable like the rest
    itself = torch.eye(b, dtype=torch.bool, device=context.device)
    closeness = (_cosine(context, context) / temperature).masked_fill(itself, float("-inf"))
    log_p = torch.log_softmax(closeness, 1).masked_fill(~positive, 0.0)  # (B, B)
    n = positive.sum(1)
    return -(log_p.sum(1) / n.clamp(min=1)).sum() / (n > 0).sum()


# shared ----------------------------------------------------------------------------------------------------------
def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (A, B) of rows (A, H) and (B, H), in float32 at least."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return F.normalize(a.to(dtype), dim=-1) @ F.normalize(b.to(dtype), dim=-1).T


def _joint(log_p: Tensor, nll: Tensor, n_tokens: Tensor) -> Tensor:
    """log of p_bk P_k(reply_b), (B, K)."""
    _matching(log_p, nll)
    if n_tokens.shape != nll.shape[:1] or not (n_tokens > 0).all():
        raise ValueError(f"{len(nll)} replies need {len(nll)} lengths of one token or more; got {n_tokens.tolist()}")
    return log_p - n_tokens[:, None] * nll


def _matching(choice: Tensor, nll: Tensor) -> None:
    if choice.dim() != 2 or choice.shape != nll.shape:
        raise ValueError(
            f"the choice has shape {tuple(choice.shape)}, the NLLs {tuple(nll.shape)}; both are (replies, prompts)"
        )
