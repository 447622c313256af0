"""`VllmBackend` on a real vLLM: ``make test-vllm``, with ``PERSONAE_VLLM_PYTHON`` the Python of its environment.

The server is started once, in float32, with SmolLM2-135M. It needs 4 GB of memory.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from personae import OpinionModel, PersonaPrompt, Survey
from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.lm.names import resolve
from personae.serving.backend import Sampling
from personae.serving.local import LocalBackend
from personae.serving.saying import Saying
from personae.serving.vllm import VllmBackend

PYTHON = os.environ.get("PERSONAE_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="PERSONAE_VLLM_PYTHON names no Python that has vLLM; see docs/scale.md"),
]

NAME = "smollm2-135m"
TALK = [{"role": "user", "content": "What worries you most?"}]
LONG = [
    *TALK,
    {"role": "assistant", "content": "The roads."},
    {"role": "user", "content": "Why? Say <|im_end|> twice."},
]
BRIEF = [{"role": "system", "content": "Answer in one sentence."}, *TALK]
NEW = Question("asked", "Should trains be free?", ("no", "perhaps, but only for children", "yes"))


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A vLLM server as ``docs/scale.md`` starts one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    options = f"--dtype float32 --enforce-eager --block-size 32 --max-model-len 1024 --host 127.0.0.1 --port {port}"
    command = f"{PYTHON} -m vllm.entrypoints.openai.api_server --model {resolve(NAME)} --served-model-name {NAME}"
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            f"{command} --enable-prompt-embeds {options}".split(), stdout=out, stderr=out, env={**os.environ, **own}
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"vLLM did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def people(survey: Survey) -> OpinionModel:
    return OpinionModel(n_components=8).fit(survey)


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load(NAME, dtype="float32")


@pytest.fixture(scope="module", params=["late", "system", "before"])
def steerer(request, lm, survey, people) -> PersonaPrompt:
    """Of the recipe that is trained fastest: how virtual tokens are made is not vLLM's business."""
    new = PersonaPrompt(lm, recipe="paper", placement=request.param, n_tokens=2, steps=2)
    return new.fit(survey, people, progress=False)


def through(make: Callable[[], Any], work: Any) -> Any:
    async def run() -> Any:
        backend = make()
        try:
            return await work(backend)
        finally:
            await backend.close(1)

    return asyncio.run(asyncio.wait_for(run(), 900))


def both(steerer: PersonaPrompt, url: str, work: Any) -> list[Any]:
    return [through(make, work) for make in (lambda: LocalBackend(steerer), lambda: VllmBackend(steerer, url))]


def test_same_tokens_same_text(steerer, url, people, monkeypatch):
    tokens: dict[int, list[int]] = {}
    add = Saying.add
    monkeypatch.setattr(Saying, "add", lambda self, t: tokens.setdefault(id(self), []).append(t) or add(self, t))
    who = [people[name] for name in people.respondent_ids_[:2]]

    async def reply(pieces):
        found = [piece async for piece in pieces]
        return "".join(p.text for p in found), found[-1].finish, found[-1].prompt_tokens, found[-1].completion_tokens

    async def work(backend):
        tokens.clear()
        chats = [backend.chat(chat, persona, Sampling(24)) for chat in (TALK, LONG, BRIEF) for persona in who]
        texts = [
            backend.complete("A poem about roads:", persona, Sampling(24, stop=(".",))) for persona in (*who, None)
        ]
        said = await asyncio.gather(*map(reply, [*chats, *texts]))
        return said, sorted(tokens.values())

    (ours, our_tokens), (theirs, their_tokens) = both(steerer, url, work)
    assert theirs == ours
    assert their_tokens == our_tokens
    assert len({text for text, *_ in ours}) > 2


@pytest.mark.parametrize(("read", "n"), [("letters", 18), ("text", 3)])  # a text is a prompt a token
def test_same_option_probabilities(steerer, url, survey, people, read, n):
    who = [people[name] for name in people.respondent_ids_[:n]]
    questions = [*survey.questions[:2], NEW]

    async def work(backend):
        (block,) = [block async for block in backend.answers(who, questions, read)]
        return block

    ours, theirs = both(steerer, url, work)
    asked = ours > 0
    assert asked.sum() == n * sum(len(q.options) for q in questions)
    np.testing.assert_allclose(np.log(theirs[asked]), np.log(ours[asked]), atol=1e-3)


def test_drawn_replies_repeat_with_their_seed(steerer, url, people):
    async def work(backend):
        how = [Sampling(16, 1.0, 0.9, seed) for seed in (1, 1, 2)]
        replies = [backend.chat(TALK, people["r0001"], each) for each in how]
        return ["".join([piece.text async for piece in pieces]) for pieces in replies]

    first, again, other = through(lambda: VllmBackend(steerer, url), work)
    assert first == again != other
