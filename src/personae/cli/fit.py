"""`personae fit` and `personae questions`: from a file to a bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import (
    BundlePath,
    command,
    doing,
    percent,
    print_json,
    print_table,
    read,
    reading_options,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from personae.data.survey import Survey
    from personae.people.cohorts import Cohorts
    from personae.people.opinion_model import OpinionModel

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
def fit(path: str, out: Path | None, k: str, topic: str | None, seed: int, as_json: bool, **options: Any) -> None:
    """Learn people and cohorts from the survey at PATH and write a bundle.

    PATH is a wide or long table (CSV, Parquet), an SPSS or Stata file, a folder with responses.csv, a Polis export, an
    OpinionQA wave, or the word sample for the embedded one. No language model is needed yet.

    \b
    personae fit sample
    personae fit responses.csv --questions questions.csv --respondents people.csv
    """
    from personae.bundle import Bundle

    if k != "auto" and not k.isdecimal():
        raise click.BadParameter(f'"{k}" is neither a number nor auto', param_hint="--cohorts")
    out = out or Path(_stem(path) + "-bundle")
    _keep_what_took_long(out)
    survey, source = read(path, **options)

    from personae.people.cohorts import Cohorts
    from personae.people.opinion_model import OpinionModel

    with doing("fitting the opinion model"):
        people = OpinionModel(random_state=seed).fit(survey)
    with doing("forming cohorts"):
        cohorts = Cohorts("auto" if k == "auto" else int(k), topic=topic, random_state=seed).fit(people, survey)
    with doing("writing the bundle"):
        Bundle.write(out, people, cohorts, account=survey.account, source=source)
    if as_json:
        print_json(_summary(survey, people, cohorts, out))
    else:
        _print(survey, people, cohorts, out)


def _stem(path: str) -> str:
    name = Path(path).expanduser().resolve().name
    return name.split(".")[0] or name


def _keep_what_took_long(out: Path) -> None:
    from personae.bundle import Bundle, check_replaceable

    check_replaceable(out)
    if (out / "manifest.json").exists() and "steerer" in Bundle.open(out):
        raise click.ClickException(
            f"{out} holds a trained steerer, which a new fit would make useless; give another --out, or remove {out}"
        )


def _summary(survey: Survey, people: OpinionModel, cohorts: Cohorts, out: Path) -> dict[str, Any]:
    curves = cohorts.curves_
    return {
        "bundle": out,
        "survey": {
            **survey.account.as_dict(),
            "respondents": survey.n_respondents,
            "questions": survey.n_questions,
            "answers": survey.n_answers,
            "traits": list(survey.traits.columns),
            "fingerprint": survey.fingerprint,
        },
        "opinion_model": {
            "n_components": people.n_components_,
            "strength": people.strength_,
            "validation": people.validation_,
        },
        "cohorts": cohorts.summary_.to_dict("records"),
        "curves": None if curves is None else curves.to_dict("records"),
    }


def _print(survey: Survey, people: OpinionModel, cohorts: Cohorts, out: Path) -> None:
    recognised = RECOGNISED.get(survey.account.format, survey.account.format)
    click.echo(f"recognised as {recognised}: {survey!r}, {survey.traits.shape[1]} traits")
    click.echo(survey.account)
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
