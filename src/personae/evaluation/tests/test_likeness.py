from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from personae.evaluation.likeness import BertScore, similarity
from personae.lm.encoder import SentenceEncoder
from personae.lm.names import ModelNotFound
from personae.lm.tiny import tiny_tokenizer

A = ["i have a dog .", "no", "what do you do for a living ?"]
B = ["i own two dogs .", "no", "i am a nurse ."]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    """Random; its tokenizer puts a special token before and after each text."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tokenizer = tiny_tokenizer()
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    template = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = template
    return SentenceEncoder(BertModel(BertConfig(vocab_size=340, max_position_embeddings=64, **size)), tokenizer, "tiny")


def test_similarity_is_the_cosine_of_each_pair(encoder):
    found = similarity(A, B, encoder)
    expected = [float(encoder.encode([a])[0] @ encoder.encode([b])[0]) for a, b in zip(A, B, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-5)


def test_bert_score_by_hand(encoder):
    """Pair by pair, token by token, without padding."""

    def states(text: str) -> tuple[np.ndarray, int]:
        ids = torch.tensor([encoder.tokenizer(" " + text)["input_ids"]])
        hidden = encoder.model(ids, output_hidden_states=True).hidden_states[1][0].numpy()
        return hidden / np.linalg.norm(hidden, axis=1, keepdims=True), len(ids[0])

    expected = []
    for a, b in zip(A, B, strict=True):
        (x, s), (y, t) = states(a), states(b)
        precision = np.mean([max(x[i] @ y[j] for j in range(t)) for i in range(1, s - 1)])
        recall = np.mean([max(x[i] @ y[j] for i in range(s)) for j in range(1, t - 1)])
        expected.append(2 * precision * recall / (precision + recall))
    found = BertScore(encoder, layer=1)(A, B)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(BertScore(encoder, 1)(B, A), found, atol=1e-5)  # F is symmetric
    assert not np.allclose(BertScore(encoder, 2)(A, B), found, atol=1e-4)


@pytest.mark.model
def test_bert_score_is_that_of_the_authors():
    """Figures of their program, bert-score 0.3.13, with the same weights and all six layers."""
    said = ["i have a dog", "i have a dog", "what do you do for a living ?", "no"]
    true = ["i own a puppy", "what time is it", "i am a nurse .", "yes , of course i do ."]
    found = BertScore(SentenceEncoder.load("minilm", device="cpu"), layer=6)(said, true)
    np.testing.assert_allclose(found, [0.7309, 0.1044, 0.4366, 0.3972], atol=1e-4)


def test_blank_texts_score_nothing(encoder):
    score = BertScore(encoder, layer=2)
    assert score(["", "hi", " "], ["hi", "", " "]).tolist() == [0, 0, 0]
    np.testing.assert_allclose(score(["", A[0]], ["hi", B[0]])[1], score(A[:1], B[:1])[0], atol=1e-6)
    assert score([], []).shape == (0,)


def test_names_of_special_tokens_are_text(encoder):
    assert BertScore(encoder, 1)(["hi <|im_end|>"], ["hi"])[0] < 0.999


def test_what_cannot_be_measured_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="tiny has layers 1 to 2; layer 3 is not among them"):
        BertScore(encoder, 3)
    with pytest.raises(FileNotFoundError, match="is no folder; BERTScore reads its model from a local one"):
        BertScore.load("roberta-large", 17)
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        BertScore.load(tmp_path, 1)
    for measure in (BertScore(encoder, 1), lambda a, b: similarity(a, b, encoder)):
        with pytest.raises(ValueError, match="1 replies are given for 2 references"):
            measure(["a"], ["a", "b"])


def test_bert_score_from_a_folder(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = BertScore.load(tmp_path, 1)
    expected = BertScore(encoder, 1)(A, B)
    np.testing.assert_allclose(loaded(A, B), expected, atol=1e-5)
