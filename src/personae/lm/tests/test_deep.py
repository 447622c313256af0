from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from personae.lm import deep
from personae.lm.frozen import FrozenLM
from personae.lm.generation import stream
from personae.lm.prompts import Prompt, chat_prompt, text_prompt
from personae.lm.reading import letter_logits, option_texts, prepare, read, text_log_probs
from personae.lm.slots import OneByOne, Row, Slots, Start
from personae.lm.tests.by_hand import corrected_by_hand
from personae.lm.tiny import tiny_lm

ARCHITECTURES = ["llama", "gpt2", "opt", "gpt_neox", "qwen3", "gemma", "gemma3_text", "bloom", "gemma2"]
QUESTIONS = [
    ("Should we spend more on roads?", ["yes", "no", "a little more"]),
    ("Army or schools: which matters more to you, all things considered?", ["the army", "schools"]),
]
ASKED = ["Should we spend more on roads, schools or the army?", "Roads?", "A person would say so. Why?"]
N, T, LAYERS = 3, 2, 3


def tiny(architecture: str = "llama") -> FrozenLM:
    return tiny_lm(architecture, num_hidden_layers=LAYERS)


def virtual_tokens(lm: FrozenLM, *rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(*rows, T, lm.hidden_size, generator=generator) * lm.embedding_scale
    deeper = torch.randn(*rows, T, (LAYERS - 1) * lm.hidden_size, generator=generator) * 0.5
    return torch.cat([embedded, deeper], -1)


@torch.no_grad()
def hidden(lm: FrozenLM, prompt: Prompt, virtual: Tensor, said: list[int]) -> Tensor:
    """Hidden states (len(said) + 1, H) that predict what is said and what comes after it, by one whole pass."""
    h = lm.hidden_size
    before = lm.embed(prompt.before)
    x = torch.cat([before, virtual[:, :h], lm.embed([*prompt.after, *said])])[None]
    with corrected_by_hand(lm, virtual[:, h:], len(before)):
        return lm.model.base_model(inputs_embeds=x, use_cache=False).last_hidden_state[0, -len(said) - 1 :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("placement", ["late", "before", "system"])
def test_texts_are_read_as_by_single_rows(architecture, placement):
    lm = tiny(architecture)
    prompts = [text_prompt(lm, *q, placement) for q in QUESTIONS]
    virtual, branches = virtual_tokens(lm, 2, N), option_texts(lm, [options for _, options in QUESTIONS])
    scores = text_log_probs(lm, read(lm, prepare(lm, prompts), virtual, branches), branches, mean=False)
    for c, texts in enumerate(branches):
        for n in range(N):
            for k, text in enumerate(texts):
                states = hidden(lm, prompts[c], virtual[c, n], text)[:-1]
                expected = lm.logits(states).log_softmax(-1)[torch.arange(len(text)), text].sum()
                assert scores[c][n, k].item() == pytest.approx(expected.item(), abs=5e-4)


def test_corrections_matter_and_are_gone_after_the_pass():
    lm = tiny()
    prompts = [text_prompt(lm, *q, "late") for q in QUESTIONS]
    virtual = virtual_tokens(lm, 2, N)
    shallow = virtual[..., : lm.hidden_size]
    before = letter_logits(lm, read(lm, prepare(lm, prompts), shallow), [3, 2])
    assert (letter_logits(lm, read(lm, prepare(lm, prompts), virtual), [3, 2]) - before)[:, :, :2].abs().min() > 1e-4
    torch.testing.assert_close(letter_logits(lm, read(lm, prepare(lm, prompts), shallow), [3, 2]), before)
    with pytest.raises(RuntimeError, match="stop"), deep.corrected(lm.model, deep.of_rows(virtual[0, :, :, 32:])):
        raise RuntimeError("stop")
    torch.testing.assert_close(letter_logits(lm, read(lm, prepare(lm, prompts), shallow), [3, 2]), before)


def test_gradients_reach_every_layers_numbers_and_nothing_else():
    lm = tiny()
    virtual = virtual_tokens(lm, 1, N).requires_grad_()
    read(lm, prepare(lm, [text_prompt(lm, *QUESTIONS[0], "late")]), virtual).trunk.square().sum().backward()
    by_layer = virtual.grad.view(N, T, LAYERS, lm.hidden_size).abs().sum((0, 1, 3))
    assert (by_layer > 0).all()
    assert all(p.grad is None for p in lm.model.parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("placement", ["late", "before"])
def test_replies_are_those_of_whole_passes(architecture, placement):
    lm = tiny(architecture)
    prompts = [chat_prompt(lm, [{"role": "user", "content": text}], placement) for text in ASKED]
    virtual = virtual_tokens(lm, len(prompts))
    said = ["".join(row).strip() for row in zip(*stream(lm, prompts, virtual, max_new_tokens=6), strict=True)]
    for r, prompt in enumerate(prompts):
        ids: list[int] = []
        while len(ids) < 6:
            token = int(lm.logits(hidden(lm, prompt, virtual[r], ids)[-1]).argmax())
            if token in lm.stop_ids:
                break
            ids.append(token)
        assert said[r] == lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("rows_of", [Slots, OneByOne])
@pytest.mark.parametrize("placement", ["late", "before"])
@torch.no_grad()
def test_rows_that_join_together_keep_their_own_corrections(rows_of, placement):
    """Deep ones, shallow ones and none at all beside each other."""
    lm = tiny()
    prompts = [chat_prompt(lm, [{"role": "user", "content": text}], placement) for text in ASKED]
    virtual = virtual_tokens(lm, len(prompts))
    starts = [Start(prompts[0], virtual[0]), Start(prompts[1], virtual[1, :, :32]), Start(prompts[2], virtual[2])]
    running, rows = rows_of(lm), [Row() for _ in starts]
    found = [running.join(rows, starts)]
    order = list(running.rows)
    found.append(running.step([5] * len(rows))[[order.index(row) for row in rows]])
    whole = virtual.clone()
    whole[1, :, 32:] = 0
    for said, states in zip(([], [5]), found, strict=True):
        for i, prompt in enumerate(prompts):
            torch.testing.assert_close(states[i], hidden(lm, prompt, whole[i], said)[-1], rtol=1e-3, atol=1e-3)


def test_an_lm_without_a_list_of_layers_is_refused():
    lm = tiny()
    lm.model.model.layers = nn.Sequential(*lm.model.model.layers)
    with pytest.raises(ValueError, match=r"keeps its layers in no list; train with deep=False$"):
        deep.typical_sizes(lm.model, lm.embed([1, 2, 3]))


def test_typical_sizes_are_those_of_a_text():
    lm = tiny()
    found = deep.typical_sizes(lm.model, lm.embed([5, 9, 60]))
    states = lm.model.base_model(input_ids=torch.tensor([[5, 9, 60]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, torch.stack([h[0].abs().mean(-1).median() for h in states[1:3]]))
