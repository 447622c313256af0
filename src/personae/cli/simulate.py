"""`personae simulate`: what many people would answer to many questions, as Parquet shards."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from personae.cli.common import BundlePath, command, open_bundle, print_json

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.data.survey import Question

_AT_LEAST_1 = click.IntRange(1)


@command("simulate")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.option("--questions", metavar="FILE", help="Questions table, or ids alone; the survey's own by default.")
@click.option(
    "--people",
    metavar="WHO",
    multiple=True,
    default=("all",),
    help="all, sample, cohorts, or any number of names; all by default.",
)
@click.option("--n", metavar="N", type=_AT_LEAST_1, help="People of the sample.")
@click.option("--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Of the sample.")
@click.option("--draw", metavar="SEED", type=click.IntRange(0), help="Write a drawn answer instead of probabilities.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This process, or workers on Ray.",
)
@click.option("--workers", metavar="N", type=_AT_LEAST_1, help="Of Ray; one a GPU, else one a core, by default.")
@click.option(
    "--threads", metavar="N", type=_AT_LEAST_1, default=1, show_default=True, help="Cores of each worker without a GPU."
)
@click.option(
    "--people-per-shard",
    metavar="N",
    type=_AT_LEAST_1,
    default=512,
    show_default=True,
    help="People of one file, which has 16 questions.",
)
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="New, or to go on with.")
def simulate(
    folder: Path,
    questions: str | None,
    people: tuple[str, ...],
    n: int | None,
    seed: int,
    draw: int | None,
    engine: Literal["local", "ray"],
    workers: int | None,
    threads: int,
    people_per_shard: int,
    out: Path,
    as_json: bool,
) -> None:
    """Ask the steered language model what each of many people would answer to each of many questions.

    FOLDER/answers gets long tables in Parquet files that are read as one: respondent, question, and probabilities in
    the order of the options, or with --draw the answer. A run that was killed goes on by the same command. Both engines
    and any number of workers give the same numbers.

    \b
    personae simulate sample-bundle --people cohorts --out answers
    personae simulate sample-bundle --people sample --n 1000 --draw 0 --out answers
    personae simulate sample-bundle --questions new.csv --engine ray --out answers
    """
    who: str | tuple[str, ...] = people[0] if len(people) == 1 else people
    if n is not None and who != "sample":
        raise click.UsageError("--n is the size of a sample: --people sample --n 1000")
    if n is None and who == "sample":
        raise click.UsageError("say how many: --people sample --n 1000")
    if workers is not None and engine == "local":
        raise click.UsageError("--workers are Ray's: --engine ray")
    bundle = open_bundle(folder)
    asked = list(bundle.people.questions_) if questions is None else _read(bundle, Path(questions))

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from personae.scale.simulate import simulate

    begin = time.perf_counter()
    columns = TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, visible=False)
        try:
            found = simulate(
                bundle, asked, out, who, n, seed, draw, engine, workers, threads, people_per_shard,
                progress=lambda done, pairs: bar.update(task, completed=done, total=pairs, visible=True),
            )  # fmt: skip
        except KeyboardInterrupt:
            bar.console.print("what is written stays: the same command goes on")
            raise
    seconds = time.perf_counter() - begin
    if as_json:
        print_json({**found._asdict(), "engine": engine, "seconds": seconds})
        return
    pairs = found.people * found.questions
    click.echo(f"{out / 'answers'}: {found.people:,} people x {found.questions:,} questions, {found.shards:,} files")
    if found.computed < pairs:
        click.echo(f"{pairs - found.computed:,} of the {pairs:,} answers were there")
    if found.computed:
        click.echo(f"{found.computed:,} answers in {seconds:.1f} s, {found.computed / seconds:,.0f} a second")


def _read(bundle: Bundle, file: Path) -> list[Question]:
    """A questions table, or the column ``question`` alone: ids of the bundle's questions."""
    from personae.data.account import Account
    from personae.data.codebook import read_questions

    ids = _ids(file)
    if ids is not None:
        return [bundle.people.questions_[j] for j in bundle.people.question_index(ids)]
    account = Account(str(file), "questions")
    found = [entry.question for entry in read_questions(file, account).values()]
    if account.notes:
        click.echo(account, err=True)
    return found


def _ids(file: Path) -> list[str] | None:
    """The cells of a text file whose only column is ``question``; None of any other file."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        if stream.readline(100).removeprefix(b"\xef\xbb\xbf").strip(b'" \t\r\n') != b"question":
            return None
    with file.open(encoding="utf-8-sig", newline="") as text:
        return [row[0].strip() for row in csv.reader(text) if row and row[0].strip()][1:]
