"""What plain PEFT and transformers compute from an exported adapter is what personae computes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from personae.data.survey import Question
from personae.export.peft import export_peft
from personae.lm.frozen import FrozenLM
from personae.lm.generation import generate
from personae.lm.prompts import chat_prompt, letters_prompt
from personae.lm.reading import prepare, read
from personae.people.persona import Persona
from personae.steering.persona_prompt import PersonaPrompt
from personae.steering.text import TextPrompt

peft = pytest.importorskip("peft")

NEW = Question("", "Should trains be free?", ("no", "perhaps", "yes"))
OTHER = Question("", "Is it raining?", ("no", "yes"))
CHAT = [{"role": "user", "content": "What worries you?"}]


def plain(lm, folder):
    """The LM as anybody loads it, with the adapter."""
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("sdpa")
    return peft.PeftModel.from_pretrained(model, folder).eval()


@torch.no_grad()
def next_logits(model, ids):
    ids = torch.tensor([list(ids)])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float()


@torch.no_grad()
def our_logits(steerer, question, persona):
    """The question's tokens, and full-vocabulary logits (V,) after it, as `PersonaPrompt` computes those of letters."""
    prompt = letters_prompt(steerer.lm_, question.text, question.options, steerer.placement_)
    prepared = prepare(steerer.lm_, [prompt])
    vectors = torch.tensor(persona.vector)[None].float()
    virtual = steerer.virtual_tokens(prepared, vectors, "letters", [len(question.options)])
    return prompt.text_ids, steerer.lm_.logits(read(steerer.lm_, prepared, virtual).trunk)[0, 0]


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("placement", ["before", "prefix"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "qwen3", "gemma", "gemma3_text"])
def test_an_adapter_of_the_person_alone_serves_every_question(train, people, tmp_path, architecture, placement):
    steerer = train(architecture, recipe="paper", placement=placement, n_tokens=3)
    written = export_peft(steerer, people["person-000"], tmp_path / "adapter")
    assert written["peft_type"] == {"before": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}[placement]
    assert written["exact_for"] == "every question, answered by letter"
    model = plain(steerer.lm_, tmp_path / "adapter")
    for question in (NEW, OTHER):
        ids, ours = our_logits(steerer, question, people["person-000"])
        assert largest(next_logits(model, ids), ours) < 1e-4
        _, somebody_else = our_logits(steerer, question, people["person-119"])
        assert largest(ours, somebody_else) > 1e-3  # what was compared depends on the person
        with model.disable_adapter():
            assert largest(next_logits(model, ids), ours) > 1e-2


@pytest.mark.parametrize("placement", ["before", "prefix"])
def test_an_adapter_of_the_default_recipe_is_exact_for_its_question(train, people, tmp_path, placement):
    steerer = train("llama", placement=placement)
    written = export_peft(steerer, people["person-000"], tmp_path / "adapter", NEW)
    assert written["exact_for"] == "one question, answered by letter: Should trains be free? (no / perhaps / yes)"
    model = plain(steerer.lm_, tmp_path / "adapter")
    ids, ours = our_logits(steerer, NEW, people["person-000"])
    assert steerer.lm_.tokenizer(written["prompt"], add_special_tokens=False)["input_ids"] == ids
    assert written["prompt"] in (tmp_path / "adapter" / "README.md").read_text()
    logits = next_logits(model, ids)
    assert largest(logits, ours) < 1e-4
    shares = torch.softmax(written["sharpness"] * logits[list(written["letters"].values())], 0).tolist()
    assert shares == pytest.approx(
        steerer.answer(NEW.text, NEW.options, people["person-000"]).iloc[0].tolist(), abs=1e-5
    )
    ids, ours = our_logits(steerer, OTHER, people["person-000"])
    assert largest(next_logits(model, ids), ours) > 1e-4  # other virtual tokens, which the card says


