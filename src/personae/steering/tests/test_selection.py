from __future__ import annotations

import math
from math import e, log, sqrt

import pytest
import torch
import torch.nn.functional as F

from personae.steering import selection
from personae.steering.selection import (
    PAPER_WEIGHTS,
    choice_log_probs,
    contrastive_loss,
    effective_prompts,
    entropy_of_use,
    expected_loss,
    fusion_loss,
    lm_loss,
    load_balance,
    mixture_loss,
    paper_scores,
    person_contrast,
    reply_nlls,
    same_person,
    selection_loss,
)


def tensor(*rows, grad: bool = False) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=grad)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def as_they_are(hidden: torch.Tensor) -> torch.Tensor:
    """A head whose logits are the hidden states, so that a test can write them down."""
    return hidden


def close(found: torch.Tensor, expected) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype))


# Two replies, of three tokens (0, 0, 1) and of one (2), in a vocabulary of three; under each of two prompts all tokens
# have the same probabilities.
PROMPT_A, PROMPT_B = (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 4, 1 / 2)
HIDDEN = tensor(*[[PROMPT_A, PROMPT_B]] * 4).log()  # (4, 2, 3)
TARGETS, REPLY = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])
N_TOKENS = torch.tensor([3, 1])
NLL = tensor([4 / 3 * log(2), 2 * log(2)], [2 * log(2), log(2)])  # A: (1 + 1 + 2)/3 and 2 bits; B: (2 + 2 + 2)/3 and 1


# scores ----------------------------------------------------------------------------------------------------------
def test_paper_scores_are_softplus_of_the_cosine_of_projections():
    weight, bias = tensor([2.0, 0.0], [0.0, 1.0]), tensor(0.0, 1.0)
    context = tensor([1.0, 0.0])  # projected to (2, 1)
    prompts = tensor([1.0, 0.0], [0.5, -3.0])  # to (2, 1): cosine 1; to (1, -2): cosine 0
    close(paper_scores(context, prompts, weight, bias), [[log(1 + e), log(2)]])


def test_choice_is_a_softmax_of_cosines():
    context, prompts = tensor([3.0, 0.0]), tensor([1.0, 0.0], [0.0, 5.0], [-2.0, 0.0])  # cosines 1, 0, -1
    total = e**2 + 1 + e**-2
    close(choice_log_probs(context, prompts, temperature=0.5).exp(), [[e**2 / total, 1 / total, e**-2 / total]])


def test_half_precision_is_compared_in_single():
    context, prompts = noise(3, 8).bfloat16(), noise(2, 8, seed=1).bfloat16()
    assert choice_log_probs(context, prompts).dtype == torch.float32
    torch.testing.assert_close(choice_log_probs(context, prompts), choice_log_probs(context.float(), prompts.float()))


# the replies' likelihoods ----------------------------------------------------------------------------------------
def test_nll_of_replies_under_each_prompt_and_together():
    # With scores 1 and 2 a token's logits add up to log(a b^2): 1/32, 1/64, 1/16, in proportion 2 : 1 : 4.
    # With scores 1 and 0 the second reply is predicted by prompt A alone.
    nll, fused = reply_nlls(as_they_are, HIDDEN, TARGETS, REPLY, tensor([1.0, 2.0], [1.0, 0.0]))
    close(nll, NLL)
    close(fused, [(2 * log(7 / 2) + log(7)) / 3, log(4)])
    close(lm_loss(nll), (4 / 3 + 2 + 2 + 1) / 4 * log(2))
    close(fusion_loss(fused), ((2 * log(7 / 2) + log(7)) / 3 + log(4)) / 2)


def test_a_reply_is_worth_the_same_alone_and_in_any_order():
    scores = tensor([1.0, 2.0], [0.7, 0.3])
    nll, fused = reply_nlls(as_they_are, HIDDEN, TARGETS, REPLY, scores)
    alone = reply_nlls(as_they_are, HIDDEN[:3], TARGETS[:3], REPLY[:3], scores[:1])
    close(alone[0], nll[:1])
    close(alone[1], fused[:1])
    order = torch.tensor([3, 1, 0, 2])
    mixed = reply_nlls(as_they_are, HIDDEN[order], TARGETS[order], 1 - REPLY[order], scores.flip(0))
    close(mixed[0], nll.flip(0))
    close(mixed[1], fused.flip(0))


