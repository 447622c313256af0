"""`personae fit` and `personae questions`: from a file to a bundle."""

from __future__ import annotations

import shlex
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from personae.cli.common import (
    BundlePath,
    absolute,
    command,
    doing,
    named_after,
    percent,
    print_json,
    print_table,
    read,
    reading_options,
    refuse_options,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from personae.data.account import Account
    from personae.people.cohorts import Cohorts
    from personae.people.opinion_model import OpinionModel
    from personae.scale.store import AnswerStore

_LETTERS = 26  # of `personae.lm.prompts`, whose import would take seconds

RECOGNISED = {
    "sample": "the embedded sample",
    "wide": "a wide table, one row a respondent",
    "long": "a long table, one row an answer",
    "labelled": "an SPSS or Stata file with value labels",
    "polis": "a Polis export",
    "opinionqa": "an OpinionQA wave",
}


@command("fit")
@click.argument("path")
@reading_options
@click.option("--out", metavar="BUNDLE", type=BundlePath, help="Where to write; PATH's name with -bundle by default.")
@click.option("--cohorts", "k", metavar="K|auto", default="auto", show_default=True, help="Number of cohorts.")
@click.option("--topic", metavar="TOPIC", help="Form cohorts by the questions of this topic only.")
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Same seed, same result.",
)
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), help="Of an answer store: this process (the default), or Ray."
)
@click.option(
    "--sample",
    metavar="ANSWERS",
    type=click.IntRange(1),
    help="Of an answer store: how many are held in memory, 2 million by default.",
)
def fit(
    path: str,
    out: Path | None,
    k: str,
    topic: str | None,
    seed: int,
    engine: Literal["local", "ray"] | None,
    sample: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn people and cohorts from the survey at PATH and write a bundle.

    PATH is a wide or long table (CSV, Parquet), an SPSS or Stata file, a folder with responses.csv, a Polis export, an
    OpinionQA wave, or the word sample for the embedded one. No language model is needed yet.

    PATH may also be an answer store (personae store), whose answers need not fit in memory. The bundle then has
    everybody by name for ask and simulate; cohorts, figures and a later personae steer are of random people with
    --sample answers. A store has no traits.

    \b
    personae fit sample
    personae fit responses.csv --questions questions.csv --respondents people.csv
    personae fit answer-store --engine ray
    """
    from personae.bundle import Bundle
    from personae.scale.store import AnswerStore

    if k != "auto" and not k.isdecimal():
        raise click.BadParameter(f'"{k}" is neither a number nor auto', param_hint="--cohorts")
    if out is None:
        out = named_after(path, "bundle")
        _keep_other_data(out, path)
    _keep_what_took_long(out)
    if AnswerStore.is_at(path):
        refuse_options(path, **options)
        from personae.scale.als import SAMPLE

        _fit_store(AnswerStore.open(path), out, k, topic, seed, engine or "local", sample or SAMPLE, as_json)
        return
    if engine or sample:
        raise click.UsageError("--engine and --sample are for answer stores; make one with: personae store ANSWERS")
    survey, source = read(path, **options)

    from personae.people.opinion_model import OpinionModel

    with doing("fitting the opinion model"):
        people = OpinionModel(random_state=seed).fit(survey)
    cohorts = _cohorts(people, k, topic, seed)
    with doing("writing the bundle"):
        Bundle.write(out, people, cohorts, account=survey.account, source=source)
    _tell_too_long(people)
    sizes = {"respondents": survey.n_respondents, "questions": survey.n_questions, "answers": survey.n_answers}
    if as_json:
        print_json(_summary(survey.account, sizes, people, cohorts, out))
        return
    recognised = RECOGNISED.get(survey.account.format, survey.account.format)
    click.echo(f"recognised as {recognised}: {survey!r}, {survey.traits.shape[1]} traits")
    _print(survey.account, people, cohorts, out)


def _fit_store(
    store: AnswerStore,
    out: Path,
    k: str,
    topic: str | None,
    seed: int,
    engine: Literal["local", "ray"],
    sample: int,
    as_json: bool,
) -> None:
    """Out of core: everybody's vectors, and an opinion model and cohorts of a random sample."""
    from personae.bundle import Bundle
    from personae.data.account import Account
    from personae.scale.als import fit_store
    from personae.scale.everybody import Everybody

    click.echo(f"{store!r}, out of core", err=True)
    begin, sweeps = time.perf_counter(), count(1)

    def progress(stage: str, value: float) -> None:
        what = f"sweep {next(sweeps)}, noise {value:.4f}" if stage == "sweep" else f"vectors of {value:,} shards"
        click.echo(f"{time.perf_counter() - begin:,.0f} s: {what}", err=True)

    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.resolve().parent) as work:
        vectors = Path(work) / "vectors"
        people = fit_store(store, vectors, "auto", seed, engine, sample, progress=progress)
        cohorts = _cohorts(people, k, topic, seed)
        account = Account.from_dict(store.account)
        everybody = None if len(people) == store.n_people else Everybody(vectors, people)
        with doing("writing the bundle"):
            source = {"path": str(store.folder.resolve()), "sample": sample}
            Bundle.write(out, people, cohorts, account=account, source=source, everybody=everybody)
    _tell_too_long(people)
    sizes = {"respondents": store.n_people, "questions": len(store.questions), "answers": store.n_answers}
    if as_json:
        print_json(_summary(account, sizes, people, cohorts, out))
        return
    click.echo(f"recognised as an answer store: {store!r}")
    _print(account, people, cohorts, out)
    if everybody is not None:
        click.echo(
            f"\nask and simulate know all {store.n_people:,} people by name; cohorts, figures and steer are of "
            f"{len(people):,} random ones"
        )


