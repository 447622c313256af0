"""`personae evaluate`: every way to predict held-out answers, with its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from personae.cli.common import command, print_json, print_table, read, reading_options, table


def _share(name: str, default: float, help: str) -> Any:
    return click.option(
        name, metavar="SHARE", type=click.FloatRange(0, 1, max_open=True), default=default, show_default=True, help=help
    )


@command("evaluate")
@click.argument("path", default="sample")
@reading_options
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Predictions, trained steerers, result.json and figures; evaluation by default. The same call goes on there.",
)
@click.option(
    "--row",
    "rows",
    metavar="NAME",
    multiple=True,
    help="Of the table, may be repeated (see --list); by default all but those whose training takes hours.",
)
@click.option("--list", "listed", is_flag=True, help="Name the rows and stop.")
@_share("--held-out", 0.2, "Of the answers, to predict.")
@_share("--new-people", 0.1, "Of the people, not fitted but folded in from a few answers.")
@_share("--new-questions", 0.1, "Of the questions, kept out of training whole.")
@_share("--tuning", 0.2, "Of the fitted people, whose held-out answers choose weights and are in no claim.")
@click.option("--answers", metavar="N", type=click.IntRange(50), default=3000, show_default=True, help="Of each kind.")
@click.option(
    "--slow-answers",
    metavar="N",
    type=click.IntRange(10),
    default=300,
    show_default=True,
    help="Where an answer costs a whole pass of the language model.",
)
@click.option(
    "--budget",
    metavar="MINUTES",
    type=click.FloatRange(0),
    help="For the slow rows; they predict what fits in it. A later call with a clearly larger one predicts more.",
)
@click.option("--lm", metavar="NAME", default="smollm2-135m", show_default=True, help="Short name, folder or hub id.")
@click.option("--steps", metavar="N", type=click.IntRange(1), default=400, show_default=True, help="Training steps.")
@click.option("--seeds", metavar="N", type=click.IntRange(1), default=3, show_default=True, help="Of trained rows.")
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the plan."
)
@click.option(
    "--ceiling", metavar="SHARE", type=click.FloatRange(0, 1), help="Accuracy of people asked again, for lift."
)
@click.option(
    "--replies",
    metavar="N",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="In free text, whose stance is compared with the answer.",
)
def evaluate(
    path: str,
    questions: str | None,
    respondents: str | None,
    traits: str | None,
    format: str | None,
    out: Path | None,
    rows: tuple[str, ...],
    listed: bool,
    held_out: float,
    new_people: float,
    new_questions: float,
    tuning: float,
    answers: int,
    slow_answers: int,
    budget: float | None,
    lm: str,
    steps: int,
    seeds: int,
    seed: int,
    ceiling: float | None,
    replies: int,
    as_json: bool,
) -> None:
    """Predict held-out answers of a survey in every way, from the majority to the steered language model.

    Answers of people who were fitted, of people known by a few answers, and to questions that nobody was asked; each
    row with its control, 95 % intervals by bootstrap over people, several seeds where something was trained.
    """
    from personae.evaluation.rows import ROWS

    if listed:
        _list(ROWS, as_json)
        return
    from personae.evaluation.evaluate import evaluate as run
    from personae.evaluation.plan import make_plan
    from personae.lm.prompts import LETTERS

    survey, source = read(path, questions=questions, respondents=respondents, traits=traits, format=format)
    if long := [q.id for q in survey.questions if len(q.options) > len(LETTERS)]:
        said = f"left out, since letters reach to {len(LETTERS)} options and they have more: {', '.join(long)}"
        click.echo(said, err=True)
        survey = survey.select(questions=[q.id for q in survey.questions if q.id not in long])
    plan = make_plan(survey, held_out, new_people, new_questions, tuning, seed=seed)
    out = out or Path("evaluation")
    found = run(
        plan,
        out,
        rows or None,
        range(seed, seed + seeds),
        answers,
        slow_answers,
        budget,
        lm,
        steps,
        ceiling=ceiling,
        replies=replies,
        about={"source": {name: Path(value).name for name, value in source.items() if value}},
        say=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(found)
        return
    for name, cell in found["tables"].items():
        if cell:
            _print(name, cell)
    click.echo(f"\nresult.json and figures are in {out}")


def _list(rows: dict[str, Any], as_json: bool) -> None:
    about = {name: " ".join((row.predict.__doc__ or "").split()) for name, row in rows.items()}
    if as_json:
        print_json(about)
        return
    lines = table("row", "what it is", "cost of an answer")
    for name, text in about.items():
        cost = "a pass, in training too" if rows[name].costly else "a pass" if rows[name].slow else ""
        lines.add_row(name, text, cost)
    print_table(lines)
    click.echo("\nBeside them stand the steered LM, calibrated, and its hybrid with the opinion model (--row hybrid).")


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    from rich.text import Text

    best = {"accuracy": max(r["accuracy"] for r in rows), "nll": min(r["nll"] for r in rows)}
    lines = table(name, ">accuracy", ">95 % interval", ">NLL", ">ECE", ">n", ">seeds")
    for row in sorted(rows, key=lambda r: -r["accuracy"]):
        accuracy, nll = (
            Text(form.format(row[key]), style="bold" if row[key] == best[key] else "")
            for key, form in (("accuracy", "{:.1%}"), ("nll", "{:.3f}"))
        )
        between = f"{row['low']:.1%} to {row['high']:.1%}"
        lines.add_row(row["row"], accuracy, between, nll, f"{row['ece']:.3f}", f"{row['n']:,}", str(row["seeds"]))
    click.echo()
    print_table(lines)