def test_logits_exist_for_few_rows_at_a_time_and_are_made_again_for_gradients(monkeypatch):
    head, targets, reply = noise(7, 5), torch.arange(12) % 7, torch.arange(12) % 3
    rows = []

    def logits(hidden):
        rows.append(hidden.shape[:-1].numel())
        return hidden @ head.T

    def run():
        hidden, scores = noise(12, 2, 5, seed=1).requires_grad_(), noise(3, 2, seed=2).requires_grad_()
        nll, fused = reply_nlls(logits, hidden, targets, reply, scores)
        forward = len(rows)
        (nll.sum() + 2 * fused.sum()).backward()
        return nll, fused, hidden.grad, scores.grad, forward

    *whole, forward = run()
    assert rows == [24]
    assert forward == 1
    rows.clear()
    monkeypatch.setattr(selection, "_LOGIT_ROWS", 6)
    *pieces, forward = run()
    assert rows == [6] * 8  # four chunks forward, and once more backward
    assert forward == 4
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b)


def test_replies_without_tokens_or_scores_are_refused():
    with pytest.raises(ValueError, match="3 replies have scores, and tokens are given for 2"):
        reply_nlls(as_they_are, HIDDEN, TARGETS, REPLY, torch.ones(3, 2))
    with pytest.raises(ValueError, match="every reply needs scores"):
        reply_nlls(as_they_are, HIDDEN, TARGETS, REPLY, torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"not \(tokens, prompts, width\)"):
        reply_nlls(as_they_are, HIDDEN, TARGETS, REPLY, torch.ones(2, 3))


# as published ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_selection_is_the_divergence_of_the_choice_from_the_lms(temperature):
    nll, scores = temperature * tensor([log(2), log(4)]), temperature * tensor([0.0, log(3)])
    # The LM says 1/2 : 1/4 = (2/3, 1/3), the retriever (1/4, 3/4).
    close(selection_loss(scores, nll, temperature), 2 / 3 * log(8 / 3) + 1 / 3 * log(4 / 9))
    assert selection_loss(scores, nll, temperature) != pytest.approx(1 / 4 * log(3 / 8) + 3 / 4 * log(9 / 4))


def test_selection_does_not_teach_the_prompts():
    nll, scores = NLL.clone().requires_grad_(), tensor([1.0, 0.0], [0.0, 0.0], grad=True)
    selection_loss(scores, nll).backward()
    assert nll.grad is None
    # d KL(p || softmax(s)) / ds = (softmax(s) - p) / B
    close(scores.grad, (torch.softmax(scores, 1) - torch.softmax(-NLL, 1)).detach() / 2)


def test_contrast_of_score_vectors():
    scores = tensor([1.0, 0.0], [1.0, 1.0], [0.0, 1.0])  # cosines: 12 and 23 are 1/sqrt 2, 13 is 0
    similarity = tensor([100.0, 30.0, 20.0], [30.0, 100.0, 5.0], [20.0, 5.0, 100.0])  # 12 alike; 13 and 23 are not
    close(contrastive_loss(scores, similarity), ((1 - sqrt(0.5)) + 0 + sqrt(0.5)) / 3)
    close(contrastive_loss(scores, similarity, margin=0.2), ((1 - sqrt(0.5)) + 0 + sqrt(0.5) - 0.2) / 3)
    # At a threshold of 4 all three are alike.
    close(contrastive_loss(scores, similarity, threshold=4.0), (2 * (1 - sqrt(0.5)) + 1) / 3)
    assert contrastive_loss(scores[:1], similarity[:1, :1]) == 0
    with pytest.raises(ValueError, match="not that of 2 texts"):
        contrastive_loss(scores[:2], similarity)


def test_paper_scores_cannot_be_told_apart_entirely():
    highest, lowest = log(1 + e), log(1 + 1 / e)
    apart = tensor([highest, lowest, lowest, highest], [lowest, highest, highest, lowest])
    close(contrastive_loss(apart, torch.zeros(2, 2)), 2 * highest * lowest / (highest**2 + lowest**2))
    assert round(contrastive_loss(apart, torch.zeros(2, 2)).item(), 2) == 0.45


