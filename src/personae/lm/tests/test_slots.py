from __future__ import annotations

import pytest
import torch
from torch import Tensor

from personae.lm import slots
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import PLACEMENTS, chat_prompt
from personae.lm.reading import prefix_cache
from personae.lm.slots import OneByOne, Row, Slots, Start, rows_of
from personae.lm.tiny import tiny_lm

ASKED = ["Roads?", "Should we spend more on roads, schools or the army?", "Roads?", "A person would say so. Why? " * 3]
ARCHITECTURES = ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "gemma"]


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


@pytest.fixture(autouse=True)
def short_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that tiny texts outgrow."""
    monkeypatch.setattr(slots, "_SHORTEST", 16)


def starts(lm: FrozenLM, placement: str) -> list[Start]:
    generator = torch.Generator().manual_seed(0)
    prompts = [chat_prompt(lm, [{"role": "user", "content": text}], placement) for text in ASKED]
    if placement != "prefix":
        virtual = [torch.randn(2, lm.hidden_size, generator=generator) * lm.embedding_scale for _ in prompts]
    else:
        pair = [(heads, 3, size) for heads, size in lm.key_shapes]
        virtual = [[tuple(torch.randn(2, *s, generator=generator)) for s in pair] for _ in prompts]
    return [Start(p, v) for p, v in zip(prompts, virtual, strict=True)]


def alone(lm: FrozenLM, start: Start, said: list[int]) -> Tensor:
    """The last hidden state (H,) of one whole pass, without any cache of ours."""
    cache, own = None, []
    if isinstance(start.virtual, list):
        cache = prefix_cache([(k[None], v[None]) for k, v in start.virtual], lm.dtype)
    elif start.virtual is not None:
        own = [start.virtual]
    x = torch.cat([lm.embed(start.prompt.before), *own, lm.embed([*start.prompt.after, *said])])
    return lm.model.base_model(inputs_embeds=x[None], past_key_values=cache).last_hidden_state[0, -1]


class Talk:
    """Rows, what each has said, and a check that their states are those of whole passes."""

    def __init__(self, lm: FrozenLM, rows: Slots | OneByOne) -> None:
        self.lm, self.rows = lm, rows
        self.starts: dict[Row, Start] = {}
        self.said: dict[Row, list[int]] = {}

    def join(self, some: list[Start]) -> list[Row]:
        newcomers = [Row() for _ in some]
        hidden = self.rows.join(newcomers, some)
        for row, start in zip(newcomers, some, strict=True):
            self.starts[row], self.said[row] = start, []
        self.check(newcomers, hidden)
        return newcomers

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            order = list(self.rows.rows)
            ids = [(7 * len(self.said[row]) + 5 * len(self.starts[row].prompt.text_ids)) % 300 for row in order]
            hidden = self.rows.step(ids)
            for row, token in zip(order, ids, strict=True):
                self.said[row].append(token)
            self.check(order, hidden)

    def check(self, rows: list[Row], hidden: Tensor) -> None:
        for row, found in zip(rows, hidden, strict=True):
            torch.testing.assert_close(found, alone(self.lm, self.starts[row], self.said[row]), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_rows_of_every_placement_come_and_go_and_are_as_if_alone(lm):
    for placement in PLACEMENTS:
        a, b, c, d = starts(lm, placement)
        talk = Talk(lm, Slots(lm))
        first, second = talk.join([a, b])
        talk.step(3)
        talk.join([c, d])
        talk.step(20)  # all outgrow their slots
        talk.rows.leave(first)
        talk.step(2)
        talk.join([a])
        talk.rows.leave(second)
        talk.step(2)
        assert len(talk.rows.rows) == 3


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture):
    lm = tiny_lm(architecture)
    rows = rows_of(lm)
    assert isinstance(rows, Slots)
    talk = Talk(lm, rows)
    talk.join(starts(lm, "late")[:2])
    talk.step(2)
    talk.join(starts(lm, "before")[2:])
    talk.step(2)


@torch.no_grad()
def test_keys_beyond_a_sliding_window_are_not_seen():
    lm = tiny_lm("gemma3_text", sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    assert lm.shared
    talk = Talk(lm, Slots(lm))
    talk.join(starts(lm, "before"))
    talk.step(12)


@torch.no_grad()
def test_an_lm_that_ignores_the_engine_is_run_row_by_row(lm, monkeypatch):
    monkeypatch.setattr(lm, "shared", False)
    for placement in PLACEMENTS:
        a, b, c, _ = starts(lm, placement)
        rows = rows_of(lm)
        assert isinstance(rows, OneByOne)
        talk = Talk(lm, rows)
        first, _ = talk.join([a, b])
        talk.step(2)
        rows.leave(first)
        talk.join([c])
        talk.step(2)


@torch.no_grad()
def test_without_virtual_tokens_a_row_is_its_text(lm):
    talk = Talk(lm, Slots(lm))
    prompt = chat_prompt(lm, [{"role": "user", "content": "Roads?"}], "late")
    talk.join([Start(prompt), Start(prompt)])
    talk.step(2)


@torch.no_grad()
def test_a_text_that_several_continue_is_read_once(lm, monkeypatch):
    read: list[int] = []
    encode = FrozenLM.encode

    def counting(self, ids):
        read.append(len(ids))
        return encode(self, ids)

    monkeypatch.setattr(FrozenLM, "encode", counting)
    a, b, c, d = starts(lm, "late")  # a and c ask the same
    Slots(lm).join([Row() for _ in range(4)], [a, b, c, d])
    assert sum(read) == 3


@torch.no_grad()
def test_many_newcomers_are_read_in_passes_of_similar_length(lm, monkeypatch):
    monkeypatch.setattr(slots, "_PASS_TOKENS", 64)
    passes = []
    base = type(lm.model.base_model)
    forward = base.forward

    def watched(self, *args, **kwargs):
        passes.append(kwargs["inputs_embeds"].shape[:2])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(base, "forward", watched)
    some = [Start(s.prompt) for s in starts(lm, "before")]
    Slots(lm).join([Row() for _ in some], some)
    lengths = sorted(len(s.prompt.text_ids) for s in some)
    assert all(rows * longest <= 64 or rows == 1 for rows, longest in passes)
    assert sum(rows for rows, _ in passes) == 4
    assert [longest for _, longest in passes][-1] == lengths[-1]


@torch.no_grad()
def test_who_cannot_join_leaves_nothing_behind(lm):
    running = Slots(lm)
    talk = Talk(lm, running)
    a, b, *_ = starts(lm, "before")
    talk.join([a])
    wrong = Start(b.prompt, torch.zeros(2, 31))  # not as wide as the LM
    with pytest.raises(RuntimeError):
        running.join([Row(), Row()], [a, wrong])
    assert len(running.rows) == 1
    talk.step(2)


@torch.no_grad()
def test_memory_follows_the_rows(lm):
    running = Slots(lm)
    talk = Talk(lm, running)

    def numbers() -> int:
        return sum(layer.numel() for shelf in running._shelves.values() for layer in shelf.layers)

    newcomers = talk.join(starts(lm, "before")[:1] * 40)
    full = numbers()
    for row in newcomers[:37]:
        running.leave(row)
    assert numbers() < full / 4
    talk.step(20)  # those who stay are who they were, and move to longer slots
    for row in newcomers:
        running.leave(row)  # once more does no harm
    assert numbers() == 0


@torch.no_grad()
def test_slots_that_could_not_be_had_are_asked_for_again(lm, monkeypatch):
    running = Slots(lm)
    talk = Talk(lm, running)
    talk.join(starts(lm, "before")[:1] * 4)  # its shelf is full
    (shelf,) = running._shelves.values()
    new_empty = Tensor.new_empty

    def short_of_memory(self, *shape, **options):
        if shelf.layers[0].shape[1] > 4:  # the first layer has grown, the next one cannot
            raise MemoryError
        return new_empty(self, *shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_empty", short_of_memory)
        with pytest.raises(MemoryError):
            running.join([Row()], starts(lm, "before")[:1])
    assert [layer.shape[1] for layer in shelf.layers] == [8, 4]
    talk.step(1)
    talk.join(starts(lm, "before")[:1] * 2)
    talk.step(2)


def test_a_start_counts_virtual_tokens(lm):
    for placement, virtual in (("late", 2), ("prefix", 3)):
        start = starts(lm, placement)[0]
        assert start.n_tokens == len(start.prompt.text_ids) + virtual
    assert Start(start.prompt).n_tokens == len(start.prompt.text_ids)
