"""What the commands share: errors as one sentence, results as JSON or text, progress on stderr."""

from __future__ import annotations

import contextlib
import dis
import errno
import json
import math
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:  # nothing but click at start-up: `personae --help` answers at once
    from rich.table import Table

    from personae.bundle import Bundle
    from personae.data.survey import Survey

_HUB = "hf:"  # a bundle of the hub: hf:owner/name
BundlePath = click.Path(path_type=Path)


# commands and their failures -------------------------------------------------------------------------------------
class Group(click.Group):
    """Commands whose every failure ends in one plain sentence on stderr and a status that is not zero."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):  # a terminal without bars and dashes is no reason to fail
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            status = super().main(given, "personae", **{**extra, "standalone_mode": False})
            sys.stdout.flush()
            sys.exit(status if isinstance(status, int) else 0)
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in given and not isinstance(error, (click.Abort, KeyboardInterrupt)):
                traceback.print_exc()
            sentence, status = _explain(error)
            with contextlib.suppress(OSError):
                click.echo(sentence, err=True, nl=bool(sentence))
            _forget_output()
            sys.exit(status)


def command(name: str) -> Callable[[Callable[..., object]], click.Command]:
    """A command with ``--json`` (given to the function as ``as_json``) and ``--debug``."""

    def wrap(function: Callable[..., object]) -> click.Command:
        made = click.command(name)(function)
        made.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show where an error came from."),
        ]
        return made

    return wrap


def _explain(error: BaseException) -> tuple[str, int]:
    """A sentence for the user and the exit status."""
    from personae.lm.names import ModelNotFound

    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "stopped", 130
    if isinstance(error, BrokenPipeError):
        return "", 1  # whoever read our output has enough
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "personae"
        return f"{error.format_message().rstrip('.')}; see {path} --help", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if _is_full_disk(error):
        return "the disk is full; make room and run the command again (nothing that was there is changed)", 1
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename else ""
        return f"{about}{error.strerror[0].lower()}{error.strerror[1:]}", 1
    if isinstance(error, MemoryError):
        return "there is not enough memory for this", 1
    if isinstance(error, (ValueError, FloatingPointError, ModelNotFound)) and str(error) and _is_said(error):
        return str(error), 1
    what = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
    return f"something unexpected went wrong ({what}); run the command again with --debug to see where", 1


def _is_full_disk(error: BaseException) -> bool:
    """Whatever writes: safetensors has an error of its own, with the number in words alone."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in str(error)


def _is_said(error: BaseException) -> bool:
    """Whether a line of ours raises the error: a sentence of ours, not what zip or numpy says of a mistake of ours."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return True
    code = trace.tb_frame.f_code
    ours = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]
    return ours and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _forget_output() -> None:
    """Let the interpreter's last flush go nowhere when stdout is closed or full."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)


# input -----------------------------------------------------------------------------------------------------------
def named_after(path: str | Path, what: str) -> Path:
    """What is made of a file if nobody names it: ``wave.2023.csv`` gives ``wave.2023-bundle``."""
    from personae.data.labelled import LABELLED_ENDINGS
    from personae.data.tables import TABLE_ENDINGS

    name = Path(path).expanduser().resolve().name
    for ending in (*TABLE_ENDINGS, *LABELLED_ENDINGS):
        if name.lower().endswith(ending) and name != ending:
            return Path(f"{name[: -len(ending)]}-{what}")
    return Path(f"{name}-{what}")


def hub_name(folder: Path) -> str | None:
    """``owner/name`` of a bundle that is on the hub, None of a folder."""
    name = str(folder).removeprefix(_HUB)
    return None if name == str(folder) else name


def open_bundle(folder: Path, to_write: bool = False) -> Bundle:
    """A folder, or ``hf:owner/name`` of the hub, which is opened in the hub's cache: nothing is written there."""
    from personae.bundle import Bundle

    name = hub_name(folder)
    if name is None:
        return Bundle.open(folder)
    if to_write:
        raise click.ClickException(f"{folder} is on the hub; get a folder first: hf download {name} --local-dir FOLDER")
    with doing(f"fetching {name} from the hub"):
        return Bundle.from_pretrained(name)


def reading_options(function: Callable[..., object]) -> Callable[..., object]:
    """The options of `read_survey`."""
    for option in (
        click.option(
            "--format",
            type=click.Choice(["wide", "long", "labelled", "polis", "opinionqa"]),
            help="Where the guess would be wrong.",
        ),
        click.option("--traits", metavar="A,B,...", help="Columns that are traits, not questions."),
        click.option("--respondents", metavar="FILE", help="Table of traits, one row a respondent."),
        click.option("--questions", metavar="FILE", help="Table of questions: id, text, options in order."),
    ):
        function = option(function)
    return function


def read(path: str, **options: Any) -> tuple[Survey, dict[str, Any]]:
    """A survey, and the arguments with which it can be read again from anywhere."""
    from personae.data.read import read_survey
    from personae.scale.store import AnswerStore

    sample = options.pop("sample", None)
    if AnswerStore.is_at(path):
        return _read_store(path, sample, options)
    if isinstance(options.get("traits"), str):
        options["traits"] = [name.strip() for name in options["traits"].split(",")]
    files = {"path": path, **{name: options.pop(name, None) for name in ("questions", "respondents")}}
    source: dict[str, Any] = {name: None if file is None else absolute(file) for name, file in files.items()}
    with doing(f"reading {path}"):
        return read_survey(**source, **options), {**source, **options}


def absolute(path: str) -> str:
    """A survey's path as a bundle's manifest has it."""
    return path if path == "sample" else str(Path(path).expanduser().resolve())


def refuse_options(path: str, **options: Any) -> None:
    """An answer store has questions of its own and no traits."""
    if given := next((name for name, value in options.items() if value is not None), None):
        raise click.UsageError(f"--{given} does not go with the answer store {path}; leave it out")


def _read_store(path: str, sample: int | None, options: dict[str, Any]) -> tuple[Survey, dict[str, Any]]:
    """The people of an answer store whom the opinion model of `fit_store` holds."""
    from personae.scale.als import SAMPLE, sampled
    from personae.scale.store import AnswerStore

    refuse_options(path, **options)
    store, sample = AnswerStore.open(path), sample or SAMPLE
    with doing(f"reading {path}"):
        survey = sampled(store, sample)
    if survey.n_respondents < store.n_people:
        click.echo(f"{survey.n_respondents:,} random people of {store!r}", err=True)
    return survey, {"path": absolute(path), "sample": sample}


# output ----------------------------------------------------------------------------------------------------------
def print_json(value: Any) -> None:
    """One JSON document; what is not a number becomes null, as JSON has no NaN."""
    click.echo(json.dumps(_plain(value), indent=1, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say on stderr what takes a while, and how long it took."""
    begin = time.perf_counter()
    click.echo(f"{what} ... ", nl=False, err=True)
    try:
        yield
    except BaseException:
        click.echo(err=True)
        raise
    click.echo(f"{time.perf_counter() - begin:.1f} s", err=True)


def table(*headers: str) -> Table:
    """An empty table; headers that start with ``>`` are right-aligned."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for header in headers:
        made.add_column(header.lstrip(">"), justify="right" if header[:1] == ">" else "left")
    return made


def print_table(made: Table, indent: int = 2) -> None:
    """Print to stdout; labels are text, never markup."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else 110, markup=False, emoji=False, highlight=False
    )
    with console.capture() as captured:
        console.print(Padding(made, (0, 0, 0, indent), expand=False))
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"
