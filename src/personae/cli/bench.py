"""`personae bench`: what the numbers of speed in the documentation come from."""

from __future__ import annotations

from typing import Any

import click

from personae.cli.common import command, print_json, print_table, table


@command("bench")
@click.argument("what", type=click.Choice(["cf", "steer", "simulate"]))
def bench(what: str, as_json: bool) -> None:
    """Time the opinion model (cf), or the shared context against the plain way in training (steer) and in answering
    (simulate)."""
    found = _run(what)
    if as_json:
        print_json(found)
        return
    lines = table("", "")
    for name, value in found.items():
        lines.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value}")
    print_table(lines, indent=0)


def _run(what: str) -> dict[str, Any]:
    if what == "cf":
        from personae.people.bench import bench

        return bench()
    from personae.lm.bench import simulate, steer

    return steer() if what == "steer" else simulate()
