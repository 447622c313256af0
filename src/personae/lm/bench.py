"""How much the shared context saves: the same answers of 8 questions x many people, this way and the plain way.

*This way*: each question is encoded once, a person costs virtual tokens only, logits are read for the letters.
*The plain way*: every answer is a row of its own [question, virtual tokens], run in batches with logits for every
position and token, as a training loop over a Hugging Face model usually does. Each way runs in a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personae.lm.frozen import FrozenLM
from personae.lm.prompts import letter_ids, letters_prompt
from personae.lm.reading import Prepared, letter_logits, prepare, read
from personae.people import bench as measure

Questions = Sequence[tuple[str, Sequence[str]]]

# As the General Social Survey puts them, about 100 tokens each.
_STEM = (
    "We are faced with many problems in this country, none of which can be solved easily or inexpensively. I'm going "
    "to name some of these problems, and for each one I'd like you to tell me whether you think we're spending too "
    "much money on it, too little money, or about the right amount. Are we spending too much, too little, or about "
    "the right amount on {}?"
)
_ITEMS = (
    "the space exploration program",
    "improving and protecting the environment",
    "improving and protecting the nation's health",
    "solving the problems of the big cities",
    "halting the rising crime rate",
    "dealing with drug addiction",
    "improving the nation's education system",
    "the military, armaments and defense",
)
QUESTIONS: Questions = tuple((_STEM.format(item), ("too little", "about right", "too much")) for item in _ITEMS)
_PLAIN_BATCH = 16  # rows; of 4, 8, 16 and 32 the best for the plain way, in seconds and memory together


def steer(
    questions: Questions | None = None,
    people: int = 32,
    tokens: int = 2,
    repeats: int = 5,
    plain_people: int = 2,
    lm: str = "smollm2-135m",
) -> dict[str, Any]:
    """Time one training step: forward, cross-entropy of the letters, backward to the virtual tokens.

    Parameters
    ----------
    questions : sequence of (text, options), optional
        Eight of the General Social Survey by default.
    people, tokens : int
        People a question, virtual tokens a person.
    repeats : int
        Timed runs of each way after one that is not timed; medians are reported.
    plain_people : int
        The plain way is run for that many people and its seconds are scaled to ``people`` (`plain_rows_measured`).
        Its memory is measured as it is, since it holds one batch at a time.

    Returns
    -------
    dict
        ``ratio``: CPU seconds of the plain way over this way's, which encodes the questions in every step;
        ``ratio_encoded_once``: the same where questions are encoded before, as in training over many steps.
        ``ratio_wall``, ``ratio_wall_encoded_once``, ``peak_memory_ratio``, ``max_difference`` (of option
        log-probabilities in float32), and what they were computed from.
    """
    return _compare(True, questions or QUESTIONS, people, tokens, repeats, plain_people, lm)


def simulate(
    questions: Questions | None = None,
    people: int = 256,
    tokens: int = 2,
    repeats: int = 5,
    plain_people: int = 2,
    lm: str = "smollm2-135m",
) -> dict[str, Any]:
    """Time simulated answers (no gradient); parameters and result as in `steer`."""
    return _compare(False, questions or QUESTIONS, people, tokens, repeats, plain_people, lm)


def _compare(
    train: bool, questions: Questions, people: int, tokens: int, repeats: int, plain_people: int, lm: str
) -> dict[str, Any]:
    if not 1 <= plain_people <= people:
        raise ValueError(f"plain_people is {plain_people}; it must be from 1 to the {people} people")
    job = _Job(lm, [(text, list(options)) for text, options in questions], people, tokens, train)
    threads = torch.get_num_threads()
    difference = measure.apart(_difference, job, threads)
    if difference > 1e-3:
        raise RuntimeError(f"the two ways differ by {difference:.2g} in log-probability, so their times say nothing")
    this = measure.apart(_this_way, job, threads, repeats)
    plain = measure.apart(_plain_way, job, threads, repeats, plain_people)
    scale = people / plain_people
    cpu, wall = plain["cpu"] * scale, plain["wall"] * scale
    return {
        "task": "steer" if train else "simulate",
        "ratio": cpu / this["cpu"],
        "ratio_encoded_once": cpu / this["cpu_encoded_once"],
        "ratio_wall": wall / this["wall"],
        "ratio_wall_encoded_once": wall / this["wall_encoded_once"],
        "peak_memory_ratio": plain["peak_mib"] / max(this["peak_mib"], 1.0),
        "max_difference": difference,
        "cpu_seconds": this["cpu"],
        "wall_seconds": this["wall"],
        "cpu_seconds_encoded_once": this["cpu_encoded_once"],
        "wall_seconds_encoded_once": this["wall_encoded_once"],
        "plain_cpu_seconds": cpu,
        "plain_wall_seconds": wall,
        "peak_mib": this["peak_mib"],
        "plain_peak_mib": plain["peak_mib"],
        "answers": len(questions) * people,
        "plain_rows_measured": len(questions) * plain_people,
        "plain_scaled_by": scale,
        "questions": len(questions),
        "people": people,
        "virtual_tokens": tokens,
        "prompt_tokens": this["prompt_tokens"],
        "repeats": repeats,
        "lm": lm,
        "dtype": this["dtype"],
        "device": this["device"],
        **measure.machine(threads, "torch", "transformers"),
    }


@dataclass
class _Job:
    """What both ways compute; the same virtual tokens and answers wherever it is unpacked."""

    name: str
    questions: list[tuple[str, list[str]]]
    people: int
    tokens: int
    train: bool

    def inputs(self, lm: FrozenLM) -> tuple[Tensor, Tensor]:
        """Virtual tokens (C, N, T, H) and answers (C, N)."""
        generator = torch.Generator().manual_seed(0)
        c = len(self.questions)
        noise = torch.randn(c, self.people, self.tokens, lm.hidden_size, generator=generator)
        answers = [torch.randint(len(o), (self.people,), generator=generator) for _, o in self.questions]
        return (noise * lm.embedding_scale).to(lm.device), torch.stack(answers).to(lm.device)

    def prepared(self, lm: FrozenLM) -> Prepared:
        return prepare(lm, [letters_prompt(lm, text, options, "late") for text, options in self.questions])


def _answer_shared(lm: FrozenLM, job: _Job, prepared: Prepared, virtual: Tensor, answers: Tensor) -> Tensor:
    """Option logits (C, N, K); with ``job.train`` the gradient reaches ``virtual``."""
    with torch.set_grad_enabled(job.train):
        logits = letter_logits(lm, read(lm, prepared, virtual), [len(o) for _, o in job.questions])
        if job.train:
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
    return logits.detach()


def _answer_plain(lm: FrozenLM, job: _Job, virtual: Tensor, answers: Tensor) -> Tensor:
    """The same by rows, right-padded to the longest of their batch."""
    c, n = answers.shape
    prompts = [lm.embed(letters_prompt(lm, text, options, "late").before) for text, options in job.questions]
    counts = torch.tensor([len(options) for _, options in job.questions], device=lm.device)
    letters = torch.tensor(letter_ids(lm, int(counts.max())), device=lm.device)
    found = []
    for batch in torch.arange(c * n, device=lm.device).split(_PLAIN_BATCH):
        with torch.set_grad_enabled(job.train):
            rows = [torch.cat([prompts[i // n], virtual[i // n, i % n].to(lm.dtype)]) for i in batch.tolist()]
            lengths = torch.tensor([len(row) for row in rows], device=lm.device)
            x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = (torch.arange(x.shape[1], device=lm.device) < lengths[:, None]).long()
            logits = lm.model(inputs_embeds=x, attention_mask=mask, use_cache=False).logits.float()
            chosen = logits[torch.arange(len(rows)), lengths - 1][:, letters]
            beyond = torch.arange(len(letters), device=lm.device) >= counts[batch // n, None]
            chosen = chosen.masked_fill(beyond, float("-inf"))
            if job.train:
                loss = torch.nn.functional.cross_entropy(chosen, answers.flatten()[batch], reduction="sum")
                (loss / (c * n)).backward()
        found.append(chosen.detach())
    return torch.cat(found).view(c, n, -1)


# each of these runs in a process of its own --------------------------------------------------------------------
def _difference(job: _Job, threads: int) -> float:
    """Largest difference of log-probabilities, and of gradients relative to their largest, for two people."""
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name, dtype="float32")
    virtual, answers = (t[:, :2] for t in job.inputs(lm))
    ours, plain = (virtual.clone().requires_grad_(job.train) for _ in range(2))
    a = _answer_shared(lm, job, job.prepared(lm), ours, answers).log_softmax(-1)
    b = _answer_plain(lm, job, plain, answers).log_softmax(-1)
    worst = float((a - b)[a.isfinite()].abs().max())
    if ours.grad is not None and plain.grad is not None:
        worst = max(worst, float((ours.grad - plain.grad).abs().max() / plain.grad.abs().max()))
    return worst


def _this_way(job: _Job, threads: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name)
    virtual, answers = job.inputs(lm)
    virtual.requires_grad_(job.train)
    before = forget_peak()
    whole = median_seconds(lambda: _answer_shared(lm, job, job.prepared(lm), virtual, answers), repeats)
    peak = peak_mib() - before
    prepared = job.prepared(lm)
    once = median_seconds(lambda: _answer_shared(lm, job, prepared, virtual, answers), repeats)
    return {
        "cpu": whole[0],
        "wall": whole[1],
        "cpu_encoded_once": once[0],
        "wall_encoded_once": once[1],
        "peak_mib": peak,
        "prompt_tokens": [len(p.text_ids) for p in prepared.prompts],
        **about(lm),
    }


def _plain_way(job: _Job, threads: int, repeats: int, people: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name)
    virtual, answers = (t[:, :people].clone() for t in job.inputs(lm))
    virtual.requires_grad_(job.train)
    before = forget_peak()
    cpu, wall = median_seconds(lambda: _answer_plain(lm, job, virtual, answers), repeats)
    return {"cpu": cpu, "wall": wall, "peak_mib": peak_mib() - before}


# on a GPU, seconds end when it has finished, and memory is its own --------------------------------------------------
def median_seconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """CPU and wall seconds."""

    def finished() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return measure.median_seconds(finished, repeats)


def forget_peak() -> float:
    """Start to watch the peak anew; MiB from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return peak_mib()
    return measure.forget_peak()


def peak_mib() -> float:
    """The most memory held since `forget_peak`, MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else measure.peak_mib()


def about(lm: FrozenLM) -> dict[str, str]:
    """What the seconds of an LM depend on."""
    device = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else str(lm.device)
    return {"dtype": str(lm.dtype).removeprefix("torch."), "device": device}
