"""`personae cohorts`: who they are and what sets them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, open_bundle, percent, print_json, print_table, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from personae.bundle import Bundle

_SHOWN = 4  # traits and telling questions of a short card


@command("cohorts")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("cohort", required=False)
def cohorts(folder: Path, cohort: str | None, as_json: bool) -> None:
    """Show the cohorts of BUNDLE, or all about one COHORT.

    All figures are of observed answers, with 95 % intervals; cells of fewer than 10 people are left out and counted.

    \b
    personae cohorts sample-bundle
    personae cohorts sample-bundle cohort-0
    """
    bundle = open_bundle(folder)
    chosen = range(len(bundle.cohorts)) if cohort is None else [_index(bundle, cohort)]
    if as_json:
        found: dict[str, Any] = {"cohorts": [_card(bundle, c) for c in chosen]}
        if cohort is None:
            curves = bundle.cohorts.curves_
            found["dividing_questions"] = bundle.cohorts.profiles_.splitting.to_dict("records")
            found["curves"] = None if curves is None else curves.to_dict("records")
        print_json(found)
        return
    for c in chosen:
        _print_card(bundle, c, shown=_SHOWN if cohort is None else None)
    if cohort is None:
        _print_dividing(bundle)


def _index(bundle: Bundle, cohort: str) -> int:
    names = [p.name for p in bundle.cohorts]
    name = f"cohort-{cohort}" if cohort.isdecimal() else cohort
    if name not in names:
        raise click.ClickException(f'there is no cohort "{cohort}"; there are: {", ".join(names)}')
    return names.index(name)


def _card(bundle: Bundle, c: int) -> dict[str, Any]:
    profiles = bundle.cohorts.profiles_
    return {
        **{str(name): value for name, value in bundle.cohorts.summary_.iloc[c].items()},
        "traits": profiles.traits[profiles.traits.cohort == c].drop(columns="cohort").to_dict("records"),
        "answers": profiles.answers[profiles.answers.cohort == c].drop(columns="cohort").to_dict("records"),
        "telling": profiles.telling[profiles.telling.cohort == c].drop(columns="cohort").to_dict("records"),
    }


def _print_card(bundle: Bundle, c: int, shown: int | None) -> None:
    profiles, row = bundle.cohorts.profiles_, bundle.cohorts.summary_.iloc[c]
    click.secho(f"{row.cohort}   {row.people:,} people ({percent(row.share)})   {row.label}", bold=True)
    traits = profiles.traits[profiles.traits.cohort == c]
    lines = table("traits that stand out", ">here", ">95%", ">everybody", ">people")
    _add_cells(lines, _standing_out(traits).head(shown or 12), lambda cell: f"{cell.trait}: {cell.value}")
    if lines.row_count:
        print_table(lines)
    else:
        click.echo("  no trait stands out")
    telling = profiles.telling[(profiles.telling.cohort == c) & ~profiles.telling.suppressed]
    answers = profiles.answers[profiles.answers.cohort == c]
    title = {q.id: q.title or q.id for q in bundle.people.questions_}
    lines = table("telling answers", ">here", ">95%", ">everybody", ">people")
    for question in telling.question.head(shown or len(telling)):
        cells = answers[(answers.question == question) & ~answers.suppressed]
        name = f"{title[question]} ({question})"
        if shown is None:
            lines.add_row(name)
            _add_cells(lines, cells, lambda cell: f"  {cell.option}")
        elif len(cells):  # the one that gains most here
            gain = cells.share - cells.population_share
            _add_cells(lines, cells.loc[[gain.idxmax()]], lambda cell, name=name: f"{name}: {cell.option}")
    print_table(lines)
    hidden = int(traits.suppressed.sum() + answers.suppressed.sum())
    if hidden:
        click.echo(f"  {hidden} cells of fewer than {bundle.cohorts.minimum} people are left out")
    click.echo()


def _standing_out(traits: pd.DataFrame) -> pd.DataFrame:
    """Cells whose interval excludes the population's share, largest difference first."""
    outside = (traits.low > traits.population_share) | (traits.high < traits.population_share)
    found = traits[outside & ~traits.suppressed]
    return found.loc[(found.share - found.population_share).abs().sort_values(ascending=False).index]


def _add_cells(lines: Any, cells: pd.DataFrame, name: Any) -> None:
    rows: Iterable[Any] = cells.itertuples()
    for cell in rows:
        lines.add_row(
            name(cell),
            percent(cell.share),
            f"{percent(cell.low)} to {percent(cell.high)}",
            percent(cell.population_share),
            f"{cell.count:,.0f} of {cell.n:,.0f}",
        )


def _print_dividing(bundle: Bundle) -> None:
    splitting = bundle.cohorts.profiles_.splitting
    splitting = splitting[~splitting.suppressed].head(8)
    if splitting.empty:
        return
    title = {q.id: q.title or q.text for q in bundle.people.questions_}
    click.secho("questions that divide the cohorts", bold=True)
    lines = table("question", "", ">distance", ">95%")
    rows: Iterable[Any] = splitting.itertuples()
    for row in rows:
        lines.add_row(row.question, title[row.question], f"{row.tv:.2f}", f"{row.low:.2f} to {row.high:.2f}")
    print_table(lines)
    click.echo("  distance: share of answers that would have to change (total variation), mean over pairs of cohorts")
