"""`personae steer`: teach a frozen language model to answer and talk as the people of a bundle."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, doing, open_bundle, print_json, read, reading_options

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.data.survey import Survey


@command("steer")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("survey_path", metavar="[SURVEY]", required=False)
@reading_options
@click.option("--lm", metavar="NAME", default="smollm2-135m", show_default=True, help="Short name, folder or hub id.")
@click.option(
    "--recipe",
    type=click.Choice(["contextual", "paper"]),
    default="contextual",
    show_default=True,
    help="Our own, or the first paper's.",
)
@click.option(
    "--placement", type=click.Choice(["prefix", "before", "system", "late"]), help="Where virtual tokens stand."
)
@click.option("--tokens", metavar="N", type=click.IntRange(1), help="Number of virtual tokens.")
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Training steps at most.")
@click.option(
    "--batches",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Batches a step; several processes share them.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Same seed, same result.",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run with the same settings stopped.")
def steer(
    folder: Path,
    survey_path: str | None,
    lm: str,
    recipe: str,
    placement: str | None,
    tokens: int | None,
    steps: int | None,
    batches: int,
    seed: int,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a steerer on the answers of SURVEY and add it to BUNDLE.

    A bundle holds no answers: they are read again from where they were, or from SURVEY if the file has moved.

    \b
    personae steer sample-bundle
    personae steer responses-bundle moved/responses.csv --lm org/model
    torchrun --nproc-per-node 2 -m personae steer sample-bundle --batches 2
    """
    from personae.bundle_files import check_replaceable

    bundle = open_bundle(folder, to_write=True)
    check_replaceable(bundle.folder)  # before the training, not after it
    survey = _survey_of(bundle, survey_path, options)
    checkpoint = bundle.folder.with_name(bundle.folder.name + ".training")
    if resume and not checkpoint.exists():
        raise click.ClickException(f"there is no interrupted run to resume: {checkpoint} does not exist")
    if not resume and checkpoint.exists():
        click.echo(f"starting anew; {checkpoint} of an interrupted run (--resume) is replaced", err=True)

    from personae.steering.persona_prompt import PersonaPrompt
    from personae.training.loop import is_first_process

    settings: dict[str, Any] = {"recipe": recipe, "placement": placement, "n_tokens": tokens}
    if steps is not None:
        settings["steps"] = steps
    steerer = PersonaPrompt(lm, **settings, batches=batches, random_state=seed)
    try:
        steerer.fit(survey, bundle.people, checkpoint=checkpoint, resume=resume, progress=True)
    except KeyboardInterrupt:
        if checkpoint.exists():
            again = [a for a in sys.argv[1:] if a != "--resume"] + ["--resume"]
            click.echo(f"\ngo on with: personae {shlex.join(again)}", err=True)
        raise
    if not is_first_process():
        return
    with doing("writing the bundle"):
        bundle = bundle.with_steerer(steerer)
    checkpoint.unlink(missing_ok=True)
    if as_json:
        print_json({"bundle": folder, "steerer": bundle.manifest["steerer"], "seed": seed})
        return
    name = shlex.quote(str(folder))
    click.echo(f"bundle: {folder}, with a steerer for {lm}\n\ntry next")
    click.echo(f'  personae ask {name} "Should the city build more bike lanes?" --options "yes|no"')
    click.echo(f"  personae chat {name} --as cohort-0")


def _survey_of(bundle: Bundle, path: str | None, options: dict[str, Any]) -> Survey:
    """The survey that the bundle was fitted to; another one is refused."""
    source = {**bundle.manifest["data"]["source"]}
    source |= {name: value for name, value in {"path": path, **options}.items() if value is not None}
    if not source.get("path"):
        raise click.ClickException("the bundle does not say where its survey is; give it: personae steer BUNDLE SURVEY")
    if path is None and source["path"] != "sample" and not Path(source["path"]).exists():
        raise click.ClickException(
            f"the survey is no longer at {source['path']}; say where it is: personae steer BUNDLE SURVEY"
        )
    survey, _ = read(**source)
    if survey.fingerprint != bundle.people.fingerprint_:
        raise click.ClickException(
            f"{source['path']} is not the survey that {bundle.folder.name} was fitted to (its content differs); "
            "give that survey, or fit again"
        )
    return survey
