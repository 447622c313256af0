from __future__ import annotations

import builtins
import json
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.data.survey import Question, Survey
from personae.lm.prompts import chat_prompt, letters_prompt, reply_ids
from personae.lm.reading import option_logits, prepare
from personae.lm.tiny import tiny_lm
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona
from personae.steering import lora
from personae.steering.base import REGISTRY
from personae.steering.lora import DescribedAnswers, LoRA
from personae.steering.text import TextPrompt, describe_by_traits
from personae.training.loop import Schedule

pytest.importorskip("peft")

READS = ("letters", "text")
NEW = Question("new", "Should the moon have a mayor?", ("no", "perhaps", "yes"))


def make_parties(n: int = 60, seed: int = 0) -> tuple[Survey, np.ndarray]:
    """A survey where a trait decides the answer in nineteen of twenty cases, and who is of which party, (N,)."""
    rng = np.random.default_rng(seed)
    party = np.repeat([0, 1], n // 2)
    said = np.where(rng.random((n, 4)) < 0.95, party[:, None], 1 - party[:, None])
    person, question = np.nonzero(np.ones((n, 4)))
    questions = [
        Question(f"q{j}", f"More {s}?", ("no", "yes")) for j, s in enumerate(("roads", "trains", "art", "tax"))
    ]
    traits = pd.DataFrame({"party": np.array(["red", "blue"])[party]}, dtype=object)
    return Survey(questions, [f"r{i:02d}" for i in range(n)], person, question, said[person, question], traits), party


@pytest.fixture(scope="module")
def parties() -> tuple[Survey, np.ndarray]:
    return make_parties()


@pytest.fixture(scope="module")
def survey(parties) -> Survey:
    return parties[0]


@pytest.fixture(scope="module")
def voters(survey) -> OpinionModel:
    return OpinionModel(n_components=1).fit(survey)


@pytest.fixture(scope="module")
def fitted(lm, survey, voters) -> LoRA:
    return LoRA(lm, steps=60).fit(survey, voters, progress=False)


def _task(steerer: LoRA, survey: Survey, people: OpinionModel) -> DescribedAnswers:
    adapters = torch.nn.ParameterList(p for p in steerer.adapted_.parameters() if p.requires_grad)
    return DescribedAnswers(steerer.lm_, adapters, survey, people, steerer.describe_, 1e-3, 0)


def _weights(steerer: LoRA) -> dict[str, torch.Tensor]:
    return {n: p for n, p in steerer.adapted_.named_parameters() if p.requires_grad}


# learning --------------------------------------------------------------------------------------------------------
def test_learns_what_the_trait_decides(fitted, survey, parties, voters):
    p = fitted.predict_proba([voters[r] for r in survey.respondent_ids], survey.questions)
    right = (p.argmax(-1) == parties[1][:, None]).mean()  # the majority is right in half of the cases
    assert right > 0.9
    assert fitted.history_[-1]["step"] == 60
    assert fitted.history_[-1]["nll"] < np.log(2) - 0.1


def test_of_a_persona_without_traits_nothing_is_said(fitted, voters):
    stranger = Persona("cohort-0", np.zeros(2), np.eye(2), 1.0)
    other = Persona("somebody", np.ones(2), np.eye(2), 1.0)
    assert fitted.describe_(stranger, NEW) == ""
    p = fitted.predict_proba([stranger, other, voters["r00"]], [NEW])
    np.testing.assert_array_equal(p[0], p[1])
    assert np.abs(p[0] - p[2]).max() > 1e-3


def test_the_description_may_depend_on_the_question(lm, survey, voters):
    told = []

    def describe(persona, question):
        told.append((persona.name, None if question is None else question.id))
        return f"{persona.name} is asked {question.id}." if question else f"This is {persona.name}."

    steerer = LoRA(lm, describe, steps=1).fit(survey, voters, progress=False)
    given = set(zip(survey.respondent_ids[survey.respondent], [survey.questions[j].id for j in survey.question]))  # noqa: B905
    assert told
    assert set(told) <= given
    told.clear()
    steerer.answer(NEW.text, NEW.options, voters["r01"])
    steerer.chat("So?", voters["r01"], max_new_tokens=1)
    assert told == [("r01", "asked"), ("r01", None)]


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox", "qwen3", "gemma3_text"])
def test_every_architecture_has_its_projections_adapted(architecture, survey, voters):
    lm = tiny_lm(architecture)
    raw = TextPrompt(lm, describe_by_traits(survey)).fit().predict_proba([voters["r00"]], survey.questions)
    steerer = LoRA(lm, steps=3).fit(survey, voters, progress=False)
    assert np.abs(steerer.predict_proba([voters["r00"]], survey.questions) - raw).max() > 1e-4
    assert all("att" in name for name in _weights(steerer))


def test_adapters_are_of_the_rank_and_on_all_projections_of_attention(fitted):
    names = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in _weights(fitted)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(8 in p.shape for p in _weights(fitted).values())
    assert len(_weights(fitted)) == 2 * 4 * 2  # layers, projections, A and B


# the LM of others ------------------------------------------------------------------------------------------------
def test_the_original_lm_stays_as_it_is_to_the_bit(survey, voters):
    lm = tiny_lm("llama")
    prompts = [letters_prompt(lm, q.text, q.options, "late") for q in [*survey.questions, NEW]]
    options = [q.options for q in [*survey.questions, NEW]]
    virtual = torch.randn(5, 3, 2, lm.hidden_size, generator=torch.Generator().manual_seed(0)) * lm.embedding_scale

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            prepared = prepare(lm, prompts)
            read = [option_logits(lm, prepared, virtual, options, by) for by in READS]  # the shared-context engine
            return [lm.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits, prepared.representation, *read]

    before, weights = outputs(), {n: v.clone() for n, v in lm.model.state_dict().items()}
    attention, names = lm.model.config._attn_implementation, [n for n, _ in lm.model.named_modules()]
    steerer = LoRA(lm, steps=3).fit(survey, voters, progress=False)
    steerer.predict_proba([voters["r00"]], [NEW], "text")
    assert all(torch.equal(b, a) for b, a in zip(before, outputs(), strict=True))
    after = lm.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[n], weights[n]) for n in weights)
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert (lm.model.config._attn_implementation, [n for n, _ in lm.model.named_modules()]) == (attention, names)
    assert steerer.lm_ is not lm
    assert steerer.lm_.shared == lm.shared