def test_letters_of_a_question_that_was_trained_on_are_not_made_flatter(train, people, survey, tmp_path):
    steerer = train("llama", placement="before")
    steerer = copy.copy(steerer)
    steerer.sharpness_ = 0.5
    known = export_peft(steerer, people["person-000"], tmp_path / "known", survey.questions[0])
    new = export_peft(steerer, people["person-000"], tmp_path / "new", NEW)
    assert (known["sharpness"], new["sharpness"]) == (1.0, 0.5)
    assert "by 0.5 before the softmax" in (tmp_path / "new" / "README.md").read_text()
    assert "softmax" not in (tmp_path / "known" / "README.md").read_text()


@pytest.mark.parametrize("placement", ["before", "prefix"])
def test_a_chat_goes_on_as_it_does_here(train, people, tmp_path, placement):
    steerer = train("llama", placement=placement)
    export_peft(steerer, people["person-000"], tmp_path / "adapter", CHAT)
    rows = steerer.chat_rows(CHAT, [people["person-000"]])
    ours = generate(steerer.lm_, rows.prompts, rows.virtual, max_new_tokens=8)[0]
    ids = torch.tensor([chat_prompt(steerer.lm_, CHAT, placement).text_ids])
    model = plain(steerer.lm_, tmp_path / "adapter")
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    said = out[0, ids.shape[1] :] if out.shape[1] > 8 else out[0]
    assert steerer.lm_.tokenizer.decode(said, skip_special_tokens=True).strip() == ours
    assert ours


def test_what_stands_in_the_folder(train, people, tmp_path):
    steerer = train("llama", recipe="paper", placement="before", n_tokens=3)
    export_peft(steerer, people["person-000"], tmp_path / "adapter")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (rows,) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    assert rows.shape == (3, 32)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == 3
    assert config["base_model_name_or_path"] is None  # no hub id, so none is claimed
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "~~~~\nQuestion: QUESTION\nA. FIRST OPTION\nB. SECOND OPTION\nAnswer:\n~~~~" in card
    assert "**Exact for:** every question, answered by letter." in card
    assert steerer.lm_.fingerprint["embedding_sha256"] in card


def test_only_what_is_exact_is_exported(train, people, tmp_path):
    me = people["person-000"]
    with pytest.raises(ValueError, match=r'placement "late".*personae steer BUNDLE --recipe paper'):
        export_peft(train("llama"), me, tmp_path / "adapter", NEW)
    with pytest.raises(ValueError, match=r"anew for every question and chat; say for which one: --question"):
        export_peft(train("llama", placement="before"), me, tmp_path / "adapter")
    stranger = Persona("x", [0.0] * 7, np.eye(7), 1.0)
    with pytest.raises(ValueError, match="has 7 numbers, but this steerer was trained with vectors of 3"):
        export_peft(train("llama", recipe="paper", placement="before", n_tokens=3), stranger, tmp_path / "adapter")
    with pytest.raises(ValueError, match='method "text" has no virtual tokens of a persona'):
        export_peft(TextPrompt(train("llama").lm_).fit(), me, tmp_path / "adapter", NEW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("placement", ["before", "prefix"])
def test_no_number_that_is_not_finite_is_written(train, people, tmp_path, placement):
    steerer = copy.deepcopy(train("llama", recipe="paper", placement=placement))
    steerer.network_.mlp[-1].bias.data[5] = torch.nan
    with pytest.raises(ValueError, match=r'virtual tokens of "person-000" are not finite, so nothing is written'):
        export_peft(steerer, people["person-000"], tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(train, people, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty, so nothing is written there"):
        export_peft(train("llama", recipe="paper", placement="before"), people["person-000"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.model
@pytest.mark.parametrize("placement", ["before", "prefix"])
def test_equal_logits_on_the_real_language_model(survey, people, tmp_path, placement):
    lm = FrozenLM.load("smollm2-135m", dtype="float32")
    steerer = PersonaPrompt(lm, recipe="paper", placement=placement, steps=1).fit(survey, people, progress=False)
    written = export_peft(steerer, people["person-000"], tmp_path / "adapter")
    assert written["base_model"] in (None, "HuggingFaceTB/SmolLM2-135M-Instruct")
    ids, ours = our_logits(steerer, NEW, people["person-000"])
    assert largest(next_logits(plain(lm, tmp_path / "adapter"), ids), ours) < 1e-3
