"""One training loop for every steerer: AdamW, warm-up, early stopping, checkpoints that resume bit for bit.

The loop knows a `Task` only: something with parameters, a loss for a step and a validation. What a step draws depends
on (seed, step, batch) alone, so that a resumed run sees what an uninterrupted one would have seen, and several
processes (`accelerate launch`, `torchrun`) what one would have seen: they share the batches of a step.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, reduce
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # of Accelerate


class Task(Protocol):
    """What is trained."""

    @property
    def network(self) -> nn.Module:
        """Whose parameters learn."""

    @property
    def counts(self) -> str:
        """What is learned from, for the progress bar: answers, replies."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups with their peak learning rate ``lr``."""

    def losses(self, step: int, batch: int) -> Iterator[tuple[Tensor, int]]:
        """Parts of the loss of one of a step's batches, each with the number of answers or replies in it; their
        gradients are summed.

        The backward pass of a part runs before the next part is drawn, so that one graph is alive at a time.
        """

    def validate(self) -> dict[str, float]:
        """Figures on held-out people; ``nll`` decides early stopping."""

    def identity(self) -> dict[str, Any]:
        """Plain values that a checkpoint must share with the run that resumes it."""


@dataclass(frozen=True)
class Schedule:
    """How long and how often.

    Parameters
    ----------
    steps : int
        At most; the learning rate rises over ``warmup`` steps and falls linearly to zero.
    validate_every, patience : int
        Validate every so many steps; stop after ``patience`` validations without a better NLL.
    checkpoint_every : int
    clip : float
        Largest gradient norm.
    weight_decay : float
    seed : int
    batches : int
        Of a step; its gradient is their mean. Several processes share them.
    """

    steps: int = 400
    validate_every: int = 50
    patience: int = 6
    checkpoint_every: int = 50
    warmup: int = 10
    clip: float = 1.0
    weight_decay: float = 1e-2
    seed: int = 0
    batches: int = 1


@dataclass
class _State:
    step: int = 0
    best: float = float("inf")
    bad: int = 0
    smooth: float | None = None  # running mean of the loss
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    task: Task, schedule: Schedule, checkpoint: Path | None = None, resume: bool = False, progress: bool = True
) -> list[dict[str, float]]:
    """Train ``task.network`` in place and leave the best validated weights in it.

    Parameters
    ----------
    checkpoint : Path, optional
        One safetensors file, replaced atomically every ``checkpoint_every`` steps.
    resume : bool
        Go on from ``checkpoint`` if it exists; the result is that of an uninterrupted run.
    progress : bool
        A bar on stderr with loss, held-out accuracy, answers a second and time left.

    Returns
    -------
    list of dict
        One a validation: step, loss, and what the task's validation gives.

    Raises
    ------
    ValueError
        The checkpoint belongs to another run (other data, LM or settings), there are more processes than batches, or
        Accelerate is configured to shard the model.
    FloatingPointError
        The loss is not finite.
    """
    processes = _processes()
    if processes.num_processes > schedule.batches:
        raise ValueError(
            f"{processes.num_processes} processes cannot share {schedule.batches} batches a step; "
            f"train with batches={processes.num_processes} or more"
        )
    if processes.num_processes > 1:  # what each of them prepared may differ in the last bit
        for value in task.network.state_dict().values():
            broadcast(value)
    optimiser = torch.optim.AdamW(task.groups(), weight_decay=schedule.weight_decay)
    peaks = [group["lr"] for group in optimiser.param_groups]
    state, best_weights = _State(), _copy(task.network)
    identity = {**task.identity(), **asdict(schedule)}
    if resume and checkpoint is not None and checkpoint.exists():
        state, best_weights = _load(checkpoint, task.network, optimiser, identity)
    answers, started = 0, time.monotonic()
    with _bar(progress and processes.is_main_process) as bar, torch.random.fork_rng(devices=[]):
        line = bar.add_task("training", total=schedule.steps, completed=state.step, note="")
        while state.step < schedule.steps and state.bad < schedule.patience:
            rate = min(1.0, (state.step + 1) / max(1, schedule.warmup)) * (1 - state.step / schedule.steps)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            task.network.train()
            optimiser.zero_grad(set_to_none=True)
            total = 0.0
            for batch in range(processes.process_index, schedule.batches, processes.num_processes):
                # Dropout, too, depends on step and batch alone.
                torch.manual_seed(schedule.seed * 1_000_003 + state.step * schedule.batches + batch)
                for loss, count in task.losses(state.step, batch):
                    (loss / schedule.batches).backward()
                    total += loss.item() / schedule.batches
                    answers += count
            total = _sum_over_processes(task.network, total, processes)
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss is not finite at step {state.step}; try a lower learning rate")
            nn.utils.clip_grad_norm_(task.network.parameters(), schedule.clip)
            optimiser.step()
            state.step += 1
            state.smooth = total if state.smooth is None else 0.95 * state.smooth + 0.05 * total
            if state.step % schedule.validate_every == 0 or state.step == schedule.steps:
                task.network.eval()
                (found,) = broadcast_object_list([task.validate() if processes.is_main_process else {}])
                state.history.append({"step": state.step, "loss": state.smooth, **found})
                if found["nll"] < state.best:
                    state.best, state.bad, best_weights = found["nll"], 0, _copy(task.network)
                else:
                    state.bad += 1
            if checkpoint is not None and (state.step % schedule.checkpoint_every == 0 or state.step == schedule.steps):
                if processes.is_main_process:
                    _save(checkpoint, task.network, optimiser, best_weights, state, identity)
                processes.wait_for_everyone()
            speed = answers * processes.num_processes / (time.monotonic() - started)
            note = f"loss {state.smooth:.3f}{_held_out(state.history)}  {speed:,.1f} {task.counts}/s"
            bar.update(line, completed=state.step, note=note)
    task.network.load_state_dict(best_weights)
    task.network.eval()
    return state.history


