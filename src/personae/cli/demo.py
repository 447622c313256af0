"""`personae demo`: the main job, from a survey to a language model that answers as its people."""

from __future__ import annotations

from pathlib import Path

import click

from personae.cli.common import BundlePath, command, print_json


@command("demo")
@click.argument("survey", default="sample")
@click.option("--out", metavar="BUNDLE", type=BundlePath, help="Where to write the bundle; demo-bundle by default.")
@click.option(
    "--steps", metavar="N", type=click.IntRange(1), default=200, show_default=True, help="Training steps at most."
)
@click.option(
    "--new-questions",
    metavar="FRACTION",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Share of the questions kept out of training whole, compared in a second table.",
)
@click.option(
    "--rows", metavar="N", type=click.IntRange(50), default=2000, show_default=True, help="Held-out answers a row."
)
@click.option(
    "--question",
    metavar="TEXT",
    help="What the two most opposed cohorts are asked; by default about what divides them most.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Same seed, same result.",
)
def demo(
    survey: str,
    out: Path | None,
    steps: int,
    new_questions: float,
    rows: int,
    question: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Fit, steer and compare on a survey (the embedded sample by default), and ask one free question.

    A fifth of the answers is held out; the table at the end says how well each way predicts them.
    """
    from personae.demo import run

    found = run(survey, out, steps, new_questions, rows, seed, question, quiet=as_json)
    if as_json:
        print_json(found)
