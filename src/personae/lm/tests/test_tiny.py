from __future__ import annotations

import torch

from personae.lm.tiny import tiny_lm, tiny_tokenizer


def test_the_same_seed_gives_the_same_lm():
    a, b, c = tiny_lm("qwen2"), tiny_lm("qwen2"), tiny_lm("qwen2", seed=1)
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(a.embedding.weight, c.embedding.weight)


def test_it_makes_no_noise(capfd):
    tiny_lm("gpt2")
    assert capfd.readouterr() == ("", "")


def test_any_text_survives_the_tokenizer():
    tokenizer = tiny_tokenizer()
    for text in ("Should we?", "  spaces \n\n and lines", "žluťoučký kůň 😀", "日本"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
