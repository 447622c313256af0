"""The main job in one run: read, fit, group, steer, compare on held-out answers, talk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from personae.bundle import Bundle
from personae.bundle_files import check_replaceable
from personae.data.read import read_survey
from personae.evaluation.fitted import Fitted
from personae.evaluation.plan import make_plan
from personae.evaluation.table import compare
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona
from personae.steering.persona_prompt import PersonaPrompt

ROWS = (  # of the tables; `personae evaluate` has them all
    "uniform",
    "majority",
    "opinion model",
    "opinion model on the question's text",
    "raw LM",
    "LM with traits as text",
    "steered LM, shuffled people",
    "steered LM, cohort",
    "steered LM, person",
)
_TITLES = {"seen": "held-out answers of seen people", "new": "questions never trained on"}


def run(
    source: str = "sample",
    out: Path | None = None,
    steps: int = 200,
    new_questions: float = 0.0,
    rows: int = 2000,
    seed: int = 0,
    question: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit and steer on a survey, and print what it is worth on answers that were held out.

    Parameters
    ----------
    source : str
        ``"sample"`` or anything that `read_survey` takes.
    out : Path, optional
        Where the bundle goes; ``demo-bundle`` by default.
    steps : int
        Training steps at most.
    new_questions : float in [0, 1)
        Share of the questions kept out of training whole, and compared in a second table.
    rows : int
        Held-out answers a row of the tables.
    question : str, optional
        Asked in free words to the two most opposed cohorts; by default about what divides them most.
    quiet : bool
        Print nothing but progress (for ``--json``).

    Returns
    -------
    dict
        Everything that was printed, as plain values.
    """
    say = Console(quiet=quiet, highlight=False)
    out = out or Path("demo-bundle")
    check_replaceable(out)
    started = time.monotonic()

    def title(text: str) -> None:
        say.print(f"\n[bold]{escape(text)}[/bold]  [dim]{time.monotonic() - started:.0f} s[/dim]")

    title(f"1  Read {source}")
    survey = read_survey(source)
    say.print(repr(survey), str(survey.account), sep="\n", markup=False)
    plan = make_plan(survey, answers=0.2, questions=new_questions, seed=seed)
    kept = f" and {new_questions:.0%} of the questions" if new_questions else ""
    say.print(f"20% of the answers{kept} are held out; nothing below has seen them.")

    title("2  Learn who the people are")
    people = OpinionModel(random_state=seed).fit(plan.train)
    cohorts = Cohorts(random_state=seed).fit(people, plan.train)
    say.print(f"{len(people):,} people as vectors of {people.vectors_.shape[1]} numbers, in {len(cohorts)} cohorts:")
    say.print(_cohort_table(cohorts))

    title("3  Teach a frozen language model to answer as any of them")
    steerer = PersonaPrompt(steps=steps, random_state=seed).fit(plan.train, people)

    Bundle.write(out, people, cohorts, steerer, account=survey.account)
    say.print(f"saved in {escape(str(out))}")

    title("4  Held-out answers, predicted in every way")
    plan = plan.sample(rows, seed)
    ready: dict[str, Any] = {"people": people, "cohorts": cohorts, "text_model": steerer.text_model_}
    fitted = Fitted(plan, steerer.lm_, steerers={"persona prompt": steerer}, **ready)
    tables = {}
    for name, cell in plan.cells.items():
        ways = [r for r in ROWS if cell.new or r != "opinion model on the question's text"]
        tables[_TITLES[name]] = table = compare(fitted, cell, ways)
        say.print(_result_table(_TITLES[name], table))

    title("5  The same question to the two most opposed cohorts")
    opposed = _opposed(cohorts)
    question = question or _dividing(people, opposed)
    say.print(f"[italic]{escape(question)}[/italic]")
    replies = {}
    for cohort in opposed:
        replies[cohort.name] = steerer.chat(question, cohort, max_new_tokens=60)
        said = escape(f"({cohort.label})"), escape(replies[cohort.name])
        say.print(f"[bold]{cohort.name}[/bold] [dim]{said[0]}[/dim]\n  {said[1]}")

    title(f"6  Everything is in {out}")
    asked = plan.train.questions[0]
    say.print(
        f"Try next:\n  personae cohorts {out}\n  personae ask {out} {asked.id} --as cohort-0 --as cohort-1\n"
        f'  personae ask {out} {asked.id} --answers "{asked.id}={asked.options[0]}"\n'
        f"  personae chat {out} --as cohort-0\n  personae fit YOUR-FILE.csv",
        markup=False,
    )
    return {
        "survey": {"source": source, "fingerprint": survey.fingerprint, "repr": repr(survey)},
        "bundle": str(out),
        "seed": seed,
        "cohorts": cohorts.summary_.to_dict("records"),
        "training": steerer.history_,
        "tables": {name: table.to_dict("records") for name, table in tables.items()},
        "question": question,
        "replies": replies,
        "seconds": time.monotonic() - started,
    }


def _cohort_table(cohorts: Cohorts) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("cohort", "left"),
        ("people", "right"),
        ("share", "right"),
        ("most telling answers", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in cohorts.summary_.to_dict("records"):
        table.add_row(row["cohort"], f"{row['people']:,}", f"{row['share']:.0%}", escape(row["label"]))
    return table


def _result_table(name: str, result: pd.DataFrame) -> Table:
    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for column in ("accuracy", "95 % interval", "NLL", "n"):
        table.add_column(column, justify="right")
    best = {"accuracy": result["accuracy"].max(), "nll": result["nll"].min()}
    for row in result.to_dict("records"):
        accuracy, nll = f"{row['accuracy']:.1%}", f"{row['nll']:.3f}"
        table.add_row(
            row["row"],
            f"[bold]{accuracy}[/bold]" if row["accuracy"] == best["accuracy"] else accuracy,
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"[bold]{nll}[/bold]" if row["nll"] == best["nll"] else nll,
            f"{row['n']:,}",
        )
    return table


def _dividing(people: OpinionModel, pair: list[Persona]) -> str:
    """A free question about what the two would answer most differently."""
    p = people.predict_proba(pair)  # (2, Q, K)
    most = people.questions_[int(np.abs(p[0] - p[1]).sum(-1).argmax())]
    return f"Let's talk about {most.title}. What is your view?" if most.title else most.text


def _opposed(cohorts: Cohorts) -> list[Persona]:
    """The two cohorts whose centroids are farthest apart."""
    vectors = np.stack([c.vector for c in cohorts])
    distance = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    first, second = np.unravel_index(distance.argmax(), distance.shape)
    return [cohorts[int(first)], cohorts[int(second)]]
