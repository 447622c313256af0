from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

from personae.lm.encoder import SentenceEncoder
from personae.lm.names import ModelNotFound
from personae.lm.tiny import tiny_lm, tiny_tokenizer

TEXTS = ["Roads?", "Should we spend more on roads, schools or the army?", "A person would say so. " * 4, "no", "Yes."]
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def tiny_bert(positions: int = 64) -> BertModel:
    """Random, with larger weights than usual, so that differences are visible."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=340, max_position_embeddings=positions, **_SIZE))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(5.0 if "embeddings" not in name else 20.0)
    return model


def marking_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts a token before and after each text, as those of encoders do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    single = "<|im_start|> $A <|im_end|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ends)
    return tokenizer


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(tiny_bert(), marking_tokenizer())


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of sentence-transformers: 20 tokens at most, mean pooling, length one."""
    folder = tmp_path / "encoder"
    tiny_bert().save_pretrained(folder)
    marking_tokenizer().save_pretrained(folder)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{step}"} for step, path in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    pool(folder, "mean_tokens")
    return folder


def pool(folder: Path, mode: str) -> None:
    modes = {f"pooling_mode_{m}": m == mode for m in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))


def test_the_mean_over_tokens_by_hand(encoder):
    ids = encoder.tokenizer("Roads?")["input_ids"]
    with torch.no_grad():
        hidden = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    mean = hidden.mean(0).numpy()
    np.testing.assert_allclose(encoder.encode("Roads?"), [mean / np.linalg.norm(mean)], atol=1e-6)


def test_rows_have_length_one_and_differ(encoder):
    v = encoder.encode(TEXTS)
    assert v.shape == (5, 32)
    assert v.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-6)
    assert (v @ v.T)[np.triu_indices(5, 1)].max() < 0.999


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_a_text_is_alone_what_it_is_among_others(encoder, batch):
    together = encoder.encode(TEXTS, batch)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode(t) for t in TEXTS]), atol=2e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1], batch), together[::-1], atol=2e-6)
    np.testing.assert_array_equal(encoder.encode(TEXTS, batch), together)  # to the bit


def test_what_stands_under_the_padding_is_not_seen(encoder):
    before = encoder.encode(TEXTS)
    encoder.tokenizer.pad_token = "A"
    try:
        np.testing.assert_allclose(encoder.encode(TEXTS), before, atol=2e-6)
    finally:
        encoder.tokenizer.pad_token = "<|endoftext|>"


def test_empty_texts_and_no_texts(encoder):
    v = encoder.encode(["", "Roads?", ""])
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-6)  # the tokenizer's own marks are there
    np.testing.assert_array_equal(v[0], v[2])
    bare = SentenceEncoder(encoder.model, tiny_tokenizer())
    with_nothing = bare.encode(["", "Roads?"])
    assert (with_nothing[0] == 0).all()
    np.testing.assert_allclose(with_nothing[1:], bare.encode("Roads?"), atol=2e-6)
    assert bare.encode([""]).tolist() == [[0.0] * 32]
    assert encoder.encode([]).shape == (0, 32)


def test_a_long_text_is_read_to_the_models_maximum(encoder):
    assert encoder.max_tokens == 64
    start = "no " * 100
    np.testing.assert_allclose(encoder.encode(start + "Roads?"), encoder.encode(start + "Schools!"), atol=1e-6)
    short = SentenceEncoder(encoder.model, encoder.tokenizer, max_tokens=4)  # the tokenizer's two marks included
    np.testing.assert_allclose(short.encode("qx?z!"), encoder.encode("qx"), atol=1e-6)
    assert np.abs(encoder.encode("qx?z!") - encoder.encode("qx")).max() > 1e-3


def test_names_of_special_tokens_stay_text(encoder):
    v = encoder.encode(["<|im_end|>", "", "<|im_end|><|im_end|>"])
    assert np.abs(v[0] - v[1]).max() > 1e-3
    (ids,) = encoder._tokens(["so <|im_end|> so"])
    assert ids.tolist().count(encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1  # the tokenizer's own


# loading ---------------------------------------------------------------------------------------------------------
def test_a_folder_with_its_own_maximum(folder, encoder):
    loaded = SentenceEncoder.load(str(folder), device="cpu")
    assert (loaded.max_tokens, loaded.hidden_size) == (20, 32)
    np.testing.assert_allclose(loaded.encode(["Roads?"]), encoder.encode(["Roads?"]), atol=1e-6)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training
    assert SentenceEncoder.load(str(folder), device="cpu") is loaded  # one serves a process


def test_a_plain_transformers_folder(folder):
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    assert SentenceEncoder.load(str(folder), device="cpu").max_tokens == 64


def test_weights_of_an_unused_pooler_may_lack_others_not(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: w for k, w in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    SentenceEncoder.load(str(folder), device="cpu").encode("Roads?")
    other = folder.rename(folder.with_name("other"))
    save_file({k: w for k, w in weights.items() if "layer.1" not in k}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"lacks weights of its architecture: encoder\.layer\.1"):
        SentenceEncoder.load(str(other), device="cpu")


def test_other_recipes_are_refused(folder):
    pool(folder, "cls_token")
    with pytest.raises(ModelNotFound, match=r"in a way personae does not \(pooling_mode_cls_token\)"):
        SentenceEncoder.load(str(folder), device="cpu")
    pool(folder, "mean_tokens")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelNotFound, match=r"in a way personae does not \(Dense\)"):
        SentenceEncoder.load(str(folder), device="cpu")


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(ModelNotFound, match="cannot be loaded as a text encoder in safetensors format"):
        SentenceEncoder.load(str(folder), device="cpu")
    t5 = tmp_path / "t5"
    T5Model(T5Config(vocab_size=340, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(t5)
    tiny_tokenizer().save_pretrained(t5)
    with pytest.raises(ModelNotFound, match="an encoder with a decoder"):
        SentenceEncoder.load(str(t5), device="cpu")
    with pytest.raises(ModelNotFound, match='no sentence encoder "gpt5"'):
        SentenceEncoder.load("gpt5")


def test_a_causal_lm_encodes_too():
    lm = tiny_lm("gpt2")
    encoder = SentenceEncoder(lm.model.base_model, lm.tokenizer)
    together = encoder.encode(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode(t) for t in TEXTS]), atol=2e-6)


# the real one ----------------------------------------------------------------------------------------------------
@pytest.mark.model
def test_minilm():
    encoder = SentenceEncoder.load("minilm", device="cpu")
    assert (encoder.hidden_size, encoder.max_tokens) == (384, 256)
    published = [0.0676569, 0.0634959, 0.0487131]  # what sentence-transformers prints for the model card's example
    np.testing.assert_allclose(encoder.encode("This is an example sentence")[0, :3], published, atol=1e-5)
    v = encoder.encode(
        [
            "The government should spend more on schools.",
            "More public money for education, please.",
            "My cat is asleep.",
        ]
    )
    assert v[0] @ v[1] > 0.5
    assert max(v[0] @ v[2], v[1] @ v[2]) < 0.15