def test_the_four_published_losses_of_one_batch_by_hand():
    scores, nll = tensor([0.0, log(3)], [0.0, log(3)]), tensor([log(2), log(4)], [log(2), log(4)])
    close(lm_loss(nll), 1.5 * log(2))
    close(fusion_loss(tensor(1.0, 2.0)), 1.5)
    close(selection_loss(scores, nll), 2 / 3 * log(8 / 3) + 1 / 3 * log(4 / 9))
    close(contrastive_loss(scores, torch.zeros(2, 2)), 1.0)  # equal scores of unlike texts: cosine 1
    assert PAPER_WEIGHTS == {"lm": 1.0, "fusion": 1.0, "selection": 0.4, "contrastive": 0.4}


# ours ------------------------------------------------------------------------------------------------------------
P = tensor([1 / 4, 3 / 4], [1 / 2, 1 / 2])


def test_mixture_of_whole_replies():
    # Reply 1: 1/4 * 1/2 1/2 1/4 + 3/4 * 1/64 = 7/256, three tokens. Reply 2: 1/2 * 1/4 + 1/2 * 1/2 = 3/8, one token.
    close(mixture_loss(P.log(), NLL, N_TOKENS), (log(256 / 7) / 3 + log(8 / 3)) / 2)


def test_expected_nll_by_hand():
    # 1/4 * 4/3 + 3/4 * 2 bits = 11/6 in reply 1, 1/2 * 2 + 1/2 * 1 = 3/2 in reply 2.
    close(expected_loss(P.log(), NLL), (11 / 6 + 3 / 2) / 2 * log(2))


def test_a_single_prompt_is_plain_training():
    close(mixture_loss(torch.zeros(2, 1), NLL[:, :1].float(), N_TOKENS), lm_loss(NLL[:, :1].float()))
    close(expected_loss(torch.zeros(2, 1), NLL[:, :1].float()), lm_loss(NLL[:, :1].float()))


def test_a_prompt_learns_as_far_as_it_is_chosen_and_the_retriever_which_one_does_well():
    scores, nll = torch.zeros(2, 2).requires_grad_(), NLL.float().clone().requires_grad_()
    expected_loss((P.float().log() + scores).log_softmax(1), nll).backward()
    close(nll.grad, P.float() / 2)
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]  # prompt A does better in reply 1, B in reply 2
    assert scores.grad[1, 1] < 0 < scores.grad[1, 0]


def test_use_of_the_bank():
    even, one_sided = tensor([3 / 4, 1 / 4], [1 / 4, 3 / 4]).log(), tensor([3 / 4, 1 / 4], [3 / 4, 1 / 4]).log()
    close(load_balance(even), 0.0)
    close(entropy_of_use(even), log(2))
    close(effective_prompts(even), 2.0)
    close(load_balance(one_sided), 3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2))
    close(effective_prompts(one_sided), (4 / 3) ** (3 / 4) * 4 ** (1 / 4))


def test_balance_raises_a_prompt_that_is_hardly_chosen():
    scores = tensor([4.0, 0.0], [4.0, 0.0], grad=True)
    load_balance(torch.log_softmax(scores, 1)).backward()
    assert (scores.grad[:, 0] > 0).all()
    assert (scores.grad[:, 1] < 0).all()


def test_positives_are_other_turns_of_the_person():
    found = same_person(torch.tensor([4, 7, 4]))
    assert found.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_contrast_of_people():
    context = tensor([2.0, 0.0], [0.0, 1.0], [-1.0, 0.0])  # cosines: 12 and 23 are 0, 13 is -1
    positive = same_person(torch.tensor([0, 0, 1]))
    # Context 1 picks 2 from {0, -1}, context 2 picks 1 from {0, 0}; nobody else is the third person.
    close(person_contrast(context, positive, temperature=1.0), (log(1 + 1 / e) + log(2)) / 2)
    close(person_contrast(context, positive, temperature=0.5), (log(1 + e**-2) + log(2)) / 2)
    # Three turns of one person: each picks two of two, with log-probabilities by their cosines.
    picks = [[log(1 + 1 / e), log(1 + e)], [log(2), log(2)], [log(1 + e), log(1 + 1 / e)]]
    everybody = person_contrast(context, same_person(torch.zeros(3, dtype=torch.long)), temperature=1.0)
    close(everybody, sum(sum(pair) / 2 for pair in picks) / 3)


