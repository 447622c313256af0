"""`personae ask`: what people would answer, as bars."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, doing, open_bundle, percent, print_json, print_table, table

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.data.survey import Question
    from personae.people.persona import Persona

_LABEL, _COLUMN, _BAR = 36, 24, 14  # characters of an option, of a persona's column and of a full bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_NEXT_ANSWER = re.compile(r",(?=[^,=]+=)")  # a comma before "question=": labels may hold others

Shares = dict[str, list[dict[str, float]]]
"""Way of answering to, for each persona, option to probability."""


@command("ask")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("text", metavar="QUESTION")
@click.option("--options", metavar='"A|B|..."', help="Options of a new question, in order.")
@click.option(
    "--as", "names", metavar="NAME", multiple=True, help="Who answers, any number of times; all cohorts by default."
)
@click.option("--answers", metavar='"ID=OPTION,..."', help="Somebody new, who answered this.")
def ask(
    folder: Path, text: str, options: str | None, names: tuple[str, ...], answers: str | None, as_json: bool
) -> None:
    """What would they answer to QUESTION, an id of the survey or any new question?

    NAME is a cohort, a respondent, a trait group or a blend. A bundle without a steerer answers the survey's questions
    by the opinion model alone.

    \b
    personae ask sample-bundle natenvir --as cohort-0 --as r0007
    personae ask sample-bundle natarms --answers "natenvir=too little,natfare=too much"
    personae ask sample-bundle "Should trains be free?" --options "yes|no" --as "0.7*cohort-0+0.3*cohort-1"
    personae ask sample-bundle natenvir --as "trait:partyid=strong democrat"
    """
    bundle = open_bundle(folder)
    question, known = find_question(bundle, text, options)
    personas = [bundle.persona(name) for name in names]
    if answers is not None:
        personas.append(bundle.people.fold_in(parse_answers(answers)))
    personas = personas or (list(bundle.cohorts) if "people" in bundle else [bundle.persona("anyone")])
    found = _probabilities(bundle, question, known, personas)
    if as_json:
        print_json(_as_dict(question, known, personas, found))
    else:
        _print(question, personas, found)


def find_question(bundle: Bundle, text: str, options: str | None) -> tuple[Question, bool]:
    """The question that is meant, and whether it is one of the survey's."""
    from personae.data.survey import Question

    questions = bundle.people.questions_ if "people" in bundle else ()
    known = next((q for q in questions if text in (q.id, q.text)), None)
    if known is not None:
        if options is not None:
            raise click.ClickException(
                f"{known.id} has its own options ({' | '.join(known.options)}); leave out --options"
            )
        return known, True
    if options is None and questions and not re.search(r"\s", text.strip()):
        bundle.people.question_index(text)  # meant as an id: raises and names the nearest ones
    labels = tuple(part.strip() for part in (options or "").split("|"))
    if len(set(labels)) < 2 or len(set(labels)) < len(labels) or not all(labels):
        raise click.ClickException('a new question needs at least two different options: --options "yes|no"')
    return Question("", text, labels), False


def parse_answers(answers: str) -> dict[str, str]:
    """``"natenvir=too little,natfare=too much"`` as question to option."""
    found: dict[str, str] = {}
    for answer in _NEXT_ANSWER.split(answers):
        question, equals, label = (part.strip() for part in answer.partition("="))
        if not (question and equals and label):
            raise click.ClickException(
                f'"{answer.strip()}" is no answer; write --answers "natenvir=too little,natfare=too much"'
            )
        if question in found:
            raise click.ClickException(f"--answers answers {question} twice")
        found[question] = label
    return found


def _probabilities(bundle: Bundle, question: Question, known: bool, personas: Sequence[Persona]) -> Shares:
    found: Shares = {}
    if "steerer" in bundle:
        with doing("loading the language model"):
            steerer = bundle.steerer
        rows = steerer.answer(question.text, list(question.options), personas).to_numpy()
        found["steered LM"] = _by_option(question, rows)
    elif not known:
        raise click.ClickException(
            f"{bundle.folder.name} has no language model to answer a new question; train one: "
            f"personae steer {bundle.folder.name}"
        )
    if known:
        rows = bundle.people.predict_proba(personas, [question.id])[:, 0, : len(question.options)]
        found["opinion model"] = _by_option(question, rows)
    return found


def _by_option(question: Question, rows: Any) -> list[dict[str, float]]:
    return [{option: float(p) for option, p in zip(question.options, row, strict=True)} for row in rows]


def _as_dict(question: Question, known: bool, personas: Sequence[Persona], found: Shares) -> dict[str, Any]:
    return {
        "question": {"id": question.id if known else None, "text": question.text, "options": list(question.options)},
        "personas": [
            {
                "name": p.name,
                "label": p.label,
                "kind": p.origin["kind"],
                "uncertainty": p.uncertainty,
                **{way.replace(" ", "_").lower(): shares[i] for way, shares in found.items()},
            }
            for i, p in enumerate(personas)
        ],
    }


# bars ------------------------------------------------------------------------------------------------------------
def _print(question: Question, personas: Sequence[Persona], found: Shares) -> None:
    click.secho(question.text, bold=True)
    lines = table("who", "", ">uncertainty")
    for p in personas:
        lines.add_row(p.name, p.label, f"{p.uncertainty:.2f}")
    print_table(lines)
    labels = {option: textwrap.wrap(option, _LABEL) or [option] for option in question.options}
    first = max(len(line) for lines in (*labels.values(), list(found)) for line in lines) + 2
    fitting = max(1, (shutil.get_terminal_size((110, 24)).columns - first - 2) // _COLUMN)
    for way, shares in found.items():
        for start in range(0, len(personas), fitting):
            part = slice(start, start + fitting)
            click.echo()
            names = "".join(_short(p.name).ljust(_COLUMN) for p in personas[part])
            click.secho(f"  {way.ljust(first)}{names}".rstrip(), dim=True)
            for option in question.options:
                bars = "".join(_bar(mine[option]).ljust(_COLUMN) for mine in shares[part])
                line, *rest = labels[option]
                click.echo(f"  {line.ljust(first)}{bars}".rstrip())
                for line in rest:
                    click.echo(f"  {line}")


def _bar(share: float) -> str:
    whole, eighths = divmod(round(8 * _BAR * share), 8)
    return f"{percent(share):>4} " + "█" * whole + _EIGHTHS[eighths].strip()


def _short(name: str) -> str:
    return name if len(name) < _COLUMN else name[: _COLUMN - 3] + "…"
