"""What `personae serve` stands: speed of chats and answers, mixed load for minutes, a stop, and a sudden end.

python scripts/serve_load.py demo-bundle --out docs/results/serve-load.json

It starts the server as a user would, but for --rate, as everybody here is one client. Server and clients share the
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import openai
import psutil

TOPICS = ["parks", "the environment", "schools", "the police", "roads", "space exploration", "welfare", "health"]
CHATS_EACH = 2  # one after another, in the comparison of many with one
REPEATS = 3  # of everything whose median counts
ANSWERING = 256  # personas of the comparison with the library
KINDS = {"streamed": 6, "whole": 4, "vanishing": 4, "answering": 1, "making": 2, "blending": 2}  # clients of the mix
TICK = 0.1  # seconds from one look at the health to the next
MADE_WHEN_KILLED = 200
GRACE = 10.0  # seconds, the server's default


# the server ------------------------------------------------------------------------------------------------------
@contextmanager
def served(bundle: Path, folder: Path) -> Iterator[tuple[str, psutil.Popen]]:
    """URL and process of ``personae serve`` on a free port; its personas and its log are in the folder."""
    command = [sys.executable, "-m", "personae.cli.main", "serve", str(bundle), "--port", "0", "--json"]
    command += ["--rate", "1000000/minute", "--store", f"sqlite:///{folder}/personas.sqlite"]
    with (
        (folder / "server.log").open("a") as log,
        psutil.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            url = json.loads(process.stdout.readline())["url"]
            httpx.get(f"{url}/healthz", timeout=60).raise_for_status()
            yield url, process
        finally:
            if process.is_running():
                process.kill()


def clients(url: str) -> tuple[openai.AsyncOpenAI, httpx.AsyncClient]:
    """OpenAI's own, and one for the server's other routes; neither tries anything twice."""
    many = httpx.Limits(max_connections=None)
    own = openai.DefaultAsyncHttpxClient(limits=many)
    chats = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=120, http_client=own)
    return chats, httpx.AsyncClient(base_url=f"{url}/v1/", timeout=120, limits=many)


def about(topic: str) -> list[Any]:
    return [{"role": "user", "content": f"Let's talk about {topic}. What is your view?"}]


# speed -----------------------------------------------------------------------------------------------------------
async def chats_at_once(url: str, people: Sequence[str], alone: int) -> dict[str, Any]:
    """Tokens a second of everybody at once, and of the first few one at a time, by turns."""
    chats, other = clients(url)

    async def talk(person: str) -> int:
        tokens = 0
        for n, topic in enumerate(TOPICS[:CHATS_EACH]):
            reply = await chats.chat.completions.create(model=person, messages=about(topic), max_tokens=80, seed=n)
            tokens += reply.usage.completion_tokens
        return tokens

    async def together() -> int:
        return sum(await asyncio.gather(*(talk(person) for person in people)))

    async def one_by_one() -> int:
        return sum([await talk(person) for person in people[:alone]])

    rates: dict[str, list[float]] = {"together": [], "one_at_a_time": []}
    async with chats, other:
        await talk(people[0])  # warm-up
        for _ in range(REPEATS):
            for name, work in (("together", together), ("one_at_a_time", one_by_one)):
                begin = time.perf_counter()
                rates[name].append(await work() / (time.perf_counter() - begin))
    many, one = (median(rates[name]) for name in rates)
    return {"chats": len(people), "alone": alone, "tokens_per_second": rates, "times": many / one}


def answers_beside_library(url: str, bundle: Any, people: Sequence[str]) -> dict[str, Any]:
    """Answers a second of /v1/answers and of the library in this process, by turns."""
    questions = bundle.people.questions_
    personas = [bundle.people[name] for name in people]
    body = {"personas": list(people), "questions": [q.id for q in questions]}

    def by_server() -> None:
        last = json.loads(httpx.post(f"{url}/v1/answers", json=body, timeout=120).text.splitlines()[-1])
        assert last == {"done": True, "answers": len(people) * len(questions)}, last

    def by_library() -> None:
        bundle.steerer.predict_proba(personas, questions)

    rates: dict[str, list[float]] = {"server": [], "library": []}
    for repeat in range(1 + REPEATS):  # the first is a warm-up
        for name, work in (("server", by_server), ("library", by_library)):
            begin = time.perf_counter()
            work()
            if repeat:
                rates[name].append(len(people) * len(questions) / (time.perf_counter() - begin))
    share = median(rates["server"]) / median(rates["library"])
    return {"personas": len(people), "questions": len(questions), "answers_per_second": rates, "share": share}


# mixed load ------------------------------------------------------------------------------------------------------
@dataclass
class Mix:
    """Clients of every kind at the same time, and what became of their requests.

    Parameters
    ----------
    people, cohorts : sequence of str
        Whom they talk with.
    options : dict
        The options of each question that they ask.
    """

    url: str
    people: Sequence[str]
    cohorts: Sequence[str]
    options: dict[str, list[str]]
    made: dict[str, Any] = field(default_factory=dict)  # acknowledged personas, as they were on that day
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    async def run(self, seconds: float, clients_of: dict[str, int]) -> None:
        """So many clients of each kind, each with one request after another."""
        self.draw = random.Random(0)
        self.chats, self.other = clients(self.url)
        end = time.monotonic() + seconds
        async with self.chats, self.other:
            kinds = [getattr(self, name) for name, n in clients_of.items() for _ in range(n)]
            await asyncio.gather(*(self._until(end, kind) for kind in kinds))

    async def _until(self, end: float, act: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < end:
            try:
                await act()
                self.done[act.__name__] += 1
            except (openai.APIError, httpx.HTTPError, ValueError, AssertionError) as error:
                reply = getattr(error, "response", None)
                self.failed[type(error).__name__ if reply is None else f"HTTP {reply.status_code}"] += 1
                await asyncio.sleep(0.1)

    def _anybody(self) -> str:
        return self.draw.choice([self.draw.choice(list(of)) for of in (self.people, self.cohorts, self.made) if of])

    async def _begin(self) -> Any:
        return await self.chats.chat.completions.create(
            model=self._anybody(), messages=about(self.draw.choice(TOPICS)), max_tokens=80, stream=True
        )

    # kinds
    async def streamed(self) -> None:
        chunks = [chunk async for chunk in await self._begin()]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")

    async def vanishing(self) -> None:
        stream = await self._begin()
        for _ in range(self.draw.randrange(1, 5)):
            await anext(stream, None)
        await stream.close()

    async def whole(self) -> None:
        await self.chats.chat.completions.create(
            model=self._anybody(), messages=about(self.draw.choice(TOPICS)), max_tokens=80
        )

    async def blending(self) -> None:
        blend = {self.draw.choice(self.cohorts): 0.7, self.draw.choice(self.people): 0.3}
        await self.chats.chat.completions.create(
            model="blend", messages=about("parks"), max_tokens=20, extra_body={"persona": {"blend": blend}}
        )

    async def answering(self) -> None:
        body = {"personas": self.draw.sample(self.people, 32), "questions": self.draw.sample(sorted(self.options), 4)}
        async with self.other.stream("POST", "answers", json=body) as reply:
            lines = [json.loads(line) async for line in reply.aiter_lines() if not reply.is_error]
        reply.raise_for_status()
        assert lines[-1]["done"]

    async def creating(self) -> None:
        asked = self.draw.sample(sorted(self.options), 5)
        answers = {question: self.draw.choice(self.options[question]) for question in asked}
        blend = {self.draw.choice(self.cohorts): 0.5, self.draw.choice(self.people): 0.5}
        reply = await self.other.post("personas", json=self.draw.choice([{"answers": answers}, {"blend": blend}]))
        made = reply.raise_for_status().json()
        self.made[made["id"]] = made

    async def making(self) -> None:
        """Makes somebody and reads somebody back, who must be what was acknowledged."""
        await self.creating()
        one = self.draw.choice(list(self.made))
        found = await self.other.get(f"personas/{one}")
        assert found.raise_for_status().json() == self.made[one]
        await asyncio.sleep(0.2)


def health(url: str, seconds: float) -> list[float]:
    """Milliseconds from when each look at /healthz was due to its reply; run in a process of its own."""
    found = []
    with httpx.Client(timeout=60) as client:
        begin = time.perf_counter()
        for tick in range(round(seconds / TICK)):
            due = begin + tick * TICK
            time.sleep(max(0, due - time.perf_counter()))
            reply = client.get(f"{url}/healthz")
            found.append(1000 * (time.perf_counter() - due) if reply.is_success else math.inf)
    return found


async def memory(process: psutil.Popen, seconds: float) -> list[float]:
    """Resident MiB of the server, each second."""
    found = []
    for _ in range(round(seconds)):
        found.append(process.memory_info().rss / 2**20)
        await asyncio.sleep(1)
    return found


async def mixed_load(url: str, process: psutil.Popen, mix: Mix, minutes: float) -> dict[str, Any]:
    """Everything at the same time; the first tenth is the warm-up."""
    seconds = 60 * minutes
    with ProcessPoolExecutor(1, get_context("spawn")) as own:
        looking = asyncio.get_running_loop().run_in_executor(own, health, url, seconds)
        _, resident, milliseconds = await asyncio.gather(mix.run(seconds, KINDS), memory(process, seconds), looking)
    tenth = max(1, len(resident) // 10)
    by_tenth = [median(resident[i * tenth : (i + 1) * tenth]) for i in range(10)]
    return {
        "minutes": minutes,
        "clients": KINDS,
        "done": dict(mix.done),
        "failed": dict(mix.failed),
        "rss_mib_by_tenth": by_tenth,
        "rss_growth": by_tenth[9] / by_tenth[1] - 1,
        "healthz_polls": len(milliseconds),
        "healthz_ms": dict(
            zip(("p50", "p99", "max"), np.percentile(milliseconds, [50, 99, 100]).tolist(), strict=True)
        ),
    }


# ends ------------------------------------------------------------------------------------------------------------
def lost(url: str, acknowledged: dict[str, Any]) -> dict[str, int]:
    """How many personas were acknowledged, and how many of them the server does not have, or has otherwise."""
    found: dict[str, Any] = {}
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {} if page["last_id"] is None else {"after": page["last_id"]}
        page = httpx.get(f"{url}/v1/personas", params={"limit": 1000, **after}, timeout=60).raise_for_status().json()
        found |= {card["id"]: card for card in page["data"]}
    return {"acknowledged": len(acknowledged), "lost": sum(found.get(id) != card for id, card in acknowledged.items())}


async def sigterm(url: str, process: psutil.Popen, people: Sequence[str]) -> dict[str, Any]:
    """Replies that run when the server is told to stop: how many end as they should, and how long it takes."""
    chats, other = clients(url)
    heard = asyncio.Semaphore(0)

    async def read(person: str) -> bool:
        finish = None
        stream = await chats.completions.create(model=person, prompt="The city", max_tokens=60, stream=True)
        async for chunk in stream:
            heard.release()
            finish = chunk.choices[0].finish_reason or finish
        return finish is not None

    async with chats, other:
        readers = [asyncio.ensure_future(read(person)) for person in people]
        for _ in range(4 * len(people)):
            await heard.acquire()
        running = sum(not reader.done() for reader in readers)
        process.send_signal(signal.SIGTERM)
        begin = time.perf_counter()
        whole = await asyncio.gather(*readers, return_exceptions=True)
        status = await asyncio.to_thread(process.wait, 60)
    seconds = time.perf_counter() - begin
    return {
        "replies": len(people),
        "running": running,
        "whole": sum(found is True for found in whole),
        "seconds_to_end": seconds,
        "grace": GRACE,
        "status": status,
    }


async def kill(url: str, process: psutil.Popen, mix: Mix) -> None:
    """Several make personas until the server is killed in the middle of it."""
    before = len(mix.made)
    mix.url = url
    makers = asyncio.ensure_future(mix.run(60, {"creating": 4}))
    while len(mix.made) < before + MADE_WHEN_KILLED and not makers.done():
        await asyncio.sleep(0.01)
    process.kill()
    makers.cancel()
    with suppress(asyncio.CancelledError):
        await makers


# all of it -------------------------------------------------------------------------------------------------------
def measure(path: Path, minutes: float, chats: int, alone: int, folder: Path) -> dict[str, Any]:
    from personae import Bundle

    bundle = Bundle.open(path)
    people = [str(name) for name in bundle.people.respondent_ids_]
    options = {q.id: list(q.options) for q in bundle.people.questions_}
    mix = Mix("", people, [cohort.name for cohort in bundle.cohorts], options)
    found: dict[str, Any] = {"bundle": path.name, "lm": bundle.manifest["steerer"]["lm"], "cores": psutil.cpu_count()}
    with served(path, folder) as (url, process):
        mix.url = url
        found["answers"] = answers_beside_library(url, bundle, people[:ANSWERING])
        found["chats"] = asyncio.run(chats_at_once(url, people[:chats], alone))
        found["mixed"] = asyncio.run(mixed_load(url, process, mix, minutes))
        found["personas"] = lost(url, mix.made)
        found["sigterm"] = asyncio.run(sigterm(url, process, people[:16]))
    with served(path, folder) as (url, process):
        found["personas after sigterm"] = lost(url, mix.made)
        asyncio.run(kill(url, process, mix))
    with served(path, folder) as (url, process):
        found["personas after kill -9"] = lost(url, mix.made)
    found["tracebacks"] = (folder / "server.log").read_text().count("Traceback")
    return found


def table(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, how much it was, and what is to be reached."""
    chats, answers, mixed, end = (found[name] for name in ("chats", "answers", "mixed", "sigterm"))
    together, one = (median(chats["tokens_per_second"][name]) for name in ("together", "one_at_a_time"))
    server, library = (median(answers["answers_per_second"][name]) for name in ("server", "library"))
    rss, ms = mixed["rss_mib_by_tenth"], mixed["healthz_ms"]
    failed = ", ".join(f"{n:,} {what}" for what, n in mixed["failed"].items()) or "none"
    rows = [
        (f"{chats['chats']} chats at once, tokens/s", f"{together:.0f}", ""),
        (f"one chat at a time ({chats['alone']} of them), tokens/s", f"{one:.0f}", ""),
        ("at once / one at a time", f"{chats['times']:.1f}", "6"),
        ("/v1/answers, answers/s", f"{server:,.0f}", ""),
        ("library, answers/s", f"{library:,.0f}", ""),
        ("/v1/answers / library", f"{answers['share']:.0%}", "80%"),
        (f"requests in {mixed['minutes']:g} minutes", f"{sum(mixed['done'].values()):,}", ""),
        ("requests that failed (429, 5xx, others)", failed, "none"),
        ("RSS, second and last tenth, MiB", f"{rss[1]:.0f}, {rss[9]:.0f} ({mixed['rss_growth']:+.1%})", "within 5%"),
        (
            "/healthz p50, p99, max, ms",
            " / ".join(f"{ms[name]:.1f}" for name in ("p50", "p99", "max")),
            "p99 under 100",
        ),
    ]
    for when in ("personas", "personas after sigterm", "personas after kill -9"):
        rows.append((f"{when}, acknowledged / lost", "{acknowledged:,} / {lost}".format(**found[when]), "none lost"))
    whole = f"{end['whole']} of {end['replies']} ({end['running']} ran), {end['seconds_to_end']:.1f} s"
    rows.append(("replies whole after SIGTERM, until the process ended", whole, f"all, {end['grace']:g} s"))
    rows.append(("exit status", str(end["status"]), ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10, help="of mixed load")
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--alone", type=int, default=8, help="chats of them that are held one at a time, too")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.bundle, asked.minutes, asked.chats, asked.alone, Path(folder))
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    for row in table(found):
        print("{:55} {:>28}   {}".format(*row))


if __name__ == "__main__":
    main()
