from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import torch
from torch import Tensor

from personae.lm import generation
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import PLACEMENTS, Placement, chat_prompt
from personae.lm.reading import KeyValues
from personae.lm.slots import Start
from personae.lm.tiny import tiny_lm
from personae.serving import batching
from personae.serving.backend import Busy, Piece, Sampling, Unavailable
from personae.serving.batching import Batcher

ASKED = ["Roads?", "Should we spend more on roads, schools or the army?", "A person would say so. Why?", "Roads?"]
HOW = [
    Sampling(max_tokens=30, temperature=1.0, top_p=0.9, seed=5),
    Sampling(max_tokens=25),
    Sampling(max_tokens=20, temperature=0.7, seed=2**40),
    Sampling(max_tokens=35, temperature=1.5, top_p=0.5),
]


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


@pytest.fixture
def endless(lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> FrozenLM:
    """It never ends a turn."""
    monkeypatch.setattr(lm, "stop_ids", frozenset())
    return lm


class Asker:
    """Requests are numbers of ASKED, each with virtual tokens of its own; a request in ``broken`` raises."""

    def __init__(self, lm: FrozenLM, placement: Placement = "late") -> None:
        generator = torch.Generator().manual_seed(0)
        self.prompts = [chat_prompt(lm, [{"role": "user", "content": text}], placement) for text in ASKED]
        self.virtual: Tensor | KeyValues
        if placement == "prefix":
            shapes = [(len(ASKED), heads, 2, size) for heads, size in lm.key_shapes]
            self.virtual = [(torch.randn(s, generator=generator), torch.randn(s, generator=generator)) for s in shapes]
        else:
            self.virtual = torch.randn(len(ASKED), 2, lm.hidden_size, generator=generator) * lm.embedding_scale
        self.broken: dict[int, Exception] = {}
        self.calls: list[list[int]] = []

    def __call__(self, requests: Sequence[int]) -> list[Start]:
        self.calls.append(list(requests))
        for i in requests:
            if i in self.broken:
                raise self.broken[i]
        return [Start(self.prompts[i], self.of_row(i)) for i in requests]

    def of_row(self, i: int) -> Tensor | KeyValues:
        return self.virtual[i] if isinstance(self.virtual, Tensor) else [(k[i], v[i]) for k, v in self.virtual]

    def expected(self, lm: FrozenLM, i: int, how: Sampling) -> str:
        """The text that `generation.stream` gives to this request alone."""
        one = self.virtual[i : i + 1] if isinstance(self.virtual, Tensor) else None
        one = one if one is not None else [(k[i : i + 1], v[i : i + 1]) for k, v in self.virtual]
        options = {"max_new_tokens": how.max_tokens, "temperature": how.temperature, "top_p": how.top_p}
        steps = generation.stream(lm, [self.prompts[i]], one, seeds=[how.seed], **options)
        return "".join(new for (new,) in steps)


def run(what: Coroutine[Any, Any, Any]) -> Any:
    """No test may hang."""
    return asyncio.run(asyncio.wait_for(what, 120))


async def told(pieces: AsyncGenerator[Piece, None]) -> tuple[str, Piece]:
    """The whole text, and the last piece."""
    all_pieces = [piece async for piece in pieces]
    assert [piece.finish is None for piece in all_pieces] == [True] * (len(all_pieces) - 1) + [False]
    return "".join(piece.text for piece in all_pieces), all_pieces[-1]


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def say(monkeypatch: pytest.MonkeyPatch, lm: FrozenLM, text: str) -> list[int]:
    """Let the LM say a text, whatever it computes, and then end its turn."""
    ids = [*lm.tokens(text), lm.tokenizer.eos_token_id]
    script = iter(ids)
    monkeypatch.setattr(batching, "choose", lambda *_: next(script))
    return ids[:-1]


# texts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_text_is_that_of_generation_whoever_comes_meanwhile(endless, placement):
    asker = Asker(endless, placement)

    async def talk():
        batcher = Batcher(endless, asker)
        first = batcher.text(0, HOW[0])
        beginning = [await anext(first) for _ in range(3)]  # the others come when it has begun
        second = asyncio.create_task(told(batcher.text(1, HOW[1])))
        beginning += [await anext(first) for _ in range(3)]
        others = [asyncio.create_task(told(batcher.text(i, HOW[i]))) for i in (2, 3)]
        rest, last = await told(first)
        texts = ["".join(piece.text for piece in beginning) + rest]
        for task in [second, *others]:
            texts.append((await task)[0])
        await batcher.close(1)
        return texts, last

    texts, last = run(talk())
    assert texts == [asker.expected(endless, i, HOW[i]) for i in range(4)]
    assert len(set(texts)) == 4
    assert last.prompt_tokens == len(asker.prompts[0].text_ids) + 2
    assert (last.finish, last.completion_tokens) == ("length", 30)


def test_a_text_alone_is_the_same_as_among_others(lm):
    asker = Asker(lm)

    async def talk():
        batcher = Batcher(lm, asker)
        alone = [(await told(batcher.text(i, HOW[i])))[0] for i in range(4)]
        together = await asyncio.gather(*(told(batcher.text(i % 4, HOW[i % 4])) for i in range(24)))
        await batcher.close(1)
        return alone, [text for text, _ in together]

    alone, together = run(talk())
    assert together == alone * 6


def test_no_more_than_max_rows_run_and_all_have_their_turn(endless):
    asker = Asker(endless)

    async def talk():
        batcher = Batcher(endless, asker, max_rows=3)
        most = 0

        async def watched(i):
            nonlocal most
            async for _ in batcher.text(i % 4, Sampling(max_tokens=5 + i)):
                most = max(most, int(batcher.load()["running"]))

        await asyncio.gather(*(watched(i) for i in range(10)))
        load = batcher.load()
        await batcher.close(1)
        return most, load

    most, load = run(talk())
    assert most == 3
    assert load["replies_total"] == 10
    assert load["tokens_total"] == sum(5 + i for i in range(10))
    assert load["running"] == load["waiting"] == 0
    assert load["tokens_per_second"] > 0


def test_a_text_ends_with_the_turn_or_with_its_length(lm, monkeypatch):
    async def talk(**how):
        batcher = Batcher(lm, Asker(lm))
        found = await told(batcher.text(0, Sampling(**how)))
        await batcher.close(1)
        return found

    ids = say(monkeypatch, lm, "I would say so.")
    text, last = run(talk(max_tokens=50))
    assert (text, last.finish, last.completion_tokens) == ("I would say so.", "stop", len(ids))
    say(monkeypatch, lm, "I would say so.")
    text, last = run(talk(max_tokens=3))
    assert (text, last.finish, last.completion_tokens) == (lm.tokenizer.decode(ids[:3]), "length", 3)


def test_a_base_models_turn_ends_with_its_line_but_a_plain_text_goes_on(monkeypatch):
    base = tiny_lm("llama", chat=False)

    async def talk(one_line):
        batcher = Batcher(base, Asker(base, "before"))
        found = await told(batcher.text(0, Sampling(), one_line))
        await batcher.close(1)
        return found[0], found[1].finish

    say(monkeypatch, base, " yes\nUser: no")
    assert run(talk(one_line=True)) == (" yes", "stop")
    say(monkeypatch, base, " yes\nUser: no")
    assert run(talk(one_line=False)) == (" yes\nUser: no", "stop")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("so. A",), "A person would say "),
        (("would", "person"), "A "),  # the first in the text, not in the list
        (("so. B", "say!"), "A person would say so. A person"),
        (("person.",), "A person would say so. A person"),  # held back, then said
    ],
)
def test_a_stop_string_and_what_follows_is_not_said(lm, monkeypatch, stop, text):
    pieces: list[str] = []

    async def talk():
        batcher = Batcher(lm, Asker(lm))
        async for piece in batcher.text(0, Sampling(max_tokens=40, stop=stop)):
            pieces.append(piece.text)
        await batcher.close(1)
        return piece

    say(monkeypatch, lm, "A person would say so. A person")
    assert run(talk()).finish == "stop"
    assert "".join(pieces) == text
    assert len(pieces) > 1  # what can be no beginning of a stop string is not held back


