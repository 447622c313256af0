"""What the rows of a table of conversations are worth, from what was measured of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from personae.evaluation import replies as measure
from personae.evaluation.conversation import Examples, Replies, compare_replies, of_lm, of_sums, persona_gap
from personae.evaluation.intervals import Interval
from personae.evaluation.likeness import BertScore
from personae.evaluation.prompt_use import mutual_information, prompt_use, worth_of_choice
from personae.evaluation.talk_plan import TalkPlan, compared, who
from personae.evaluation.written import markdown_table
from personae.lm.encoder import SentenceEncoder
from personae.steering.selective import COLLAPSED

REFERENCES = ("persona as text", "prompt tuning, K x n tokens", "deep prompt, K x n tokens")
"""Rows to which every other one is compared, reply by reply."""

_MAIN = {  # of a table for people to read: title, factor, digits
    "nll": ("NLL", 1, 3),
    "f1": ("F1", 100, 2),
    "f1_normalised": ("F1 norm.", 100, 2),
    "bleu": ("BLEU", 100, 2),
    "rouge_l": ("R-L", 100, 2),
    "dist_1": ("DIST-1", 100, 2),
    "dist_2": ("DIST-2", 100, 2),
    "length": ("words", 1, 1),
    "stopped": ("stopped", 100, 0),
    "most_used": ("most used", 100, 1),
    "persona_gap": ("persona gap", 1, 3),
}
BRIEF = ("nll", "f1_normalised", "bleu", "dist_1", "dist_2", "length", "persona_gap")
"""Those that a terminal has room for."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one row.

    Attributes
    ----------
    own : DataFrame
        example, nll, tokens, in the order of the plan; of a bank p0, p1, ... (probabilities of its prompts) and, where
        it uses one of them, prompt, or where it mixes them nll0, nll1, ... (the NLL under each).
    spoken : DataFrame
        example, text, stopped.
    swapped : DataFrame or None
        As ``own``, with somebody else's persona.
    """

    own: pd.DataFrame
    spoken: pd.DataFrame
    swapped: pd.DataFrame | None

    @property
    def choice(self) -> np.ndarray | None:
        """Probabilities of the prompts (n, K); None where there is no bank."""
        return self._of_prompts("p")

    @property
    def each(self) -> np.ndarray | None:
        """NLL (n, K) of the replies under each prompt, in nats; None where they are not mixed."""
        return self._of_prompts("nll")

    def _of_prompts(self, name: str) -> np.ndarray | None:
        columns = self.own.filter(regex=rf"^{name}\d+$")
        return columns.to_numpy() if columns.shape[1] else None

    def gap(self) -> np.ndarray:
        """How much likelier the own persona makes each reply, (n, 2): in nats, and the reply's tokens."""
        assert self.swapped is not None
        own = self.own.iloc[: len(self.swapped)]
        gap, _ = persona_gap(own["nll"].to_numpy(), self.swapped["nll"].to_numpy())
        return np.column_stack([gap, own["tokens"]])


