"""The loop on a task of its own: a small network with dropout, so that every draw of random numbers shows."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from personae.training import loop
from personae.training.loop import Schedule, best_figures, train

SCHEDULE = Schedule(steps=60, validate_every=7, checkpoint_every=5, patience=100, warmup=3, seed=3)


class Toy:
    """Regression of a fixed linear map; ``pause`` makes a step slow enough to be killed in."""

    counts = "answers"

    def __init__(self, pause: float = 0.0, data: str = "a") -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1))
        self.x = torch.randn(200, 5)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]])
        self.pause, self.data = pause, data
        self.steps: list[int] = []

    def groups(self) -> list[dict]:
        first, *rest = self.network.parameters()
        return [{"params": [first], "lr": 1e-2}, {"params": rest, "lr": 3e-3}]

    def losses(self, step: int, batch: int) -> Iterator[tuple[Tensor, int]]:
        time.sleep(self.pause)
        self.steps.append(step)
        for rows in np.random.default_rng(step).integers(0, 150, (2, 4)):
            yield (self.network(self.x[rows]) - self.y[rows]).square().mean(), 4

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        assert not self.network.training
        return {"nll": (self.network(self.x[150:]) - self.y[150:]).square().mean().item(), "accuracy": 0.5}

    def identity(self) -> dict:
        return {"data": self.data}

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.network.state_dict().items()}


class Scripted(Toy):
    """Validations are told beforehand; ``seen`` keeps the weights of each."""

    def __init__(self, *nll: float) -> None:
        super().__init__()
        self.nll, self.seen = iter(nll), []

    def validate(self) -> dict[str, float]:
        self.seen.append(self.weights())
        return {"nll": next(self.nll), "accuracy": 0.0}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Tensor], list]:
    """Weights and history of a run that nothing interrupted."""
    task = Toy()
    history = train(task, SCHEDULE, progress=False)
    return task.weights(), history


def step_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, "pt") as file:
        return json.loads(file.metadata()["state"])["step"]


# resuming --------------------------------------------------------------------------------------------------------
def test_a_killed_run_goes_on_to_the_same_result_bit_for_bit(tmp_path, whole):
    checkpoint = tmp_path / "run" / "training.safetensors"
    with subprocess.Popen([sys.executable, __file__, str(checkpoint)]) as process:
        while not checkpoint.exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    reached = step_of(checkpoint)
    assert 0 < reached < SCHEDULE.steps
    task = Toy()
    history = train(task, SCHEDULE, checkpoint, resume=True, progress=False)
    assert task.steps[0] == reached  # it went on, rather than beginning anew
    assert same(task.weights(), whole[0])
    assert history == whole[1]


@pytest.mark.parametrize("stop", [5, 7, 13, 59])
def test_wherever_it_stops(tmp_path, whole, stop):
    class Stopping(Toy):
        def losses(self, step, batch):
            if step == stop:
                raise KeyboardInterrupt
            return super().losses(step, batch)

    checkpoint = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(Stopping(), SCHEDULE, checkpoint, progress=False)
    task = Toy()
    history = train(task, SCHEDULE, checkpoint, resume=True, progress=False)
    assert task.steps[0] == stop // 5 * 5
    assert same(task.weights(), whole[0])
    assert history == whole[1]


def test_a_finished_run_is_not_run_again(tmp_path, whole):
    checkpoint = tmp_path / "training.safetensors"
    train(Toy(), SCHEDULE, checkpoint, progress=False)
    task = Toy()
    history = train(task, SCHEDULE, checkpoint, resume=True, progress=False)
    assert task.steps == []
    assert same(task.weights(), whole[0])
    assert history == whole[1]


def test_without_resume_a_run_starts_anew(tmp_path, whole):
    checkpoint = tmp_path / "training.safetensors"
    train(Toy(data="another"), SCHEDULE, checkpoint, progress=False)
    task = Toy()
    train(task, SCHEDULE, checkpoint, progress=False)
    assert task.steps[0] == 0
    assert same(task.weights(), whole[0])
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["identity"])["data"] == "a"


def test_nothing_to_resume_from_is_a_new_run(tmp_path, whole):
    task = Toy()
    train(task, SCHEDULE, tmp_path / "none.safetensors", resume=True, progress=False)
    assert same(task.weights(), whole[0])


@pytest.mark.parametrize(
    ("data", "changed", "differs"),
    [("b", {}, "data"), ("a", {"seed": 4}, "seed"), ("a", {"steps": 61, "clip": 2.0}, "clip, steps")],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, data, changed, differs):
    checkpoint = tmp_path / "training.safetensors"
    train(Toy(), SCHEDULE, checkpoint, progress=False)
    task = Toy(data=data)
    before = task.weights()
    with pytest.raises(ValueError, match=rf"belongs to another run \({differs} differ\)"):
        train(task, replace(SCHEDULE, **changed), checkpoint, resume=True, progress=False)
    assert same(task.weights(), before)


# the file --------------------------------------------------------------------------------------------------------
def test_the_checkpoint_is_safetensors(tmp_path):
    checkpoint = tmp_path / "training.safetensors"
    train(Toy(), SCHEDULE, checkpoint, progress=False)
    content = checkpoint.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])  # a pickle or a zip of pickles has no such header
    facts = header.pop("__metadata__")
    assert {json.loads(facts[key]).__class__ for key in ("state", "identity")} == {dict}
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - length
    assert {name.split(".")[0] for name in header} == {"network", "best", "optimiser"}


def test_every_checkpoint_on_the_way_opens(tmp_path):
    checkpoint, found = tmp_path / "training.safetensors", []

    class Looking(Toy):
        def losses(self, step, batch):
            if checkpoint.exists():
                found.append((step, step_of(checkpoint)))
            return super().losses(step, batch)

    train(Looking(), SCHEDULE, checkpoint, progress=False)
    assert found == [(step, step // 5 * 5) for step in range(5, 60)]
    assert [f.name for f in tmp_path.iterdir()] == ["training.safetensors"]


def test_a_crash_while_writing_leaves_the_last_whole_checkpoint(tmp_path, whole, monkeypatch):
    checkpoint = tmp_path / "training.safetensors"
    write, calls = loop.save_file, itertools.count()

    def crash(tensors, path, metadata=None):
        write(tensors, path, metadata=metadata)
        if next(calls) == 3:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), SCHEDULE, checkpoint, progress=False)
    monkeypatch.undo()
    assert step_of(checkpoint) == 15
    assert len(list(tmp_path.iterdir())) == 2  # half a file is left behind, and harms nobody
    task = Toy()
    history = train(task, SCHEDULE, checkpoint, resume=True, progress=False)
    assert same(task.weights(), whole[0])
    assert history == whole[1]
    assert [f.name for f in tmp_path.iterdir()] == ["training.safetensors"]


def test_a_partial_file_alone_is_never_read(tmp_path, whole):
    checkpoint = tmp_path / "training.safetensors"
    train(Toy(data="another"), SCHEDULE, checkpoint, progress=False)
    checkpoint.replace(tmp_path / "training.safetensors.partial")
    task = Toy()
    train(task, SCHEDULE, checkpoint, resume=True, progress=False)
    assert task.steps[0] == 0
    assert same(task.weights(), whole[0])


# stopping --------------------------------------------------------------------------------------------------------
def test_the_best_validated_weights_are_kept():
    task = Scripted(3.0, 1.0, 2.0, 2.0, 2.0)
    history = train(task, Schedule(steps=50, validate_every=10), progress=False)
    assert [h["nll"] for h in history] == [3.0, 1.0, 2.0, 2.0, 2.0]
    assert same(task.weights(), task.seen[1])
    assert not same(task.seen[1], task.seen[-1])
    assert best_figures(history)["step"] == 20
    assert not task.network.training


def test_stops_when_nothing_gets_better():
    task = Scripted(3.0, 1.0, 1.0, 2.0, 1.5, 0.0)
    history = train(task, Schedule(steps=1000, validate_every=2, patience=3), progress=False)
    assert [h["step"] for h in history] == [2, 4, 6, 8, 10]  # as good as before is not better
    assert task.steps == list(range(10))
    assert same(task.weights(), task.seen[1])


def test_early_stopping_survives_a_resume(tmp_path):
    checkpoint, figures = tmp_path / "training.safetensors", (3.0, 1.0, 1.2, 1.4, 1.6, 0.0)
    schedule = Schedule(steps=1000, validate_every=2, patience=3, checkpoint_every=3)
    whole = Scripted(*figures)
    history = train(whole, schedule, progress=False)

    class Stopping(Scripted):
        def losses(self, step, batch):
            if step == 7:
                raise KeyboardInterrupt
            return super().losses(step, batch)

    with pytest.raises(KeyboardInterrupt):
        train(Stopping(*figures), schedule, checkpoint, progress=False)
    task = Scripted(*figures[3:])  # three validations are in the checkpoint of step 6
    assert train(task, schedule, checkpoint, resume=True, progress=False) == history
    assert same(task.weights(), whole.weights())


def test_a_last_validation_at_the_end():
    history = train(Toy(), Schedule(steps=12, validate_every=10), progress=False)
    assert [h["step"] for h in history] == [10, 12]


def test_a_figure_that_is_no_number_is_not_better():
    task = Scripted(3.0, float("nan"), 4.0)
    train(task, Schedule(steps=6, validate_every=2), progress=False)
    assert same(task.weights(), task.seen[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_raises(tmp_path, value):
    class Broken(Toy):
        def losses(self, step, batch):
            for loss, count in super().losses(step, batch):
                yield (loss * value if step == 7 else loss), count

    with pytest.raises(FloatingPointError, match="not finite at step 7"):
        train(Broken(), SCHEDULE, tmp_path / "training.safetensors", progress=False)
    assert step_of(tmp_path / "training.safetensors") == 5


def test_the_parts_of_a_step_are_one_gradient(whole):
    class Together(Toy):
        def losses(self, step, batch):
            parts = list(super().losses(step, batch))
            yield sum(loss for loss, _ in parts), sum(count for _, count in parts)

    task = Together()
    train(task, SCHEDULE, progress=False)
    for name, value in task.weights().items():
        torch.testing.assert_close(value, whole[0][name], rtol=1e-4, atol=1e-5)


def test_one_part_is_differentiated_before_the_next_is_drawn():
    class Watching(Toy):
        def losses(self, step, batch):
            first, second = super().losses(step, batch)
            yield first
            assert self.network[0].weight.grad is not None
            yield second

    train(Watching(), replace(SCHEDULE, steps=1), progress=False)


# manners ---------------------------------------------------------------------------------------------------------
def test_it_learns():
    task = Toy()
    task.network.eval()
    start = task.validate()
    history = train(task, Schedule(steps=150, validate_every=50), progress=False)
    assert best_figures(history)["nll"] < 0.7 * start["nll"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_quiet_without_progress_and_stderr_with_it(capfd):
    train(Toy(), SCHEDULE, progress=False)
    assert capfd.readouterr() == ("", "")
    train(Toy(), SCHEDULE, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "60/60" in err
    assert "held-out 50.0%" in err


def test_random_numbers_of_the_caller_are_left_alone():
    task = Toy()
    torch.manual_seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    train(task, SCHEDULE, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002


def test_random_numbers_of_the_caller_do_not_matter(whole):
    task = Toy()
    torch.manual_seed(12345)
    train(task, SCHEDULE, progress=False)
    assert same(task.weights(), whole[0])


def test_another_seed_is_another_run(whole):
    task = Toy()
    train(task, replace(SCHEDULE, seed=4), progress=False)
    assert not same(task.weights(), whole[0])  # dropout differs


if __name__ == "__main__":  # the run to be killed
    train(Toy(pause=0.05), SCHEDULE, Path(sys.argv[1]), progress=False)
