"""`personae report`: one HTML file about the people, cohorts and steerer of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from personae.cli.common import BundlePath, command, doing, open_bundle, print_json


@command("report")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write; BUNDLE-report.html beside the bundle by default.",
)
@click.option(
    "--evaluation",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Of personae evaluate; its tables go into the report.",
)
def report(folder: Path, out: Path | None, evaluation: Path | None, as_json: bool) -> None:
    """Write one HTML file about BUNDLE: its people, cohorts, training and provenance.

    The file needs nothing else: it opens without a network, and prints. It holds a point for every person, whose
    colour shows a trait, but no answers; cells of fewer than 10 people are left out and counted. Share it as you would
    share the bundle.

    \b
    personae report sample-bundle
    personae report sample-bundle --evaluation evaluation --out report.html
    """
    bundle = open_bundle(folder, to_write=out is None)  # the report stands beside it
    try:
        from personae.report.page import write_report
    except ImportError as error:  # Plotly is an extra
        raise click.ClickException(str(error)) from error
    out = out or bundle.folder.with_name(f"{bundle.folder.name}-report.html")
    with doing("drawing the report"):
        written = write_report(bundle, out, evaluation)
    if as_json:
        print_json({"report": written, "bytes": written.stat().st_size})
    else:
        click.echo(written)
