"""`personae export`: personas for other programs, bundles for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, doing, open_bundle, print_json

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.export.prompt import Context


@click.group("export")
def export() -> None:
    """Write personas for other programs, and bundles to the Hugging Face hub.

    \b
    personae export peft sample-bundle --persona cohort-2 adapter     for PEFT and what reads its adapters
    personae export vllm sample-bundle --question natenvir            requests for a stock vLLM
    personae export hub sample-bundle owner/name                      for everybody, or your team

    Each has --json for scripts and --debug to show where an error came from.
    """


def _context_options(function: Any) -> Any:
    for option in (
        click.option("--message", "messages", metavar="TEXT", multiple=True, help="A chat of one message."),
        click.option("--options", metavar='"A|B|..."', help="Options of a new question, in order."),
        click.option("--question", "asked", metavar="QUESTION", multiple=True, help="Of the survey, or a new one."),
    ):
        function = option(function)
    return function


@command("peft")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--persona", "--as", "name", metavar="NAME", required=True, help="As in personae ask.")
@_context_options
def peft(
    folder: Path,
    out: Path,
    name: str,
    asked: tuple[str, ...],
    options: str | None,
    messages: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write one persona's virtual tokens as a PEFT adapter into the new folder DIR.

    PEFT puts virtual tokens in front of a text, so the steerer must have been trained with placement "before" or
    "prefix". Virtual tokens of the default recipe depend on what is asked: the adapter is then exact for one --question
    or --message. Those of the recipe "paper" depend on the person alone, and the adapter serves every question.

    \b
    personae steer sample-bundle --recipe paper
    personae export peft sample-bundle --persona cohort-2 adapter
    personae steer sample-bundle --placement before
    personae export peft sample-bundle --persona cohort-2 adapter --question natenvir
    """
    if len(asked) + len(messages) > 1:
        raise click.UsageError("an adapter is made for one --question or one --message")
    bundle = open_bundle(folder)
    contexts = _contexts(bundle, asked, options, messages)
    persona = bundle.persona(name)
    with doing("loading the language model"):
        steerer = bundle.steerer

    from personae.export.peft import export_peft

    written = export_peft(steerer, persona, out, contexts[0] if contexts else None)
    if as_json:
        print_json(written)
        return
    click.echo(f"{out}: {written['peft_type']}, {written['num_virtual_tokens']} virtual tokens of {persona.name}")
    click.echo(f"exact for {written['exact_for']}")


@command("vllm")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.option(
    "--persona", "--as", "names", metavar="NAME", multiple=True, help="Any number of times; all cohorts by default."
)
@_context_options
@click.option("--model", metavar="NAME", help="Under which vLLM serves the language model; its own by default.")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1), default=80, show_default=True, help="Of a reply.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("requests.jsonl"),
    show_default=True,
)
def vllm(
    folder: Path,
    names: tuple[str, ...],
    asked: tuple[str, ...],
    options: str | None,
    messages: tuple[str, ...],
    model: str | None,
    max_tokens: int,
    out: Path,
    as_json: bool,
) -> None:
    """Write requests with which a stock vLLM answers and talks as personas, one a line.

    Every line has the `url` and `body` of a request (the format of batch files) and, under `personae`, who is asked
    what and how a question's answer is read: softmax(sharpness * log-probabilities of the options' tokens).

    \b
    vllm serve MODEL --enable-prompt-embeds
    personae export vllm sample-bundle --question natenvir --message "What worries you?" --model MODEL
    head -1 requests.jsonl | jq .body | curl -H "content-type: application/json" -d @- localhost:8000/v1/completions
    """
    if not asked and not messages:
        raise click.UsageError("say what is asked: --question, --message, or both")
    bundle = open_bundle(folder)
    contexts = _contexts(bundle, asked, options, messages)
    personas = [bundle.persona(name) for name in names] or list(bundle.cohorts)
    with doing("loading the language model"):
        steerer = bundle.steerer

    from personae.export.vllm import export_vllm

    lines = export_vllm(steerer, personas, contexts, out, model, max_tokens)
    if as_json:
        print_json({"file": out, "requests": [{"url": line["url"], **line["personae"]} for line in lines]})
    else:
        click.echo(f"{out}: {len(lines)} requests to {' and '.join(sorted({line['url'] for line in lines}))}")


@command("hub")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="A bundle holds a vector and the traits of every person.")
@click.option("--revision", metavar="BRANCH", help="main by default.")
@click.option(
    "--evaluation",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Of personae evaluate, or personae converse evaluate; its tables go into the model card.",
)
@click.option("--license", metavar="ID", help="Of the bundle, as the hub writes it, e.g. cc-by-4.0.")
@click.option("--attribution", metavar="TEXT", help="Whom to cite for the survey.")
def hub(
    folder: Path,
    repo_id: str,
    public: bool,
    revision: str | None,
    evaluation: Path | None,
    license: str | None,
    attribution: str | None,
    as_json: bool,
) -> None:
    """Upload BUNDLE to the Hugging Face hub with a model card, into a private repository unless --public.

    The token is that of `hf auth login` or HF_TOKEN. Every command takes hf:OWNER/NAME for a bundle of the hub.

    \b
    personae export hub sample-bundle owner/name --evaluation evaluation
    personae ask hf:owner/name natenvir
    """
    bundle = open_bundle(folder)
    with doing(f"uploading to {repo_id}"):
        url = bundle.push_to_hub(
            repo_id,
            private=not public,
            revision=revision,
            evaluation=evaluation,
            license=license,
            attribution=attribution,
        )
    if as_json:
        print_json({"repo_id": repo_id, "commit": url})
    else:
        click.echo(url)


def _contexts(bundle: Bundle, asked: tuple[str, ...], options: str | None, messages: tuple[str, ...]) -> list[Context]:
    """Questions of the survey or new ones, then chats."""
    from personae.cli.ask import find_question

    questions = [find_question(bundle, text, options)[0] for text in asked]
    return [*questions, *([{"role": "user", "content": text}] for text in messages)]


for _command in (peft, vllm, hub):
    export.add_command(_command)
