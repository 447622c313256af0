"""`VllmBackend` against a small server that takes what vLLM takes, says what vLLM says, and computes with a tiny LM."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import math
import socket
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from personae import OpinionModel, PersonaPrompt, load_sample
from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.lm.tiny import tiny_lm
from personae.serving.backend import Busy, Sampling, Unavailable
from personae.serving.local import LocalBackend
from personae.serving.vllm import VllmBackend
from personae.serving.vllm_steerer import VllmSteerer
from personae.steering.text import TextPrompt

CHAT = [{"role": "user", "content": "Roads?"}]
LONGER = [*CHAT, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why? Roads or schools?"}]
BRIEF = [{"role": "system", "content": "Be brief."}, *CHAT]
NEW = Question("asked", "Roads?", ("none", "few", "some of them", "many"))
SLOT = "<prompt_embeds>"


class FakeVllm:
    """Serves an LM; what is asked of it is kept, and it can be made to fail."""

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm
        self.models = [{"id": lm.name, "max_model_len": 300}]
        self.flag, self.old, self.key = True, False, None
        self.template: str | None = None
        self.fail: Response | None = None  # the answer to every generation
        self.break_after: int | None = None  # tokens of a stream
        self.last_words = ""  # of a stream that breaks
        self.gate: asyncio.Event | None = None  # streams wait for it after their first token
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.running = self.most = self.left = 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.get_models)
        self.app.post("/v1/completions")(self.generate)
        self.app.post("/v1/chat/completions")(self.generate)
        self.app.post("/tokenize")(self.tokenize)

    async def get_models(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "Unauthorized")
        return JSONResponse({"object": "list", "data": self.models})

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        if "prompt" in body:
            ids = self.lm.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        else:
            before, rows, after = self.read_chat(body)
            ids = [*before, *[len(self.lm.tokenizer)] * len(rows), *after]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": 300})

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append((request.url.path, body))
        if self.fail is not None:
            return self.fail
        if not self.flag:
            return error(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        assert body["model"] in [card["id"] for card in self.models]
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
        if request.url.path == "/v1/chat/completions":
            before, rows, after = self.read_chat(body)
            prompts = [torch.cat([self.lm.embed(before), rows, self.lm.embed(after)])]
        else:
            data = body["prompt_embeds"]
            prompts = [decode(each) for each in ([data] if isinstance(data, str) else data)]
        for rows in prompts:
            assert torch.isfinite(rows).all(), "a row that is not finite fails the requests of others"
            if rows.shape[1] != self.lm.hidden_size:
                sizes = f"{rows.shape[1]} does not match the model's hidden_size {self.lm.hidden_size}"
                return error(400, f"`prompt_embeds` hidden_size {sizes}.")
        if body.get("stream"):
            assert body["return_token_ids"] is True
            return StreamingResponse(self.stream(prompts[0], body, request), media_type="text/event-stream")
        log_p = [self.next(rows).log_softmax(-1) for rows in prompts]
        ids = body["logprob_token_ids"]
        tops = [[{f"token_id:{i}": p[i].item() for i in ids}] for p in log_p]
        if self.old:
            tops = [[{"yes": -1.0}] for _ in log_p]
        choices = [{"index": i, "logprobs": {"top_logprobs": top}, "token_ids": [5]} for i, top in enumerate(tops)]
        return JSONResponse({"choices": choices[::-1]})

    async def stream(self, rows: torch.Tensor, body: dict[str, Any], request: Request):
        self.running += 1
        self.most = max(self.most, self.running)
        finished = False
        try:
            yield ": a comment\n\n" + event({"index": 0, "delta": {"role": "assistant"}, "finish_reason": None})
            for n in range(body["max_tokens"]):
                if n == self.break_after:
                    yield self.last_words
                    finished = True
                    return
                token = int(self.next(rows).argmax())
                rows = torch.cat([rows, self.lm.embed([token])])
                stop = token in body["stop_token_ids"]
                finish = "stop" if stop else "length" if n + 1 == body["max_tokens"] else None
                yield event({"index": 0, "finish_reason": finish, "token_ids": [token]})
                if finish:
                    break
                while self.gate is not None and not self.gate.is_set():
                    await asyncio.sleep(0.01)
            yield "data: [DONE]\n\n"
            finished = True
        finally:
            self.running -= 1
            self.left += not finished

    @torch.no_grad()
    def next(self, rows: torch.Tensor) -> torch.Tensor:
        return self.lm.model(inputs_embeds=rows[None], attention_mask=torch.ones(1, len(rows))).logits[0, -1]

    def read_chat(self, body: dict[str, Any]) -> tuple[list[int], torch.Tensor, list[int]]:
        """The tokens before and after the slot, which is in one of the messages, and what is in it."""
        tokenizer = self.lm.tokenizer
        rows, turns = [], []
        for message in body["messages"]:
            content = message["content"]
            if not isinstance(content, str):
                rows += [decode(part["data"]) for part in content if part["type"] == "prompt_embeds"]
                content = "\n".join(part.get("text", SLOT) for part in content)
            turns.append({"role": message["role"], "content": content})
        ways = {name: body[name] for name in ("add_generation_prompt", "continue_final_message")}
        before, after = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=self.template, **ways).split(
            SLOT
        )
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after)]
        return ids[0], rows[0], ids[1]


def decode(data: str) -> torch.Tensor:
    """As the server reads it: ours, made a moment ago."""
    return torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)


def event(choice: dict[str, Any]) -> str:
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def error(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


@pytest.fixture(scope="module")
def train(lm, survey, people) -> Callable[..., PersonaPrompt]:
    """``train(placement)``; each is trained once."""
    done: dict[Any, PersonaPrompt] = {}

    def train(placement: str = "late", lm: FrozenLM = lm) -> PersonaPrompt:
        key = placement, id(lm)
        if key not in done:
            new = PersonaPrompt(lm, recipe="paper", placement=placement, n_tokens=2, steps=3)
            done[key] = new.fit(survey, people, progress=False)
        return done[key]

    return train


@pytest.fixture
def fake(lm) -> FakeVllm:
    return FakeVllm(lm)


def through(make: Callable[[], Any], work: Any) -> Any:
    """What ``work`` finds at a backend, which is closed afterwards."""

    async def run() -> Any:
        backend = make()
        try:
            return await work(backend)
        finally:
            await backend.close(1)

    return asyncio.run(asyncio.wait_for(run(), 120))


async def said(pieces: Any) -> tuple[str, Any]:
    """The text, and how it ended."""
    all_of_them = [piece async for piece in pieces]
    last = all_of_them[-1]
    return "".join(p.text for p in all_of_them), (last.finish, last.prompt_tokens, last.completion_tokens)


# equal to local --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("placement", ["late", "system", "before"])
def test_replies_are_those_of_the_local_backend(train, listen, fake, people, placement):
    steerer, url = train(placement), listen(fake.app, 1)
    who = [people[name] for name in people.respondent_ids_[:3]]

    async def work(backend):
        chats = [backend.chat(c, p, Sampling(12)) for c in (CHAT, LONGER, BRIEF) for p in who]
        texts = [backend.complete("Should we spend", p, Sampling(9, stop=("o", "A."))) for p in (*who, None)]
        return await asyncio.gather(*map(said, [*chats, *texts]))

    ours, theirs = (through(make, work) for make in (lambda: LocalBackend(steerer), lambda: VllmBackend(steerer, url)))
    assert theirs == ours
    assert len(set(theirs)) > 5
    sent = {path for path, body in fake.bodies if "messages" in body}
    assert sent == (set() if placement == "before" else {"/v1/chat/completions"})


def test_a_base_models_turn_ends_with_its_line(train, listen, people):
    base = tiny_lm("llama", chat=False, seed=3)
    fake, steerer = FakeVllm(base), train("late", base)
    base_next, lines = fake.next, [base.tokens("\n")[0], *base.tokens(" roads"), base.tokens("\n")[0], 9, 9]
    url = listen(fake.app, 1)
    backend_check = VllmBackend(steerer, url)

    async def work(_):
        start = None

        def scripted(rows):
            nonlocal start
            start = len(rows) if start is None else start
            return torch.nn.functional.one_hot(torch.tensor(lines[len(rows) - start]), len(base.tokenizer)).float()

        fake.next = scripted
        try:
            return await said(backend_check.chat(CHAT, people["r0001"], Sampling(30)))
        finally:
            fake.next = base_next

    text, (finish, _, _) = through(lambda: backend_check, work)
    assert (text, finish) == ("\n roads", "stop")  # a line break before the first word ends nothing


@pytest.mark.parametrize(("read", "n", "q"), [("letters", 20, 17), ("text", 3, 2)])  # beyond one request, one block
@pytest.mark.parametrize("placement", ["late", "system"])
def test_answers_are_those_of_the_local_backend(train, listen, fake, survey, people, placement, read, n, q):
    steerer, url = train(placement), listen(fake.app, 1)
    everybody = [people[name] for name in people.respondent_ids_[:n]]
    questions = [NEW, *survey.questions[: q - 1]]

    async def work(backend):
        return [block async for block in backend.answers(everybody, questions, read)]

    ours, theirs = (through(make, work) for make in (lambda: LocalBackend(steerer), lambda: VllmBackend(steerer, url)))
    assert [b.shape for b in theirs] == [b.shape for b in ours]
    assert sum(b.shape[1] for b in theirs) == q
    np.testing.assert_allclose(np.concatenate(theirs, 1), np.concatenate(ours, 1), atol=1e-5)
    assert np.ptp(theirs[0][:, 0, 0]) > 1e-4  # people differ, so that order counts


# what does not fit -----------------------------------------------------------------------------------------------
def other_hidden_size(fake):
    fake.lm = tiny_lm("llama", hidden_size=64)


def other_lm(fake):
    fake.lm = tiny_lm("llama", seed=1)


def other_template(fake):
    fake.template = fake.lm.tokenizer.chat_template.replace("'\n' + m['content']", "'\n\n' + m['content']")
    assert fake.template != fake.lm.tokenizer.chat_template


def other_tokenizer(fake):
    tokenizer = copy.deepcopy(fake.lm.tokenizer)
    tokenizer.add_tokens([" trams"])
    fake.lm = FrozenLM(fake.lm.model, tokenizer, fake.lm.name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda fake: setattr(fake, "flag", False), "takes no embeddings; start it again with: vllm serve"),
        (other_hidden_size, "another hidden size than tiny-llama, whose is 32"),
        (other_lm, r'serves another LM as "tiny-llama".* differ by \d'),
        (other_template, "it has another chat template"),
        (other_tokenizer, "it has another tokenizer"),
        (lambda fake: setattr(fake, "old", True), "it is too old"),
        (lambda fake: setattr(fake, "key", "secret"), "refuses the API key; give the right one in VLLM_API_KEY"),
        (lambda fake: fake.models.__setitem__(slice(None), [{"id": "a"}, {"id": "b"}]), "with --model: a, b"),
        (lambda fake: setattr(fake, "fail", error(500, "engine dead")), "first request with status 500: engine dead"),
        (lambda fake: setattr(fake, "models", []), "is no vLLM server"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_at_the_start(train, listen, fake, change, sentence):
    change(fake)
    with pytest.raises((ValueError, Unavailable), match=sentence):
        VllmBackend(train(), listen(fake.app, 1))


def test_nobody_is_there(train):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=rf"cannot be reached at http://127.0.0.1:{port} .* is it running\?"):
        VllmBackend(train(), f"http://127.0.0.1:{port}/v1/")
    with pytest.raises(ValueError, match='"localhost:8000" is no address of a server'):
        VllmBackend(train(), "localhost:8000")


def test_a_method_or_a_placement_that_vllm_has_no_place_for(train, lm):
    with pytest.raises(ValueError, match="--placement late"):
        VllmBackend(train("prefix"), "http://localhost:1")
    with pytest.raises(ValueError, match='the method "text" has no virtual tokens'):
        VllmBackend(TextPrompt(lm).fit(), "http://localhost:1")


def test_the_model_and_the_key_that_are_given_are_used(train, listen, fake, people):
    fake.models, fake.key = [{"id": "a"}, {"id": "b"}], "secret"

    async def work(backend):
        return await said(backend.chat(CHAT, people["r0001"], Sampling(3)))

    url = listen(fake.app, 1)
    through(lambda: VllmBackend(train(), url, "secret", "b"), work)
    assert {body["model"] for _, body in fake.bodies} == {"b"}


# what goes wrong later -------------------------------------------------------------------------------------------
def failing(train, listen, fake, people, change, **how) -> Exception:
    """What a reply, asked for after the start, raises; answers raise the same where they can."""

    async def work(backend):
        change(fake)
        with pytest.raises((ValueError, Busy, Unavailable)) as reply:
            await said(backend.chat(CHAT, people["r0001"], Sampling(5)))
        assert backend.load()["failed_total"] == 1
        if fake.fail is not None:
            with pytest.raises(type(reply.value)):
                await anext(backend.answers([people["r0001"]], [NEW]))
        assert backend.load()["running"] == backend.load()["waiting"] == 0
        return reply.value

    url = listen(fake.app, 1)
    return through(lambda: VllmBackend(train(), url, **how), work)


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (error(429, "slow down", **{"Retry-After": "7"}), Busy, "try again in 7 seconds"),
        (error(400, "the prompt is too long"), ValueError, "vLLM refuses this request: the prompt is too long"),
        (error(500, "engine dead"), Unavailable, "failed with status 500: engine dead"),
        (error(401, "Unauthorized"), Unavailable, "VLLM_API_KEY"),
        (Response("<html>", 502), Unavailable, "failed with status 502: no reason is given"),
        (JSONResponse({"choices": []}), Unavailable, "broke off the reply|without the log-probabilities"),
    ],
)
def test_what_vllm_refuses_is_said(train, listen, fake, people, answer, kind, sentence):
    found = failing(train, listen, fake, people, lambda fake: setattr(fake, "fail", answer))
    assert type(found) is kind
    with pytest.raises(kind, match=sentence):
        raise found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "broke off the reply"),
        ('data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n', "broke off the reply: out of memory"),
        ("data: {broken\n\n", "it is not JSON"),
        (event({"index": 0, "finish_reason": "abort", "token_ids": []}), "broke off the reply"),
    ],
)
def test_a_reply_that_breaks_off_is_not_taken_for_whole(train, listen, fake, people, words, sentence):
    def change(fake):
        fake.break_after, fake.last_words = 2, words

    found = failing(train, listen, fake, people, change)
    with pytest.raises(Unavailable, match=sentence):
        raise found
    assert [path for path, body in fake.bodies if body.get("stream")] == ["/v1/chat/completions"]  # not begun again


def test_a_server_that_falls_silent_is_given_up(train, listen, fake, people):
    found = failing(train, listen, fake, people, lambda fake: setattr(fake, "gate", asyncio.Event()), silence=0.5)
    with pytest.raises(Unavailable, match=r"has said nothing for 0\.5 seconds"):
        raise found


def test_a_connection_that_is_not_made_is_tried_again(train, listen, fake, people, monkeypatch):
    connect, tries = anyio.connect_tcp, []

    async def reluctant(*args, **how):
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionRefusedError("not yet")
        return await connect(*args, **how)

    monkeypatch.setattr(anyio, "connect_tcp", reluctant)

    async def work(backend):
        return await said(backend.chat(CHAT, people["r0001"], Sampling(3)))

    url = listen(fake.app, 1)
    text, _ = through(lambda: VllmBackend(train(), url), work)
    assert text
    assert len(tries) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_row_that_is_not_finite_is_sent(train, listen, fake, people, bad):
    steerer = copy.deepcopy(train())
    steerer.network_.mlp[-1].bias.data[5] = bad

    async def work(backend):
        for asked in (
            backend.chat(CHAT, people["r0001"], Sampling(3)),
            backend.complete("Roads", people["r0001"], Sampling(3)),
            backend.answers([people["r0001"]], [NEW]),
            backend.answers([people["r0001"]], [NEW], "text"),
        ):
            sent = len(fake.bodies)
            with pytest.raises(ValueError, match="not finite"):
                await anext(asked)
            assert len(fake.bodies) == sent
        text, _ = await said(backend.complete("Roads", None, Sampling(3)))  # the LM itself is well
        return text

    url = listen(fake.app, 1)
    assert through(lambda: VllmBackend(steerer, url), work)


def test_what_is_too_long_for_the_server_is_refused_here(train, listen, fake, people):
    async def work(backend):
        for words, new in ((400, 3), (30, 290)):
            sent = len(fake.bodies)
            with pytest.raises(ValueError, match=r"reads at most 300; shorten the text"):
                await said(backend.complete("Roads? " * words, people["r0001"], Sampling(new)))
            assert len(fake.bodies) == sent

    url = listen(fake.app, 1)
    through(lambda: VllmBackend(train(), url), work)


# many at once ----------------------------------------------------------------------------------------------------
async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.01)


def test_as_many_at_once_as_allowed_and_then_busy(train, listen, fake, people):
    async def work(backend):
        fake.gate = asyncio.Event()
        who = people["r0001"]
        asked = [asyncio.ensure_future(said(backend.chat(CHAT, who, Sampling(4)))) for _ in range(5)]
        await until(lambda: fake.running == 2)
        assert backend.load()["waiting"] == 3
        with pytest.raises(Busy):
            await said(backend.chat(CHAT, who, Sampling(4)))
        fake.gate.set()
        texts = await asyncio.gather(*asked)
        assert (fake.most, len(set(texts))) == (2, 1)
        return backend.load()

    url = listen(fake.app, 1)
    load = through(lambda: VllmBackend(train(), url, max_concurrent=2, max_waiting=3), work)
    assert (load["replies_total"], load["refused_total"], load["running"], load["waiting"]) == (5, 1, 0, 0)
    assert load["tokens_total"] == 20


def test_who_leaves_ends_the_work_there(train, listen, fake, people):
    async def work(backend):
        fake.gate = asyncio.Event()
        pieces = backend.chat(CHAT, people["r0001"], Sampling(50))
        await anext(pieces)
        await pieces.aclose()
        task = asyncio.ensure_future(said(backend.chat(CHAT, people["r0001"], Sampling(50))))
        await until(lambda: fake.running == 1 and fake.most >= 1 and fake.left == 1)
        task.cancel()
        await until(lambda: fake.left == 2)
        return backend.load()

    url = listen(fake.app, 1)
    load = through(lambda: VllmBackend(train(), url), work)
    assert (load["cancelled_total"], load["running"]) == (2, 0)


def test_a_chat_that_several_are_in_is_read_once(train, listen, fake, people, monkeypatch):
    calls = []
    chat_rows = PersonaPrompt.chat_rows

    def counted(self, messages, personas):
        calls.append(len(personas))
        return chat_rows(self, messages, personas)

    monkeypatch.setattr(PersonaPrompt, "chat_rows", counted)
    who = [people[name] for name in people.respondent_ids_[:8]]

    async def work(backend):
        return await asyncio.gather(*(said(backend.chat(CHAT, p, Sampling(3))) for p in who))

    url = listen(fake.app, 1)
    through(lambda: VllmBackend(train(), url), work)
    assert sum(calls) == 8
    assert len(calls) <= 3  # the first may have begun alone


def test_a_persona_of_another_model_harms_nobody_else(train, listen, fake, people):
    me, other = people["r0001"], OpinionModel(n_components=3).fit(load_sample())["r0001"]

    async def work(backend):
        asked = [said(backend.chat(CHAT, who, Sampling(4))) for who in (me, other, me)]
        return await asyncio.gather(*asked, return_exceptions=True)

    url = listen(fake.app, 1)
    first, wrong, third = through(lambda: VllmBackend(train(), url), work)
    assert isinstance(wrong, ValueError)
    assert "numbers" in str(wrong)
    assert first == third


def test_the_end_lets_what_runs_end_and_then_breaks_it_off(train, listen, fake, people):
    async def work(backend):
        fake.gate = asyncio.Event()
        asked = asyncio.ensure_future(said(backend.chat(CHAT, people["r0001"], Sampling(4))))
        await until(lambda: fake.running == 1)
        closing = asyncio.ensure_future(backend.close(0.3))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="the server is closing"):
            await said(backend.chat(CHAT, people["r0001"], Sampling(4)))
        with pytest.raises(Unavailable, match="the server is closing"):
            await asked
        await closing
        return backend.load()

    url = listen(fake.app, 1)
    load = through(lambda: VllmBackend(train(), url), work)
    assert (load["alive"], load["failed_total"], load["running"]) == (0, 1, 0)


def test_the_end_waits_for_what_ends_in_time(train, listen, fake, people):
    async def work(backend):
        fake.gate = asyncio.Event()
        asked = asyncio.ensure_future(said(backend.chat(CHAT, people["r0001"], Sampling(4))))
        await until(lambda: fake.running == 1)
        closing = asyncio.ensure_future(backend.close(60))
        await asyncio.sleep(0)
        fake.gate.set()
        text, (finish, _, _) = await asked
        await closing
        assert text
        return finish

    url = listen(fake.app, 1)
    assert through(lambda: VllmBackend(train(), url), work) == "length"


# the library -----------------------------------------------------------------------------------------------------
def test_a_steerer_of_the_library_answers_and_talks_there(train, listen, fake, survey, people):
    steerer, who = train(), [people[name] for name in people.respondent_ids_[:3]]
    with VllmSteerer(steerer, listen(fake.app, 1)) as remote:
        found = remote.answer(NEW.text, NEW.options, who)
        np.testing.assert_allclose(found, steerer.answer(NEW.text, NEW.options, who), atol=1e-5)
        p = remote.predict_proba(who, survey.questions[:2], "text")
        np.testing.assert_allclose(p, steerer.predict_proba(who, survey.questions[:2], "text"), atol=1e-5)
        assert remote.chat("Roads?", who[0], max_new_tokens=9) == steerer.chat("Roads?", who[0], max_new_tokens=9)
        told = ["".join(row) for row in zip(*remote.stream(LONGER, who, 9), strict=True)]
        assert told == ["".join(row) for row in zip(*steerer.stream(LONGER, who, 9), strict=True)]
        with pytest.raises(ValueError, match="max_tokens must be at least 1"):
            remote.chat("Roads?", who[0], max_new_tokens=0)
    with pytest.raises(RuntimeError):  # it is closed
        remote.chat("Roads?", who[0])
