from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from personae.lm.frozen import FrozenLM
from personae.lm.generation import finish, generate, stream
from personae.lm.prompts import PLACEMENTS, Prompt, chat_prompt
from personae.lm.reading import KeyValues, prefix_cache, prepare
from personae.lm.tiny import tiny_lm

ASKED = ["Should we spend more on roads, schools or the army?", "Roads?", "A person would say so. Why?"]
SAMPLED = {"temperature": 1.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


def prompts(lm: FrozenLM, placement: str = "late") -> list[Prompt]:
    return [chat_prompt(lm, [{"role": "user", "content": text}], placement) for text in ASKED]


def virtual_tokens(lm: FrozenLM, placement: str = "late") -> Tensor | KeyValues:
    generator = torch.Generator().manual_seed(0)
    if placement != "prefix":
        return torch.randn(3, 2, lm.hidden_size, generator=generator) * lm.embedding_scale
    shapes = [(3, heads, 2, size) for heads, size in lm.key_shapes]
    return [(torch.randn(s, generator=generator), torch.randn(s, generator=generator)) for s in shapes]


def of_row(virtual: Tensor | KeyValues, r: int) -> Tensor | KeyValues:
    return virtual[r : r + 1] if isinstance(virtual, Tensor) else [(k[r : r + 1], v[r : r + 1]) for k, v in virtual]


def play(monkeypatch: pytest.MonkeyPatch, script: Sequence[Sequence[int]]) -> None:
    """Let the LM say these tokens, a list a row; seeds are the rows' numbers."""
    steps = [iter(tokens) for tokens in script]

    def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
        return next(steps[generator.initial_seed()], 100)

    monkeypatch.setattr("personae.lm.generation.choose", choose)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "qwen3", "gemma3_text", "bloom"])