def test_an_unfinished_character_is_held_back(lm, monkeypatch):
    pieces = []

    async def talk():
        batcher = Batcher(lm, Asker(lm))
        async for piece in batcher.text(0, Sampling(max_tokens=40)):
            pieces.append(piece.text)
        await batcher.close(1)

    assert len(say(monkeypatch, lm, "€")) == 3  # a token a byte
    run(talk())
    assert "".join(pieces) == "€"
    assert "\ufffd" not in "".join(pieces)


# refusals --------------------------------------------------------------------------------------------------------
def test_what_is_longer_than_the_lm_reads_is_refused_with_a_sentence(lm):
    n = Asker(lm).prompts[0].text_ids

    async def talk(max_tokens):
        batcher = Batcher(lm, Asker(lm))
        try:
            return await told(batcher.text(0, Sampling(max_tokens=max_tokens)))
        finally:
            await batcher.close(1)

    with pytest.raises(
        ValueError, match=rf"has {len(n) + 2} tokens and 512 may follow, but tiny-llama reads at most 512"
    ):
        run(talk(512))
    run(talk(512 - len(n) - 2))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1; got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"seed": -1}, "seed must be"),
        ({"stop": ("",)}, "stop string"),
    ],
)
def test_sampling_out_of_range_is_refused(lm, wrong, sentence):
    async def talk():
        batcher = Batcher(lm, Asker(lm))
        try:
            await told(batcher.text(0, Sampling(**wrong)))
        finally:
            await batcher.close(1)

    with pytest.raises(ValueError, match=sentence):
        run(talk())


