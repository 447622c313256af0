"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from personae.serving.backend import Busy, Unavailable

_log = logging.getLogger("personae.serving")
_FRAMES = 8  # of a traceback that are logged, the innermost


class ErrorBody(BaseModel):
    """What is wrong, for people and for programs."""

    message: str = Field(description="A sentence: what is wrong, where, and what to do.")
    type: str = Field(description="The kind of error, e.g. invalid_request_error.")
    param: str | None = Field(None, description="The part of the request that is wrong, e.g. messages.0.content.")
    code: str | None = Field(None, description="A short name of this error, e.g. persona_not_found.")


class ErrorReply(BaseModel):
    """Every error has this shape."""

    error: ErrorBody


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
_MEANING = {
    400: "The request is malformed, or asks for something that cannot be done.",
    401: "An API key is needed, or the given one is unknown.",
    403: "This is not allowed.",
    404: "Nobody and nothing has this name.",
    413: "The body is larger than the server takes.",
    429: "Too many requests; `Retry-After` says in how many seconds to try again.",
    503: "The server is stopping, or its language model failed.",
    504: "It took longer than the server's deadline for one request.",
}


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: the given statuses, and those that every route may answer."""
    return {s: {"model": ErrorReply, "description": _MEANING[s]} for s in sorted({*statuses, 400, 401, 403, 413, 429})}


def as_api_error(error: Exception, param: str | None = None) -> ApiError:
    """What a client is told of an exception; of one that nobody foresaw, nothing, and the log where it happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return too_many(str(error), error.retry_after, "server_busy")
    if isinstance(error, Unavailable):
        return ApiError(503, str(error) or "the server is stopping; try again later", "unavailable")
    if isinstance(error, TimeoutError):
        return ApiError(504, "this took longer than the server's deadline; ask for less", "deadline_exceeded")
    if isinstance(error, ValueError) and str(error):
        return ApiError(400, str(error), "invalid_value", param)
    # Where it happened, not what it says: an exception may quote what somebody wrote
    _log.error("%s at\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES)))
    return ApiError(500, "something unexpected went wrong; the server's log says where", "internal_error")


def too_many(message: str, retry_after: float, code: str) -> ApiError:
    return ApiError(429, message, code, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})


def install(app: FastAPI) -> None:
    """Give every error of the app the same shape."""

    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if not isinstance(error, ApiError):  # of the framework: no such route, no such method, a broken body
            sentences = {
                404: f"there is nothing at {request.url.path}; GET /openapi.json lists what there is",
                405: f"{request.url.path} does not take {request.method}; GET /openapi.json lists what there is",
            }
            error = ApiError(
                error.status_code, sentences.get(error.status_code, str(error.detail)), headers=error.headers
            )
        return error.response()

    async def known(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    for kind in (Busy, Unavailable, TimeoutError, ValueError):
        app.add_exception_handler(kind, known)


_KINDS = re.compile(r"str|list|.*[\[(].*|[A-Z][A-Za-z]+")  # alternatives of a field, which a place in a request is not


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """The most telling thing that is wrong with a request; what was sent is not repeated."""
    found = [(_place(e["loc"]), e) for e in error.errors()]
    # Of the alternatives of a field the one that got furthest, or says more than that it is another type
    place, worst = max(found, key=lambda pair: (len(pair[0]), pair[1]["type"] == "value_error"))
    if worst["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", "invalid_json").response()
    param = ".".join(map(str, place)) or None
    message = worst["msg"].removeprefix("Value error, ")
    message = f"{param}: {message[0].lower()}{message[1:]}" if param else message
    return ApiError(400, message, "invalid_request", param).response()


def _place(loc: tuple[str | int, ...]) -> list[str | int]:
    return [part for part in loc[1:] if isinstance(part, int) or not _KINDS.fullmatch(part)]
