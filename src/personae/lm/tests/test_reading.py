from __future__ import annotations

import pytest
import torch
from torch import Tensor

from personae.lm import reading
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import LETTERS, PLACEMENTS, Prompt, letters_prompt, plain_prompt, text_prompt
from personae.lm.reading import (
    KeyValues,
    letter_logits,
    option_logits,
    option_texts,
    prefix_cache,
    prepare,
    read,
    text_log_probs,
)
from personae.lm.tiny import tiny_lm

ENGINE = ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "qwen3", "gemma", "gemma3_text"]
QUESTIONS = [
    ("Should we spend more on roads?", ["yes", "no", "a little more"]),
    ("Army or schools: which matters more to you, all things considered?", ["the army", "schools"]),
    ("Roads?", ["A person would say so", "no", "no", "I do not know"]),
]
N = 3


@pytest.fixture(scope="module")
def tiny():
    made: dict[tuple[str, bool], FrozenLM] = {}

    def build(architecture: str, chat: bool = True) -> FrozenLM:
        if (architecture, chat) not in made:
            made[architecture, chat] = tiny_lm(architecture, chat)
        return made[architecture, chat]

    return build


def virtual_tokens(lm: FrozenLM, placement: str, c: int, n: int = N, t: int = 2) -> Tensor | KeyValues:
    generator = torch.Generator().manual_seed(c)
    if placement != "prefix":
        return torch.randn(c, n, t, lm.hidden_size, generator=generator) * lm.embedding_scale
    shapes = [(c * n, heads, t, size) for heads, size in lm.key_shapes]
    return [(torch.randn(s, generator=generator), torch.randn(s, generator=generator)) for s in shapes]


def of_person(virtual: Tensor | KeyValues, c: int, n: int) -> Tensor | KeyValues:
    if isinstance(virtual, Tensor):
        return virtual[c : c + 1, n : n + 1]
    row = c * N + n
    return [(k[row : row + 1], v[row : row + 1]) for k, v in virtual]


def row_logits(lm: FrozenLM, prompt: Prompt, virtual: Tensor | KeyValues, text: list[int]) -> Tensor:
    """Logits (len(text), V) that predict the text, from one full pass of one row by the whole model."""
    own = [virtual[0, 0]] if isinstance(virtual, Tensor) else []
    x = torch.cat([lm.embed(prompt.before), *own, lm.embed(prompt.after), lm.embed(text)])[None]
    cache = None if isinstance(virtual, Tensor) else prefix_cache(virtual, lm.dtype)
    logits = lm.model(inputs_embeds=x, past_key_values=cache, use_cache=cache is not None).logits[0].float()
    return logits[len(x[0]) - len(text) - 1 : -1] if text else logits[-1:]


def row_log_probs(lm: FrozenLM, prompt: Prompt, virtual: Tensor | KeyValues, text: list[int]) -> Tensor:
    return row_logits(lm, prompt, virtual, text).log_softmax(-1)[torch.arange(len(text)), text]


@pytest.mark.parametrize("architecture", ENGINE)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_option_texts_equal_single_rows(tiny, architecture, placement):
    lm = tiny(architecture)
    prompts = [text_prompt(lm, *q, placement) for q in QUESTIONS]
    virtual = virtual_tokens(lm, placement, len(prompts))
    branches = option_texts(lm, [options for _, options in QUESTIONS])
    found = read(lm, prepare(lm, prompts), virtual, branches)
    for mean in (True, False):
        scores = text_log_probs(lm, found, branches, mean)
        for c, texts in enumerate(branches):
            assert scores[c].shape == (N, len(texts))
            for n in range(N):
                for k, text in enumerate(texts):
                    expected = row_log_probs(lm, prompts[c], of_person(virtual, c, n), text)
                    expected = expected.mean() if mean else expected.sum()
                    assert scores[c][n, k].item() == pytest.approx(expected.item(), abs=2e-4)


