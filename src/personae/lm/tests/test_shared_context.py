from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from personae.lm import shared_context
from personae.lm.frozen import FrozenLM
from personae.lm.shared_context import Context, continue_plain, continue_shared
from personae.lm.tiny import tiny_lm

ENGINE = ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "qwen3", "gemma", "gemma3_text"]
FALLBACK = ["bloom", "gemma2", "gpt_neo"]
GPT_NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8}
CONTEXTS = [[5, 9, 60, 41, 200, 7, 8, 33, 90, 12, 14], [17, 3, 80], [301, 2, 77, 45, 6, 150]]
# A trunk of three tokens with branches of two, one and one.
TREE = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 1],
    ],
    dtype=torch.bool,
)
PATHS = [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 2, 6]]
OFFSET = torch.tensor([0, 1, 2, 3, 4, 3, 3])


@pytest.fixture(scope="module")
def tiny():
    made: dict[str, FrozenLM] = {}

    def build(architecture: str) -> FrozenLM:
        if architecture not in made:
            config = GPT_NEO if architecture == "gpt_neo" else {}
            made[architecture] = tiny_lm(architecture, **config)
        return made[architecture]

    return build


@pytest.fixture(params=["in two parts", "fused"], autouse=True)
def both_ways(request, monkeypatch):
    """Every test runs with either form of the attention, whatever the device would choose."""
    monkeypatch.setattr(shared_context, "_fits_fused", lambda query, own_keys: request.param == "fused")


def virtual(lm: FrozenLM, n: int, m: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(CONTEXTS), n, m, lm.hidden_size, generator=generator) * lm.embedding_scale


def row(lm: FrozenLM, ids: list[int], x: Tensor) -> Tensor:
    """Hidden states at ``x`` (M, H) after the context, as one full pass of a single row."""
    whole = torch.cat([lm.embed(ids), x])[None]
    return lm.model.base_model(inputs_embeds=whole, use_cache=False).last_hidden_state[0, len(ids) :]


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("architecture", ENGINE)
def test_continuations_equal_single_rows(tiny, architecture):
    lm = tiny(architecture)
    assert lm.shared
    x = virtual(lm, n=4, m=3)
    out = lm.extend(lm.encode(CONTEXTS), x)
    for c, ids in enumerate(CONTEXTS):
        for n in range(4):
            assert_close(out[c, n], row(lm, ids, x[c, n]))


@pytest.mark.parametrize("architecture", ENGINE)
def test_trees_equal_single_rows(tiny, architecture):
    lm = tiny(architecture)
    x = virtual(lm, n=2, m=7)
    visible, offset = TREE.expand(3, 7, 7), OFFSET.expand(3, 7)
    out = lm.extend(lm.encode(CONTEXTS), x, offset, visible)
    for c, ids in enumerate(CONTEXTS):
        for n in range(2):
            for path in PATHS:
                assert_close(out[c, n, path], row(lm, ids, x[c, n, path]))


@pytest.mark.parametrize("architecture", ENGINE)
def test_gradients_equal_those_of_single_rows(tiny, architecture):
    lm = tiny(architecture)
    together, alone = (virtual(lm, n=2, m=7).requires_grad_() for _ in range(2))
    weight = torch.randn(3, 2, 7, lm.hidden_size, generator=torch.Generator().manual_seed(1))
    visible, offset = TREE.expand(3, 7, 7), OFFSET.expand(3, 7)
    (lm.extend(lm.encode(CONTEXTS), together, offset, visible) * weight).sum().backward()
    for c, ids in enumerate(CONTEXTS):
        for n in range(2):
            seen: set[int] = set()
            for path in PATHS:
                hidden = row(lm, ids, alone[c, n, path])
                new = [i for i, token in enumerate(path) if token not in seen]  # the trunk counts once
                (hidden[new] * weight[c, n, [path[i] for i in new]]).sum().backward()
                seen |= set(path)
    assert_close(together.grad, alone.grad)
    assert together.grad.abs().max() > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_gradient_reaches_the_cache(architecture):
    lm = tiny_lm(architecture)
    lm.embedding.weight.requires_grad_()  # not even where something in the LM is trained
    context = lm.encode(CONTEXTS)
    x = virtual(lm, n=2, m=2).requires_grad_()
    lm.extend(context, x).sum().backward()
    for t in [*context.keys, *context.values, context.hidden]:
        assert not t.requires_grad
        assert t.grad is None


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_sliding_window(architecture, config):
    lm = tiny_lm(architecture, **config)
    assert lm.shared
    x = virtual(lm, n=2, m=7)
    visible, offset = TREE.expand(3, 7, 7), OFFSET.expand(3, 7)
    out = lm.extend(lm.encode(CONTEXTS), x, offset, visible)
    for c, ids in enumerate(CONTEXTS):
        for path in PATHS:
            assert_close(out[c, 1, path], row(lm, ids, x[c, 1, path]))
    # The window matters here, else this test would show nothing.
    wide = tiny_lm(architecture, **{**config, "sliding_window": 100})
    assert (wide.extend(wide.encode(CONTEXTS), x, offset, visible) - out).abs().max() > 1e-2