def _cohorts(people: OpinionModel, k: str, topic: str | None, seed: int) -> Cohorts:
    from personae.people.cohorts import Cohorts

    with doing("forming cohorts"):
        return Cohorts("auto" if k == "auto" else int(k), topic=topic, random_state=seed).fit(people)


def _keep_what_took_long(out: Path) -> None:
    from personae.bundle_files import check_replaceable, location

    check_replaceable(out)
    if (location(out) / "steerer").is_dir():  # looked for without opening: a damaged bundle may be fitted again
        raise click.ClickException(
            f"{out} holds a trained steerer, which a new fit would make useless; give another --out, or remove {out}"
        )


def _keep_other_data(out: Path, path: str) -> None:
    """Nobody named the bundle, so one of other data is not replaced."""
    from personae.bundle_files import BundleError, read_manifest

    try:
        source = read_manifest(out)["data"].get("source", {}).get("path")
    except BundleError:
        return  # there is none, or it has to be made again
    if source != absolute(path):
        raise click.ClickException(
            f"{out} is a bundle of {source or 'other data'} and would be replaced; give another --out, or remove {out}"
        )


def _tell_too_long(people: OpinionModel) -> None:
    if names := [q.id for q in people.questions_ if len(q.options) > _LETTERS]:
        click.echo(
            f"personae steer will not learn from questions with more than {_LETTERS} options, which letters cannot "
            f"name: {', '.join(names)}; join some of their options if it shall",
            err=True,
        )


def _summary(
    account: Account, sizes: dict[str, int], people: OpinionModel, cohorts: Cohorts, out: Path
) -> dict[str, Any]:
    curves = cohorts.curves_
    return {
        "bundle": out,
        "survey": {
            **account.as_dict(),
            **sizes,
            "traits": list(people.traits_.columns),
            "fingerprint": people.fingerprint_,
        },
        "opinion_model": {
            "n_components": people.n_components_,
            "strength": people.strength_,
            "validation": people.validation_,
        },
        "cohorts": cohorts.summary_.to_dict("records"),
        "curves": None if curves is None else curves.to_dict("records"),
    }


def _print(account: Account, people: OpinionModel, cohorts: Cohorts, out: Path) -> None:
    click.echo(account)
    nll = min((v["nll"] for v in people.validation_ if "nll" in v), default=None)
    held_out = "" if nll is None else f", NLL {nll:.3f} on a held-out tenth of the answers"
    click.echo(f"opinion model: {people.n_components_} dimensions{held_out}")
    chosen = "" if cohorts.curves_ is None else f", chosen among 1 to {cohorts.curves_.k.max()}"
    click.echo(f"cohorts: {len(cohorts)}{chosen}")
    lines = table("cohort", ">people", ">share", "most telling answers")
    rows: Iterable[Any] = cohorts.summary_.itertuples()
    for row in rows:
        lines.add_row(row.cohort, f"{row.people:,}", percent(row.share), row.label)
    print_table(lines)
    name, question = shlex.quote(str(out)), _most_splitting(cohorts) or people.questions_[0].id
    click.echo(f"bundle: {out}\n\ntry next")
    click.echo(f"  personae cohorts {name}")
    click.echo(f"  personae ask {name} {shlex.quote(question)}")
    click.echo(f"  personae steer {name}        (a language model that answers as them, minutes)")


def _most_splitting(cohorts: Cohorts) -> str | None:
    splitting = cohorts.profiles_.splitting
    return next(iter(splitting.question[~splitting.suppressed]), None)


@command("questions")
@click.argument("path", type=click.Path(path_type=Path))
def questions(path: Path, as_json: bool) -> None:
    """Draft the questions table of a wide or long file, for you to correct.

    Check the order of the options, write the wording, then fit with it:

    \b
    personae questions responses.csv > questions.csv
    personae fit responses.csv --questions questions.csv
    """
    from personae.data.account import Account
    from personae.data.draft import draft_questions

    account = Account(str(path), "draft")
    drafted = draft_questions(path, account)
    click.echo(account, err=True)
    if as_json:
        print_json(drafted.to_dict("records"))
    else:
        click.echo(drafted.to_csv(index=False), nl=False)