def test_greedy_equals_full_passes_without_cache(architecture):
    lm = tiny_lm(architecture)
    virtual = virtual_tokens(lm)
    said = generate(lm, prompts(lm), virtual, max_new_tokens=6)
    for r, prompt in enumerate(prompts(lm)):
        x = torch.cat([lm.embed(prompt.before), virtual[r], lm.embed(prompt.after)])[None]
        ids: list[int] = []
        while len(ids) < 6:
            token = int(lm.model(inputs_embeds=x, use_cache=False).logits[0, -1].argmax())
            if token in lm.stop_ids:
                break
            ids.append(token)
            x = torch.cat([x, lm.embed([token])[None]], 1)
        assert said[r] == lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_batch_equals_alone(lm, placement, how):
    virtual, seeds = virtual_tokens(lm, placement), [7, 8, 9]
    together = generate(lm, prompts(lm, placement), virtual, max_new_tokens=12, seeds=seeds, **how)
    assert len(set(together)) == 3
    for r, prompt in enumerate(prompts(lm, placement)):
        alone = generate(lm, [prompt], of_row(virtual, r), max_new_tokens=12, seeds=seeds[r : r + 1], **how)
        assert alone == together[r : r + 1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_prefix_stands_before_the_text(architecture):
    lm = tiny_lm(architecture)
    virtual = virtual_tokens(lm, "prefix")
    said = generate(lm, prompts(lm, "prefix"), virtual, max_new_tokens=8)
    for r, prompt in enumerate(prompts(lm, "prefix")):
        ids: list[int] = []
        while len(ids) < 8:
            cache = prefix_cache(of_row(virtual, r), lm.dtype)
            x = torch.tensor([[*prompt.text_ids, *ids]])
            ids.append(int(lm.model(input_ids=x, past_key_values=cache).logits[0, -1].argmax()))
            if ids[-1] in lm.stop_ids:
                break
        assert said[r] == lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_virtual_tokens_matter_and_may_be_absent(lm):
    without = generate(lm, prompts(lm), max_new_tokens=8)
    assert generate(lm, prompts(lm), virtual_tokens(lm), max_new_tokens=8) != without
    assert generate(lm, prompts(lm), torch.zeros(3, 0, lm.hidden_size), max_new_tokens=8) == without


def test_same_seed_same_text_and_other_seed_another(lm):
    def say(seeds: list[int]) -> list[str]:
        return generate(lm, prompts(lm), virtual_tokens(lm), max_new_tokens=20, seeds=seeds, **SAMPLED)

    assert say([1, 2, 3]) == say([1, 2, 3])
    assert say([1, 2, 3])[0] != say([4, 2, 3])[0]
    assert say([1, 2, 3])[1:] == say([4, 2, 3])[1:]


def test_a_vanishing_top_p_is_greedy(lm):
    greedy = generate(lm, prompts(lm), virtual_tokens(lm), max_new_tokens=10)
    assert generate(lm, prompts(lm), virtual_tokens(lm), max_new_tokens=10, temperature=0.7, top_p=1e-6) == greedy


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_contexts_that_were_read_are_not_read_again(architecture):
    lm = tiny_lm(architecture)
    virtual, told = virtual_tokens(lm), prompts(lm)
    said = generate(lm, told, virtual, max_new_tokens=8)
    parts = prepare(lm, told).parts
    read: list[int] = []
    watched = lm.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    again = generate(lm, told, virtual, max_new_tokens=8, contexts=parts)
    watched.remove()
    assert again == said
    assert max(read) == 2  # virtual tokens, and no text


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_of_a_text_without_virtual_tokens_the_last_token_alone_is_read_again(architecture):
    lm = tiny_lm(architecture)
    told = prompts(lm)
    said, parts, read = generate(lm, told, max_new_tokens=8), prepare(lm, told).parts, []
    watched = lm.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    assert generate(lm, told, max_new_tokens=8, contexts=parts) == said
    watched.remove()
    assert set(read) == {1}


def test_contexts_that_are_too_few_are_refused(lm):
    with pytest.raises(ValueError, match="3 prompts have 2 contexts"):
        stream(lm, prompts(lm), contexts=prepare(lm, prompts(lm)).parts[:2])


@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_pieces_join_to_the_text(lm, how):
    pieces = list(stream(lm, prompts(lm), virtual_tokens(lm), max_new_tokens=15, **how))
    assert all(len(step) == 3 for step in pieces)
    joined = ["".join(row).strip() for row in zip(*pieces, strict=True)]
    assert joined == generate(lm, prompts(lm), virtual_tokens(lm), max_new_tokens=15, **how)


def test_max_new_tokens(lm, monkeypatch):
    play(monkeypatch, [lm.tokens(" so so so so so so so so")] * 3)
    assert generate(lm, prompts(lm), max_new_tokens=3) == ["so so so"] * 3


def test_a_reply_stops_at_eos_and_at_the_end_of_its_turn(lm, monkeypatch):
    yes, end = lm.tokens(" yes"), lm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    play(monkeypatch, [[*yes, 0, *yes], [*yes, *yes, end, *yes], [end]])
    pieces = list(stream(lm, prompts(lm), max_new_tokens=50))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == [" yes", " yes yes", ""]
    assert len(pieces) < 10  # and nothing goes on once all have ended


def test_unfinished_characters_are_held_back(lm, monkeypatch):
    smile = lm.tokens("😀")
    assert len(smile) == 4
    play(monkeypatch, [[*lm.tokens("so"), *smile, *lm.tokens("so"), 0], [*smile[:2], 0], [*smile, 0]])
    pieces = [list(row) for row in zip(*stream(lm, prompts(lm), max_new_tokens=20), strict=True)]
    assert "".join(pieces[0]) == "so😀so"
    assert not any("\ufffd" in piece for piece in pieces[0])
    assert set("".join(pieces[1])) == {"\ufffd"}  # what never became a character is shown as that


def test_special_tokens_are_not_shown(lm, monkeypatch):
    start = lm.tokenizer.convert_tokens_to_ids("<|im_start|>")
    play(monkeypatch, [[start, *lm.tokens(" so"), 0]] * 3)
    assert generate(lm, prompts(lm)) == ["so"] * 3


def test_a_base_model_stops_at_its_line_end(monkeypatch):
    base = tiny_lm("llama", chat=False)
    line = [*base.tokens("\n\n yes, so"), *base.tokens("\n"), *base.tokens("User: no")]
    play(monkeypatch, [line, [*base.tokens(" no"), *base.tokens("\n")], [*base.tokens(" so"), 0]])
    pieces = list(stream(base, prompts(base), max_new_tokens=50))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == ["\n\n yes, so", " no", " so"]
    assert len(pieces) < 20


def test_generation_leaves_no_gradient_and_no_mode_behind(lm):
    virtual = virtual_tokens(lm).requires_grad_()
    steps = stream(lm, prompts(lm), virtual, max_new_tokens=2)
    next(steps)
    assert torch.is_grad_enabled()
    assert virtual.grad is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"top_p": 1.5}, "top_p in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"seeds": [1, 2]}, "3 prompts do not go with 2 seeds for 3 voices"),
        ({"virtual": torch.zeros(2, 1, 32)}, "3 prompts have 2 sets"),
    ],
)
def test_wrong_arguments_are_refused_at_once(lm, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        stream(lm, prompts(lm), **wrong)


@pytest.mark.model
def test_the_real_model_says_something_and_ends():
    lm = FrozenLM.load("smollm2-135m")
    asked = [[{"role": "user", "content": "What is the capital of France? One short sentence."}]]
    said = list(stream(lm, [chat_prompt(lm, messages, "late") for messages in asked], max_new_tokens=64))
    assert "Paris" in "".join(step[0] for step in said)
    assert len(said) < 60  # by the end of its turn, not by the limit


def test_whether_a_text_ended_by_itself(lm):
    told = prompts(lm)
    assert finish(stream(lm, told, max_new_tokens=5)) == (generate(lm, told, max_new_tokens=5), [False] * len(told))
    stopping = tiny_lm("llama")
    first = int(lm.model(input_ids=torch.tensor([told[0].text_ids])).logits[0, -1].argmax())
    stopping.stop_ids = frozenset([first])
    texts, ended = finish(stream(stopping, told, max_new_tokens=5))
    assert (texts[0], ended[0]) == ("", True)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_no_more_is_read_or_said_than_the_lm_was_made_for(architecture):
    lm = tiny_lm(architecture)  # 512 tokens
    long = [{"role": "user", "content": "roads xyz " * 300}]
    for placement in ("late", "before"):
        asked = [chat_prompt(lm, long, placement)]
        with pytest.raises(ValueError, match=r"has \d+ tokens, but tiny-.* reads at most 512; shorten the text, or"):
            generate(lm, asked)
    with pytest.raises(ValueError, match=r"has 513 tokens, but tiny-.* reads at most 512; shorten the text, or"):
        lm.encode([[5] * 513])
    almost = lm.tokens("roads xyz " * 300)[:505]
    prompt = Prompt((), tuple(almost))
    pieces = list(stream(lm, [prompt], max_new_tokens=64, temperature=1.0, seeds=[3]))
    assert len(pieces) <= 9
