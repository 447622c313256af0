"""`write_report`: everything a bundle says about its people, as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

import personae
from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.data.survey import Question
from personae.people.cohorts import Cohorts
from personae.people.map import plot_map
from personae.report.figures import plot_training
from personae.report.tables import Table, about_evaluation, between, evaluation_tables, percent, read_evaluation

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_TRAITS = 12  # by which the map can be coloured
_A_TOPIC = 3  # dividing questions shown of a topic
_WITHOUT_TOPICS = 10


@dataclass
class Card:
    """One cohort, as it is shown."""

    name: str
    size: str
    label: str
    figure: Markup | None
    answers: Table
    traits: Table
    hidden: int


def write_report(bundle: Bundle, out: Path, evaluation: Path | None = None) -> Path:
    """Write the report of a bundle as one HTML file; an older one is replaced.

    Parameters
    ----------
    out : Path
        Not inside the bundle, which holds nothing but its own files.
    evaluation : Path, optional
        A folder that `personae evaluate` wrote; its tables go into the report.

    Returns
    -------
    Path
        The file, absolute.

    Raises
    ------
    BundleError
        ``out`` lies in the bundle.
    ValueError
        The folder holds no evaluation.
    """
    out = out.resolve()
    if bundle.folder.resolve() in out.parents:
        raise BundleError(
            f"{out} lies in the bundle, which holds nothing but its own files; write the report beside it"
        )
    html = report(bundle, evaluation)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, out)
    return out


def report(bundle: Bundle, evaluation: Path | None = None) -> str:
    """The report of a bundle as HTML; see `write_report`."""
    from plotly.offline import get_plotlyjs  # after the import above that says what to do where it is missing

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("personae.report", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    cohorts = bundle.cohorts.protected() if "cohorts" in bundle else None
    questions = bundle.people.questions_
    steerer = _about_steerer(bundle)
    history = steerer.get("history") or []
    result = None if evaluation is None else read_evaluation(evaluation)
    chosen = cohorts is not None and cohorts.curves_ is not None
    return environment.get_template("report.html").render(
        name=bundle.folder.name,
        version=personae.__version__,
        facts=_facts(bundle, cohorts),
        account=_account(bundle),
        maps=_maps(bundle, cohorts),
        minimum=10 if cohorts is None else cohorts.minimum,
        cohorts=cohorts,
        choice=_plain(cohorts.plot_choice()) if chosen and cohorts else None,
        cards=[] if cohorts is None else [_card(cohorts, c, questions) for c in range(len(cohorts))],
        heat=None if cohorts is None or _dividing(cohorts).empty else _plain(cohorts.plot_questions(questions)),
        dividing=[] if cohorts is None else _dividing_tables(cohorts, questions),
        steered=bundle.manifest["steerer"] is not None,
        training=_plain(plot_training(history)) if history else None,
        evaluation=[] if result is None else evaluation_tables(result),
        evaluated=None if result is None else about_evaluation(result, bundle.manifest["data"]),
        provenance=_provenance(bundle, steerer),
        script=Markup(get_plotlyjs()),
    )


def _plain(figure: Figure) -> Markup:
    """A figure as JSON that cannot end the script element it stands in."""
    return Markup(figure.to_json().replace("<", "\\u003c"))


# what there is ---------------------------------------------------------------------------------------------------
def _facts(bundle: Bundle, cohorts: Cohorts | None) -> list[tuple[str, str]]:
    """Numbers at the top, and what they count."""
    people = bundle.people
    facts = [(f"{len(people):,}", "people"), (f"{len(people.questions_):,}", "questions")]
    if cohorts is not None:
        telling = cohorts.profiles_.telling
        least = "at least " if telling.suppressed.any() else ""
        facts += [(f"{least}{telling.n.sum():,.0f}", "answers"), (str(len(cohorts)), "cohorts")]
    return [*facts, (str(people.traits_.shape[1]), "traits"), (str(people.n_components_), "dimensions")]


def _account(bundle: Bundle) -> Table | None:
    """What the reader skipped; None where nobody wrote it down."""
    account = bundle.manifest["data"].get("account")
    if account is None:
        return None
    rows = [[f"{note['count']:,}", note["reason"]] for note in account["notes"]]
    return Table("", [">times", "what was skipped or changed while reading"], rows)


def _maps(bundle: Bundle, cohorts: Cohorts | None) -> list[tuple[str, Markup]]:
    """The map in every colouring: by cohort first, then by trait."""
    people = bundle.people
    minimum = 10 if cohorts is None else cohorts.minimum
    traits = [str(t) for t in people.traits_.columns if people.traits_[t].nunique() > 1][:_MOST_TRAITS]
    colourings: list[tuple[str, str | None]] = [("nothing" if cohorts is None else "cohort", None)]
    colourings += [(trait, trait) for trait in traits]
    return [(name, _plain(plot_map(people, cohorts, trait, minimum))) for name, trait in colourings]


# cohorts ---------------------------------------------------------------------------------------------------------
def _card(cohorts: Cohorts, c: int, questions: Sequence[Question]) -> Card:
    row = cohorts.summary_.iloc[c]
    asked = {q.id: q for q in questions}
    profiles = cohorts.profiles_
    answers, traits = profiles.telling_answers(c), profiles.standing_out(c)
    headers = ["", ">here", ">95 %", ">everybody", ">people"]
    words = [f"{asked[q].title or asked[q].text}: {o}" for q, o in zip(answers.question, answers.option, strict=True)]
    values = [f"{t}: {v}" for t, v in zip(traits.trait, traits.value, strict=True)]
    hidden = sum(int(table.suppressed[table.cohort == c].sum()) for table in (profiles.traits, profiles.answers))
    return Card(
        row.cohort,
        "too few people to say how many" if np.isnan(row.people) else f"{row.people:,.0f} people, {percent(row.share)}",
        row.label,
        _plain(cohorts.plot_profile(c, questions)) if len(answers) + len(traits) else None,
        Table("telling answers", headers, _cells(words, answers)),
        Table("traits that stand out", headers, _cells(values, traits)),
        hidden,
    )


def _cells(words: Iterable[str], cells: pd.DataFrame) -> list[list[str]]:
    rows: Iterable[Any] = cells.itertuples()
    return [
        [
            word,
            percent(cell.share),
            between(cell.low, cell.high),
            percent(cell.population_share),
            f"{cell.count:,.0f} of {cell.n:,.0f}",
        ]
        for word, cell in zip(words, rows, strict=True)
    ]


def _dividing(cohorts: Cohorts) -> pd.DataFrame:
    return cohorts.profiles_.splitting[~cohorts.profiles_.splitting.suppressed]


def _dividing_tables(cohorts: Cohorts, questions: Sequence[Question]) -> list[Table]:
    """The most dividing questions of each topic, the most divided topic first."""
    asked = {q.id: q for q in questions}
    splitting = _dividing(cohorts).assign(topic=lambda s: [asked[q].topic for q in s.question])
    most = _A_TOPIC if splitting.topic.any() else _WITHOUT_TOPICS
    tables = []
    for topic, found in splitting.groupby("topic", sort=False):
        rows: Iterable[Any] = found.head(most).itertuples()
        lines = [
            [
                asked[r.question].title or r.question,
                asked[r.question].text,
                f"{r.tv:.2f}",
                f"{r.low:.2f} to {r.high:.2f}",
            ]
            for r in rows
        ]
        title = str(topic) or ("without a topic" if splitting.topic.any() else "")
        tables.append(Table(title, ["question", "wording", ">distance", ">95 %"], lines))
    return tables


# steerer, evaluation, provenance ---------------------------------------------------------------------------------
def _about_steerer(bundle: Bundle) -> dict[str, Any]:
    """What the steerer's file says of it: read without its language model, which a report does not need."""
    if bundle.manifest["steerer"] is None:
        return {}
    path = bundle.part("steerer") / "steerer.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _provenance(bundle: Bundle, steerer: dict[str, Any]) -> list[Table]:
    manifest, people = bundle.manifest, bundle.people
    data, account = manifest["data"], manifest["data"].get("account") or {}
    source = {name: _file_name(value) for name, value in data.get("source", {}).items() if value}
    files = [[name, f"{facts['bytes']:,}", facts["sha256"]] for name, facts in sorted(manifest["files"].items())]
    tables = [
        _named(
            "data",
            {
                "read from": _file_name(account.get("source", "")) + f" ({account['format']})" if account else "",
                **source,
                "fingerprint of the survey": data["fingerprint"],
                "bundle written": f"{manifest['created']}, personae {manifest['personae']}",
                "seeds": ", ".join(f"{part} {seed}" for part, seed in manifest["seeds"].items()),
            },
        ),
        _named(
            "opinion model",
            {
                "dimensions": people.n_components_,
                "strength of the read-outs": f"{people.strength_:g}",
                "confidence of the read-outs": f"{people.confidence_:g}",
                **{
                    ", ".join(f"{k} {v:g}" for k, v in seen.items() if k not in ("rmse", "nll")): ", ".join(
                        f"held-out {k.upper()} {seen[k]:.4f}" for k in ("rmse", "nll") if k in seen
                    )
                    for seen in people.validation_
                },
            },
        ),
    ]
    if manifest["steerer"] is not None:
        about = manifest["steerer"]
        settings = {k: v for k, v in steerer.get("parameters", {}).items() if k != "lm" and v is not None}
        lm = {f"LM, {k.replace('_', ' ')}": v for k, v in about["lm"].items()}
        facts = {"method": about["method"], "placement": about["placement"], **settings, **lm}
        tables.append(_named("steerer and language model", facts))
    return [*tables, Table("files of the bundle", ["file", ">bytes", "SHA-256"], files, folded=True)]


def _named(title: str, facts: dict[str, Any]) -> Table:
    return Table(title, ["", ""], [[str(k), str(v)] for k, v in facts.items() if v not in ("", None)])


def _file_name(value: object) -> str:
    """Without the folders, which are nobody's business."""
    return Path(str(value)).name
