"""What the routes share: the bundle's people, the backend, and how a reply ends in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from personae.people.persona import Persona
from personae.serving.backend import Backend
from personae.serving.directory import Directory
from personae.serving.errors import ApiError
from personae.serving.metrics import Metrics
from personae.serving.schemas import PersonaSpec, Questions
from personae.serving.survey_facts import SurveyFacts

T = TypeVar("T")


@dataclass
class Service:
    """One server's parts.

    Parameters
    ----------
    backend : Backend or None
        Who speaks; a bundle without a steerer has none.
    deadline : float
        Seconds that one request may take.
    """

    directory: Directory
    facts: SurveyFacts
    backend: Backend | None
    metrics: Metrics
    deadline: float

    def __post_init__(self) -> None:
        # What never changes is computed and written once, before anybody asks
        questions = Questions(data=list(self.facts.questions.values()))
        parts = {"cohorts": self.facts.cohort_cards(), "questions": questions, "map": self.facts.map()}
        self.facts_json = {name: part.model_dump_json().encode() for name, part in parts.items()}

    def speaker(self) -> Backend:
        """The backend; raises `ApiError` if the bundle has nobody who speaks."""
        if self.backend is None:
            raise ApiError(400, "this bundle has no language model; make one with: personae steer", "no_language_model")
        return self.backend

    async def meet(self, who: str | PersonaSpec, owner: str) -> Persona:
        return await run_in_threadpool(self.directory.meet, who, owner)


def _service(request: Request) -> Service:
    return request.app.state.service


def _owner(request: Request) -> str:
    """Name of the API key; empty without keys."""
    return str(request.state.owner)


ServiceOf = Annotated[Service, Depends(_service)]
OwnerOf = Annotated[str, Depends(_owner)]


async def in_time(items: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T, None]:
    """The same items; ``TimeoutError`` once they have taken so long. Always closed at the end."""
    end = asyncio.get_running_loop().time() + seconds
    async with aclosing(items):
        while True:
            try:
                async with asyncio.timeout_at(end):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            yield item


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client leaves."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(400, "the client left", "client_left")  # nobody reads this
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def begun(request: Request, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items once there is a first one: what is wrong with a request shows there, before the reply's status."""
    first = await while_connected(request, anext(items))

    async def all_of_them() -> AsyncGenerator[T, None]:
        async with aclosing(items):
            yield first
            async for item in items:
                yield item

    return all_of_them()


def now() -> int:
    return int(time.time())
