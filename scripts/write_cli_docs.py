"""Write docs/cli.md from the commands themselves; a test says when it is out of date.

python scripts/write_cli_docs.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from personae.cli.main import main

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"


def document() -> str:
    """The whole page as Markdown."""
    with click.Context(main, info_name="personae") as ctx:
        parts = [
            "# Command line",
            "<!-- written by scripts/write_cli_docs.py from the commands' help -->",
            _text(main),
            "Results go to stdout, progress to stderr. Every command has `--json` for scripts and `--debug` to show "
            "where an error came from; a failure ends in one sentence on stderr and a status that is not zero (2: the "
            "command was misspelt, 130: stopped by Ctrl-C).",
        ]
        parts += _commands(main, ctx)
    return "\n\n".join(part for part in parts if part) + "\n"


def _commands(group: click.Group, ctx: click.Context) -> list[str]:
    """A section a command; those of a group stand below it."""
    parts = []
    for name, command in group.commands.items():
        with click.Context(command, parent=ctx, info_name=name) as inner:
            parts += [f"## {inner.command_path}", _text(command)]
            parts += _commands(command, inner) if isinstance(command, click.Group) else [_options(command, inner)]
    return parts


def _text(command: click.Command) -> str:
    """A docstring as Markdown: what must not be rewrapped becomes a code block."""
    blocks = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        "```\n" + block.removeprefix("\b").strip("\n") + "\n```" if block.startswith("\b") else block
        for block in blocks
    )


def _options(command: click.Command, ctx: click.Context) -> str:
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    lines = [f"`{usage}`", "", "| option | |", "|---|---|"]
    for option in command.params:
        if not isinstance(option, click.Option) or option.name == "debug" or "--json" in option.opts:
            continue
        value = "" if option.is_flag else " " + option.make_metavar(ctx).replace("|", "\\|")
        default = f" (default {option.default})" if option.show_default else ""
        lines.append(f"| `{option.opts[0]}{value}` | {option.help or ''}{default} |")
    return "\n".join(lines if len(lines) > 4 else lines[:1])


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
