from __future__ import annotations

import math

import pytest
import torch

from personae.people import new_questions
from personae.people.new_questions import NewQuestions

N = [2, 3, 5, 2, 4, 3]


@pytest.fixture
def made() -> dict[str, torch.Tensor]:
    """Six questions of two to five options."""
    draw = torch.Generator().manual_seed(0)
    intercepts, slopes = torch.randn(6, 5, generator=draw), torch.randn(6, 5, 2, generator=draw)
    for j, n in enumerate(N):
        intercepts[j, n:], slopes[j, n:] = -math.inf, 0.0
    return {
        "embeddings": torch.randn(6, 8, generator=draw),
        "intercepts": intercepts,
        "slopes": slopes,
        "people": 3 + 2 * torch.randn(200, 2, generator=draw),
    }


def learn(made: dict[str, torch.Tensor], kept: list[int] | None = None) -> NewQuestions:
    kept = list(range(6)) if kept is None else kept
    some = {k: made[k][kept] for k in ("embeddings", "intercepts", "slopes")}
    return NewQuestions(some["embeddings"], [N[j] for j in kept], some["intercepts"], some["slopes"], made["people"])


def same_scales(model: NewQuestions, other: NewQuestions) -> None:
    """Leave-one-out keeps the scale of texts and the amplitudes of all questions."""
    model.h_mean, model.h_std = other.h_mean, other.h_std
    model.noise = other.noise
    model._solve()
    model.amplitude = other.amplitude


def test_left_out_in_closed_form_is_learning_without_the_question(made):
    model = learn(made)
    for j in range(6):
        others = [i for i in range(6) if i != j]
        without = learn(made, others)
        same_scales(without, model)
        torch.testing.assert_close(
            model.left_out(made["people"], torch.tensor([j]), [N[j]]),
            without(made["people"], made["embeddings"][j : j + 1], [N[j]]),
            rtol=1e-3,
            atol=1e-4,
        )


def test_what_was_asked_is_answered_as_it_was(made):
    """But for the noise, of which there is little here."""
    model = learn(made)
    model.noise = torch.tensor(0.05)
    model._solve()
    got = model(made["people"], made["embeddings"], N)
    want = made["intercepts"][:, None] + made["people"] @ made["slopes"].transpose(1, 2)
    for c, n in enumerate(N):
        a, b = got[c, :, :n].softmax(-1).flatten(), want[c, :, :n].softmax(-1).flatten()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.95
        assert torch.isneginf(got[c, :, n:]).all()


def test_posterior_by_hand():
    """One question of two options; a new one whose text is as unlike as can be, cos = -1, at the same places."""
    h, people = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0], [1.0]])
    model = NewQuestions(h, [2], torch.tensor([[-1.0, 1.0]]), torch.zeros(1, 2, 1), people)
    model.h_mean, model.noise = torch.zeros(2), torch.tensor(0.05)
    model._solve()
    far = math.exp(-1 / 0.05)  # likeness of the first and the last place
    own, across = 1.1 * (1 - far) / 2, (math.exp(-4) + 0.1) * (1 - far) / 2  # centred: [[a, -a], [-a, a]]
    value = 2 * across / (2 * own + 0.05)
    means, variances = model._posterior(-h, [2])
    torch.testing.assert_close(means[0, :, 0], torch.tensor([-value, value]))
    left = 2 * own + 0.05 - (2 * across) ** 2 / (2 * own + 0.05)  # along (1, -1) / sqrt 2
    torch.testing.assert_close(variances, torch.tensor([2 * left]))
    amplitude = 2 / (2 * own + 0.05)
    torch.testing.assert_close(model.amplitude, torch.tensor([amplitude, 0.0]))
    torch.testing.assert_close(
        model(people, -h, [2])[0, 0, 1], torch.tensor(value / math.sqrt(1 + math.pi / 8 * 2 * left * amplitude))
    )


def test_a_question_unlike_all_is_answered_nearly_evenly(made):
    model = learn(made)
    h = made["embeddings"][[1]]
    like, unlike = (model(made["people"], x, [3]).softmax(-1).max(-1).values.mean() for x in (h, 2 * model.h_mean - h))
    assert 1 / 3 < unlike < like


def test_texts_that_tell_nothing_are_seen_as_noise():
    """Forty questions whose slopes follow from their texts, or from nothing."""
    draw = torch.Generator().manual_seed(0)
    h, people = torch.randn(40, 3, generator=draw), torch.randn(300, 3, generator=draw)
    slopes = torch.stack([-h, h], 1)
    told = NewQuestions(h, [2] * 40, torch.zeros(40, 2), slopes, people)
    mixed = NewQuestions(h, [2] * 40, torch.zeros(40, 2), slopes[torch.randperm(40, generator=draw)], people)
    assert told.noise < mixed.noise
    new = torch.randn(20, 3, generator=draw)
    believed = [m(people, new, [2] * 20).softmax(-1).max(-1).values.mean() for m in (told, mixed)]
    assert believed[0] > 0.65 > 0.6 > believed[1]


def test_survives_its_state(made):
    model = learn(made)
    opened = NewQuestions.from_state(model.state_dict())
    h = torch.randn(2, 8)
    assert torch.equal(opened(made["people"], h, [3, 4]), model(made["people"], h, [3, 4]))
    assert opened.state_dict().keys() == model.state_dict().keys()


def test_people_of_their_own_a_question(made):
    model = learn(made)
    people = made["people"][:6].view(2, 3, 2)
    got = model(people, made["embeddings"][:2], N[:2])
    for c in range(2):
        torch.testing.assert_close(got[c, :, : N[c]], model(people[c], made["embeddings"][c : c + 1], N[c : c + 1])[0])


def test_too_many_options_are_thinned_and_the_rest_is_new(made, monkeypatch):
    monkeypatch.setattr(new_questions, "_MOST", 10)
    model = learn(made)
    assert len(model.texts) == 3
    for j in (1, 3, 5):
        one = torch.tensor([j])
        torch.testing.assert_close(
            model.left_out(made["people"], one, [N[j]]), model(made["people"], made["embeddings"][one], [N[j]])
        )


def test_one_question_alone_stays_finite(made):
    assert torch.isfinite(learn(made, [0])(made["people"], made["embeddings"], [2] * 6)).all()
