"""`personae`: the command line."""

from __future__ import annotations

import os

import click

import personae
from personae.cli.ask import ask
from personae.cli.bench import bench
from personae.cli.chat import chat
from personae.cli.cohorts import cohorts
from personae.cli.common import Group
from personae.cli.converse import converse
from personae.cli.demo import demo
from personae.cli.evaluate import evaluate
from personae.cli.export import export
from personae.cli.fit import fit, questions
from personae.cli.models import models
from personae.cli.report import report
from personae.cli.serve import serve
from personae.cli.simulate import simulate
from personae.cli.steer import steer
from personae.cli.store import store


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(personae.__version__, prog_name="personae")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Learn who people are from their opinions, and make a frozen language model answer and talk as any of them.

    \b
    personae demo                                         see it all on a real survey
    personae fit responses.csv                            who are the people, which cohorts are there
    personae steer responses-bundle                       teach a language model to answer as them
    personae ask responses-bundle "..." --as cohort-0     what would they say
    """
    # The libraries' own bars and notes would stand between ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    demo,
    fit,
    questions,
    store,
    cohorts,
    steer,
    ask,
    chat,
    simulate,
    converse,
    evaluate,
    report,
    export,
    serve,
    models,
    bench,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
