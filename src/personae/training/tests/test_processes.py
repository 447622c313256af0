"""Several processes that share the batches of a step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from personae.training.loop import Schedule, train


class Shared:
    """Regression with dropout, draws that depend on step and batch, and parameters that some batches or steps use."""

    counts = "answers"

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network = nn.ModuleDict({name: nn.Linear(5, 1) for name in ("all", "odd", "rare", "unused")})
        self.x = torch.randn(100, 5)
        self.y = self.x.sum(1, keepdim=True)

    def groups(self) -> list[dict]:
        return [{"params": list(self.network.parameters()), "lr": 1e-2}]

    def losses(self, step: int, batch: int) -> Iterator[tuple[Tensor, int]]:
        x = self.x[np.random.default_rng([step, batch]).integers(0, 100, 8)]
        out = self.network["all"](nn.functional.dropout(x, 0.2))
        if batch % 2:
            out = out + self.network["odd"](x)
        if step % 4 == 1 and batch == 2:  # one process in one step of four
            out = out + self.network["rare"](x)
        yield (out - x.sum(1, keepdim=True)).square().mean(), 8

    def validate(self) -> dict[str, float]:
        with torch.no_grad():
            return {"nll": (self.network["all"](self.x) - self.y).square().mean().item()}

    def identity(self) -> dict:
        return {}


def run(steps: int, checkpoint: Path, out: Path, resume: bool) -> None:
    task = Shared()
    schedule = Schedule(steps=20, batches=4, checkpoint_every=5, validate_every=5)
    if steps < 20:
        whole = task.losses

        def losses(step: int, batch: int) -> Iterator[tuple[Tensor, int]]:
            if step == steps:
                raise KeyboardInterrupt
            yield from whole(step, batch)

        task.losses = losses
    try:
        train(task, schedule, checkpoint, resume, progress=False)
    except KeyboardInterrupt:
        return
    if int(os.environ.get("RANK", "0")) == 0:
        save_file(task.network.state_dict(), out)


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if processes == 1:
        command = [sys.executable]
    path = [*sys.path, str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, __file__, *map(str, arguments)], env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Tensor]:
    """What one process learns."""
    folder = tmp_path_factory.mktemp("alone")
    run(20, folder / "checkpoint", folder / "weights", resume=False)
    return load_file(folder / "weights")


@pytest.mark.parametrize("first", [2, 3])
def test_processes_learn_what_one_would_and_another_number_of_them_goes_on(first, alone, tmp_path):
    stopped = launch(first, 12, tmp_path / "checkpoint", tmp_path / "none", "anew")
    assert (tmp_path / "checkpoint").exists(), stopped.stderr
    ended = launch(3 - first if first == 2 else 2, 20, tmp_path / "checkpoint", tmp_path / "weights", "resume")
    assert ended.returncode == 0, ended.stderr
    together = load_file(tmp_path / "weights")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=1e-4)


def test_more_processes_than_batches_are_refused(tmp_path):
    done = launch(5, 20, tmp_path / "checkpoint", tmp_path / "weights", "anew")
    assert done.returncode != 0
    assert "5 processes cannot share 4 batches a step; train with batches=5 or more" in done.stderr


def test_sharding_is_not_ignored_without_a_word(tmp_path, monkeypatch):
    """What ``accelerate launch --use_fsdp`` sets for each process."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r'^FSDP shards a model .* device_map="auto"\), or a quantised one$'):
        run(20, tmp_path / "checkpoint", tmp_path / "weights", resume=False)
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "resume")
