"""`personae chat`: talk with somebody, in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, doing, open_bundle

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.people.persona import Persona

REMEMBERED = 12  # messages, half of them theirs: a small LM is lost in more
_HELP = "/persona NAME   /personas   /reset   /quit"


@command("chat")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.option(
    "--as", "name", metavar="NAME", required=True, help="Whom to talk with: a cohort, respondent, trait group or blend."
)
@click.option("--once", metavar="MESSAGE", help="Say this, print the reply, and end.")
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(0),
    default=0.7,
    show_default=True,
    help="0 always takes the likeliest word.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Same seed, same result.",
)
def chat(folder: Path, name: str, once: str | None, temperature: float, seed: int, as_json: bool) -> None:
    """Talk with a persona of BUNDLE; the end of input (Ctrl-D) ends the conversation.

    \b
    /persona NAME   talk with somebody else, from the start
    /personas       who is there
    /reset          forget what was said
    /quit           end
    """
    bundle = open_bundle(folder)
    persona = bundle.persona(name)
    with doing("loading the language model"):
        steerer = bundle.steerer
    conversation = _Conversation(
        bundle, steerer, persona, {"temperature": temperature, "top_p": 0.9, "seeds": [seed]}, as_json
    )
    if once is not None:
        conversation.say(once)
        return
    click.echo(f"{conversation.who()}\n{_HELP}", err=True)
    for line in typed_lines():
        if line == "/quit":
            return
        conversation.take(line)


class _Conversation:
    def __init__(self, bundle: Bundle, steerer: Any, persona: Persona, how: dict[str, Any], as_json: bool) -> None:
        self.bundle, self.steerer, self.persona, self.how, self.as_json = bundle, steerer, persona, how, as_json
        self.messages: list[dict[str, str]] = []

    def who(self) -> str:
        label = f": {self.persona.label}" if self.persona.label else ""
        if not len(self.persona.vector):
            return self.persona.name
        return f"{self.persona.name}{label} (uncertainty {self.persona.uncertainty:.2f})"

    def take(self, line: str) -> None:
        """One line of input: a word to us, or a message to the persona."""
        word, _, rest = line.partition(" ")
        if not line:
            return
        if word == "/persona" and rest:
            try:
                self.persona = self.bundle.persona(rest.strip())
            except ValueError as error:  # a slip of the fingers does not end a conversation
                click.echo(error, err=True)
                return
            self.messages = []  # what somebody else said is not theirs
            click.echo(self.who(), err=True)
        elif word == "/personas" and "people" not in self.bundle:
            click.echo("anyone", err=True)
        elif word == "/personas":
            for p in self.bundle.cohorts:
                click.echo(f"{p.name}: {p.label}", err=True)
            click.echo('respondents by id, trait groups as "trait:NAME=VALUE", blends as "0.7*A+0.3*B"', err=True)
        elif word == "/reset":
            self.messages = []
            click.echo("forgotten", err=True)
        elif line.startswith("/"):
            click.echo(_HELP, err=True)
        else:
            self.say(line)

    def say(self, message: str) -> None:
        """Print the reply as it is made (with JSON, when it is complete) and remember both."""
        self.messages = [*self.messages[-REMEMBERED:], {"role": "user", "content": message}]
        pieces = []
        for (piece,) in self.steerer.stream(self.messages, [self.persona], **self.how):
            pieces.append(piece)
            if not self.as_json:
                click.echo(piece, nl=False)
        reply = "".join(pieces).strip()
        self.messages.append({"role": "assistant", "content": reply})
        said = {"persona": self.persona.name, "message": message, "reply": reply}
        click.echo(json.dumps(said, ensure_ascii=False) if self.as_json else "")


def typed_lines() -> Iterator[str]:
    """What is typed, until the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys in the line)
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            if prompt:
                click.echo()
            return
