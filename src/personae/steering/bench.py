"""What a bank of K prompts costs: a training step, and replies of a mixed batch, each against the plain way.

*This way*: a context is computed once for all prompts, virtual tokens and reply are continuations of it, logits exist
at the replies alone; chats that chose different prompts are decoded in one batch. *The plain way*: K passes over
[context, prompt, reply], padded to 512 tokens, with logits for every position; and one decoding of the whole batch for
each prompt that was chosen. Each way runs in a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personae.data.dialogues import Example
from personae.data.read_dialogues import read_dialogues
from personae.lm.bench import about, forget_peak, median_seconds, peak_mib
from personae.lm.frozen import FrozenLM
from personae.lm.generation import generate
from personae.lm.prompts import Prompt, chat_prompt, reply_ids
from personae.lm.reading import prepare
from personae.people import bench as measure
from personae.steering.bank import PromptBank, Retriever, SelectiveNetwork
from personae.steering.replies import Batch, prompt_nlls, represent
from personae.steering.selection import mixture_loss
from personae.steering.turns import as_messages, within

_PADDED = 512  # tokens of a row of the plain way


def converse(
    dialogues: str | Path = "chitchat",
    contexts: int = 4,
    prompts: int = 4,
    tokens: int = 8,
    chats: int = 16,
    new_tokens: int = 32,
    repeats: int = 3,
    lm: str = "smollm2-135m",
) -> dict[str, Any]:
    """Time a training step of a bank of prompts, and the replies of a batch of chats with different prompts.

    Parameters
    ----------
    dialogues : str or Path
        Whose contexts and replies are taken: a file, or ``"chitchat"``, which is fetched once.
    contexts, prompts, tokens : int
        Of a step: replies with their contexts, prompts K, and virtual tokens of each.
    chats, new_tokens : int
        Chats that are decoded together, prompt k going to every K-th; tokens of a reply at most.
    repeats : int
        Timed runs of each way after one that is not timed; medians are reported.

    Returns
    -------
    dict
        ``ratio``: CPU seconds of a plain step over this way's; ``ratio_unpadded``: the same for a plain way that pads
        no further than to the longest row; ``ratio_wall``, ``peak_memory_ratio``, ``peak_memory_ratio_unpadded``;
        ``max_difference`` of losses and of gradients (relative to the largest), in float32; ``decoding_ratio``,
        ``decoding_ratio_wall`` and ``equal_replies`` of both ways as timed (in float32 all are); and what these were
        computed from.

    Raises
    ------
    ValueError
        A number is not positive, or the dialogues have too few replies.
    RuntimeError
        The ways differ in float32.
    """
    sizes = {"contexts": contexts, "prompts": prompts, "tokens": tokens, "chats": chats, "new_tokens": new_tokens}
    for name, number in {**sizes, "repeats": repeats}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    job = _Job(lm, _some(dialogues, max(contexts, chats)), **sizes)
    threads = torch.get_num_threads()
    difference, differing = measure.apart(_differences, job, threads)
    if difference > 1e-3 or differing:
        raise RuntimeError(
            f"the ways differ (by {difference:.2g} in loss or gradient, in {differing} replies), so their times say "
            "nothing"
        )
    this, padded, unpadded = (
        measure.apart(_timed_step, way, job, threads, repeats)
        for way in (_shared, partial(_plain, padded=_PADDED), partial(_plain, padded=0))
    )
    together, by_prompt = (measure.apart(_timed_replies, way, job, threads, repeats) for way in (_mixed, _by_prompt))
    return {
        "task": "converse",
        "ratio": padded["cpu"] / this["cpu"],
        "ratio_unpadded": unpadded["cpu"] / this["cpu"],
        "ratio_wall": padded["wall"] / this["wall"],
        "peak_memory_ratio": padded["peak_mib"] / max(this["peak_mib"], 1.0),
        "peak_memory_ratio_unpadded": unpadded["peak_mib"] / max(this["peak_mib"], 1.0),
        "max_difference": difference,
        "decoding_ratio": by_prompt["cpu"] / together["cpu"],
        "decoding_ratio_wall": by_prompt["wall"] / together["wall"],
        "equal_replies": sum(a == b for a, b in zip(together["texts"], by_prompt["texts"], strict=True)),
        "cpu_seconds": this["cpu"],
        "wall_seconds": this["wall"],
        "plain_cpu_seconds": padded["cpu"],
        "plain_wall_seconds": padded["wall"],
        "unpadded_cpu_seconds": unpadded["cpu"],
        "unpadded_wall_seconds": unpadded["wall"],
        "peak_mib": this["peak_mib"],
        "plain_peak_mib": padded["peak_mib"],
        "unpadded_peak_mib": unpadded["peak_mib"],
        "decoding_cpu_seconds": together["cpu"],
        "decoding_wall_seconds": together["wall"],
        "plain_decoding_cpu_seconds": by_prompt["cpu"],
        "plain_decoding_wall_seconds": by_prompt["wall"],
        **sizes,
        "distinct_prompts": min(prompts, chats),
        "context_tokens": this["context_tokens"],
        "reply_tokens": this["reply_tokens"],
        "padded_to": _PADDED,
        "dialogues": Path(dialogues).name,
        "repeats": repeats,
        "lm": lm,
        "dtype": this["dtype"],
        "device": this["device"],
        **measure.machine(threads, "torch", "transformers"),
    }


def _some(dialogues: str | Path, n: int) -> list[Example]:
    """Replies at random, of those who have persona sentences where there are any."""
    known = read_dialogues(dialogues)
    examples = [e for e in known.examples(None if any(d.personas for d in known) else "each") if e.history]
    if len(examples) < n:
        raise ValueError(f"{dialogues} has {len(examples)} replies that follow something; {n} are needed")
    return [examples[i] for i in np.random.default_rng(0).permutation(len(examples))[:n]]


@dataclass
class _Job:
    """What every way computes; the same wherever it is unpacked."""

    name: str
    examples: list[Example]
    contexts: int
    prompts: int
    tokens: int
    chats: int
    new_tokens: int

    def bank(self, lm: FrozenLM) -> SelectiveNetwork:
        """A bank before training, with a retriever over word embeddings, which cost neither way a pass."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            bank = PromptBank(lm, self.prompts, self.tokens)
            return SelectiveNetwork(bank, Retriever(self.prompts, lm.hidden_size), lm.hidden_size, 0).to(lm.device)

    def chat_prompts(self, lm: FrozenLM, n: int) -> list[Prompt]:
        return [chat_prompt(lm, as_messages(within(lm, e)), "late") for e in self.examples[:n]]

    def replies(self, lm: FrozenLM) -> list[list[int]]:
        return [reply_ids(lm, e.reply) for e in self.examples[: self.contexts]]


