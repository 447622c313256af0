"""Cards: the README of what is exported, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCardData

import personae
from personae.bundle import Bundle
from personae.lm.names import EMBEDDED, is_hub_id
from personae.report.tables import Table, about_evaluation, evaluation_tables, file_name, read_evaluation

_STEERED = "steered LM, person"  # the row of an evaluation whose numbers stand in the metadata
_SAMPLE = {
    "license": "other",
    "license_name": "public-use-with-citation",
    "attribution": "Smith, Tom W., Michael Davern, Jeremy Freese and Stephen L. Morgan, General Social Survey 2018, "
    "NORC at the University of Chicago, sponsored by the National Science Foundation. NORC releases the GSS for public "
    "use and asks to be cited; nobody may try to identify a respondent.",
}


# an adapter ------------------------------------------------------------------------------------------------------
def adapter_card(about: Mapping[str, Any], lm: Mapping[str, Any]) -> str:
    """The card of a PEFT adapter.

    Parameters
    ----------
    about : mapping
        What `personae.export.peft.export_peft` returns.
    lm : mapping
        The fingerprint of the LM.
    """
    base = about["base_model"]
    data = ModelCardData(base_model=base, library_name="peft", tags=["personae", "soft-prompt"])
    n = about["num_virtual_tokens"]
    lines = [
        f"# {_plain(about['persona'])}: virtual tokens for {_plain(file_name(lm['name']))}",
        f"{n} virtual token{'s' * (n > 1)} that personae {personae.__version__} made for one persona, as a "
        f"{'prompt' if about['peft_type'] == 'PROMPT_TUNING' else 'prefix'}-tuning adapter.",
        f"**Exact for:** {_plain(about['exact_for'])}. There the logits are those of personae; the adapter was not "
        "made for anything else.",
        "## Use",
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"lm = AutoModelForCausalLM.from_pretrained({json.dumps(base or 'FOLDER OF THE LM')})\n"
        'lm = PeftModel.from_pretrained(lm, "THIS FOLDER")\n'
        "```",
        "The text of the prompt, tokenized with `add_special_tokens=False`; PEFT puts the virtual tokens in front of "
        "all of it:",
        "~~~~\n" + about["prompt"].replace("~~~~", "~ ~ ~ ~") + "\n~~~~",
    ]
    if about["letters"]:
        named = ", ".join(f"{letter} is token {i}" for letter, i in about["letters"].items())
        lines.append(f"The answer is read at the prompt's last token, from the options' letters: {named}.")
    if about["sharpness"] != 1:
        lines.append(
            f"personae multiplies the letters' logits by {about['sharpness']:.4g} before the softmax where a question "
            "was not trained on; an adapter cannot."
        )
    lines += [
        "## Language model",
        "Virtual tokens mean something to one LM only: "
        + ("" if base else "this one was a folder or a converted copy, so no hub id is named. ")
        + f"{_plain(lm['architecture'])}, {lm['layers']} layers, hidden size {lm['hidden_size']}; SHA-256 of a sample "
        f"of its embeddings `{lm['embedding_sha256']}`.",
    ]
    return _card(data, lines)


# a bundle --------------------------------------------------------------------------------------------------------
def bundle_card(
    bundle: Bundle,
    repo_id: str,
    evaluation: Path | None = None,
    license: str | None = None,
    attribution: str | None = None,
) -> str:
    """The card of a bundle, filled from its manifest and from an evaluation.

    Parameters
    ----------
    repo_id : str
        Where it is going to be, ``owner/name``.
    evaluation : Path, optional
        A folder that `personae evaluate` wrote.
    license : str, optional
        The hub's identifier of the licence under which the bundle is given away, e.g. ``"cc-by-4.0"``; of the embedded
        sample it is known, else ``"unknown"``.
    attribution : str, optional
        Whom to cite for the data; of the embedded sample it is known.

    Raises
    ------
    ValueError
        The folder holds no evaluation.
    """
    manifest, people = bundle.manifest, bundle.people
    data, account = manifest["data"], manifest["data"].get("account") or {}
    known = _SAMPLE if account.get("format") == "sample" else {}
    attribution = attribution or known.get("attribution")
    result = None if evaluation is None else read_evaluation(evaluation)
    steerer, name = manifest["steerer"], repo_id.rpartition("/")[2]
    metadata = ModelCardData(
        license=license or known.get("license", "unknown"),
        license_name=None if license else known.get("license_name"),
        library_name="personae",
        base_model=None if steerer is None else _hub_name(steerer["lm"]["name"]),
        pipeline_tag=None if steerer is None else "text-generation",
        tags=["personae", "survey", "soft-prompt"],
        eval_results=_results(result, data) or None,
        model_name=name,
    )
    lines = [
        f"# {_plain(name)}",
        f"Who {data['respondents']:,} people are from their answers to {data['questions']:,} questions"
        + ("" if steerer is None else f", and virtual tokens that make {_plain(steerer['lm']['name'])} answer as them")
        + f": a bundle of personae {manifest['personae']}.",
        "## Use",
        f"```\npersonae ask hf:{repo_id} {people.questions_[0].id}\npersonae chat hf:{repo_id}\n```",
        f'```python\nfrom personae import Bundle\n\nbundle = Bundle.from_pretrained("{repo_id}")\n```',
        "## What is in it",
        f"- a vector of {people.vectors_.shape[1]} numbers and {people.traits_.shape[1]} traits of each person, under "
        "the names that the survey gives them: no answers, but a vector foretells what somebody would answer",
        *(["- cohorts of like-minded people"] if "cohorts" in bundle else []),
        *([] if steerer is None else [f"- a steerer ({steerer['method']}, placement {steerer['placement']})"]),
    ]
    if "cohorts" in bundle:
        lines.append(_table(_cohorts(bundle)))
    lines += [
        "## Data",
        f"Read from {_plain(file_name(account['source']))} ({account['format']})." if account else "",
        _plain(attribution) if attribution else "The publisher names no source to cite.",
        "The publisher names no licence." if metadata.license == "unknown" else "",
        f"Fingerprint of the survey: `{data['fingerprint']}`.",
    ]
    if account.get("notes"):
        skipped = [[f"{note['count']:,}", note["reason"]] for note in account["notes"]]
        lines.append(_table(Table("", [">times", "what was skipped or changed while reading"], skipped)))
    if result is not None:
        lines += ["## Evaluation", about_evaluation(result, data)]
        for table in evaluation_tables(result):
            lines += [f"### {_plain(table.title)}", _table(table)]
    lines += [
        "## Limits",
        "Answers and replies are predictions of a model, not statements of these people. Shares are those of the "
        "people asked. Groups of fewer than ten people are left out.",
    ]
    return _card(metadata, lines)


def _cohorts(bundle: Bundle) -> Table:
    least, summary = bundle.cohorts.minimum, cast(Iterable[Any], bundle.cohorts.summary_.itertuples())
    rows = [
        [str(row.cohort), f"fewer than {least}" if row.people < least else f"{row.people:,}", str(row.label)]
        for row in summary
    ]
    return Table("", ["cohort", ">people", "what stands out"], rows)


def _results(result: Mapping[str, Any] | None, data: Mapping[str, Any]) -> list[EvalResult]:
    """What the hub shows beside the card: the steered LM's numbers, if they are of this survey."""
    if result is None or result.get("settings", {}).get("survey") != data["fingerprint"]:
        return []
    source = file_name((data.get("account") or {}).get("source", "")) or "survey"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="survey",
            dataset_name=f"{source}, {cell}",
            metric_type=metric,
            metric_value=round(line[metric], 4),
        )
        for cell, lines in result["tables"].items()
        for line in lines
        if line["row"] == _STEERED
        for metric in ("accuracy", "nll")
    ]


def _hub_name(name: str) -> str | None:
    if name in EMBEDDED:
        return EMBEDDED[name].hub_id
    return name if is_hub_id(name) else None


# Markdown --------------------------------------------------------------------------------------------------------
def _card(metadata: ModelCardData, lines: Sequence[str]) -> str:
    body = "\n".join(
        line + ("" if line.startswith("- ") and i + 1 < len(lines) and lines[i + 1].startswith("- ") else "\n")
        for i, line in enumerate(lines)
        if line
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def _table(table: Table) -> str:
    head = [_plain(h.lstrip(">")) for h in table.headers]
    rule = ["---:" if h.startswith(">") else "---" for h in table.headers]
    rows = [[_plain(cell) for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def _plain(text: object) -> str:
    """Text of users on one line that no reader of Markdown takes for a tag or a column."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
