"""`personae models`: the models that have a short name."""

from __future__ import annotations

import click

from personae.cli.common import command, print_json, print_table, table


@command("models")
def models(as_json: bool) -> None:
    """List the models that have a short name: language models, and encoders that compare texts.

    Any other causal language model works as well: --lm takes the folder of a Hugging Face model or a hub id.
    """
    from personae.lm.names import EMBEDDED, cache_folder

    found = []
    for name, model in EMBEDDED.items():
        folder = cache_folder() / "models" / name
        here = (folder / "config.json").is_file()
        found.append(
            {
                "name": name,
                "kind": model.kind,
                "model": model.hub_id,
                "licence": model.licence,
                "folder": str(folder) if here else None,
            }
        )
    if as_json:
        print_json(found)
        return
    lines = table("name", "kind", "model", "licence", "where")
    for row in found:
        lines.add_row(
            row["name"], row["kind"], row["model"], row["licence"], row["folder"] or "fetched when first used"
        )
    print_table(lines, indent=0)
    click.echo("\nAny folder of a Hugging Face model, or a hub id such as org/model, can stand for a name.")