# a training step -------------------------------------------------------------------------------------------------
NLLs = Callable[[FrozenLM, _Job, Tensor], Tensor]


def _step(lm: FrozenLM, job: _Job, network: SelectiveNetwork, nlls: NLLs) -> float:
    """The mixture's loss; its gradient is left in the network."""
    network.zero_grad(set_to_none=True)
    texts = [lm.embed(p.text_ids).float().mean(0) for p in job.chat_prompts(lm, job.contexts)]
    h, _ = network.standardise(torch.stack(texts), None)
    nll = nlls(lm, job, network.bank(h, None))  # (B, K) a token
    n_tokens = torch.tensor([len(reply) for reply in job.replies(lm)], device=lm.device)
    loss = mixture_loss(network.choose(h, None), nll, n_tokens)
    loss.backward()
    return loss.item()


def _shared(lm: FrozenLM, job: _Job, virtual: Tensor) -> Tensor:
    """Contexts once, all prompts and replies in one pass that continues them."""
    prepared = prepare(lm, job.chat_prompts(lm, job.contexts))
    h = represent(lm, prepared, "embeddings")
    return prompt_nlls(lm, Batch(prepared, h, None, job.replies(lm)), virtual)


def _plain(lm: FrozenLM, job: _Job, virtual: Tensor, padded: int) -> Tensor:
    """A pass a prompt, rows right-padded at least to so many tokens, logits for every position."""
    contexts, replies = [lm.embed(p.text_ids) for p in job.chat_prompts(lm, job.contexts)], job.replies(lm)
    found = []
    for own in virtual.unbind(1):  # (B, T, H)
        rows = [torch.cat([c, v.to(lm.dtype), lm.embed(r)]) for c, v, r in zip(contexts, own, replies, strict=True)]
        longest = max(padded, *map(len, rows))
        x = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])  # (B, S, H)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=lm.device)
        logits = lm.model(inputs_embeds=x, attention_mask=mask, use_cache=False).logits.float()  # (B, S, V)
        labels = torch.full((len(rows), longest), -100, device=lm.device)
        for label, row, reply in zip(labels, rows, replies, strict=True):
            label[len(row) - len(reply) - 1 : len(row) - 1] = torch.tensor(reply, device=lm.device)
        # Rows of their own: along another dimension than the last, float32 sums over a vocabulary lose a digit.
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        found.append(each.view(labels.shape).sum(1) / (labels >= 0).sum(1))
    return torch.stack(found, 1)