def test_a_full_queue_is_busy_and_says_when_to_come_again(endless):
    async def talk():
        batcher = Batcher(endless, Asker(endless), max_rows=1, max_waiting=2)
        long = Sampling(max_tokens=400)
        running = asyncio.create_task(told(batcher.text(0, long)))
        await until(lambda: batcher.load()["running"] == 1)
        waiting = [asyncio.create_task(told(batcher.text(i, long))) for i in (1, 2)]
        await until(lambda: batcher.load()["waiting"] == 2)
        with pytest.raises(Busy, match="try again in") as refused:
            await anext(batcher.text(3, long))
        waiting[0].cancel()  # who leaves the queue makes room
        await asyncio.gather(waiting[0], return_exceptions=True)
        room = batcher.load()["waiting"]
        for task in (running, waiting[1]):
            task.cancel()
        await asyncio.gather(running, waiting[1], return_exceptions=True)
        load = batcher.load()
        await batcher.close(0)
        return refused.value.retry_after, room, load

    after, room, load = run(talk())
    assert after >= 1
    assert room == 1
    assert load["refused_total"] == 1
    assert load["cancelled_total"] == 3


def test_the_time_to_come_again_is_that_of_half_the_queue():
    pace = batching._Pace()
    assert pace.replies_take(100) == 1  # nothing is known yet
    for _ in range(200):
        pace.went(tokens=100, seconds=0.5)
        pace.replied(50)
    assert pace.tokens_per_second == pytest.approx(200)
    assert pace.replies_take(40) == pytest.approx(40 * 50 / 200, rel=1e-3)
    for _ in range(50):
        pace.job_took(4.0)
    assert pace.jobs_take(3) == pytest.approx(12, rel=1e-3)


# cancellation and errors -----------------------------------------------------------------------------------------
def test_who_leaves_frees_the_row_and_disturbs_nobody(endless):
    asker = Asker(endless)
    how = Sampling(max_tokens=60)

    async def talk():
        batcher = Batcher(endless, asker, max_rows=2)
        stays = asyncio.create_task(told(batcher.text(1, how)))
        async with aclosing(batcher.text(0, Sampling(max_tokens=450))) as pieces:
            async for _ in pieces:
                break
        third = asyncio.create_task(told(batcher.text(2, how)))
        texts = [(await stays)[0], (await third)[0]]
        load = batcher.load()
        await batcher.close(1)
        return texts, load

    texts, load = run(talk())
    assert texts == [asker.expected(endless, i, how) for i in (1, 2)]
    assert load["cancelled_total"] == 1
    assert load["running"] == 0
    assert load["tokens_total"] < 120 + 450


