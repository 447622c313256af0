from __future__ import annotations

import http.client
import json
import logging
from urllib.parse import urlsplit

import pytest

from personae.serving.guard import BODY, Rules
from personae.serving.keys import Keys

HELLO = {"model": "cohort-0", "messages": [{"role": "user", "content": "my secret words"}]}


@pytest.fixture
def keys(tmp_path) -> tuple[Keys, str, str]:
    file = tmp_path / "keys.json"
    ann, bob = Keys.new(file, "ann"), Keys.new(file, "bob")
    return Keys.read(file), ann, bob


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# keys ------------------------------------------------------------------------------------------------------------
def test_every_route_but_the_health_check_needs_a_key(serve, keys, client):
    guarded = serve(Rules(keys[0], hosts=None))
    document = client.get("/openapi.json").json()
    routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
    assert len(routes) > 12
    for method, path in [
        *routes,
        ("get", "/openapi.json"),
        ("get", "/docs"),
        ("get", "/nowhere"),
        ("get", "/healthz/"),
    ]:
        reply = guarded.request(method, path.replace("{name}", "cohort-0").replace("{model}", "cohort-0"))
        assert reply.status_code == (200 if path == "/healthz" else 401), path
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"]["type"] == "authentication_error"
    for wrong in ("pk-guess", keys[1][:-1], keys[1] + "a", "", "é"):
        assert guarded.get("/v1/models", headers={"Authorization": f"Bearer {wrong}".encode()}).status_code == 401
    assert guarded.get("/v1/models", headers={"Authorization": f"Basic {keys[1]}"}).status_code == 401
    for key in keys[1:]:
        assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200


def test_personas_belong_to_the_key_that_made_them(serve, keys):
    client, ann, bob = serve(Rules(keys[0], hosts=None)), bearer(keys[1]), bearer(keys[2])
    mine = client.post("/v1/personas", json={"blend": {"cohort-0": 1}}, headers=ann).json()["id"]
    assert client.get(f"/v1/personas/{mine}", headers=ann).status_code == 200
    for method, path in [
        ("GET", f"/v1/personas/{mine}"),
        ("DELETE", f"/v1/personas/{mine}"),
        ("GET", f"/v1/models/{mine}"),
    ]:
        assert client.request(method, path, headers=bob).status_code == 404
    assert client.get("/v1/personas", headers=bob).json()["data"] == []
    body = {**HELLO, "model": mine}
    assert client.post("/v1/chat/completions", json=body, headers=bob).status_code == 404
    assert (
        client.post("/v1/chat/completions", json={**HELLO, "persona": {"blend": {mine: 1}}}, headers=bob).status_code
        == 404
    )
    assert client.post("/v1/chat/completions", json=body, headers=ann).status_code == 200


# rate ------------------------------------------------------------------------------------------------------------
def test_the_rate_is_counted_per_key(serve, keys):
    client = serve(Rules(keys[0], hosts=None, rate="3/minute"))
    assert [client.get("/v1/models?limit=1", headers=bearer(keys[1])).status_code for _ in range(4)] == [200] * 3 + [
        429
    ]
    late = client.get("/v1/models?limit=1", headers=bearer(keys[1]))
    assert 1 <= int(late.headers["retry-after"]) <= 60
    assert late.json()["error"]["code"] == "rate_limit_exceeded"
    assert client.get("/v1/models?limit=1", headers=bearer(keys[2])).status_code == 200
    assert client.get("/healthz").status_code == 200
    assert [client.get("/v1/models").status_code for _ in range(4)] == [401] * 3 + [429]  # guessing is slow, too


# hosts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_point_here_gets_nothing(client, host, status):
    assert client.get("/v1/cohorts", headers={"host": host}).status_code == status