# replies ---------------------------------------------------------------------------------------------------------
def _chosen(lm: FrozenLM, job: _Job) -> tuple[list[Prompt], Tensor]:
    """Chats, and the virtual tokens (K, T, H) of which chat i has number i mod K."""
    with torch.no_grad():
        return job.chat_prompts(lm, job.chats), job.bank(lm).bank.prompts()


def _mixed(lm: FrozenLM, job: _Job) -> list[str]:
    """All chats in one batch, each with its own prompt."""
    prompts, virtual = _chosen(lm, job)
    each = virtual[torch.arange(len(prompts)) % job.prompts]
    return generate(lm, prompts, each, max_new_tokens=job.new_tokens)


def _by_prompt(lm: FrozenLM, job: _Job) -> list[str]:
    """The whole batch once for each prompt; of each pass the replies of those that chose it are kept."""
    prompts, virtual = _chosen(lm, job)
    texts = [""] * len(prompts)
    for k, one in enumerate(virtual[: len(prompts)]):
        every = one.expand(len(prompts), -1, -1)
        texts[k :: job.prompts] = generate(lm, prompts, every, max_new_tokens=job.new_tokens)[k :: job.prompts]
    return texts


# each of these runs in a process of its own ----------------------------------------------------------------------
def _differences(job: _Job, threads: int) -> tuple[float, int]:
    """Largest difference of losses, and of gradients relative to the largest one; and how many replies differ."""
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name, dtype="float32")
    network = job.bank(lm)
    losses, gradients = [], []
    for way in (_shared, partial(_plain, padded=0)):
        losses.append(_step(lm, job, network, way))
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    worst = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    differing = sum(a != b for a, b in zip(_mixed(lm, job), _by_prompt(lm, job), strict=True))
    return max(worst, abs(losses[0] - losses[1])), differing


def _timed_step(way: NLLs, job: _Job, threads: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name)
    network = job.bank(lm)
    before = forget_peak()
    cpu, wall = median_seconds(lambda: _step(lm, job, network, way), repeats)
    peak = peak_mib() - before
    lengths = {
        "context_tokens": [len(p.text_ids) for p in job.chat_prompts(lm, job.contexts)],
        "reply_tokens": [len(reply) for reply in job.replies(lm)],
    }
    return {"cpu": cpu, "wall": wall, "peak_mib": peak, **lengths, **about(lm)}


def _timed_replies(way: Callable[[FrozenLM, _Job], list[str]], job: _Job, threads: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    lm = FrozenLM.load(job.name)
    said: list[list[str]] = []
    cpu, wall = median_seconds(lambda: said.append(way(lm, job)), repeats)
    return {"cpu": cpu, "wall": wall, "texts": said[-1]}