def test_an_error_in_one_request_is_its_own(lm):
    asker = Asker(lm)
    asker.broken = {2: ValueError("this chat cannot be read")}

    async def talk():
        batcher = Batcher(lm, asker)
        found = await asyncio.gather(*(told(batcher.text(i, HOW[i])) for i in range(4)), return_exceptions=True)
        load = batcher.load()
        await batcher.close(1)
        return found, load

    found, load = run(talk())
    assert isinstance(found[2], ValueError)
    assert str(found[2]) == "this chat cannot be read"
    assert [found[i][0] for i in (0, 1, 3)] == [asker.expected(lm, i, HOW[i]) for i in (0, 1, 3)]
    assert load["failed_total"] == 1
    assert load["alive"] == 1


def test_an_error_of_the_lm_ends_those_who_run_and_not_the_thread(endless, monkeypatch):
    asker = Asker(endless)

    async def talk():
        batcher = Batcher(endless, asker)
        step = batcher._rows.step
        first = batcher.text(0, Sampling(max_tokens=300))
        await anext(first)

        def fails(ids):
            batcher._rows.step = step
            raise RuntimeError("no memory")

        batcher._rows.step = fails
        with pytest.raises(RuntimeError, match="the language model failed: no memory"):
            await told(first)
        found = await told(batcher.text(1, HOW[0]))
        await batcher.close(1)
        return found[0]

    assert run(talk()) == asker.expected(endless, 1, HOW[0])


def test_when_the_thread_dies_everybody_hears_of_it(endless, caplog):
    async def talk():
        batcher = Batcher(endless, Asker(endless), max_rows=1)
        runs = asyncio.create_task(told(batcher.text(0, Sampling(max_tokens=400))))
        waits = asyncio.create_task(told(batcher.text(1, HOW[0])))
        works = asyncio.create_task(anext(batcher.work(iter([None] * 10_000))))
        await until(lambda: batcher.load()["running"] == 1 and batcher.load()["jobs"] == 1)

        def dies():
            raise MemoryError

        batcher._turn = dies
        found = await asyncio.gather(runs, waits, works, return_exceptions=True)
        with pytest.raises(Unavailable, match="restart the server"):
            await told(batcher.text(2, HOW[0]))
        load = batcher.load()
        await batcher.close(1)
        return found, load

    found, load = run(talk())
    assert all(isinstance(error, Unavailable) and "has failed" in str(error) for error in found)
    assert load["alive"] == 0
    assert "MemoryError" in caplog.text


def test_a_loop_that_was_closed_is_only_a_client_that_left(endless):
    batcher = Batcher(endless, Asker(endless))

    async def begin():
        return await anext(batcher.text(0, Sampling(max_tokens=450)))

    loop = asyncio.new_event_loop()  # asyncio.run would end the generator first
    loop.run_until_complete(begin())
    loop.close()

    async def go_on():
        found = await told(batcher.text(1, HOW[0]))
        await until(lambda: batcher.load()["running"] == 0)
        await batcher.close(1)
        return found[1].finish

    assert run(go_on()) in ("stop", "length")


# work beside the texts -------------------------------------------------------------------------------------------
def test_work_gives_its_results_in_order_and_its_errors(lm):
    def parts():
        yield 1
        yield None
        yield 2
        raise ValueError("no more questions")

    async def talk():
        batcher = Batcher(lm, Asker(lm))
        all_of_it = [x async for x in batcher.work(iter([None, "a", None, "b"]))]
        results = batcher.work(parts())
        found = [await anext(results), await anext(results)]
        with pytest.raises(ValueError, match="no more questions"):
            await anext(results)
        load = batcher.load()
        await batcher.close(1)
        return all_of_it, found, load

    all_of_it, found, load = run(talk())
    assert (all_of_it, found) == (["a", "b"], [1, 2])
    assert (load["jobs"], load["jobs_total"], load["failed_total"]) == (0, 1, 1)