def test_other_web_pages_may_not_use_it_unless_allowed(serve):
    client, there = serve(), {"origin": "https://elsewhere.example"}
    assert client.post("/v1/personas", json={"blend": {"cohort-0": 1}}, headers=there).status_code == 403
    assert client.get("/v1/cohorts", headers={"origin": "http://localhost"}).status_code == 200
    assert client.get("/v1/cohorts", headers={"origin": "null"}).status_code == 403
    assert "access-control-allow-origin" not in client.get("/v1/cohorts").headers
    open_to = serve(Rules(origins=("https://elsewhere.example",)))
    assert open_to.get("/v1/cohorts", headers=there).headers["access-control-allow-origin"] == there["origin"]
    preflight = {**there, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert open_to.options("/v1/personas", headers=preflight).status_code == 200


def test_forms_of_other_pages_are_not_taken_for_json(client):
    text = json.dumps({"blend": {"cohort-0": 1}})
    assert client.post("/v1/personas", content=text, headers={"content-type": "text/plain"}).status_code == 400


# bodies ----------------------------------------------------------------------------------------------------------
def test_a_large_body_is_refused_announced_or_not(client, echo):
    large = json.dumps({"model": "cohort-0", "messages": [{"role": "user", "content": "a" * BODY}]}).encode()
    pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))
    for content in (large, pieces):  # httpx sends an iterator in chunks
        reply = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
    assert client.post("/v1/chat/completions", json=HELLO, headers={"content-length": "1e9"}).status_code in (400, 413)
    assert echo.asked == []


def test_chunks_over_a_real_connection(live):
    connection = http.client.HTTPConnection(urlsplit(live()).netloc, timeout=30)
    connection.request(
        "POST",
        "/v1/chat/completions",
        body=(b"[" * 65536 for _ in range(BODY // 65536 + 2)),
        headers={"Content-Type": "application/json"},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 413


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", '"text"', "[" * 100_000, '{"a":' * 50_000, "\xff\xfe", f'{{"model": {"9" * 5000}}}'],
    ids=range(9),
)
def test_bodies_that_are_no_request(client, body):
    reply = client.post(
        "/v1/chat/completions", content=body.encode("latin-1"), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


# replies ---------------------------------------------------------------------------------------------------------
def test_every_error_has_the_same_shape(client):
    for reply in (
        client.get("/nowhere"),
        client.put("/v1/map"),
        client.get("/v1/models?limit=0"),
        client.get("/v1/models?limit=x"),
    ):
        assert 400 <= reply.status_code < 500
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/v1/models?limit=0").json()["error"]["param"] == "limit"


def test_headers_for_browsers(client):
    headers = client.get("/v1/cohorts").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_the_log_has_no_word_of_a_message(client, caplog):
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/chat/completions", json=HELLO)
        client.post("/v1/chat/completions", json={**HELLO, "messages": [{"role": "user", "content": "break secret"}]})
        client.post("/v1/chat/completions", json={**HELLO, "secret": 1})
        client.get("/v1/personas/my secret words")
    said = [r.getMessage() for r in caplog.records if r.name.startswith("personae")]
    assert any("POST /v1/chat/completions 200" in line for line in said)
    assert any("RuntimeError at" in line for line in said)
    assert not any("secret" in line for line in said)


def test_metrics_count(client):
    client.post("/v1/chat/completions", json=HELLO)
    client.get("/v1/personas/anything/that/a/client/invents")
    client.get("/invented")
    text = client.get("/metrics").text
    assert 'personae_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'personae_tokens_total{kind="completion"} 3.0' in text
    assert "personae_backend_alive 1.0" in text
    assert "invent" not in text


def test_health_follows_the_backend(serve, echo):
    client = serve()
    assert client.get("/healthz").json() == {"status": "ok"}
    echo.load = lambda: {"alive": 0.0}
    assert client.get("/healthz").status_code == 503


def test_the_backend_has_its_grace_at_the_end(serve, echo):
    client = serve(grace=3.0)
    assert client.get("/healthz").status_code == 200
    assert echo.grace is None
    client.__exit__(None, None, None)
    assert echo.grace == 3.0
    client.__enter__()
