"""`personae cohorts`: who they are and what sets them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, open_bundle, percent, print_json, print_table, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from personae.data.survey import Question
    from personae.people.cohorts import Cohorts

_SHOWN = 4  # traits and telling questions of a short card


@command("cohorts")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("cohort", required=False)
def cohorts(folder: Path, cohort: str | None, as_json: bool) -> None:
    """Show the cohorts of BUNDLE, or all about one COHORT.

    All figures are of observed answers, with 95 % intervals; cells of fewer than 10 people are left out and counted,
    and so are those from which one could be computed.

    \b
    personae cohorts sample-bundle
    personae cohorts sample-bundle cohort-0
    """
    bundle = open_bundle(folder)
    found = bundle.cohorts.protected()
    chosen = range(len(found)) if cohort is None else [_index(found, cohort)]
    if as_json:
        cards: dict[str, Any] = {"cohorts": [_card(found, c) for c in chosen]}
        if cohort is None:
            cards["dividing_questions"] = found.profiles_.splitting.to_dict("records")
            cards["curves"] = None if found.curves_ is None else found.curves_.to_dict("records")
        print_json(cards)
        return
    questions = {q.id: q for q in bundle.people.questions_}
    for c in chosen:
        _print_card(found, c, questions, whole=cohort is not None)
    if cohort is None:
        _print_dividing(found, questions)


def _index(cohorts: Cohorts, cohort: str) -> int:
    names = [p.name for p in cohorts]
    name = f"cohort-{cohort}" if cohort.isdecimal() else cohort
    if name not in names:
        raise click.ClickException(f'there is no cohort "{cohort}"; there are: {", ".join(names)}')
    return names.index(name)


def _card(cohorts: Cohorts, c: int) -> dict[str, Any]:
    profiles = cohorts.profiles_
    return {
        **{str(name): value for name, value in cohorts.summary_.iloc[c].items()},
        "traits": profiles.traits[profiles.traits.cohort == c].drop(columns="cohort").to_dict("records"),
        "answers": profiles.answers[profiles.answers.cohort == c].drop(columns="cohort").to_dict("records"),
        "telling": profiles.telling[profiles.telling.cohort == c].drop(columns="cohort").to_dict("records"),
    }


def _print_card(cohorts: Cohorts, c: int, questions: Mapping[str, Question], whole: bool) -> None:
    profiles, row = cohorts.profiles_, cohorts.summary_.iloc[c]
    known = row.people == row.people
    size = f"{row.people:,.0f} people ({percent(row.share)})" if known else "too few people to say how many"
    click.secho(f"{row.cohort}   {size}   {row.label}", bold=True)
    lines = table("traits that stand out", ">here", ">95%", ">everybody", ">people")
    _add_cells(lines, profiles.standing_out(c, 12 if whole else _SHOWN), lambda cell: f"{cell.trait}: {cell.value}")
    if lines.row_count:
        print_table(lines)
    else:
        click.echo("  no trait stands out")
    name = {id: f"{q.title or id} ({id})" for id, q in questions.items()}
    lines = table("telling answers", ">here", ">95%", ">everybody", ">people")
    if whole:
        telling = profiles.telling[(profiles.telling.cohort == c) & ~profiles.telling.suppressed]
        answers = profiles.answers[(profiles.answers.cohort == c) & ~profiles.answers.suppressed]
        for question in telling.question:
            lines.add_row(name[question])
            _add_cells(lines, answers[answers.question == question], lambda cell: f"  {cell.option}")
    else:
        telling = profiles.telling_answers(c, _SHOWN)
        _add_cells(lines, telling, lambda cell: f"{name[cell.question]}: {cell.option}")
    print_table(lines)
    hidden = sum(int(cells.suppressed[cells.cohort == c].sum()) for cells in (profiles.traits, profiles.answers))
    if hidden:
        click.echo(f"  left out: {hidden} cells of fewer than {cohorts.minimum} people, or that would tell of such")
    click.echo()


def _add_cells(lines: Any, cells: pd.DataFrame, name: Any) -> None:
    rows: Iterable[Any] = cells.itertuples()
    for cell in rows:
        lines.add_row(
            name(cell),
            percent(cell.share),
            f"{percent(cell.low)} to {percent(cell.high)}",
            "" if cell.population_share != cell.population_share else percent(cell.population_share),
            f"{cell.count:,.0f} of {cell.n:,.0f}",
        )


def _print_dividing(cohorts: Cohorts, questions: Mapping[str, Question]) -> None:
    splitting = cohorts.profiles_.splitting
    splitting = splitting[~splitting.suppressed].head(8)
    if splitting.empty:
        return
    click.secho("questions that divide the cohorts", bold=True)
    lines = table("question", "", ">distance", ">95%")
    rows: Iterable[Any] = splitting.itertuples()
    for row in rows:
        asked = questions[row.question]
        lines.add_row(asked.id, asked.title or asked.text, f"{row.tv:.2f}", f"{row.low:.2f} to {row.high:.2f}")
    print_table(lines)
    click.echo("  distance: share of answers that would have to change (total variation), mean over pairs of cohorts")
