"""`PersonaPrompt(recipe="constant")`: what the format alone gives."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from personae.data.survey import Question
from personae.lm.prompts import PLACEMENTS, letters_prompt
from personae.lm.reading import prepare
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona
from personae.steering import persona_prompt
from personae.steering.examples import AnswersAndTalk
from personae.steering.networks import ConstantNetwork
from personae.steering.persona_prompt import PersonaPrompt
from personae.training.loop import Schedule

READS = ("letters", "text")
NEW = Question("new", "Should the moon have a mayor?", ("no", "perhaps", "yes"))


@pytest.fixture(scope="module", params=PLACEMENTS)
def steerer(request, lm, mixed, people) -> PersonaPrompt:
    before = {n: v.clone() for n, v in lm.model.state_dict().items()}
    fitted = PersonaPrompt(lm, "constant", request.param, steps=4).fit(mixed, people, progress=False)
    assert all(torch.equal(v, before[n]) for n, v in lm.model.state_dict().items())
    return fitted


def _some(people) -> list[Persona]:
    rows = np.argsort(people.vectors_[:, 0])[[0, 20, 39]]  # unlike each other
    return [people[people.respondent_ids_[i]] for i in rows]


@pytest.mark.parametrize("by", READS)
def test_everybody_gets_the_same_answers(steerer, mixed, people, by):
    p = steerer.predict_proba(_some(people), [*mixed.questions, NEW], by)
    np.testing.assert_allclose(p, np.broadcast_to(p[:1], p.shape), atol=2e-6)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    assert np.abs(p[0, 1] - p[0, 4]).max() > 1e-4  # to different questions different ones


def test_the_virtual_tokens_are_the_same_for_every_question(steerer, lm, mixed, people):
    prepared = prepare(lm, [letters_prompt(lm, q.text, q.options, steerer.placement_) for q in mixed.questions])
    vectors = torch.as_tensor(people.vectors_).float()
    with torch.no_grad():
        virtual = steerer.virtual_tokens(prepared, vectors, "letters", [len(q.options) for q in mixed.questions])
    if steerer.placement_ == "prefix":
        rows = [x for pair in virtual for x in pair]
        assert all(torch.equal(x, x[:1].expand_as(x)) for x in rows)
        assert len(rows[0]) == 5 * 40
    else:
        assert virtual.shape == (5, 40, 2, lm.hidden_size)
        assert torch.equal(virtual, virtual[:1, :1].expand_as(virtual))


def test_it_stands_late_with_two_tokens_by_default(lm, mixed, people):
    fitted = PersonaPrompt(lm, "constant", steps=1).fit(mixed, people, progress=False)
    assert fitted.placement_ == "late"
    assert fitted.n_tokens_ == {"letters": 2, "text": 2, "talk": 2}
    assert fitted.text_model_ is None
    assert isinstance(fitted.chat("So?", _some(people)[0], max_new_tokens=4), str)


def test_training_finds_what_the_format_alone_gives(lm, camps):
    """Most people say yes to everything: the loss falls to what a constant answer gives, from letters nobody said."""
    survey = camps(60, 4, 4.0, opposed=False)
    mostly_yes = survey.keep_answers((survey.option == 1) | (survey.respondent % 8 == 0))
    people = OpinionModel(n_components=1).fit(mostly_yes)
    share = (mostly_yes.option == 1).mean()
    best = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    nll = {}
    for steps in (1, 60):
        fitted = PersonaPrompt(lm, "constant", steps=steps).fit(mostly_yes, people, progress=False)
        task = AnswersAndTalk(lm, mostly_yes, people, "late", "constant", 0)
        task.network = fitted.network_
        with torch.no_grad():
            nll[steps] = np.mean([loss.item() for step in range(1000, 1010) for loss, _ in task.losses(step)])
    assert nll[60] < nll[1] - 0.05
    assert nll[60] < best + 0.1


def test_it_learns_letters_from_what_was_said_alone(lm, mixed, people):
    task = AnswersAndTalk(lm, mixed, people, "late", "constant", 0)
    asked = np.array([1])
    who = task.asked[1][None, :4]
    np.testing.assert_array_equal(task._target(asked, who)[0].numpy(), np.eye(5)[task.given[who[0], 1]])
    task.network = ConstantNetwork(lm, people.vectors_.shape[1], {"letters": 2, "text": 2, "talk": 2}, prefix=False)
    assert all(len(list(task.losses(step))) == 1 for step in range(4))


def test_saved_and_opened_it_answers_the_same(steerer, lm, mixed, people, tmp_path):
    steerer.save(tmp_path)
    opened = PersonaPrompt.load(tmp_path, lm=lm)
    for by in READS:
        np.testing.assert_array_equal(
            opened.predict_proba(_some(people), [NEW], by), steerer.predict_proba(_some(people), [NEW], by)
        )
    assert (opened.recipe, opened.placement_) == ("constant", steerer.placement_)
    assert not opened.network_.training
    d = people.vectors_.shape[1]
    with pytest.raises(ValueError, match=f'persona "eve" has {d + 3} numbers'):
        opened.answer("More trams?", ["yes", "no"], Persona("eve", np.zeros(d + 3), np.eye(d + 3), 1.0))


def test_interrupted_and_resumed_is_the_same_network(lm, mixed, people, tmp_path, monkeypatch):
    monkeypatch.setattr(persona_prompt, "Schedule", partial(Schedule, checkpoint_every=3, validate_every=2))
    whole = PersonaPrompt(lm, "constant", steps=5).fit(mixed, people, progress=False)
    file = tmp_path / "training.safetensors"
    losses = AnswersAndTalk.losses

    def interrupted(task, step, *more):
        if step == 4:
            raise KeyboardInterrupt
        return losses(task, step, *more)

    monkeypatch.setattr(AnswersAndTalk, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PersonaPrompt(lm, "constant", steps=5).fit(mixed, people, file, progress=False)
    monkeypatch.setattr(AnswersAndTalk, "losses", losses)
    resumed = PersonaPrompt(lm, "constant", steps=5).fit(mixed, people, file, resume=True, progress=False)
    weights = whole.network_.state_dict()
    assert all(torch.equal(v, weights[n]) for n, v in resumed.network_.state_dict().items())
    assert resumed.history_ == whole.history_


def test_an_unknown_recipe_is_refused_with_those_there_are(lm, mixed, people):
    with pytest.raises(ValueError, match='"contextual", "paper" or "constant", not "none"'):
        PersonaPrompt(lm, recipe="none").fit(mixed, people, progress=False)