def score(
    plan: TalkPlan,
    measured: Mapping[str, Measured],
    encoder: SentenceEncoder | None = None,
    bert: BertScore | None = None,
) -> dict[str, Any]:
    """Tables of all rows as plain values.

    Returns
    -------
    dict
        - table: row, metric, estimate, low, high: those of `compare_replies`, under the rows of its anchors; the NLL,
          the perplexity and the personas' gap are those of all contexts that were read
        - equal_words: at which dist_1_equal and others are compared
        - differences: row, minus (another row), metric, estimate, low, high (paired, by bootstrap over dialogues);
          dist_1 and dist_2 have the ratio of the two instead
        - prompts: of each bank the use of its prompts (share, effective, collapsed), how undecided its retriever is
          (see `prompt_use`), what the person says about the prompt (see `mutual_information`) and, where all prompts
          are mixed, what there is to choose (see `worth_of_choice`)
    """
    spoken = compared([plan.examples[i] for i in plan.spoken])
    read, swapped = compared(plan.examples[: plan.contexts]), plan.examples[: plan.swapped]
    said = {name: Replies(m.spoken["text"].tolist(), m.spoken["stopped"].to_numpy()) for name, m in measured.items()}
    table = compare_replies(said, spoken, encoder, bert, seed=int(plan.settings.get("seed", 0)))
    lines: list[dict[Any, Any]] = table.to_dict("records")
    for name, m in measured.items():
        of_row = Replies([], nll=m.own["nll"].to_numpy(), tokens=m.own["tokens"].to_numpy())
        found = dict(of_lm(of_row, read))
        if m.swapped is not None:
            some = m.own.iloc[: len(swapped)]
            both = Replies([], None, some["nll"].to_numpy(), some["tokens"].to_numpy(), m.swapped["nll"].to_numpy())
            of_both = dict(of_lm(both, compared(swapped)))
            found |= {metric: of_both[metric] for metric in ("persona_gap", "prefers_own")}
        lines += [{"row": name, "metric": metric, **interval._asdict()} for metric, interval in found.items()]
    return {
        "table": _plain(lines),
        "equal_words": table.attrs["equal_words"],
        "differences": _plain(_differences(plan, measured, spoken, read)),
        "prompts": _prompts(plan, measured),
    }


def _differences(
    plan: TalkPlan, measured: Mapping[str, Measured], spoken: Examples, read: Examples
) -> Iterator[dict[str, Any]]:
    """Of every row to `REFERENCES`, on the same replies and the same samples of dialogues."""
    swapped = compared(plan.examples[: plan.swapped]) if plan.swapped else None
    parts = {name: _parts(m, spoken) for name, m in measured.items()}
    variety = {
        name: {f"dist_{n}": measure.distinct(m.spoken["text"].tolist(), n) for n in (1, 2)}
        for name, m in measured.items()
    }
    of = {"nll": read, "persona_gap": swapped}
    for name in measured:
        for other in REFERENCES:
            if other not in measured or other == name:
                continue
            for metric, (mine, figure) in parts[name].items():
                if metric in parts[other]:
                    examples = of.get(metric, spoken)
                    assert examples is not None
                    interval = _difference(examples, mine, parts[other][metric][0], figure)
                    yield {"row": name, "minus": other, "metric": metric, **interval._asdict()}
            for metric, value in variety[name].items():
                theirs = variety[other][metric]
                ratio = value / theirs if theirs else None
                yield {"row": name, "minus": other, "metric": metric, "estimate": value - theirs, "ratio": ratio}


Figure = Callable[[np.ndarray], float]


def _parts(m: Measured, spoken: Examples) -> dict[str, tuple[np.ndarray, Figure]]:
    """Each metric as sums over replies, and what it is of these sums."""
    pairs = list(zip(m.spoken["text"], spoken.references, strict=True))

    def mean(values: list[float]) -> tuple[np.ndarray, Figure]:
        return np.column_stack([values, np.ones(len(values))]), _ratio

    found: dict[str, tuple[np.ndarray, Figure]] = {
        "nll": (m.own[["nll", "tokens"]].to_numpy(np.float64), _ratio),
        "f1_normalised": mean([measure.f1(a, b, normalised=True) for a, b in pairs]),
        "bleu": (np.array([measure.bleu_counts(a, b) for a, b in pairs], np.float64), measure.bleu_of),
        "rouge_l": mean([measure.rouge(a, b).longest for a, b in pairs]),
        "length": mean([float(measure.length(a)) for a, _ in pairs]),
    }
    if m.swapped is not None:
        found["persona_gap"] = m.gap(), _ratio
    return found


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def _difference(examples: Examples, mine: np.ndarray, theirs: np.ndarray, figure: Figure) -> Interval:
    width = mine.shape[1]
    return of_sums(
        examples.dialogues, np.hstack([mine, theirs]), lambda sums: figure(sums[:width]) - figure(sums[width:])
    )