def test_contrast_without_positives_is_zero_and_with_oneself_refused():
    context = noise(3, 4).requires_grad_()
    loss = person_contrast(context, same_person(torch.arange(3)))
    loss.backward()
    assert loss == 0
    assert not context.grad.any()
    with pytest.raises(ValueError, match="never with themselves"):
        person_contrast(context, torch.eye(3, dtype=torch.bool))


def test_shapes_that_do_not_match_are_refused():
    for loss in (selection_loss, expected_loss, lambda a, b: mixture_loss(a, b, N_TOKENS)):
        with pytest.raises(ValueError, match=r"both are \(replies, prompts\)"):
            loss(P.log()[:1], NLL)
    with pytest.raises(ValueError, match="lengths of one token or more; got"):
        mixture_loss(P.log(), NLL, torch.tensor([3, 0]))


# for all losses --------------------------------------------------------------------------------------------------
PEOPLE = torch.tensor([0, 1, 0, 2, 1])
LENGTHS = torch.tensor([1, 7, 3, 12, 2])
SIMILARITY = (PEOPLE[:, None] == PEOPLE).double() * 100
BANK = noise(4, 3, seed=1), noise(2, 3), noise(2)  # prompts, weight, bias
BATCH = {  # a loss, and what it takes of each of five replies
    "scores": (lambda c: paper_scores(c, *(x.to(c) for x in BANK))[:, 0].mean(), (noise(5, 3),)),
    "selection": (selection_loss, (noise(5, 4), noise(5, 4, seed=1))),
    "contrastive": (contrastive_loss, (noise(5, 4).abs() + 0.1, SIMILARITY)),
    "mixture": (
        lambda s, n, t: mixture_loss(s.log_softmax(1), n, t),
        (noise(5, 4), noise(5, 4, seed=1).abs(), LENGTHS),
    ),
    "expected": (lambda s, n: expected_loss(s.log_softmax(1), n), (noise(5, 4), noise(5, 4, seed=1).abs())),
    "choice": (lambda c: choice_log_probs(c, BANK[0].to(c), 0.5)[:, 0].mean(), (noise(5, 3),)),
    "balance": (lambda s: load_balance(s.log_softmax(1)), (noise(5, 4),)),
    "effective": (lambda s: effective_prompts(s.log_softmax(1)), (noise(5, 4),)),
    "people": (lambda c, p: person_contrast(c, same_person(p), 0.5), (noise(5, 3), PEOPLE)),
}


@pytest.mark.parametrize("name", BATCH)
def test_the_order_of_a_batch_is_nothing(name):
    loss, arguments = BATCH[name]
    order = torch.tensor([3, 0, 4, 2, 1])
    mixed = [a[order][:, order] if a is SIMILARITY else a[order] for a in arguments]
    torch.testing.assert_close(loss(*mixed), loss(*arguments))


@pytest.mark.parametrize("name", sorted(set(BATCH) - {"selection"}))
def test_gradients(name):
    loss, arguments = BATCH[name]
    leaves = [a.clone().requires_grad_() if a.is_floating_point() and a is not SIMILARITY else a for a in arguments]
    assert torch.autograd.gradcheck(loss, leaves)


def test_gradients_to_what_is_not_held_fixed():
    """The target of the selection is a constant: checked where it does not move."""
    scores, nll = noise(5, 4).abs().add(0.1).requires_grad_(), noise(5, 4, seed=1).abs()
    assert torch.autograd.gradcheck(lambda s: selection_loss(s, nll, 0.5), (scores,))


@pytest.mark.parametrize("rows", [1024, 4])
def test_gradients_of_the_replies(rows, monkeypatch):
    monkeypatch.setattr(selection, "_LOGIT_ROWS", rows)
    hidden, head, scores = noise(4, 2, 3).requires_grad_(), noise(3, 3, seed=1), noise(2, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, s: reply_nlls(lambda x: x @ head, h, TARGETS, REPLY, s), (hidden, scores))


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("factor", [0.0, 1e4])
def test_extreme_values_stay_finite(name, factor):
    loss, arguments = BATCH[name]
    extreme = [a.float() * factor if a.is_floating_point() and a is not SIMILARITY else a for a in arguments]
    leaves = [a.requires_grad_() for a in extreme if a.is_floating_point() and a is not SIMILARITY]
    value = loss(*extreme)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(a.grad).all() for a in leaves if a.grad is not None)