def test_before_any_step_it_is_the_lm_told_in_text(lm, survey, voters, monkeypatch):
    monkeypatch.setattr(lora, "_RATE", 0.0)
    steerer = LoRA(lm, steps=1).fit(survey, voters, progress=False)
    told = TextPrompt(lm, describe_by_traits(survey)).fit()
    people = [voters["r00"], voters["r59"]]
    for by in READS:
        np.testing.assert_allclose(
            steerer.predict_proba(people, [*survey.questions, NEW], by),
            told.predict_proba(people, [*survey.questions, NEW], by),
            atol=1e-6,
        )


@pytest.mark.parametrize(("rank", "rate"), [(4, 1e-3), (None, 5e-5)])
def test_all_weights_are_trained_gently_and_adapters_are_not(lm, survey, voters, monkeypatch, rank, rate):
    tasks = []
    monkeypatch.setattr(lora, "train", lambda task, *more: tasks.append(task) or [])
    LoRA(lm, rank=rank, steps=1).fit(survey, voters, progress=False)
    talk = (Turn("bob", "Tea or coffee?"), Turn("ann", "Tea, please."))
    LoRA(lm, rank=rank, steps=1).fit(Dialogues([Dialogue(i, talk) for i in "12"]), progress=False)
    assert [group["lr"] for task in tasks for group in task.groups()] == [rate, rate]
    assert tasks[0].identity()["rate"] == rate


def test_a_question_of_more_options_than_letters_is_not_learned_from(lm, survey):
    many = Question("brand", "Which of these do you buy?", tuple(f"brand {i}" for i in range(30)))
    n = survey.n_respondents
    wide = Survey(
        [*survey.questions, many],
        survey.respondent_ids,
        np.concatenate([survey.respondent, np.arange(n)]),
        np.concatenate([survey.question, np.full(n, 4)]),
        np.concatenate([survey.option, np.arange(n) % 30]),
        survey.traits,
    )
    steerer = LoRA(lm, steps=2).fit(wide, OpinionModel(n_components=1).fit(wide), progress=False)
    assert np.isfinite(steerer.history_[-1]["nll"])


# answering -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", READS)
def test_a_batch_is_as_one_by_one(fitted, survey, voters, by):
    people, questions = [voters["r00"], voters["r59"], voters["r01"]], [*survey.questions, NEW]
    together = fitted.predict_proba(people, questions, by)
    assert together.shape == (3, 5, 3)
    np.testing.assert_allclose(together.sum(-1), 1, atol=1e-5)
    assert (together[:, :4, 2] == 0).all()
    for i, who in enumerate(people):
        alone = fitted.predict_proba([who], [NEW], by)
        np.testing.assert_allclose(together[i, 4], alone[0, 0], atol=2e-5)
    np.testing.assert_array_equal(together[0], together[2])  # of the same party, which is all that is said