def test_neither_texts_nor_work_starve(endless):
    """A part of work takes as long as several steps, and there is more of it than time: yet both go on."""
    done: list[str] = []

    def parts() -> Iterator[None]:
        while True:
            time.sleep(0.02)
            done.append("part")
            yield None

    async def talk():
        batcher = Batcher(endless, Asker(endless))
        jobs = [asyncio.create_task(anext(batcher.work(parts()))) for _ in range(2)]
        await until(lambda: len(done) > 2)
        async for _ in batcher.text(0, Sampling(max_tokens=120)):
            done.append("token")
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await until(lambda: batcher.load()["jobs"] == 0)
        await batcher.close(1)

    run(talk())
    first, last = done.index("token"), len(done) - 1 - done[::-1].index("token")
    between = done[first:last].count("part")
    assert between >= 3  # the text did not stop the work, nor did it wait for the end of work that has none


def test_jobs_take_turns(lm):
    order: list[str] = []

    def parts(name: str) -> Iterator[None]:
        for _ in range(5):
            order.append(name)
            yield None

    async def talk():
        hold = threading.Event()

        def held() -> Iterator[None]:
            hold.wait()
            yield None

        batcher = Batcher(lm, Asker(lm))

        async def all_of(what):
            return [x async for x in batcher.work(what)]

        tasks = [asyncio.create_task(all_of(what)) for what in (held(), parts("a"), parts("b"))]
        await until(lambda: batcher.load()["jobs"] == 3)
        hold.set()
        await asyncio.gather(*tasks)
        await batcher.close(1)

    run(talk())
    assert "".join(order) == "ababababab"


def test_work_rests_while_nobody_reads_and_ends_when_nobody_will(lm):
    made: list[int] = []

    def parts() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    async def talk():
        batcher = Batcher(lm, Asker(lm))
        async with aclosing(batcher.work(parts())) as results:
            await anext(results)
            found = await told(batcher.text(0, HOW[0]))  # a resting job stops nobody
            await asyncio.sleep(0.05)
            rested = len(made)
            await anext(results)
            await anext(results)
        await until(lambda: batcher.load()["jobs"] == 0)
        await batcher.close(1)
        return found, rested

    found, rested = run(talk())
    assert found[1].finish
    assert rested <= 4
    assert len(made) <= 7


def test_more_jobs_than_allowed_are_busy(lm):
    async def talk():
        batcher = Batcher(lm, Asker(lm), max_jobs=1)
        results = batcher.work(iter([1, 2, 3]))
        await anext(results)
        with pytest.raises(Busy):
            await anext(batcher.work(iter([1])))
        await results.aclose()
        second = [x async for x in batcher.work(iter([4]))]
        await batcher.close(1)
        return second

    assert run(talk()) == [4]


# the end ---------------------------------------------------------------------------------------------------------
def test_closing_lets_what_runs_end_and_refuses_the_rest(endless):
    asker = Asker(endless)

    async def talk():
        batcher = Batcher(endless, asker, max_rows=1)
        runs = asyncio.create_task(told(batcher.text(0, HOW[0])))
        await until(lambda: batcher.load()["running"] == 1)
        waits = asyncio.create_task(told(batcher.text(1, HOW[0])))
        await until(lambda: batcher.load()["waiting"] == 1)
        await batcher.close(60)
        found = await asyncio.gather(runs, waits, return_exceptions=True)
        with pytest.raises(Unavailable, match="closing"):
            await told(batcher.text(2, HOW[0]))
        return found, batcher._thread.is_alive()

    (ran, waited), alive = run(talk())
    assert ran[0] == asker.expected(endless, 0, HOW[0])
    assert isinstance(waited, Unavailable)
    assert not alive


def test_closing_ends_what_is_not_done_in_time(endless):
    def parts() -> Iterator[None]:
        while True:
            yield None

    async def talk():
        batcher = Batcher(endless, Asker(endless))
        runs = asyncio.create_task(told(batcher.text(0, Sampling(max_tokens=450))))
        works = asyncio.create_task(anext(batcher.work(parts())))
        await until(lambda: batcher.load()["running"] == 1 and batcher.load()["jobs"] == 1)
        await batcher.close(0.0)
        await batcher.close(0.0)  # a second time does no harm
        return await asyncio.gather(runs, works, return_exceptions=True), batcher._thread.is_alive()

    found, alive = run(talk())
    assert all(isinstance(error, Unavailable) for error in found)
    assert not alive
