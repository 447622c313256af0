"""`VllmClient`: requests to one vLLM server, and what goes wrong with them as sentences."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import httpx

from personae.serving.backend import Busy, Unavailable

_CONNECT = 5.0  # seconds until a server that is there has answered the first packet
_RETRIES = 2  # of a connection that was not made: nothing was sent yet
_IDLE = 2.0  # seconds for which a connection is kept; vLLM gives it up after five, and a request must not meet that
_START = "vllm serve MODEL --enable-prompt-embeds"


class VllmClient:
    """A vLLM server over HTTP.

    Parameters
    ----------
    url : str
        Where it is, with or without ``/v1``.
    api_key : str, optional
    silence : float
        Seconds without a word after which the server is given up.

    Examples
    --------
    >>> VllmClient("http://localhost:8000/v1/").url
    'http://localhost:8000'
    """

    def __init__(self, url: str, api_key: str | None = None, silence: float = 300.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f'"{url}" is no address of a server; give one like http://localhost:8000')
        self.silence = silence
        self._how: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": httpx.Timeout(silence, connect=_CONNECT, pool=None),
        }
        limits = httpx.Limits(max_connections=None, keepalive_expiry=_IDLE)
        # Only a connection that is not made is tried again, so no text is ever begun twice
        self._http = httpx.AsyncClient(**self._how, transport=httpx.AsyncHTTPTransport(retries=_RETRIES, limits=limits))

    def ask(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to a single request, whatever its status, waited for; without a body it is a GET.

        Raises
        ------
        Unavailable
            There is none.
        """
        with self._explained(), httpx.Client(**self._how) as http:
            return http.get(path) if body is None else http.post(path, json=body)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON that answers a request.

        Raises
        ------
        ValueError
            The server refuses the request.
        Busy, Unavailable
            It takes no more of them now, or none at all.
        """
        with self._explained():
            response = await self._http.post(path, json=body)
        self._check(response)
        return json_of(response) or {}

    async def tokens(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[int], None]:
        """The tokens of a text as the server makes them, some at a time; raises as `post` does.

        The last ones come when the server has said everything, so that the connection can serve another request.
        """
        body = {**body, "stream": True, "return_token_ids": True}
        with self._explained():
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._check(response)
                last: list[int] | None = None
                async with aclosing(response.aiter_lines()) as lines:  # type: ignore[type-var]
                    async for line in lines:
                        event = _event(line)
                        if "error" in event:
                            raise Unavailable(f"vLLM at {self.url} broke off the reply: {_message(event)}")
                        for choice in event.get("choices", ()):
                            new = choice.get("token_ids") or []
                            if choice.get("finish_reason") in ("stop", "length"):
                                last = new
                            elif choice.get("finish_reason"):
                                raise Unavailable(f"vLLM at {self.url} broke off the reply")
                            elif new:
                                yield new
                if last is None:
                    raise Unavailable(f"vLLM at {self.url} broke off the reply")
        yield last

    async def close(self) -> None:
        """Give up all connections."""
        await self._http.aclose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(
                f"vLLM cannot be reached at {self.url} ({str(error) or 'no answer'}); is it running? {_START}"
            ) from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"vLLM at {self.url} has said nothing for {self.silence:g} seconds") from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the connection to vLLM at {self.url} broke off ({reason})") from error

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        message = _message(json_of(response) or {})
        if status == 429:
            given = response.headers.get("Retry-After", "")
            raise Busy(float(given) if given.isdigit() else 1.0)
        if status in (401, 403):
            raise Unavailable(f"vLLM at {self.url} refuses the API key; give the right one in VLLM_API_KEY")
        if status in (400, 413, 422):
            raise ValueError(f"vLLM refuses this request: {message}")
        raise Unavailable(f"vLLM at {self.url} failed with status {status}: {message}")


def json_of(response: httpx.Response) -> dict[str, Any] | None:
    """The JSON object of an answer; None if it is none."""
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _event(line: str) -> dict[str, Any]:
    """A line of a stream of events; nothing of a comment, an empty line or the end."""
    kind, _, data = line.partition(": ")
    if kind != "data" or data.strip() == "[DONE]":
        return {}
    try:
        event = json.loads(data)
    except ValueError:
        return {"error": {"message": "it is not JSON"}}
    return event if isinstance(event, dict) else {}


def _message(body: dict[str, Any]) -> str:
    """What an error says, on one short line."""
    error = body.get("error", body)
    said = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(said or "no reason is given").split())[:300]