def test_talks_with_the_description_as_system_message(fitted, voters, monkeypatch):
    from personae.steering import text

    seen = []
    monkeypatch.setattr(
        text, "chat_prompt", lambda lm, turns, where: seen.append(turns) or chat_prompt(lm, turns, where)
    )
    reply = fitted.chat("What do you think?", voters["r00"], max_new_tokens=4)
    assert isinstance(reply, str)
    assert seen[0][0] == {"role": "system", "content": "Answer as this person. party: red."}


# files -----------------------------------------------------------------------------------------------------------
def test_saved_and_opened_it_answers_the_same(fitted, lm, survey, voters, tmp_path):
    fitted.save(tmp_path / "lora")
    state = torch.get_rng_state()
    opened = LoRA.load(tmp_path / "lora", lm=lm, describe=describe_by_traits(survey))
    assert torch.equal(torch.get_rng_state(), state)
    people, questions = [voters["r00"], voters["r59"]], [*survey.questions, NEW]
    for by in READS:
        np.testing.assert_array_equal(
            opened.predict_proba(people, questions, by), fitted.predict_proba(people, questions, by)
        )
    assert opened.chat("So?", people[0], max_new_tokens=5) == fitted.chat("So?", people[0], max_new_tokens=5)
    assert opened.history_ == fitted.history_
    assert (opened.rank, opened.steps) == (8, 60)
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "steerer.json",
    }
    assert "red" not in (tmp_path / "lora" / "steerer.json").read_text()  # nobody's traits


def test_the_adapter_is_one_that_peft_opens(fitted, survey, voters, tmp_path):
    import peft

    fitted.save(tmp_path)
    opened = peft.PeftModel.from_pretrained(tiny_lm("llama").model, str(tmp_path))
    ids = torch.tensor([letters_prompt(fitted.lm_, NEW.text, NEW.options, "before", "You are red.").text_ids])
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits, fitted.lm_.model(input_ids=ids).logits)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 16
    assert all("lora_" in n for n in load_file(tmp_path / "adapter_model.safetensors"))


def test_opened_without_descriptions_it_says_what_is_missing(fitted, lm, voters, tmp_path):
    fitted.save(tmp_path)
    opened = LoRA.load(tmp_path, lm=lm)
    with pytest.raises(ValueError, match=r"descriptions are not saved .* describe=describe_by_traits"):
        opened.predict_proba([voters["r00"]], [NEW])


def test_another_lm_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(ValueError, match=r"was trained with tiny-llama, but .* give the same"):
        LoRA.load(tmp_path, lm=tiny_lm("llama", seed=9))