def _prompts(plan: TalkPlan, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """How banks are used, over all contexts that were read."""
    people = np.array([who(e) for e in plan.examples[: plan.contexts]])
    found = {}
    for name, m in measured.items():
        if (p := m.choice) is not None:
            used = m.own["prompt"].to_numpy() if "prompt" in m.own else p
            use = prompt_use(used, p.shape[1])
            found[name] = {
                "share": use.share,
                "effective": use.effective,
                "undecided": prompt_use(p).undecided,
                "collapsed": use.effective < COLLAPSED,
                "person": mutual_information(people, used)._asdict(),
            }
            if (each := m.each) is not None:
                found[name]["choice"] = worth_of_choice(each, p, m.own["tokens"].to_numpy())._asdict()
    plain: dict[str, Any] = {
        name: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in use.items()} for name, use in found.items()
    }
    return plain


def _plain(lines: Any) -> list[dict[str, Any]]:
    """Numbers of Python, with None for those that are missing."""

    def value(x: Any) -> Any:
        return x if isinstance(x, str) or x is None else None if np.isnan(x) else float(x)

    return [{key: value(x) for key, x in line.items()} for line in lines]


# for people to read ----------------------------------------------------------------------------------------------
def wide(found: dict[str, Any], metrics: Iterable[str] = _MAIN) -> tuple[list[str], list[list[str]]]:
    """The main table as texts: headers, and a line a row; what a row has not got is empty.

    Examples
    --------
    >>> wide({"table": [{"row": "human", "metric": "dist_1", "estimate": 0.0541, "low": None, "high": None}]})
    (['row', 'DIST-1'], [['human', '5.41']])
    """
    values: dict[str, dict[str, float]] = {}
    for line in found["table"]:
        if line["estimate"] is not None:
            values.setdefault(line["row"], {})[line["metric"]] = line["estimate"]
    shown = [metric for metric in metrics if any(metric in v for v in values.values())]
    lines = [[name, *(_number(v.get(metric), metric) for metric in shown)] for name, v in values.items()]
    return ["row", *(_MAIN[metric][0] for metric in shown)], lines


def _number(value: float | None, metric: str) -> str:
    _, factor, digits = _MAIN[metric]
    return "" if value is None else f"{factor * value:.{digits}f}"


def _between(line: dict[str, Any]) -> str:
    """A figure with its interval."""
    _, factor, digits = _MAIN[line["metric"]]
    numbers = [f"{factor * line[end]:+.{digits}f}" for end in ("estimate", "low", "high") if line.get(end) is not None]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]})" if len(numbers) == 3 else "".join(numbers)


def decoded(settings: dict[str, Any]) -> str:
    """How the replies were made.

    >>> decoded({"temperature": 1.0, "top_p": 0.9})
    'replies drawn at temperature 1 (top-p 0.9)'
    """
    temperature = settings.get("temperature")
    return (
        f"replies drawn at temperature {temperature:g} (top-p {settings['top_p']:g})"
        if temperature
        else "greedy replies"
    )