def test_extreme_logits_stay_finite():
    hidden = (noise(4, 2, 3).float() * 1e4).requires_grad_()
    nll, fused = reply_nlls(as_they_are, hidden, TARGETS, REPLY, torch.full((2, 2), 1e2))
    (nll.sum() + fused.sum()).backward()
    assert torch.isfinite(nll).all()
    assert torch.isfinite(fused).all()
    assert torch.isfinite(hidden.grad).all()


# faults of the public implementation -----------------------------------------------------------------------------
def published(cosine: torch.Tensor) -> torch.Tensor:
    """The authors' activation, beta 10 and threshold 1: linear where the cosine exceeds 0.1."""
    return F.softplus(cosine, beta=10, threshold=1)


def test_fault_2_scores_of_unit_range_cap_the_choice():
    cap = e / (e + 3)
    assert round(cap, 3) == 0.475
    context, prompts = tensor([1.0, 0.0]), tensor([1.0, 0.0], *[[-1.0, 0.0]] * 3)  # as clear as can be
    cosine = tensor([1.0, -1.0, -1.0, -1.0])
    assert torch.softmax(published(cosine), 1)[0, 0] == pytest.approx(cap, abs=1e-5)
    close(torch.softmax(paper_scores(context, prompts, torch.eye(2).double(), torch.zeros(2).double()), 1)[0, 0], cap)
    assert choice_log_probs(context, prompts).exp()[0, 0] > 1 - 1e-9
    # So the loss has a floor: an LM that needs the first prompt, whatever the retriever does.
    firm = selection_loss(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 99.0, 99.0, 99.0]]))
    close(firm, -log(cap))


def test_fault_3_published_activation_swaps_two_cosines():
    lower, higher = torch.tensor(0.095), torch.tensor(0.12)
    assert published(lower) > published(higher)  # log(1 + e^0.95) / 10 = 0.128 and 0.12
    assert published(lower).item() == pytest.approx(math.log1p(e**0.95) / 10)
    assert published(higher).item() == pytest.approx(0.12)
    cosine = torch.linspace(-1, 1, 20_001)
    assert (published(cosine).diff() < 0).sum() == 1
    assert (F.softplus(cosine).diff() >= 0).all()  # the default threshold of 20 is beyond any cosine
    angle = torch.acos(torch.stack([lower, higher]).double())
    prompts, context = torch.stack([angle.cos(), angle.sin()], 1), tensor([1.0, 0.0])
    ours = choice_log_probs(context, prompts)[0]
    plain = paper_scores(context, prompts, torch.eye(2).double(), torch.zeros(2).double())[0]
    assert ours[0] < ours[1]
    assert plain[0] < plain[1]


def test_fault_5_published_losses_do_not_specialise():
    nll = NLL.clone().requires_grad_()
    lm_loss(nll).backward()
    close(nll.grad, [[1 / 4, 1 / 4], [1 / 4, 1 / 4]])  # every prompt, every reply
    nll = NLL.clone().requires_grad_()
    mixture_loss(P.log(), nll, N_TOKENS).backward()
    close(nll.grad, [[2 / 7, 3 / 14], [1 / 6, 1 / 3]])  # the responsibilities over B


def test_fault_5_published_fusion_depends_on_the_size_of_the_scores():
    """Two equal prompts say what each says alone; as published they say it with twice the logits."""
    twice = torch.stack([HIDDEN[:, 0]] * 2, 1)
    nll, fused = reply_nlls(as_they_are, twice, TARGETS, REPLY, torch.ones(2, 2))
    # 1/2, 1/4, 1/4 squared are in proportion 4 : 1 : 1, and the second reply is the third token.
    close(fused, [(2 * log(6 / 4) + log(6)) / 3, log(6)])
    close(mixture_loss(P.log(), nll, N_TOKENS), nll[:, 0].mean())


def test_fault_7_noise_on_a_probability_makes_the_loss_nan():
    nll, scores = tensor([0.1, 5.0]), tensor([0.0, 0.0])
    noisy = torch.softmax(-nll, 1) + tensor([0.02, -0.02])
    assert noisy.min() < 0
    assert F.kl_div(torch.log_softmax(scores, 1), noisy, reduction="batchmean").isnan()
    assert torch.isfinite(selection_loss(scores, nll + tensor([0.02, -0.02])))