# resuming --------------------------------------------------------------------------------------------------------
def test_interrupted_and_resumed_is_the_same(lm, survey, voters, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "Schedule", partial(Schedule, checkpoint_every=3, validate_every=2))
    whole = LoRA(lm, steps=5).fit(survey, voters, progress=False)
    file = tmp_path / "training.safetensors"
    losses = DescribedAnswers.losses

    def interrupted(task, step, batch):
        if step == 4:
            raise KeyboardInterrupt
        return losses(task, step, batch)

    monkeypatch.setattr(DescribedAnswers, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LoRA(lm, steps=5).fit(survey, voters, file, progress=False)
    assert sum(n.startswith("network.") for n in load_file(file)) == len(_weights(whole))  # not the whole LM
    monkeypatch.setattr(DescribedAnswers, "losses", losses)
    resumed = LoRA(lm, steps=5).fit(survey, voters, file, resume=True, progress=False)
    assert all(torch.equal(p, _weights(whole)[n]) for n, p in _weights(resumed).items())
    assert resumed.history_ == whole.history_
    for other, differs in (({"rank": 4}, "weights"), ({"describe": lambda p, q: "You."}, "descriptions")):
        with pytest.raises(ValueError, match=rf"belongs to another run \({differs} differ\)"):
            LoRA(lm, steps=5, **other).fit(survey, voters, file, resume=True, progress=False)


def test_same_seed_same_adapters_whatever_the_caller_drew(lm, survey, voters):
    def fit(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        steerer = LoRA(lm, steps=2, random_state=seed).fit(survey, voters, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        return _weights(steerer)

    first, again, other = fit(0, 1), fit(0, 2), fit(1, 1)
    assert all(torch.equal(p, again[n]) for n, p in first.items())
    assert not all(torch.equal(p, other[n]) for n, p in first.items())


# the training task -----------------------------------------------------------------------------------------------
def test_the_loss_is_the_cross_entropy_of_a_steps_answers(fitted, survey, voters):
    task = _task(fitted, survey, voters)
    with torch.no_grad():
        parts = list(task.losses(3))
    answers = np.random.default_rng([0, 3]).choice(task.trained, 8)
    said = survey.respondent_ids[survey.respondent[answers]]
    p = [
        fitted.predict_proba([voters[r]], [survey.questions[j]])[0, 0, k]
        for r, j, k in zip(said, survey.question[answers], survey.option[answers], strict=True)
    ]
    assert sum(n for _, n in parts) == 8
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(-np.log(p).mean(), abs=1e-4)


def test_validation_is_on_the_answers_of_held_out_people(fitted, survey, voters):
    task = _task(fitted, survey, voters)
    trained, held_out = (set(survey.respondent[a]) for a in (task.trained, task.held_out))
    assert len(held_out) == 3  # a twentieth of sixty
    assert not trained & held_out
    found = task.validate()
    p = fitted.predict_proba([voters[r] for r in survey.respondent_ids], survey.questions)
    given = p[survey.respondent[task.held_out], survey.question[task.held_out]]
    option = survey.option[task.held_out]
    assert found["nll"] == pytest.approx(-np.log(given[np.arange(len(given)), option]).mean(), abs=1e-4)
    assert found["accuracy"] == pytest.approx((given.argmax(1) == option).mean())


def test_questions_of_different_numbers_of_options_in_one_step(lm, mixed, people):
    steerer = LoRA(lm, steps=3).fit(mixed, people, progress=False)  # a survey without traits
    assert np.isfinite([h["loss"] for h in steerer.history_]).all()
    p = steerer.predict_proba([people["r0"], people["r1"]], mixed.questions)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(p[0], p[1])


def test_one_person_is_too_few(lm, mixed, people):
    with pytest.raises(ValueError, match="at least two people"):
        LoRA(lm, steps=1).fit(mixed.select(respondents=["r0"]), people, progress=False)


@pytest.mark.parametrize("name", ["steps", "rank"])
def test_nothing_to_train_is_refused(lm, mixed, people, name):
    with pytest.raises(ValueError, match=f"{name} is 0; it is at least 1"):
        LoRA(lm, **{name: 0}).fit(mixed, people, progress=False)


# PEFT ------------------------------------------------------------------------------------------------------------
def test_without_peft_a_sentence_says_how_to_get_it(lm, mixed, people, monkeypatch):
    importing = builtins.__import__

    def without(name, *more):
        if name.split(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return importing(name, *more)

    monkeypatch.delitem(sys.modules, "peft", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'personae\[eval\]'"):
        LoRA(lm, steps=1).fit(mixed, people, progress=False)


def test_is_an_estimator_that_registers_itself():
    steerer = LoRA("some-lm", rank=4)
    chosen = {"lm": "some-lm", "describe": None, "rank": 4, "steps": 400, "batches": 1, "random_state": 0}
    assert steerer.get_params() == chosen
    assert REGISTRY["lora"] is LoRA


# dialogues -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [2, None])
def test_replies_of_dialogues_are_learned_by_a_copy_of_the_lm(rank, tmp_path):
    base = tiny_lm()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    talk = (Turn("bob", "Tea or coffee?"), Turn("ann", "Tea, please."))
    dialogues = Dialogues([Dialogue(str(i), talk, {"ann": ("I drink tea.",)}) for i in range(8)])
    steerer = LoRA(base, rank=rank, steps=30).fit(dialogues, progress=False)
    chat = [{"role": "system", "content": "I drink tea."}, {"role": "user", "content": "Tea or coffee?"}]
    ids = [*chat_prompt(base, chat, "before").text_ids, *reply_ids(base, "Tea, please.")]

    def likelihood(lm) -> float:
        with torch.no_grad():
            log_p = lm.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        n = len(reply_ids(base, "Tea, please."))
        return sum(log_p[len(ids) - n + i - 1, ids[len(ids) - n + i]].item() for i in range(n))

    assert likelihood(steerer.lm_) > likelihood(base) + 1
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    steerer.save(tmp_path)
    again = LoRA.load(tmp_path, base)
    assert likelihood(again.lm_) == pytest.approx(likelihood(steerer.lm_), abs=1e-3)


def test_a_survey_without_its_people_is_refused(survey):
    with pytest.raises(ValueError, match=r"fit\(survey, people\)"):
        LoRA(tiny_lm(), steps=1).fit(survey)


def test_an_lm_that_is_not_whole_on_one_device_is_refused():
    lm = tiny_lm()
    lm.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}  # as transformers leaves it
    talk = Dialogues([Dialogue(str(i), (Turn("bob", "Tea?"), Turn("ann", "Yes."))) for i in range(4)])
    with pytest.raises(
        ValueError, match="tiny-llama is split over devices, and its copy cannot be fine-tuned; load it"
    ):
        LoRA(lm, steps=1).fit(talk)
