"""Cards: the README of what is exported, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCardData

import personae
from personae.bundle_files import Opened
from personae.evaluation.talk_table import use_table, wide
from personae.lm.names import EMBEDDED, is_hub_id
from personae.report.tables import Table, about_evaluation, evaluation_tables, file_name, read_evaluation
from personae.steering.selective import COLLAPSED

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
    bundle: Opened,
    repo_id: str,
    evaluation: Path | None = None,
    license: str | None = None,
    attribution: str | None = None,
) -> str:
    """The card of a bundle, of people or of conversations, filled from its manifest and from an evaluation.

    Parameters
    ----------
    repo_id : str
        Where it is going to be, ``owner/name``.
    evaluation : Path, optional
        A folder that `personae evaluate` wrote, or `personae converse evaluate` for a bundle trained on dialogues.
    license : str, optional
        The hub's identifier of the licence under which the bundle is given away, e.g. ``"cc-by-4.0"``; of the embedded
        sample it is known, else ``"unknown"``.
    attribution : str, optional
        Whom to cite for the data; of the embedded sample it is known.

    Raises
    ------
    ValueError
        The folder holds no evaluation, or one of the other kind.
    """
    if "people" not in bundle:
        return _conversation_card(bundle, repo_id, evaluation, license, attribution)
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
        f"```\n{_commands(bundle, repo_id)}\n```",
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
    lines += _skipped(account)
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


def _commands(bundle: Opened, repo_id: str) -> str:
    """What works with this bundle: talk needs a steerer, and somebody to speak as."""
    name = bundle.cohorts[0].name if "cohorts" in bundle else str(bundle.people.respondent_ids_[0])
    lines = [["ask", f"hf:{repo_id}", bundle.people.questions_[0].id]]
    lines += [["chat", f"hf:{repo_id}", "--as", name]] if bundle.manifest["steerer"] is not None else []
    return "\n".join(shlex.join(["personae", *words]) for words in lines)


def _cohorts(bundle: Opened) -> Table:
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


def _skipped(account: Mapping[str, Any]) -> list[str]:
    """What the reader says of the data, if anything."""
    rows = [[f"{note['count']:,}", note["reason"]] for note in account.get("notes") or ()]
    return [_table(Table("", [">times", "what was skipped or changed while reading"], rows))] if rows else []


def _hub_name(name: str) -> str | None:
    if name in EMBEDDED:
        return EMBEDDED[name].hub_id
    return name if is_hub_id(name) else None


# a bundle that was trained on dialogues --------------------------------------------------------------------------
def _conversation_card(
    bundle: Opened, repo_id: str, evaluation: Path | None, license: str | None, attribution: str | None
) -> str:
    data, steerer, name = bundle.manifest["data"], bundle.manifest["steerer"], repo_id.rpartition("/")[2]
    about = json.loads((bundle.part("steerer") / "steerer.json").read_text(encoding="utf-8"))
    result = None if evaluation is None else _read_talk(evaluation)
    row = None if result is None else _row_like(about, data, result)
    account = data.get("account") or {}
    metadata = ModelCardData(
        license=license or "unknown",
        library_name="personae",
        base_model=_hub_name(steerer["lm"]["name"]),
        pipeline_tag="text-generation",
        tags=["personae", "conversational", "soft-prompt"],
        eval_results=None if result is None or row is None else _talk_results(result, row, account) or None,
        model_name=name,
    )
    lines = [
        f"# {_plain(name)}",
        f"Virtual tokens with which {_plain(file_name(steerer['lm']['name']))} talks as whoever is described to it, "
        f"learned from {data['dialogues']:,} dialogues ({data['turns']:,} turns): a bundle of personae "
        f"{bundle.manifest['personae']}.",
        "## Use",
        f'```\npersonae converse chat hf:{repo_id} --about "I have two dogs."\n```',
        "```python\nfrom personae import Bundle\n\n"
        f'steerer = Bundle.from_pretrained("{repo_id}").steerer\n'
        'steerer.chat([{"role": "system", "content": "I have two dogs."}, {"role": "user", "content": "Hi!"}])\n```',
        "## What is in it",
        f"- a steerer ({steerer['method']}, placement {steerer['placement']})",
        *([_bank(about)] if steerer["method"] == "selective" else []),
        "- no dialogue and no persona sentence",
        "## Training",
        _training(about),
        "## Data",
        f"Read from {_plain(file_name(account['source']))} ({account['format']})." if account else "",
        _plain(attribution) if attribution else "The publisher names no source to cite.",
        "The publisher names no licence." if metadata.license == "unknown" else "",
        f"Fingerprint of the dialogues: `{data['fingerprint']}`.",
        *_skipped(account),
    ]
    if result is not None:
        sizes, settings = result["sizes"], result["settings"]
        lines += [
            "## Evaluation",
            f"Steerers were trained anew on {settings['train_dialogues']:,} dialogues and judged on the part "
            f'"{settings["part"]}": NLL (nats a token) of {sizes["contexts"]:,} true replies, and {sizes["replies"]:,} '
            "greedy replies; F1, BLEU, ROUGE and DIST times 100. "
            + (
                f"The row {row} has the settings of this one."
                if row
                else "None of the rows has the LM, the dialogues and the settings of this one."
            ),
            _table(Table("", *wide(result))),
        ]
        if result["prompts"]:
            lines += ["### Use of the prompts", _table(Table("", *use_table(result["prompts"])))]
    lines += [
        "## Limits",
        "Replies are predictions of a language model, not statements of any person. Whoever is described in words need "
        "not be met by what it says.",
    ]
    return _card(metadata, lines)


def _bank(about: Mapping[str, Any]) -> str:
    how, k = about["parameters"], about["parameters"]["n_prompts"]
    alike = f", {about['shared']:.0%} of them the same for all" if about.get("shared") else ""
    who = "the likeliest prompt speaks" if how["selection"] == "hard" else "all prompts speak, each by its weight"
    return (
        f"- a bank of {k} prompt{'s' * (k > 1)} of {how['n_tokens']} virtual tokens each{alike}"
        + (f", and the retriever that reads the conversation ({about['encoder']}): {who}" if k > 1 else "")
        + (f"; it takes person vectors of {about['n_person']} numbers" if about["n_person"] else "")
    )


def _training(about: Mapping[str, Any]) -> str:
    """What the steerer's file says of how it was made."""
    how = about["parameters"]
    best = min(about["history"], key=lambda found: found["nll"])
    used = best.get("prompts in use")
    words = [f"Recipe {how['recipe']}, at most {how['steps']:,} steps"]
    words += [f"{how['batches']} batches a step"] if how.get("batches", 1) > 1 else []
    words += [f"seed {how['random_state']}; kept are the weights of step {best['step']:,.0f}"]
    words += [f"with which held-out dialogues had an NLL of {best['nll']:.3f} nats a token"]
    if used is None or how.get("n_prompts", 1) == 1:
        return ", ".join(words) + "."
    in_truth = " The bank has collapsed: in truth it is one prompt." if used < COLLAPSED else ""
    return ", ".join(words) + f" and {used:.1f} of the {how['n_prompts']} prompts in use.{in_truth}"