@pytest.mark.parametrize("architecture", ENGINE)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_letters_equal_single_rows(tiny, architecture, placement):
    lm = tiny(architecture)
    prompts = [letters_prompt(lm, *q, placement) for q in QUESTIONS]
    virtual = virtual_tokens(lm, placement, len(prompts))
    counts = [len(options) for _, options in QUESTIONS]
    logits = letter_logits(lm, read(lm, prepare(lm, prompts), virtual), counts)
    assert logits.shape == (3, N, 4)
    letters = [lm.tokens(f"Answer: {letter}")[-1] for letter in LETTERS]
    for c, count in enumerate(counts):
        assert (logits[c, :, count:] == float("-inf")).all()
        for n in range(N):
            expected = row_logits(lm, prompts[c], of_person(virtual, c, n), [])[0, letters[:count]]
            torch.testing.assert_close(logits[c, n, :count], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", ["bloom", "gemma2"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_option_texts_without_the_engine(tiny, architecture, placement):
    lm = tiny(architecture)
    assert not lm.shared
    prompts = [text_prompt(lm, *q, placement) for q in QUESTIONS[:2]]
    virtual = virtual_tokens(lm, placement, 2)
    branches = option_texts(lm, [options for _, options in QUESTIONS[:2]])
    scores = text_log_probs(lm, read(lm, prepare(lm, prompts), virtual, branches), branches)
    for c, texts in enumerate(branches):
        for k, text in enumerate(texts):
            expected = row_log_probs(lm, prompts[c], of_person(virtual, c, 1), text).mean()
            assert scores[c][1, k].item() == pytest.approx(expected.item(), abs=2e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_alone_equals_in_a_batch_whatever_the_order(tiny, placement):
    lm = tiny("llama")
    options = [options for _, options in QUESTIONS]
    for by, put in (("letters", letters_prompt), ("text", text_prompt)):
        prompts = [put(lm, *q, placement) for q in QUESTIONS]
        virtual = virtual_tokens(lm, placement, 3)
        together = option_logits(lm, prepare(lm, prompts, batch=2), virtual, options, by)
        for c in range(3):
            k = len(options[c])
            for n in range(N):
                alone = option_logits(lm, prepare(lm, [prompts[c]]), of_person(virtual, c, n), [options[c]], by)
                torch.testing.assert_close(alone[0, 0], together[c, n, :k], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("placement", ["late", "before"])
def test_a_text_does_not_depend_on_the_other_texts(tiny, placement):
    lm = tiny("qwen3")
    text, options = QUESTIONS[2]
    prepared = prepare(lm, [text_prompt(lm, text, options, placement)])
    virtual = virtual_tokens(lm, placement, 1)
    scores = option_logits(lm, prepared, virtual, [options], "text")[0]
    turned = [3, 1, 0, 2]
    again = option_logits(lm, prepared, virtual, [[options[i] for i in turned]], "text")[0]
    torch.testing.assert_close(again, scores[:, turned], atol=1e-4, rtol=1e-4)
    only = option_logits(lm, prepared, virtual, [[options[3]]], "text")[0]
    torch.testing.assert_close(only[:, 0], scores[:, 3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients_equal_those_of_single_rows(tiny, placement):
    lm = tiny("llama")
    prompts = [text_prompt(lm, *q, placement) for q in QUESTIONS]
    branches = option_texts(lm, [options for _, options in QUESTIONS])

    def leaves() -> tuple[Tensor | KeyValues, list[Tensor]]:
        virtual = virtual_tokens(lm, placement, 3)
        flat = [virtual] if isinstance(virtual, Tensor) else [t for pair in virtual for t in pair]
        return virtual, [t.requires_grad_() for t in flat]

    virtual, ours = leaves()
    torch.stack(
        [s.sum() for s in text_log_probs(lm, read(lm, prepare(lm, prompts), virtual, branches), branches)]
    ).sum().backward()
    virtual, plain = leaves()
    for c, texts in enumerate(branches):
        for n in range(N):
            for text in texts:
                row_log_probs(lm, prompts[c], of_person(virtual, c, n), text).mean().backward()
    for a, b in zip(ours, plain, strict=True):
        assert b.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3)


def test_logits_in_chunks_equal_logits_at_once(tiny, monkeypatch):
    lm = tiny("llama")
    prompts = [text_prompt(lm, *q, "late") for q in QUESTIONS]
    branches = option_texts(lm, [options for _, options in QUESTIONS])

    def scores_and_gradient() -> tuple[Tensor, Tensor]:
        virtual = virtual_tokens(lm, "late", 3).requires_grad_()
        scores = torch.cat(text_log_probs(lm, read(lm, prepare(lm, prompts), virtual, branches), branches), 1)
        scores.sum().backward()
        return scores.detach(), virtual.grad

    whole = scores_and_gradient()
    monkeypatch.setattr(reading, "_LOGIT_ROWS", 5)
    chunked = scores_and_gradient()
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


def test_prepare_keeps_order_over_batches_and_selects(tiny):
    lm = tiny("gpt2")
    prompts = [letters_prompt(lm, *q, "late") for q in QUESTIONS]
    prepared = prepare(lm, prompts, batch=1)
    assert [list(p.before) for p in prompts] == prepared.context.ids
    for c, prompt in enumerate(prompts):
        alone = lm.encode([prompt.text_ids])
        torch.testing.assert_close(prepared.representation[c], torch.cat([alone.last, alone.mean], -1)[0])
    chosen = prepared.select([2, 0])
    virtual = virtual_tokens(lm, "late", 3)
    torch.testing.assert_close(
        read(lm, chosen, virtual[[2, 0]]).trunk, read(lm, prepared, virtual).trunk[[2, 0]], atol=1e-4, rtol=1e-4
    )


def test_the_turns_of_a_dialogue_cost_as_much_as_its_last_one(tiny, monkeypatch):
    lm = tiny("qwen2")
    texts = ["A walk?", "A walk? With the dog.", "A tree?", "A walk? With the cat.", "A walk? With the dog.", "A"]
    prompts = [Prompt(tuple(lm.tokens(text)), ()) for text in texts]
    encode, computed = lm.encode, []
    monkeypatch.setattr(lm, "encode", lambda ids: computed.extend(map(tuple, ids)) or encode(ids))
    prepared = prepare(lm, prompts, batch=2)
    assert sorted(computed) == sorted(prompts[i].before for i in (1, 2, 3))
    virtual = virtual_tokens(lm, "late", len(texts))
    found = read(lm, prepared, virtual).trunk
    for c, prompt in enumerate(prompts):
        alone = prepare(lm, [prompt])
        torch.testing.assert_close(prepared.representation[c], alone.representation[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[c], read(lm, alone, virtual[c : c + 1]).trunk[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_representation_knows_no_virtual_tokens(tiny, placement):
    lm = tiny("llama")
    prompt = text_prompt(lm, *QUESTIONS[0], placement)
    alone = lm.encode([[*prompt.before, *prompt.after]])
    expected = torch.cat([alone.last, alone.mean], -1)
    torch.testing.assert_close(prepare(lm, [prompt]).representation, expected)


def test_placements_do_not_mix(tiny):
    lm = tiny("llama")
    prompts = [letters_prompt(lm, *QUESTIONS[0], placement) for placement in ("late", "before")]
    with pytest.raises(ValueError, match="different placements"):
        prepare(lm, prompts)


def test_unknown_read_out_and_empty_text(tiny):
    lm = tiny("llama")
    prepared = prepare(lm, [text_prompt(lm, *QUESTIONS[0], "late")])
    virtual = virtual_tokens(lm, "late", 1)
    with pytest.raises(ValueError, match='not by "words"'):
        option_logits(lm, prepared, virtual, [QUESTIONS[0][1]], by="words")
    with pytest.raises(ValueError, match="without tokens"):
        text_log_probs(lm, read(lm, prepared, virtual), [[[]]])


@pytest.mark.model
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_real_model_equals_single_rows(placement):
    lm = FrozenLM.load("smollm2-135m", dtype="float32")
    questions = [
        ("Is the country spending too little, about the right amount, or too much on space exploration?",
         ["too little", "about right", "too much"]),
        ("Should marijuana be made legal?", ["should be legal", "should not be legal"]),
    ]  # fmt: skip
    prompts = [text_prompt(lm, *q, placement) for q in questions]
    if placement == "prefix":
        learned = lm.encode([lm.tokens(" A person")] * 6)
        virtual: Tensor | KeyValues = list(zip(learned.keys, learned.values, strict=True))
    else:
        virtual = virtual_tokens(lm, placement, 2)
    branches = option_texts(lm, [options for _, options in questions])
    with torch.no_grad():
        scores = text_log_probs(lm, read(lm, prepare(lm, prompts), virtual, branches), branches)
        for c, texts in enumerate(branches):
            for k, text in enumerate(texts):
                expected = row_log_probs(lm, prompts[c], of_person(virtual, c, 1), text).mean()
                assert scores[c][1, k].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])  # bloom without the engine
def test_tokens_that_all_sets_share_are_run_once(architecture, deep):
    lm = tiny_lm(architecture)
    generator = torch.Generator().manual_seed(0)
    width = lm.hidden_size * (lm.model.config.num_hidden_layers if deep else 1)
    shared, own = (torch.randn(3, n, t, width, generator=generator) * 0.1 for n, t in ((1, 3), (4, 2)))
    texts = [[[5, 9, 60, 2]], [[7]], [[8, 3], [4, 4, 4]]]
    prepared = prepare(lm, [plain_prompt(lm, "Roads? " * n, "late") for n in (3, 1, 2)])
    gradients = []
    for n_shared in (0, 3):
        inputs = [t.clone().requires_grad_() for t in (shared, own)]
        virtual = torch.cat([inputs[0].expand(-1, 4, -1, -1), inputs[1]], 2)
        found = text_log_probs(lm, read(lm, prepared, virtual, texts, n_shared), texts)
        torch.cat([f.flatten() for f in found]).square().sum().backward()
        gradients.append([torch.cat([f.flatten() for f in found]).detach(), *(t.grad for t in inputs)])
    for once, each in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(once, each, rtol=1e-3, atol=1e-5)


def test_shared_tokens_make_a_pass_shorter():
    lm, passed = tiny_lm("llama"), []
    prepared = prepare(lm, [plain_prompt(lm, "Roads?", "late")])
    handle = lm.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: passed.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    with torch.no_grad():
        for n_shared in (0, 6):
            read(lm, prepared, torch.zeros(1, 4, 8, lm.hidden_size), [[[5, 9, 60, 2]]], n_shared)
    handle.remove()
    assert passed == [4 * (8 + 3), 6 + 4 * (2 + 3)]
