"""`personae bench`: what the numbers of speed in the documentation come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from personae.cli.common import command, doing, print_json, print_table, table

_LM = "smollm2-135m"
_LABELS = {
    "ratio": "ratio of CPU seconds, plain / this",
    "ratio_encoded_once": "the same, questions encoded once",
    "ratio_vectors_only": "the same, plain without covariances",
    "ratio_unpadded": "the same, plain without padding to 512",
    "ratio_wall": "ratio of wall seconds",
    "ratio_wall_encoded_once": "the same, questions encoded once",
    "peak_memory_ratio": "ratio of peak memory",
    "peak_memory_ratio_unpadded": "the same, plain without padding to 512",
    "decoding_ratio": "decoding: ratio of CPU seconds",
    "decoding_ratio_wall": "decoding: ratio of wall seconds",
    "max_difference": "largest difference of the two ways",
    "peak_mib": "peak memory, MiB",
    "plain_peak_mib": "plain peak memory, MiB",
}


@command("bench")
@click.argument("what", type=click.Choice(["cf", "steer", "simulate", "generate", "converse"]))
@click.option(
    "--lm", metavar="NAME", help=f"Short name, folder or hub id; {_LM} by default. The opinion model (cf) has none."
)
@click.option(
    "--scaling",
    is_flag=True,
    help="Smaller, at several sizes: people × 1 to 8 (personas × 1 to 16), questions × 1 to 4.",
)
@click.option(
    "--out-of-core",
    is_flag=True,
    help="Of cf: 25, 50 and 100 million answers that are never in memory at once. Takes an hour and 4 GB of disk.",
)
@click.option(
    "--dialogues", metavar="FILE", help="Of converse: whose contexts are taken; the chitchat dialogues by default."
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where --scaling writes bench-WHAT.json and bench-WHAT.png; this folder by default.",
)
def bench(
    what: str,
    lm: str | None,
    scaling: bool,
    out_of_core: bool,
    dialogues: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time one part of personae against the plain way of doing the same, in the same run.

    \b
    cf         vectors of people from their answers    against a loop over people
    steer      a training step through the frozen LM   against one full pass an answer
    simulate   answers of the steered LM               against one full pass an answer
    generate   replies of many personas in one batch   against one persona at a time
    converse   a training step of a bank of prompts    against one full pass a prompt
               and replies of a batch with all of them against the batch once a prompt

    Results of both ways are compared first; every figure is the median of several runs. The ratio is of CPU seconds
    (higher is better), so that a busy machine does not change it much; on a GPU look at wall seconds.

    \b
    personae bench steer
    personae bench simulate --scaling --out figures
    personae bench cf --out-of-core --json
    personae bench converse --dialogues valid_self_original.txt
    """
    if out_of_core and (what != "cf" or scaling):
        raise click.UsageError("--out-of-core is a bench of cf, without --scaling")
    if what == "cf" and lm is not None:
        raise click.UsageError("the opinion model (cf) has no language model; leave --lm out")
    if out is not None and not scaling:
        raise click.UsageError("--out is where --scaling writes; give both, or print the result with --json")
    if what == "converse" and scaling:
        raise click.UsageError("converse has one size; leave --scaling out")
    if dialogues is not None and what != "converse":
        raise click.UsageError(f"{what} takes no dialogues; leave --dialogues out")
    if out_of_core:
        _out_of_core(as_json)
        return
    if scaling:
        _scaling(what, lm or _LM, out or Path(), as_json)
        return
    found = _whole(what, lm or _LM, dialogues or "chitchat")
    if as_json:
        print_json(found)
        return
    lines = table("", "")
    for name, value in found.items():
        if name != "task":
            lines.add_row(_LABELS.get(name, name.replace("_", " ")), _written(value))
    print_table(lines, indent=0)


def _whole(what: str, lm: str, dialogues: str) -> dict[str, Any]:
    """The bench at its own size."""
    if what == "cf":
        from personae.people.bench import bench

        return bench()
    if what == "generate":
        from personae.lm.bench_generate import generate

        return generate(lm=lm)
    if what == "converse":
        from personae.steering.bench import converse

        return converse(dialogues, lm=lm)
    from personae.lm.bench import simulate, steer

    return (steer if what == "steer" else simulate)(lm=lm)


def _at(what: str, lm: str) -> Callable[[int, int], dict[str, Any]]:
    """The bench at (times the people, times the questions) of a base that is done in seconds."""
    if what == "cf":
        from personae.people.bench import bench

        return lambda p, q: bench(4000 * p, 500 * q, 100_000 * p * q, plain_people=500)
    if what == "generate":
        from personae.lm.bench_generate import generate

        return lambda p, q: generate(p, new_tokens=16, plain_personas=4, lm=lm)
    from personae.lm.bench import QUESTIONS, simulate, steer

    if what == "steer":  # the plain way's 16 rows fill one batch of its own
        return lambda p, q: steer(QUESTIONS[: 2 * q], 8 * p, repeats=3, plain_people=8 // q, lm=lm)
    return lambda p, q: simulate(QUESTIONS[: 2 * q], 32 * p, repeats=3, plain_people=8 // q, lm=lm)


def _scaling(what: str, lm: str, out: Path, as_json: bool) -> None:
    from personae.lm.bench_scaling import PEOPLE, QUESTIONS, draw, require_matplotlib, scaling, seconds_each, unit

    try:
        require_matplotlib()
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    at = _at(what, lm)

    def run(people: int, questions: int) -> dict[str, Any]:
        with doing(f"{what}: people × {people}, questions × {questions}"):
            return at(people, questions)

    found = scaling(run, (*PEOPLE, 16), ()) if what == "generate" else scaling(run, PEOPLE, QUESTIONS)
    data, figure = out / f"bench-{what}.json", out / f"bench-{what}.png"
    data.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(found, figure)
    if as_json:
        print_json(found)
        return
    clock, each = unit(found)
    micro = f"µs per {each}"
    lines = table(">times", "", f">ratio ({clock})", f">{micro}", f">{micro}, plain", ">peak MiB", ">peak MiB, plain")
    for point in found["points"]:
        grown = "questions" if point["questions_times"] > 1 else "personas" if what == "generate" else "people"
        times = point["people_times"] * point["questions_times"]  # one of them is 1
        this, plain = seconds_each(point)
        numbers = (1e6 * this, 1e6 * plain, point["peak_mib"], point["plain_peak_mib"])
        lines.add_row(f"{times}", grown, f"{plain / this:.3g}", *(f"{n:,.4g}" for n in numbers))
    print_table(lines, indent=0)
    click.echo(f"\nwritten: {data}, {figure}")


def _out_of_core(as_json: bool) -> None:
    from personae.scale.bench import bench

    found = bench(progress=lambda stage: click.echo(stage, err=True))
    if as_json:
        print_json(found)
        return
    lines = table("", ">people", ">answers", ">seconds a sweep", ">CPU seconds", ">peak MiB")
    for label, point in (*(("out of core", p) for p in found["points"]), ("in memory", found["in_memory"])):
        peak = point.get("fit_peak_mib", point.get("peak_mib"))
        seconds = f"{point['sweep_seconds']:,.1f}", f"{point['sweep_cpu_seconds']:,.1f}"
        lines.add_row(label, f"{point['people']:,}", f"{point['answers']:,}", *seconds, f"{peak:,.0f}")
    print_table(lines, indent=0)
    click.echo(
        f"\nlargest difference to the fit in memory: {found['in_memory']['max_difference']:.1e} of a question's noise"
    )


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {v}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