def _processes() -> PartialState:
    """This process and those that a launcher started with it; alone where there was no launcher.

    Raises ``ValueError`` where Accelerate is told to shard a model, which would otherwise not happen without a word.
    """
    if asked := [name for name in _SHARDING if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]:
        raise ValueError(
            f"{asked[0]} shards a model whose passes all processes make together; here each makes its own passes of a "
            "frozen language model, and what is trained is small: launch without it, and load an LM that is too large "
            'for one device with FrozenLM.load(name, device_map="auto"), or a quantised one'
        )
    return PartialState(cpu=not torch.cuda.is_available())


def is_first_process() -> bool:
    """Whether this process is the one that writes: the only one, or the first of those that train together."""
    return _processes().is_main_process


def _sum_over_processes(network: nn.Module, total: float, processes: PartialState) -> float:
    """Add up the processes' gradients, in one message, and the loss.

    A parameter that nobody's batches used stays without a gradient: with one of zero it would decay and drift on.
    """
    if processes.num_processes == 1:
        return total
    learned = [p for p in network.parameters() if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
    figures = torch.tensor([*(float(p.grad is not None) for p in learned), total], device=grads[0].device)
    flat = reduce(torch.cat([*(g.reshape(-1).float() for g in grads), figures]), reduction="sum")
    *parts, figures = flat.split([*(g.numel() for g in grads), len(figures)])
    *used, total = figures.tolist()
    for p, part, by in zip(learned, parts, used, strict=True):
        p.grad = part.view_as(p).to(p.dtype) if by else None
    return total


def _bar(progress: bool) -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress)


def _held_out(history: Sequence[dict[str, float]]) -> str:
    """The last validation, for the progress bar."""
    if not history:
        return ""
    found = dict(history[-1])
    nll = found.pop("nll")
    held_out = f"{found.pop('accuracy'):.1%}" if "accuracy" in found else f"NLL {nll:.3f}"
    rest = (f", {value:.1f} {name}" for name, value in found.items() if name not in ("step", "loss"))
    return f"  held-out {held_out}{''.join(rest)}"


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _save(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    state: _State,
    identity: dict[str, Any],
) -> None:
    """Everything in one file, written beside the old one and renamed: a crash leaves either."""
    tensors = {f"network.{n}": v.contiguous() for n, v in network.state_dict().items()}
    tensors |= {f"best.{n}": v.contiguous() for n, v in best.items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{n}": torch.as_tensor(v).contiguous() for n, v in values.items()}
    meta = {"state": json.dumps(asdict(state)), "identity": json.dumps(identity)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({n: v.clone() for n, v in tensors.items()}, partial, metadata=meta)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _load(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[_State, dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    saved = json.loads(meta["identity"])
    if saved != json.loads(json.dumps(identity)):
        different = sorted(k for k in saved.keys() | identity.keys() if saved.get(k) != identity.get(k))
        raise ValueError(
            f"{path} belongs to another run ({', '.join(different)} differ); "
            "repeat the settings of that run, or start anew without resuming"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

    network.load_state_dict(part("network."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimiser.").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return _State(**json.loads(meta["state"])), part("best.")


def best_figures(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The validation whose weights were kept.

    Examples
    --------
    >>> best_figures([{"step": 50, "nll": 1.1}, {"step": 100, "nll": 0.9}, {"step": 150, "nll": 1.0}])
    {'step': 100, 'nll': 0.9}
    """
    return min(history, key=lambda h: h["nll"])
