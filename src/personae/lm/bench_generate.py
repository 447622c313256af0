"""How much one batch saves where many personas talk: every row has virtual tokens, and a chat, of its own.

*This way*: the chats of all personas are decoded together. *The plain way*: one persona at a time, with the same
cached decoding. Each way runs in a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personae.lm import generation
from personae.lm.bench import about, forget_peak, median_seconds, peak_mib
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Prompt, chat_prompt
from personae.lm.template import Message
from personae.people import bench as measure

# Chats of unequal length, as they are: a greeting, a question, a long question, a second turn.
_HELLO = ({"role": "user", "content": "Hi! How are you?"}, {"role": "assistant", "content": "I'm fine, thank you."})
_ASKED = (
    "What do you think about the space exploration program?",
    "Should the city build more bike lanes? Tell me in one sentence.",
    "We are faced with many problems in this country, none of which can be solved easily or inexpensively. Are we "
    "spending too much, too little, or about the right amount on improving and protecting the environment?",
    "What would you like to see more of, and what less of?",
)
CHATS: tuple[tuple[Message, ...], ...] = tuple(
    (*before, {"role": "user", "content": text}) for before in ((), _HELLO) for text in _ASKED
)


def generate(
    personas: int = 16,
    tokens: int = 2,
    new_tokens: int = 32,
    repeats: int = 3,
    plain_personas: int = 8,
    lm: str = "smollm2-135m",
) -> dict[str, Any]:
    """Time greedy replies of different personas in different chats.

    Parameters
    ----------
    personas, tokens : int
        Chats decoded together, virtual tokens a persona (before the chat).
    new_tokens : int
        A reply has at most so many tokens; a batch ends when its longest reply does.
    repeats : int
        Timed runs of each way after one that is not timed; medians are reported.
    plain_personas : int
        The plain way is run for that many personas (or all, if there are fewer) and its seconds are scaled to the
        tokens of all replies. Its memory is measured as it is, since it holds one chat at a time.

    Returns
    -------
    dict
        ``ratio``: tokens of replies a CPU second, this way over the plain way; ``ratio_wall``,
        ``peak_memory_ratio`` (under 1: a batch needs more memory), ``tokens_per_second`` (wall). ``equal_replies``
        counts the ``plain_personas_measured`` whose replies are the same in both ways as timed; in float32 all are,
        in bfloat16 the batch's other rounding may change a token.

    Raises
    ------
    ValueError
        If a number is not positive.
    RuntimeError
        If replies differ in float32.
    """
    numbers = {"personas": personas, "tokens": tokens, "new_tokens": new_tokens, "repeats": repeats}
    for name, number in {**numbers, "plain_personas": plain_personas}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    job = _Job(lm, personas, tokens, new_tokens, min(plain_personas, personas))
    threads = torch.get_num_threads()
    differing = measure.apart(_differing, job, threads)
    if differing:
        raise RuntimeError(
            f"{differing} of {job.plain} replies differ between the two ways, so their times say nothing"
        )
    this = measure.apart(_timed, _together, job, threads, repeats)
    plain = measure.apart(_timed, _one_by_one, job, threads, repeats)
    scale = this["reply_tokens"] / plain["reply_tokens"]
    cpu, wall = plain["cpu"] * scale, plain["wall"] * scale
    return {
        "task": "generate",
        "ratio": cpu / this["cpu"],
        "ratio_wall": wall / this["wall"],
        "peak_memory_ratio": plain["peak_mib"] / max(this["peak_mib"], 1.0),
        "tokens_per_second": this["reply_tokens"] / this["wall"],
        "plain_tokens_per_second": this["reply_tokens"] / wall,
        "equal_replies": sum(a == b for a, b in zip(this["texts"], plain["texts"], strict=False)),
        "plain_personas_measured": job.plain,
        "plain_scaled_by": scale,
        "cpu_seconds": this["cpu"],
        "wall_seconds": this["wall"],
        "plain_cpu_seconds": cpu,
        "plain_wall_seconds": wall,
        "peak_mib": this["peak_mib"],
        "plain_peak_mib": plain["peak_mib"],
        "reply_tokens": this["reply_tokens"],
        "personas": personas,
        "virtual_tokens": tokens,
        "new_tokens_at_most": new_tokens,
        "prompt_tokens": this["prompt_tokens"],
        "repeats": repeats,
        "lm": lm,
        "dtype": this["dtype"],
        "device": this["device"],
        **measure.machine(threads, "torch", "transformers"),
    }


@dataclass
class _Job:
    """What both ways say; the same personas and chats wherever it is unpacked."""

    name: str
    personas: int
    tokens: int
    new_tokens: int
    plain: int

    def inputs(self, lm: FrozenLM) -> tuple[list[Prompt], Tensor]:
        """A chat and virtual tokens (R, T, H) a persona."""
        prompts = [chat_prompt(lm, CHATS[r % len(CHATS)], "before") for r in range(self.personas)]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.personas, self.tokens, lm.hidden_size, generator=generator)
        return prompts, (noise * lm.embedding_scale).to(lm.device)


def _together(lm: FrozenLM, job: _Job) -> list[str]:
    """Everybody's reply."""
    prompts, virtual = job.inputs(lm)
    return generation.generate(lm, prompts, virtual, max_new_tokens=job.new_tokens)


def _one_by_one(lm: FrozenLM, job: _Job) -> list[str]:
    """The first ``job.plain`` replies."""
    prompts, virtual = job.inputs(lm)
    alone = [(prompts[r : r + 1], virtual[r : r + 1]) for r in range(job.plain)]
    return [generation.generate(lm, p, v, max_new_tokens=job.new_tokens)[0] for p, v in alone]


# each of these runs in a process of its own ----------------------------------------------------------------------
def _differing(job: _Job, threads: int) -> int:
    """Replies that are not the same in both ways."""
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name, dtype="float32")
    return sum(a != b for a, b in zip(_together(lm, job), _one_by_one(lm, job), strict=False))


def _timed(way: Callable[[FrozenLM, _Job], list[str]], job: _Job, threads: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name)
    said: list[list[str]] = []
    before = forget_peak()
    cpu, wall = median_seconds(lambda: said.append(way(lm, job)), repeats)
    peak = peak_mib() - before
    reply_tokens = sum(len(lm.tokens(text)) for text in said[-1])
    if not reply_tokens:
        raise ValueError(f"{job.name} replies with nothing, so no tokens can be counted; name another LM")
    return {
        "cpu": cpu,
        "wall": wall,
        "peak_mib": peak,
        "reply_tokens": reply_tokens,
        "texts": said[-1],
        "prompt_tokens": [len(p.text_ids) for p in job.inputs(lm)[0][: len(CHATS)]],
        **about(lm),
    }