def test_continuations_longer_than_the_window():
    lm = tiny_lm("mistral", sliding_window=4)
    x = virtual(lm, n=2, m=9)
    out = lm.extend(lm.encode(CONTEXTS), x)
    for c, ids in enumerate(CONTEXTS):
        assert_close(out[c, 0], row(lm, ids, x[c, 0]))


def test_neighbours_order_and_padding_do_not_matter(tiny):
    lm = tiny("llama")
    x = virtual(lm, n=3, m=2)
    together = lm.extend(lm.encode(CONTEXTS), x)
    order = [2, 0, 1]
    assert_close(lm.extend(lm.encode([CONTEXTS[i] for i in order]), x[order]), together[order])
    assert_close(lm.extend(lm.encode(CONTEXTS), x[:, [1, 2, 0]]), together[:, [1, 2, 0]])
    for c in range(3):
        assert_close(lm.extend(lm.encode([CONTEXTS[c]]), x[c : c + 1, :1]), together[c : c + 1, :1])
    padded = torch.nn.functional.pad(x, (0, 0, 0, 4), value=9.0)
    assert_close(lm.extend(lm.encode(CONTEXTS), padded)[:, :, :2], together)


def test_encode_gives_last_and_mean_hidden_state(tiny):
    lm = tiny("qwen3")
    context = lm.encode(CONTEXTS)
    for c, ids in enumerate(CONTEXTS):
        hidden = lm.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert_close(context.last[c], hidden[-1])
        assert_close(context.mean[c], hidden.mean(0))


def test_learned_keys_and_values_without_text(tiny):
    lm = tiny("llama")
    prefix = lm.encode(CONTEXTS)
    learned = Context([[]] * 3, prefix.keys, prefix.values, prefix.lengths, prefix.hidden)
    x = virtual(lm, n=2, m=7)
    visible, offset = TREE.expand(3, 7, 7), OFFSET.expand(3, 7)
    expected = continue_shared(lm.model, prefix, x, offset, visible)
    assert_close(continue_shared(lm.model, learned, x, offset, visible), expected)
    assert_close(continue_plain(lm.model, learned, x, offset, visible), expected)


@pytest.mark.parametrize("architecture", FALLBACK)
def test_an_architecture_that_does_not_fit_runs_row_by_row_and_says_so(architecture, caplog):
    lm = tiny_lm(architecture, **(GPT_NEO if architecture == "gpt_neo" else {}))
    assert not lm.shared
    assert "row by row" in caplog.text
    x = virtual(lm, n=2, m=7)
    visible, offset = TREE.expand(3, 7, 7), OFFSET.expand(3, 7)
    out = lm.extend(lm.encode(CONTEXTS), x, offset, visible)
    for c, ids in enumerate(CONTEXTS):
        for path in PATHS:
            assert_close(out[c, 1, path], row(lm, ids, x[c, 1, path]))


def test_an_lm_that_ignores_the_engine_is_found_out(monkeypatch, caplog):
    # It takes the name of the attention function and goes on with its own.
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(shared_context, "_attention", sdpa)
    lm = tiny_lm("llama")
    assert not lm.shared
    assert "row by row" in caplog.text
    assert lm.model.config._attn_implementation == "sdpa"
    x = virtual(lm, n=2, m=3)
    out = lm.extend(lm.encode(CONTEXTS), x)
    assert_close(out[0, 1], row(lm, CONTEXTS[0], x[0, 1]))


@pytest.mark.parametrize("broken", ["lengths", "visible", "position"])
def test_the_check_at_loading_finds_what_may_go_wrong(monkeypatch, broken):
    bias = shared_context._Shared.bias

    def without(self: shared_context._Shared, window: int | None) -> Tensor:
        if broken == "lengths":
            self.context.lengths = torch.full_like(self.context.lengths, self.context.keys[0].shape[2])
        elif broken == "visible":
            self.visible = torch.ones_like(self.visible)
        return bias(self, window)

    monkeypatch.setattr(shared_context._Shared, "bias", without)
    if broken == "position":
        true = continue_shared
        monkeypatch.setattr(
            shared_context, "continue_shared", lambda m, c, x, o, v: true(m, c, x, o + torch.arange(o.shape[1]), v)
        )
    assert not tiny_lm("llama").shared


def test_attention_with_other_terms_is_refused():
    with pytest.raises(NotImplementedError, match="softcap"):
        call_shared_attention(softcap=30.0)


def call_shared_attention(**terms: object) -> None:
    lm = tiny_lm("llama")
    shared = shared_context._Shared(lm.encode([[1]]), torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, 1).bool())
    with shared_context.attending(shared):
        shared_context._attention(lm.model, *[torch.zeros(1, 4, 1, 8)] * 3, None, **terms)