def as_markdown(found: dict[str, Any]) -> str:
    """The tables as a page."""
    sizes, settings, identity = found["sizes"], found["settings"], found["identity"]
    headers, lines = wide(found)
    parts = [
        "# Conversations",
        f'Trained on {sizes["train"]}, tested on the part "{settings["part"]}": NLL of {sizes["contexts"]:,} true '
        f"replies (of {sizes['swapped']:,} with somebody else's persona, too) and {sizes['replies']:,} "
        f"{decoded(settings)} of at most {identity['new_tokens']} tokens by {identity['lm']['name']}. "
        f"K = {identity['n_prompts']} prompts of n = {identity['n_tokens']} tokens, "
        f"at most {identity['steps']} steps of eight replies, seed {identity['seed']}.",
        "NLL and persona gap in nats a token; F1, BLEU, ROUGE, DIST and shares times 100.",
        markdown_table(headers, lines),
    ]
    for other in REFERENCES:
        cells: dict[str, dict[str, str]] = {}
        for line in found["differences"]:
            if line["minus"] == other:
                cell = f"x {line['ratio']:.2f}" if line.get("ratio") is not None else _between(line)
                cells.setdefault(line["row"], {})[line["metric"]] = cell
        if cells:
            shown = [metric for metric in _MAIN if any(metric in of_row for of_row in cells.values())]
            headers = ["row", *(_MAIN[metric][0] for metric in shown)]
            lines = [[name, *(of_row.get(metric, "") for metric in shown)] for name, of_row in cells.items()]
            parts += [f"## Less {other}, with 95 % intervals over dialogues", markdown_table(headers, lines)]
    if found["prompts"]:
        about = (
            "How often each prompt is used; as many, used alike, would have the same entropy; the entropy of a single "
            "choice; what the person says about the prompt (mutual information beyond chance, and its p). A bank whose "
            "use has collapsed is called one prompt."
        )
        parts += ["## Use of the prompts", about, markdown_table(*use_table(found["prompts"]))]
    headers, lines = choice_table(found["prompts"])
    if lines:
        about = (
            "NLL a token, of banks whose prompts are all read: under a prompt at random, under the likeliest one, and "
            "under the best, which is known only afterwards and which no choice can pass; how often the likeliest is "
            "the best, and how often the one that is best most often is."
        )
        parts += ["## What there is to choose", about, markdown_table(headers, lines)]
    return "\n\n".join(parts) + "\n"


def side_by_side(plan: TalkPlan, measured: Mapping[str, Measured], most: int = 20) -> str:
    """What everybody replies in some contexts, as plain text: nothing of a reply is taken for markup.

    Parameters
    ----------
    most : int
        Contexts, the first ones of those that were replied to.
    """
    width = max(map(len, ["human", "persona", *measured]))

    def line(who: str, text: str) -> str:
        return f"{who:{width}}  {' '.join(text.split())}".rstrip()

    parts = [f"{min(most, len(plan.spoken))} of {len(plan.spoken):,} contexts, and what every row replies."]
    for place, i in enumerate(plan.spoken[:most]):
        e = plan.examples[i]
        persona = [line("persona", " ".join(e.persona))] if e.persona else []
        heard = [line("me" if turn.speaker == e.speaker else "they", turn.text) for turn in e.history]
        said = {"human": e.reply, **{name: m.spoken["text"].iloc[place] for name, m in measured.items()}}
        parts.append("\n".join([f"--- {place + 1} ".ljust(width + 60, "-"), *persona, *heard]))
        parts.append("\n".join(line(name, text) for name, text in said.items()))
    return "\n\n".join(parts) + "\n"


def use_table(prompts: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """How banks are used, as texts: headers, and a line a bank."""
    headers = ["row", "used, %", "prompts in use", "undecided, nats", "by the person, nats", "p"]
    lines = [
        [
            name,
            " ".join(f"{100 * share:.0f}" for share in use["share"]),
            f"{use['effective']:.2f}",
            f"{use['undecided']:.3f}",
            f"{use['person']['excess']:.3f}",
            f"{use['person']['p']:.3f}",
        ]
        for name, use in prompts.items()
    ]
    if any(use["collapsed"] for use in prompts.values()):
        headers.append("")
        for line, use in zip(lines, prompts.values(), strict=True):
            line.append("one prompt" if use["collapsed"] else "")
    return headers, lines


def choice_table(prompts: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What there is to choose in banks whose prompts were all read, as texts: headers, and a line a bank."""
    headers = ["row", "at random", "likeliest", "best afterwards", "likeliest is best, %", "commonest is best, %"]
    lines = [
        [name, *(f"{worth[key]:.3f}" for key in ("random", "chosen", "best"))]
        + [f"{100 * worth[key]:.0f}" for key in ("agrees", "commonest")]
        for name, use in prompts.items()
        if (worth := use.get("choice"))
    ]
    return headers, lines
