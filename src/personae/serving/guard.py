"""`Guard`: what every request passes before a route sees it, and every reply on its way out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personae.serving.errors import ApiError, as_api_error, too_many
from personae.serving.keys import Keys
from personae.serving.metrics import Metrics

BODY = 2 * 1024 * 1024  # bytes
BODY_SECONDS = 30.0  # for a body to arrive
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEALTH = "/healthz"
_PUBLIC = ("/", "/plotly.min.js", "/favicon.ico")  # the page: the same for everybody, and it asks for the key
_PUBLIC_FOLDER = "/page/"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}

_log = logging.getLogger("personae.serving")


@dataclass(frozen=True)
class Rules:
    """Who may ask how often, and from where.

    Parameters
    ----------
    keys : Keys or None
        Without keys everybody who reaches the server may use it.
    hosts : sequence of str or None
        Host names under which the server answers; any where None. Without keys these are the loopback's, so that a web
        page whose name is made to point here ("DNS rebinding") gets nothing.
    origins : sequence of str
        Other web pages that may use it (CORS), e.g. ``"https://example.org"``.
    rate : str
        Requests of one key, e.g. ``"600/minute"``.
    """

    keys: Keys | None = None
    hosts: Sequence[str] | None = LOOPBACK
    origins: Sequence[str] = ()
    rate: str = "600/minute"


class Guard:
    """ASGI middleware: host, key, rate and size of a request; headers, log line and metrics of its reply.

    The log says who asked which route, never what.
    """

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics) -> None:
        self.app, self.rules, self.metrics = app, rules, metrics
        self._rate = parse(rules.rate)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not self._is_public(scope["path"]):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            with self.metrics.running.track_inprogress():
                await self._checked(scope, receive, out)
        except Exception as error:
            reply = as_api_error(error)
            if not status:
                await reply.response()(scope, receive, out)
        finally:
            route = getattr(scope.get("route"), "path", "(other)")
            seconds = time.perf_counter() - begin
            self.metrics.request(scope["method"], route, status, seconds)
            owner = scope.get("state", {}).get("owner", "")
            _log.info("%s %s %s %.3f s%s", scope["method"], route, status or "left", seconds, f" {owner}" * bool(owner))

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            owner = "" if self._is_public(scope["path"]) else self._owner(headers, scope)
            scope.setdefault("state", {})["owner"] = owner
            body = await _body(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:  # they left
            return
        await self.app(scope, _again(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        host = _host(f"//{headers.get('host', '')}")
        if self.rules.hosts is not None and host not in self.rules.hosts:
            raise ApiError(403, "this server does not answer to the name in the Host header", "host_not_allowed")
        origin = headers.get("origin")
        if origin is None or origin in self.rules.origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(403, "other web pages may not use this server", "origin_not_allowed")

    def _owner(self, headers: Headers, scope: Scope) -> str:
        """Name of the key, after counting the request."""
        client = (scope.get("client") or ("",))[0]
        owner = ""
        if self.rules.keys is not None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            found = self.rules.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
            self._count("client" if found is None else "key", client if found is None else found)
            if found is None:
                sentence = "an API key is needed: send the header  Authorization: Bearer KEY"
                raise ApiError(401, sentence, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            owner = found
        else:
            self._count("client", client)
        return owner

    def _count(self, kind: str, who: str) -> None:
        if not self._limiter.hit(self._rate, kind, who):
            again = self._limiter.get_window_stats(self._rate, kind, who).reset_time - time.time()
            raise too_many(f"more than {self.rules.rate}; wait a little", again, "rate_limit_exceeded")

    @staticmethod
    def _is_public(path: str) -> bool:
        return path == HEALTH or path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body, whether its length was announced or not; None if the client left."""
    too_large = ApiError(413, f"the body has more than {BODY:,} bytes; ask in several requests", "body_too_large")
    announced = headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > BODY:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(400, f"the body did not arrive within {BODY_SECONDS:.0f} seconds", "body_too_slow") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` with the body that was read already."""
    told = False

    async def once() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
