"""Start-up and failures, seen from outside."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError

import personae
from personae.cli.main import main

PERSONAE = [sys.executable, "-m", "personae.cli.main"]


def outside(*args: object, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PERSONAE, *map(str, args)], capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload]


def test_help_and_version_answer_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = outside("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "fit" in result.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    assert outside("--version").stdout == f"personae, version {personae.__version__}\n"


def test_nothing_heavy_is_imported_at_start():
    code = "import personae.cli.main, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "pandas", "numpy", "rich", "sklearn", "pyarrow"} & set(loaded)


GROUPED = [[name, part] for name, group in main.commands.items() for part in getattr(group, "commands", {})]
ALONE = [[name] for name in main.commands if name not in {group for group, _ in GROUPED}]


@pytest.mark.parametrize("names", [[], *ALONE, *GROUPED], ids=" ".join)
def test_every_command_has_help_and_json(run, names):
    text = run(*names, "--help").stdout
    assert text.startswith("Usage: personae")
    assert not names or ("--json" in text and "--debug" in text)


def test_no_command_prints_the_help(run):
    assert run().stdout == run("--help").stdout


def test_the_documentation_is_up_to_date():
    script = Path(__file__).parents[4] / "scripts" / "write_cli_docs.py"
    spec = importlib.util.spec_from_file_location("write_cli_docs", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.document(), "run: make docs"


# failures --------------------------------------------------------------------------------------------------------
def one_sentence(stderr: str) -> str:
    """The last line of stderr, which must be all there is but progress."""
    assert "Traceback" not in stderr
    return stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["fti"], "see personae --help"),
        (["fit"], "see personae fit --help"),
        (["fit", "sample", "--outt", "x"], "see personae fit --help"),
        (["bench", "nothing"], "see personae bench --help"),
    ],
)
def test_a_slip_of_the_fingers(run, args, sentence):
    assert sentence in one_sentence(run(*args, status=2).stderr)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("the survey has no answers"), "the survey has no answers"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/b"), "/root/b: permission denied"),
        (MemoryError(), "there is not enough memory"),
        (KeyError("vectors"), "something unexpected went wrong (KeyError: 'vectors'); run the command again with"),
        (RuntimeError("one\ntwo"), "(RuntimeError: one two)"),
        (KeyError(f"{list(range(5000))} not in index"), "4, 5"),
        (KeyError(f"{list(range(5000))} not in index"), " ...); run the command again with --debug"),
    ],
)
def test_every_failure_is_one_sentence(run, monkeypatch, error, sentence):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("personae.bundle.Bundle.open", fail)
    result = run("cohorts", "b", status=1)
    assert sentence in one_sentence(result.stderr)
    assert len(result.stderr) < 500
    assert result.stdout == ""
    debugged = run("cohorts", "b", "--debug", status=1)
    assert "Traceback" in debugged.stderr
    assert sentence in debugged.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: list(zip([1], [], strict=True)),
        lambda: np.bincount([-1]),
        lambda: np.zeros(2) @ np.zeros(3),
        lambda: pd.Series([1]).to_frame().set_axis([1, 2], axis=1),
    ],
)
def test_a_mistake_of_ours_is_no_sentence(run, monkeypatch, mistake):
    monkeypatch.setattr("personae.bundle.Bundle.open", lambda *_: mistake())
    assert "something unexpected went wrong (ValueError: " in one_sentence(run("cohorts", "b", status=1).stderr)


def test_a_full_disk_under_stdout():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([*PERSONAE, "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("the disk is full")
    assert len(result.stderr.splitlines()) == 1


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([*PERSONAE, "models"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode != 0


def test_ctrl_c_is_130(tmp_path):
    pipe = tmp_path / "never.csv"
    os.mkfifo(pipe)  # reading it waits for a writer that does not come
    command = subprocess.Popen([*PERSONAE, "fit", str(pipe)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stderr is not None
    assert command.stderr.read(8) == "reading "
    time.sleep(0.5)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert out == ""
    assert one_sentence(err) == "stopped"


def test_a_terminal_without_unicode():
    result = outside("--help", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
