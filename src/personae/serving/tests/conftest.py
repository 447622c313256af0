from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from personae import Bundle, Cohorts, OpinionModel, Survey, load_sample
from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.lm.tiny import tiny_lm
from personae.people.persona import Persona
from personae.serving.app import create_app
from personae.serving.backend import Busy, Piece, Sampling
from personae.serving.directory import model_of
from personae.serving.guard import Rules
from personae.serving.store import PersonaStore


class Echo:
    """A backend that repeats the last message, a word a piece; it keeps what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[tuple[object, Persona | None, Sampling]] = []
        self.closed = 0  # replies that ended, or were given up
        self.pause = 0.0  # seconds between words
        self.full = False
        self.grace: float | None = None

    async def chat(self, messages: Sequence[dict], persona: Persona, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        async for piece in self.complete(messages[-1]["content"], persona, sampling, messages):
            yield piece

    async def complete(
        self, text: str, persona: Persona | None, sampling: Sampling, asked: object = None
    ) -> AsyncGenerator[Piece, None]:
        self.asked.append((asked or text, persona, sampling))
        if self.full:
            raise Busy(2.5)
        if text == "too long":
            raise ValueError("this chat has 999 tokens and the language model takes 512; leave out the oldest messages")
        if text.startswith("break"):
            raise RuntimeError(text)
        words = text.split(" ")
        try:
            for i, word in enumerate(words[: sampling.max_tokens]):
                await asyncio.sleep(self.pause)
                if word == "break":
                    raise RuntimeError(text)
                yield Piece(("" if i == 0 else " ") + word)
            finish = "length" if len(words) > sampling.max_tokens else "stop"
            yield Piece("", finish, len(words), min(len(words), sampling.max_tokens))
        finally:
            self.closed += 1

    async def answers(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> AsyncGenerator[np.ndarray, None]:
        width = max(len(q.options) for q in questions)
        try:
            for start in range(0, len(questions), 2):
                await asyncio.sleep(self.pause)
                block = questions[start : start + 2]
                p = np.zeros((len(personas), len(block), width), np.float32)
                for j, q in enumerate(block):
                    p[:, j, : len(q.options)] = 1 / len(q.options)
                yield p
        finally:
            self.closed += 1

    async def close(self, grace: float) -> None:
        self.grace = grace

    def load(self) -> dict[str, float]:
        return {"alive": 1.0, "waiting": 0.0}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Bundle:
    """Some of the sample's people, without a steerer; read only."""
    survey = load_sample()
    survey = survey.select(survey.respondent_ids[:600])
    people = OpinionModel(n_components=4).fit(survey)
    folder = tmp_path_factory.mktemp("bundle") / "gss"
    Bundle.write(folder, people, Cohorts(k=4).fit(people, survey), account=survey.account)
    return Bundle.open(folder)


@pytest.fixture
def store(bundle, tmp_path) -> Iterator[PersonaStore]:
    store = PersonaStore(f"sqlite:///{tmp_path}/personas.sqlite", model_of(bundle))
    yield store
    store.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


Client = Callable[..., TestClient]


@pytest.fixture
def serve(bundle, store, echo) -> Iterator[Client]:
    """Clients of a server: ``serve(rules, deadline=...)``."""
    open_clients: list[TestClient] = []

    def serve(rules: Rules | None = None, backend: object = echo, bundle: Bundle = bundle, **how) -> TestClient:
        app = create_app(bundle, store, backend, rules, **how)  # type: ignore[arg-type]
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        client.__enter__()
        open_clients.append(client)
        return client

    yield serve
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve) -> TestClient:
    return serve()


@pytest.fixture
def listen() -> Iterator[Callable[..., str]]:
    """URLs of applications that really listen: ``listen(app, seconds for what runs at the end)``."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def listen(app: FastAPI, grace: int = 5) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield listen
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def live(bundle, store, echo, listen) -> Callable[..., str]:
    """URLs of servers that really listen: ``live(rules, deadline=...)``."""

    def live(rules: Rules | None = None, backend: object = echo, **how) -> str:
        return listen(create_app(bundle, store, backend, rules, **how))  # type: ignore[arg-type]

    return live


@pytest.fixture(scope="module")
def survey() -> Survey:
    return load_sample()


@pytest.fixture(scope="module")
def people(survey: Survey) -> OpinionModel:
    return OpinionModel(n_components=4).fit(survey)


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


def eventually(happened: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it happens before long."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()
