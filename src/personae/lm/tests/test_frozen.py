from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from personae.lm import frozen
from personae.lm.frozen import FrozenLM, best_dtype
from personae.lm.names import ModelNotFound
from personae.lm.prompts import letters_prompt
from personae.lm.reading import letter_logits, prepare, read
from personae.lm.tiny import tiny_lm


@pytest.fixture
def folder(tmp_path):
    """A small model as a folder."""
    lm = tiny_lm("llama")
    lm.model.set_attn_implementation("sdpa")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_the_lm_is_frozen(architecture):
    lm = tiny_lm(architecture)
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    virtual = torch.randn(1, 3, 2, lm.hidden_size, requires_grad=True)
    optimiser = torch.optim.AdamW([virtual], lr=0.1)
    prepared = prepare(lm, [letters_prompt(lm, "Roads?", ["yes", "no"], "late")])
    letter_logits(lm, read(lm, prepared, virtual), [2]).logsumexp(-1).sum().backward()
    optimiser.step()
    assert virtual.grad is not None
    assert virtual.grad.abs().max() > 0
    assert not lm.model.training
    for name, weight in lm.model.named_parameters():
        assert not weight.requires_grad, name
        assert weight.grad is None, name
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_dropout_is_off():
    lm = tiny_lm("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    x = torch.randn(1, 2, 3, lm.hidden_size)
    assert torch.equal(lm.extend(lm.encode([[1, 2, 3]]), x), lm.extend(lm.encode([[1, 2, 3]]), x))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma", "gemma2", "cohere", "granite", "mpt"])
def test_logits_are_those_of_the_model(architecture):
    config = {"logit_scale": 0.3} if architecture == "cohere" else {}
    config |= {"logits_scaling": 4.0} if architecture == "granite" else {}
    config |= {"final_logit_softcapping": 2.0} if architecture == "gemma2" else {}
    lm = tiny_lm(architecture, **config)
    ids = torch.tensor([[5, 9, 60, 41]])
    own = lm.model(input_ids=ids).logits.float()
    hidden = lm.model.base_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(lm.logits(hidden), own, atol=1e-4, rtol=1e-4)
    some = torch.tensor([7, 3, 200])
    torch.testing.assert_close(lm.logits(hidden, some), own[..., some], atol=1e-4, rtol=1e-4)


def test_an_lm_with_unknown_logits_is_refused(monkeypatch):
    logits = FrozenLM.logits
    monkeypatch.setattr(FrozenLM, "logits", lambda self, hidden: 2 * logits(self, hidden))
    with pytest.raises(ValueError, match="computes its logits in a way personae does not know"):
        tiny_lm("llama")


def test_embedding_scale_is_that_of_what_enters_the_lm():
    plain, scaled = tiny_lm("llama"), tiny_lm("gemma3_text")
    assert plain.embedding_scale == pytest.approx(plain.embedding.weight.std().item(), rel=0.01)
    # Gemma multiplies its embeddings by the root of their width.
    expected = scaled.embedding.weight.std().item() * math.sqrt(scaled.hidden_size)
    assert scaled.embedding_scale == pytest.approx(expected, rel=0.01)


def test_fingerprint_tells_lms_apart():
    a, again = tiny_lm("llama", seed=0), tiny_lm("llama", seed=0)
    assert a.fingerprint == again.fingerprint
    b, other_words = tiny_lm("llama", seed=1), tiny_lm("llama", chat=False)
    other_words.tokenizer.add_tokens(["schools"])
    assert a.fingerprint["embedding_sha256"] != b.fingerprint["embedding_sha256"]
    assert a.fingerprint["tokenizer_sha256"] != other_words.fingerprint["tokenizer_sha256"]
    assert json.loads(json.dumps(a.fingerprint)) == a.fingerprint


def test_tokens_of_nothing_and_of_special_names():
    lm = tiny_lm("llama")
    assert lm.tokens("") == []
    assert lm.tokens("<|im_end|>", special=True) == [lm.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert len(lm.tokens("<|im_end|>")) > 1
    assert lm.tokenizer.decode(lm.tokens("yes 😀 <|im_end|>")) == "yes 😀 <|im_end|>"
    assert lm.embed([]).shape == (0, lm.hidden_size)


# loading ---------------------------------------------------------------------------------------------------------
def test_load_a_folder_without_noise(folder, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        lm = FrozenLM.load(str(folder), dtype="float32", device="cpu")
    assert lm.shared
    assert lm.dtype == torch.float32
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert FrozenLM.load(str(folder), dtype="float32", device="cpu") is lm


def test_genuine_warnings_stay(folder, caplog):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    FrozenLM.load(str(folder), dtype="float32", device="cpu")
    assert "model.layers.7.mlp.up_proj.weight" in caplog.text


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"lacks weights .*model.layers.0.mlp.up_proj.weight"):
        FrozenLM.load(str(folder), dtype="float32", device="cpu")


def test_progress_bars_are_as_before(folder):
    from transformers.utils import logging as transformers_logging

    FrozenLM.load(str(folder), dtype="float32", device="cpu")
    assert transformers_logging.is_progress_bar_enabled()


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="safetensors"):
        FrozenLM.load(str(folder))


def test_code_that_comes_with_a_model_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass C: ...\nclass M: ...\n")
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        FrozenLM.load(str(folder))
    assert not (folder / "ran").exists()


def test_dtypes(folder, monkeypatch):
    with pytest.raises(ValueError, match='no dtype "int8"'):
        FrozenLM.load(str(folder), dtype="int8")
    assert FrozenLM.load(str(folder), dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda s=supported: s)
        assert best_dtype("cpu") == expected
    assert best_dtype("mps") == torch.float32


def test_bfloat16_fits_the_engine(folder):
    lm = FrozenLM.load(str(folder), dtype="bfloat16", device="cpu")
    assert lm.shared
    x = torch.randn(1, 2, 3, lm.hidden_size).bfloat16()
    together = lm.extend(lm.encode([[5, 9, 60]]), x).float()
    alone = lm.model.base_model(inputs_embeds=torch.cat([lm.embed([5, 9, 60]), x[0, 1]])[None]).last_hidden_state
    assert (together[0, 1] - alone[0, 3:].float()).abs().max() < 0.1 * alone.float().abs().max()


@pytest.mark.model
def test_the_default_lm_is_loaded_in_the_dtype_of_the_processor():
    lm = FrozenLM.load("smollm2-135m", device="cpu")
    assert lm.dtype == best_dtype("cpu")
    assert lm.shared
    assert frozen.best_dtype("cpu") in (torch.bfloat16, torch.float32)
    assert lm.hidden_size == 576
