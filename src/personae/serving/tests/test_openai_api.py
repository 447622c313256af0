"""The official client, unchanged, and what it does not show."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from personae.serving.openai_schemas import CHARACTERS, MESSAGES, TOKENS
from personae.serving.tests.conftest import eventually

HELLO = [{"role": "user", "content": "hello to all of you"}]


@pytest.fixture
def official(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live() + "/v1", api_key="none is needed", max_retries=0)


# the official client ---------------------------------------------------------------------------------------------
def test_chat(official, echo):
    reply = official.chat.completions.create(model="cohort-1", messages=HELLO, max_tokens=7, temperature=0.2, seed=3)
    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason) == ("hello to all of you", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 5, 10)
    (messages, persona, sampling) = echo.asked[-1]
    assert messages == HELLO
    assert persona.name == "cohort-1"
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (7, 0.2, 3)


def test_streamed_chat(official):
    chunks = list(
        official.chat.completions.create(
            model="r0007", messages=HELLO, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello to all"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert len({c.id for c in chunks}) == 1


def test_whoever_speaks(official, echo, bundle):
    def asked(model: str, **extra) -> object:
        official.chat.completions.create(model=model, messages=HELLO, **({"extra_body": extra} if extra else {}))
        return echo.asked[-1][1]

    assert asked("trait:partyid=strong democrat").origin["kind"] == "trait group"
    assert asked("0.7*cohort-0+0.3*r0007").name == "0.7 cohort-0 + 0.3 r0007"
    assert asked("everybody").name == "everybody"
    blend = asked("anybody", persona={"blend": {"cohort-0": 3, "r0007": 1}})
    assert blend == bundle.persona("0.75*cohort-0+0.25*r0007")
    me = {"natenvir": "too little", "natarms": "too much"}
    assert asked("anybody", persona={"answers": me}) == bundle.people.fold_in(me)


def test_completions(official):
    reply = official.completions.create(model="cohort-0", prompt="one two three", max_tokens=2)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("one two", "length")
    pieces = list(official.completions.create(model="cohort-0", prompt=["one two three"], stream=True))
    assert "".join(p.choices[0].text for p in pieces) == "one two three"
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_models(official):
    first = official.models.list(extra_query={"limit": 3})
    assert [m.id for m in first.data] == ["everybody", "cohort-0", "cohort-1"]
    assert official.models.retrieve("trait:partyid=strong democrat").kind == "trait group"
    with pytest.raises(openai.NotFoundError, match="nearest: cohort-3"):
        official.models.retrieve("cohort-9")


def test_errors_are_the_clients_own(official, echo):
    def create(**how) -> None:
        official.chat.completions.create(**{"model": "cohort-0", "messages": HELLO, **how})

    with pytest.raises(openai.NotFoundError) as error:
        create(model="cohort-99")
    assert error.value.code == "persona_not_found"
    with pytest.raises(openai.BadRequestError, match="leave out the oldest messages"):
        create(messages=[{"role": "user", "content": "too long"}])
    with pytest.raises(openai.BadRequestError) as error:
        create(n=16_384)
    assert error.value.param == "n"
    with pytest.raises(openai.APIError, match="something unexpected"):
        list(
            official.chat.completions.create(
                model="cohort-0", messages=[{"role": "user", "content": "a break"}], stream=True
            )
        )
    echo.full = True
    with pytest.raises(openai.RateLimitError) as busy:
        create(stream=True)
    assert busy.value.response.headers["retry-after"] == "3"


# what the client does not show -----------------------------------------------------------------------------------
def test_every_model_is_listed_once_by_paging(client, bundle):
    made = [client.post("/v1/personas", json={"blend": {"cohort-0": 1}}).json()["id"] for _ in range(3)]
    found, after = [], None
    while True:
        page = client.get(
            "/v1/models", params={"limit": 7 if not after else 1000, **({"after": after} if after else {})}
        )
        found += [m["id"] for m in page.json()["data"]]
        after = page.json()["last_id"]
        if not page.json()["has_more"]:
            break
    assert len(found) == len(set(found))
    assert found[:5] == ["everybody", "cohort-0", "cohort-1", "cohort-2", "cohort-3"]
    assert found[-len(bundle.people) :] == list(bundle.people.respondent_ids_)
    assert found[-len(bundle.people) - 3 : -len(bundle.people)] == made
    assert client.get("/v1/models", params={"after": "nobody"}).json()["error"]["param"] == "after"


def test_the_end_of_a_page_may_be_anywhere(client):
    everyone = [m["id"] for m in client.get("/v1/models?limit=1000").json()["data"]]
    for start in range(0, 60, 7):
        page = client.get("/v1/models", params={"limit": 5, "after": everyone[start]}).json()
        assert [m["id"] for m in page["data"]] == everyone[start + 1 : start + 6]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": HELLO * (MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * (CHARACTERS + 1)}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a" * (CHARACTERS // 2 + 1)}] * 2}, None),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"max_tokens": TOKENS + 1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"tools": []}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"persona": {"vector": [1.0, 2.0]}}, "persona.vector"),
        ({"persona": {"name": "cohort-0", "answers": {"natenvir": "too little"}}}, "persona"),
        ({"persona": {"blend": {"cohort-0": -1}}}, "persona.blend.cohort-0"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ],
)
def test_what_is_too_much_or_unknown_is_refused_before_anybody_is_asked(client, echo, change, param):
    reply = client.post("/v1/chat/completions", json={"model": "cohort-0", "messages": HELLO, **change})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert echo.asked == []


@pytest.mark.parametrize(
    "body", ['{"model": "cohort-0", "temperature": %s, "messages": [{"role": "user", "content": "a"}]}']
)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_that_is_none(client, echo, body, number):
    reply = client.post("/v1/chat/completions", content=body % number, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert echo.asked == []


def test_text_that_is_none(client, echo):
    for text in ("\\ud800", "a\\u0000b"):
        body = '{"model": "cohort-0", "messages": [{"role": "user", "content": "%s"}]}' % text  # noqa: UP031
        reply = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert "which is no text" in reply.json()["error"]["message"]
    assert echo.asked == []


def test_parts_of_content_and_the_developer_are_understood(client, echo):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert client.post("/v1/chat/completions", json={"model": "cohort-0", "messages": messages}).status_code == 200
    assert echo.asked[-1][0] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one\ntwo"}]


def test_without_a_seed_every_reply_has_its_own(client, echo):
    for _ in range(3):
        client.post("/v1/chat/completions", json={"model": "cohort-0", "messages": HELLO})
    assert len({sampling.seed for _, _, sampling in echo.asked}) == 3


def test_a_bundle_without_a_language_model_says_so(serve):
    reply = serve(backend=None).post("/v1/chat/completions", json={"model": "cohort-0", "messages": HELLO})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_language_model")
    assert "personae steer" in reply.json()["error"]["message"]


# time ------------------------------------------------------------------------------------------------------------
def test_a_request_ends_at_its_deadline(serve, echo):
    client = serve(deadline=0.3)
    echo.pause = 0.1
    message = [{"role": "user", "content": "a " * 50}]
    whole = client.post("/v1/chat/completions", json={"model": "cohort-0", "messages": message})
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
    streamed = client.post("/v1/chat/completions", json={"model": "cohort-0", "messages": message, "stream": True})
    *_, error, end = streamed.text.strip().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert end == "data: [DONE]"
    assert echo.closed == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_answered_to_the_end(live, echo, stream):
    url = live()
    echo.pause = 0.05
    message = [{"role": "user", "content": "a " * 1000}]
    body = {"model": "cohort-0", "messages": message, "stream": stream, "max_tokens": 1000}
    begin = time.monotonic()
    with httpx.Client(timeout=0.5) as client:
        if stream:
            with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
                next(reply.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{url}/v1/chat/completions", json=body)
    assert echo.closed in (0, 1)
    assert eventually(lambda: echo.closed == 1)
    assert time.monotonic() - begin < 40  # all of it would take 50
