"""`personae store`: answers of more people than fit in memory, sharded on disk."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from personae.cli.common import command, doing, named_after, print_json


@command("store")
@click.argument("answers", type=click.Path(path_type=Path))
@click.option("--questions", metavar="FILE", required=True, help="Table of questions: id, text, options in order.")
@click.option(
    "--out", metavar="FOLDER", type=click.Path(path_type=Path), help="New; ANSWERS' name with -store by default."
)
def store(answers: Path, questions: str, out: Path | None, as_json: bool) -> None:
    """Check and shard ANSWERS that are too many for memory, for personae fit.

    ANSWERS is a long Parquet file, or a folder of them, with one row an answer: respondent, question, answer. Anything
    that fits in memory needs no store: give it to personae fit as it is. A store has no traits.

    \b
    personae store long/ --questions questions.csv --out answer-store
    personae fit answer-store
    """
    from personae.scale.store import AnswerStore

    out = out or named_after(answers, "store")
    with doing(f"checking and sharding {answers}"):
        made = AnswerStore.write(answers, questions, out)
    if as_json:
        sizes = {"people": made.n_people, "questions": len(made.questions), "answers": made.n_answers}
        print_json({"store": out, **sizes, "shards": len(made.shards), "account": made.account})
        return
    from personae.data.account import Account

    click.echo(f"{made!r}\n{Account.from_dict(made.account)}\nstore: {out}\n\ntry next")
    click.echo(f"  personae fit {shlex.quote(str(out))}")
