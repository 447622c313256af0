"""What a vLLM server does with personas: requests a second, its CPU time and its prefix cache.

Two loads: many people answer one long question, with virtual tokens at the end of the prompt (`late`) and before it;
and one person talks on and on. Start the server as docs/scale.md says, in float32 with --block-size 32, then:

    python scripts/vllm_speed.py --url http://127.0.0.1:8001 --pid PID --out docs/results/vllm.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from personae import OpinionModel, PersonaPrompt, load_sample
from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.serving.backend import Sampling
from personae.serving.vllm import VllmBackend

ABOUT = "The city has roads, schools, parks, trams and a harbour, and pays for them out of one budget. "
LM = "smollm2-135m"


class Meter:
    """What a server used between two looks at it."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.server = url, psutil.Process(pid)

    def look(self) -> dict[str, float]:
        """Seconds of all its processes, of this one, of the clock, and the prefix cache's counters."""
        text = httpx.get(f"{self.url}/metrics").text
        found = {
            name: sum(float(n) for n in re.findall(rf"^vllm:prefix_cache_{name}_total\S* (\S+)$", text, re.MULTILINE))
            for name in ("queries", "hits")
        }
        tree = [self.server, *self.server.children(recursive=True)]
        own = psutil.Process().cpu_times()
        cpu = sum(t.user + t.system for t in (process.cpu_times() for process in tree))
        return {"seconds": time.perf_counter(), "server": cpu, "here": own.user + own.system, **found}

    def between(self, before: dict[str, float], requests: int) -> dict[str, float]:
        """Rates and shares since ``before``."""
        used = {name: now - before[name] for name, now in self.look().items()}
        return {
            "requests": requests,
            "requests_per_second": round(requests / used["seconds"], 2),
            "server_cpu_ms_per_request": round(1000 * used["server"] / requests, 1),
            "cpu_ms_here_per_request": round(1000 * used["here"] / requests, 1),
            "prefix_cache_hit_rate": round(used["hits"] / max(1.0, used["queries"]), 3),
        }


async def one_question(backend: VllmBackend, meter: Meter, people: list[Any], question: Question) -> dict[str, float]:
    """Everybody answers it, sixteen prompts a request."""
    async for _ in backend.answers(people[:1], [question]):  # the shared part, once
        pass
    before = meter.look()
    async for _ in backend.answers(people[1:], [question]):
        pass
    return meter.between(before, len(people) - 1)


async def long_chat(backend: VllmBackend, meter: Meter, person: Any, turns: int) -> dict[str, float]:
    """One person, a chat that grows with every reply."""
    before, chat, last = meter.look(), [], None
    for turn in range(turns):
        chat.append({"role": "user", "content": f"{ABOUT}What should it pay for in year {turn + 1}, and why?"})
        said = ""
        async for last in backend.chat(chat, person, Sampling(max_tokens=24)):
            said += last.text
        chat.append({"role": "assistant", "content": said.strip()})
    return {**meter.between(before, turns), "last_prompt_tokens": 0 if last is None else last.prompt_tokens}


def measure(steerer: PersonaPrompt, url: str, work: Callable[[VllmBackend], Awaitable[dict[str, float]]]) -> Any:
    async def run() -> dict[str, float]:
        backend = VllmBackend(steerer, url)
        try:
            return await work(backend)
        finally:
            await backend.close(1)

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--people", type=int, default=129)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    meter = Meter(asked.url, asked.pid)
    survey, lm = load_sample(), FrozenLM.load(LM, dtype="float32")
    model = OpinionModel(n_components=8).fit(survey)
    people = [model[name] for name in model.respondent_ids_[: asked.people]]
    question = Question("new", ABOUT * 16 + "Should trams be free?", ("no", "perhaps", "yes"))
    steerers = {
        placement: PersonaPrompt(lm, "paper", placement, n_tokens=2, steps=2).fit(survey, model, progress=False)
        for placement in ("late", "before")
    }
    n_tokens = len(steerers["late"].question_rows(question, people[:1]).prompts[0].text_ids)
    found: dict[str, Any] = {"lm": LM, "dtype": "float32", "cores": psutil.cpu_count(), "question_tokens": n_tokens}
    print("measuring", flush=True)
    for placement, steerer in steerers.items():
        found[f"one question, {placement}"] = measure(
            steerer, asked.url, lambda backend: one_question(backend, meter, people, question)
        )
    found["long chat, late"] = measure(
        steerers["late"], asked.url, lambda backend: long_chat(backend, meter, people[0], asked.turns)
    )
    print(json.dumps(found, indent=1))
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
