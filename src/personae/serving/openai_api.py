"""OpenAI's routes: chats, completions and models, so that its clients work unchanged."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from personae.serving.backend import Piece
from personae.serving.errors import ApiError, as_api_error, documented
from personae.serving.openai_schemas import (
    ChatChoice,
    ChatReply,
    ChatRequest,
    CompletionRequest,
    Model,
    Models,
    Said,
    TextChoice,
    TextReply,
    Usage,
)
from personae.serving.schemas import Page
from personae.serving.service import OwnerOf, Service, ServiceOf, begun, in_time, now, while_connected

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_SSE = "text/event-stream"


@router.post(
    "/chat/completions",
    response_model=ChatReply,
    responses=documented(404, 503, 504) | {200: {"content": {_SSE: {"schema": {"type": "string"}}}}},
)
async def chat(asked: ChatRequest, request: Request, service: ServiceOf, owner: OwnerOf) -> Response:
    """Talk with a persona. Streamed, the reply comes as events of `chat.completion.chunk` and ends with `[DONE]`."""
    backend = service.speaker()
    persona = await service.meet(asked.persona or asked.model, owner)
    pieces = backend.chat(asked.turns(), persona, asked.sampling(secrets.randbits(32)))
    return await _reply(_Chat(asked.model), pieces, asked, request, service)


@router.post(
    "/completions",
    response_model=TextReply,
    responses=documented(404, 503, 504) | {200: {"content": {_SSE: {"schema": {"type": "string"}}}}},
)
async def complete(asked: CompletionRequest, request: Request, service: ServiceOf, owner: OwnerOf) -> Response:
    """Go on with a text as a persona."""
    backend = service.speaker()
    persona = await service.meet(asked.persona or asked.model, owner)
    pieces = backend.complete(asked.text, persona, asked.sampling(secrets.randbits(32)))
    return await _reply(_Completion(asked.model), pieces, asked, request, service)


# models ----------------------------------------------------------------------------------------------------------
@router.get("/models", response_model=Models, responses=documented(404))
def models(asked: Annotated[Page, Query()], service: ServiceOf, owner: OwnerOf) -> Models:
    """Who one may talk to: everybody, cohorts, trait groups, personas made here, then respondents, page by page."""
    groups = service.directory.groups()
    rows = _models(service, owner, groups, asked.after, asked.limit + 1)
    data = rows[: asked.limit]
    return Models(data=data, has_more=len(rows) > asked.limit, last_id=data[-1].id if data else None)


def _models(
    service: Service, owner: str, groups: dict[str, tuple[str, str]], after: str | None, limit: int
) -> list[Model]:
    directory = service.directory
    found: list[Model] = []
    names = list(groups)
    if after is None or after in groups:
        names = names[0 if after is None else names.index(after) + 1 :]
        found += [Model(id=n, created=directory.created, kind=groups[n][0], label=groups[n][1]) for n in names[:limit]]
        after = None
    elif after in directory.bundle.people.respondent_ids_:
        return [_respondent(service, n) for n in directory.respondents(after, limit)]
    if len(found) < limit:
        made = directory.store.page(limit - len(found), after, owner)
        if made is None:
            raise ApiError(404, "there is nobody of this name to go on after", "persona_not_found", "after")
        found += [
            Model(id=p.name, created=created, kind=str(p.origin.get("kind", "")), label=p.label) for p, created in made
        ]
    found += [_respondent(service, n) for n in directory.respondents(None, max(0, limit - len(found)))]
    return found


def _respondent(service: Service, name: str) -> Model:
    return Model(id=name, created=service.directory.created, kind="respondent")


@router.get("/models/{model:path}", response_model=Model, responses=documented(404))
def model(model: str, service: ServiceOf, owner: OwnerOf) -> Model:
    """One of them, or a blend."""
    stored = service.directory.stored(model, owner)
    persona = stored.persona if stored else service.directory.find(model, owner)
    created = stored.created if stored else service.directory.created
    return Model(id=model, created=created, kind=str(persona.origin.get("kind", "")), label=persona.label)


# replies ---------------------------------------------------------------------------------------------------------
class _Chat:
    """A chat's reply, whole or in events."""

    def __init__(self, model: str) -> None:
        self.about: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": now(), "model": model}

    def whole(self, text: str, finish: Any, usage: Usage) -> BaseModel:
        choice = ChatChoice(message=Said(content=text.strip()), finish_reason=finish)
        return ChatReply(**self.about, choices=[choice], usage=usage)

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def event(self, text: str, finish: str | None = None) -> dict[str, Any]:
        return self._chunk({} if finish else {"content": text}, finish)

    def usage(self, usage: Usage) -> dict[str, Any]:
        return {**self._chunk({}), "choices": [], "usage": usage.model_dump()}

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self.about, "object": "chat.completion.chunk", "choices": [choice]}


class _Completion:
    """A completion, whole or in events."""

    def __init__(self, model: str) -> None:
        self.about: dict[str, Any] = {"id": f"cmpl-{secrets.token_hex(12)}", "created": now(), "model": model}

    def whole(self, text: str, finish: Any, usage: Usage) -> BaseModel:
        return TextReply(**self.about, choices=[TextChoice(text=text, finish_reason=finish)], usage=usage)

    def opening(self) -> list[dict[str, Any]]:
        return []

    def event(self, text: str, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {**self.about, "object": "text_completion", "choices": [choice]}

    def usage(self, usage: Usage) -> dict[str, Any]:
        return {**self.event(""), "choices": [], "usage": usage.model_dump()}


async def _reply(
    shape: _Chat | _Completion,
    pieces: AsyncGenerator[Piece, None],
    asked: ChatRequest | CompletionRequest,
    request: Request,
    service: Service,
) -> Response:
    timed = in_time(pieces, service.deadline)
    if not asked.stream:
        said = await while_connected(request, _all(timed))
        usage = _usage(said[-1], service)
        return _json(shape.whole("".join(p.text for p in said), said[-1].finish, usage))
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return StreamingResponse(_events(shape, await begun(request, timed), with_usage, service), media_type=_SSE)


async def _all(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _events(
    shape: _Chat | _Completion, pieces: AsyncGenerator[Piece, None], with_usage: bool, service: Service
) -> AsyncIterator[str]:
    async with aclosing(pieces):
        try:
            for opening in shape.opening():
                yield _event(opening)
            last = Piece("")
            async for last in pieces:
                if last.text:
                    yield _event(shape.event(last.text))
            yield _event(shape.event("", last.finish))
            usage = _usage(last, service)
            if with_usage:
                yield _event(shape.usage(usage))
        except Exception as error:
            yield _event(as_api_error(error).body())
        yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _json(reply: BaseModel) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json")


def _usage(last: Piece, service: Service) -> Usage:
    service.metrics.tokens.labels("prompt").inc(last.prompt_tokens)
    service.metrics.tokens.labels("completion").inc(last.completion_tokens)
    total = last.prompt_tokens + last.completion_tokens
    return Usage(prompt_tokens=last.prompt_tokens, completion_tokens=last.completion_tokens, total_tokens=total)