def _read_talk(folder: Path) -> dict[str, Any]:
    """The `result.json` that `personae converse evaluate` left in a folder."""
    path = folder / "result.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"table", "prompts", "sizes", "settings", "identity"} <= set(found):
        raise ValueError(f"{folder} holds no result of conversations; make one with: personae converse evaluate")
    return found


def _row_like(about: Mapping[str, Any], data: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    """The row of an evaluation that was trained as the bundle's steerer was, on a part of its dialogues."""
    how, identity = about["parameters"], result["identity"]
    alike = all(identity[name] == how.get(name) for name in ("n_prompts", "n_tokens", "steps"))
    alike &= identity["lm"]["embedding_sha256"] == about["lm"]["embedding_sha256"]
    alike &= how.get("shared") is None
    if not alike or about["method"] != "selective" or result["settings"]["dialogues"] != data["fingerprint"]:
        return None
    name = {
        ("paper", "hard", "before"): "SPT, as published, before",
        ("paper", "hard", "late"): "SPT, as published, late",
        ("mixture", "hard", "before"): "SPT, before",
        ("mixture", "hard", "late"): "SPT",
        ("mixture", "mixture", "late"): "SPT, mixed",
    }.get((how["recipe"], how["selection"], about["placement"]))
    return name if any(line["row"] == name for line in result["table"]) else None


def _talk_results(result: Mapping[str, Any], row: str, account: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="dialogues",
            dataset_name=f"{file_name(account.get('source', '')) or 'dialogues'}, {result['settings']['part']}",
            metric_type=line["metric"],
            metric_value=round(line["estimate"], 4),
        )
        for line in result["table"]
        if line["row"] == row and line["metric"] in ("nll", "f1", "bleu", "rouge_l") and line["estimate"] is not None
    ]


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
