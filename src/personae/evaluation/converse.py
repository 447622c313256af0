"""Run the rows of the table of conversations: finished parts are kept, an interrupted run goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import personae
from personae.evaluation.kept import claim, slug, write
from personae.evaluation.likeness import BertScore
from personae.evaluation.talk_plan import TalkPlan, passes
from personae.evaluation.talk_rows import Speaker, TalkRow, Trained, read_in_parts, talk_rows
from personae.evaluation.talk_table import Measured, as_markdown, score, side_by_side
from personae.lm.encoder import SentenceEncoder
from personae.lm.frozen import FrozenLM
from personae.lm.generation import finish, stream
from personae.lm.prompts import Prompt, chat_prompt, reply_ids
from personae.lm.reading import Prepared, prepare
from personae.people.bench import machine
from personae.steering.turns import within

_BLOCK = 48  # dialogues of a file that is kept
_TOGETHER = 16  # dialogues whose contexts are held at one time: the turns of a dialogue cost as much as its last one
_CHATS = 32  # replies of one batch; of a mixture, each is K rows
_TRIED = 4  # dialogues that tell how long all of them will take


@dataclass(frozen=True)
class Decoding:
    """How replies are made.

    Attributes
    ----------
    new_tokens : int
        Of a reply at most.
    temperature, top_p : float
        As of `personae.lm.generation.stream`: 0 is greedy.
    """

    new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def kind(self) -> str:
        """The folder of replies that were made so."""
        return f"drawn-{self.temperature:g}-{self.top_p:g}" if self.temperature else "spoken"


Own = tuple[TalkRow, Speaker]
Contexts = dict[tuple[Prompt, ...], Prepared]


def converse(
    plan: TalkPlan,
    out: Path,
    rows: Sequence[str] | None = None,
    lm: str | FrozenLM = "smollm2-135m",
    n_prompts: int = 4,
    n_tokens: int = 8,
    steps: int = 400,
    seed: int = 0,
    new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    budget: float | None = None,
    encoder: SentenceEncoder | None = None,
    bert: BertScore | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train every method on the same dialogues, let it reply in the same contexts, and score it.

    Parameters
    ----------
    out : Path
        Trained steerers, what was measured, ``result.json``, ``result.md``, ``replies.txt`` (some, side by side)
        and figures are kept here; the same call goes on where it was interrupted, one with more rows adds them.
    rows : sequence of str, optional
        Names of `personae.evaluation.talk_rows.TALK_ROWS`, all by default. The tables have every row that was measured
        for this sample.
    n_prompts, n_tokens : int
        Prompts K of a bank, and virtual tokens n of each.
    steps : int
        Training steps at most, of eight replies each.
    new_tokens : int
        Tokens of a reply at most.
    temperature, top_p : float
        Of the replies; 0 is greedy. Replies of the same folder that were made otherwise are kept, and in no table.
    budget : float, optional
        Minutes for everything that is measured, training not counted. If the plan takes longer, all rows get the same
        smaller sample of it; ``sizes`` says how small. Another budget, or a plan of other sizes, gets another sample.
    encoder, bert : optional
        For embedding_similarity and bert_score.
    about : dict, optional
        Plain values to keep in ``settings``: where the dialogues came from.
    say : callable
        Told what is being done.

    Returns
    -------
    dict
        ``table`` (row, metric, estimate, low, high), ``differences`` to the rows that a claim must beat, ``prompts``
        (their use), ``training``, ``sizes``, ``settings``, ``identity`` and ``machine``.
    """
    out, wanted = Path(out), talk_rows(plan, rows)
    lm = lm if isinstance(lm, FrozenLM) else FrozenLM.load(lm)
    identity = {
        "plan": plan.fingerprint,
        "lm": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "n_prompts": n_prompts,
        "n_tokens": n_tokens,
        "steps": steps,
        "seed": seed,
        "new_tokens": new_tokens,
        "version": personae.__version__,
    }
    claim(out, identity)
    decoding = Decoding(new_tokens, temperature, top_p)
    started = time.monotonic()
    trained = Trained(plan, lm, out / "steerers", n_prompts, n_tokens, steps, seed, progress, say)
    for one in wanted:
        one.speaker(trained, one.name)
    groups = [[r for r in wanted if not r.fine_tuned], *([r] for r in wanted if r.fine_tuned)]
    if budget is not None:
        plan = _affordable(plan, trained, [g for g in groups if g], out, 60 * budget, decoding, say)
        trained.plan = plan
    for group in groups:  # a fine-tuned LM is held only while it speaks
        speakers = [(row, row.speaker(trained, row.name)) for row in group]
        _measure(plan, trained, speakers, out, ("own", decoding.kind), decoding, say)
        _measure(plan, trained, [s for s in speakers if s[0].persona], out, ("swapped",), decoding, say)
    measured = {row.name: whole for row in talk_rows(plan) if (whole := _kept(plan, row, out, decoding)) is not None}
    taken_on = machine(torch.get_num_threads(), "torch", "transformers")
    versions = taken_on.pop("versions")
    found: dict[str, Any] = {
        "identity": identity,
        "settings": {
            **plan.settings,
            "rows": None if rows is None else list(rows),
            "budget": budget,
            "temperature": temperature,
            "top_p": top_p,
            **(about or {}),
        },
        "sizes": {
            "train": repr(plan.train),
            **_amounts(plan),
        },
        **score(plan, measured, encoder, bert),
        "training": {name: _training(out, name) for name in measured},
        "seconds": time.monotonic() - started,
        "machine": {**taken_on, **versions, "device": str(lm.device)},
    }
    (out / "result.json").write_text(json.dumps(found, indent=1, default=float))
    (out / "result.md").write_text(as_markdown(found), encoding="utf-8")
    (out / "replies.txt").write_text(side_by_side(plan, measured), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        say("figures need matplotlib, which is not installed; run: pip install 'personae[eval]'")
    else:
        from personae.evaluation.talk_figures import draw

        draw(found, out)
    return found


# reading true replies, and replying -------------------------------------------------------------------------------
def _measure(
    plan: TalkPlan,
    trained: Trained,
    speakers: Sequence[Own],
    out: Path,
    kinds: Sequence[str],
    decoding: Decoding,
    say: Callable[[str], None],
) -> None:
    """What is to be kept of these kinds, a block of dialogues at a time. A context is computed once, for all rows that
    see it alike and whether a true reply is read there or another one made."""
    for number, block in enumerate(passes(plan.examples, _BLOCK)):
        wanted = {kind: _places(plan, kind, block) for kind in kinds}
        left = [
            (row, speaker, kind, missing)
            for row, speaker in speakers
            for kind in kinds
            if (missing := _missing(_tables(_path(out, kind, row.name, number)), wanted[kind]))
        ]
        if not left:
            continue
        rows = len({row.name for row, *_ in left})
        say(f"{', '.join(kinds)}: turns {block.start + 1:,} to {block.stop:,} of {len(plan.examples):,}, {rows} rows")
        tables: dict[tuple[str, str], list[pd.DataFrame]] = {}
        for some in passes(plan.examples[block], _TOGETHER):
            part = range(block.start + some.start, block.start + some.stop)
            places = sorted({i for *_, missing in left for i in missing if i in part})
            contexts: Contexts = {}
            for row, speaker, kind, missing in left:
                mine = [i for i in missing if i in part]
                if not mine:
                    continue
                prepared = _prepared(plan, trained, row, speaker, places, kind == "swapped", contexts)
                here = prepared.select([places.index(i) for i in mine])
                reads = kind in ("own", "swapped")
                found = _read(plan, speaker, mine, here) if reads else _speak(speaker, mine, here, decoding)
                tables.setdefault((kind, row.name), []).append(found)
        for (kind, name), of_row in tables.items():
            path = _path(out, kind, name, number)
            whole = pd.concat([*_tables(path), *of_row]).drop_duplicates("example")  # two calls may share a folder
            write(path, whole.sort_values("example"))


@torch.no_grad()
def _read(plan: TalkPlan, speaker: Speaker, places: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """Some replies as one row reads them; the columns are those of `Measured.own`."""
    replies = [reply_ids(speaker.lm, plan.examples[i].reply) for i in places]
    found = read_in_parts(speaker, prepared, replies)
    table = pd.DataFrame({"example": list(places), "nll": found.nll.cpu().numpy(), "tokens": [len(r) for r in replies]})
    for name, of_prompts in (("p", found.choice), ("nll", found.each)):
        if of_prompts is not None:
            table[[f"{name}{k}" for k in range(of_prompts.shape[1])]] = of_prompts.cpu().numpy()
    if found.prompt is not None:
        table["prompt"] = found.prompt.cpu().numpy()
    return table


def _speak(speaker: Speaker, places: Sequence[int], prepared: Prepared, decoding: Decoding) -> pd.DataFrame:
    """Some replies of one row: example, text, and whether it stopped by itself."""
    batches = []
    for start in range(0, len(places), _CHATS):
        some = places[start : start + _CHATS]
        rows = speaker.rows(prepared.select(range(start, start + len(some))))
        made = stream(
            speaker.lm,
            rows.prompts,
            rows.virtual,
            decoding.new_tokens,
            decoding.temperature,
            decoding.top_p,
            seeds=some,  # the same draws for every row, whatever the batch
            mixed=rows.mixed,
            contexts=rows.contexts,
        )
        texts, stopped = finish(made)
        batches.append(pd.DataFrame({"example": list(some), "text": texts, "stopped": stopped}))
    return pd.concat(batches)


def _prepared(
    plan: TalkPlan,
    trained: Trained,
    row: TalkRow,
    speaker: Speaker,
    places: Sequence[int],
    swapped: bool,
    contexts: Contexts,
) -> Prepared:
    """Contexts as a row sees them, taken from or put among those of other rows of the same LM."""
    lm = speaker.lm
    some = [plan.stranger(plan.examples[i]) if swapped else plan.examples[i] for i in places]
    prompts = tuple(chat_prompt(lm, row.told(trained, within(lm, e)), speaker.placement) for e in some)
    if prompts not in contexts:
        contexts[prompts] = prepare(lm, prompts)
    return contexts[prompts]


# what is kept ----------------------------------------------------------------------------------------------------
def _path(out: Path, kind: str, row: str, number: int) -> Path:
    return out / kind / slug(row) / f"{number:04d}.parquet"


def _places(plan: TalkPlan, kind: str, block: slice) -> list[int]:
    """The examples of a block of which something is to be measured."""
    of_block = range(block.start, block.stop)
    if kind in ("own", "swapped"):
        n = plan.contexts if kind == "own" else plan.swapped
        return [i for i in of_block if i < n]
    return sorted(i for i in plan.spoken if i in of_block)


def _tables(path: Path) -> list[pd.DataFrame]:
    """What was measured of a block, if anything was: a smaller plan wants less of it."""
    return [pd.read_parquet(path)] if path.exists() else []


def _missing(tables: Sequence[pd.DataFrame], places: Sequence[int]) -> list[int]:
    """The examples of which nothing was measured yet."""
    return sorted(set(places).difference(*(table["example"] for table in tables)))


def _kept(plan: TalkPlan, row: TalkRow, out: Path, decoding: Decoding) -> Measured | None:
    """Everything of a row, if all of it is there."""

    def whole(kind: str) -> pd.DataFrame | None:
        parts = []
        for number, block in enumerate(passes(plan.examples, _BLOCK)):
            tables, places = _tables(_path(out, kind, row.name, number)), _places(plan, kind, block)
            if _missing(tables, places):
                return None
            parts += [table[table["example"].isin(places)] for table in tables]
        return pd.concat(parts, ignore_index=True)

    own, spoken = whole("own"), whole(decoding.kind)
    swapped = whole("swapped") if row.persona and plan.swapped else None
    if own is None or spoken is None or (swapped is None and row.persona and plan.swapped):
        return None
    spoken = spoken.set_index("example").loc[list(plan.spoken)].reset_index()
    return Measured(own, spoken, swapped)


def _training(out: Path, name: str) -> list[dict[str, float]]:
    """One a validation; empty where nothing was trained."""
    about = out / "steerers" / slug(name) / "steerer.json"
    return json.loads(about.read_text())["history"] if about.exists() else []


# the budget ------------------------------------------------------------------------------------------------------
def _amounts(plan: TalkPlan) -> dict[str, int]:
    """How much is measured: what `TalkPlan.sample` takes."""
    return {"contexts": plan.contexts, "swapped": plan.swapped, "replies": len(plan.spoken)}


def _affordable(
    plan: TalkPlan,
    trained: Trained,
    groups: Sequence[Sequence[TalkRow]],
    out: Path,
    seconds: float,
    decoding: Decoding,
    say: Callable[[str], None],
) -> TalkPlan:
    """The plan, or so large a sample of it that all rows are measured in the time; the same when the run goes on."""
    kept, of = out / "sample.json", {"seconds": seconds, "plan": _amounts(plan)}
    saved = json.loads(kept.read_text()) if kept.exists() else {}
    if saved.get("of") == of:
        return plan.sample(**saved["sample"])
    first = next(passes(plan.examples, _TRIED)).stop
    some = range(min(_CHATS, first, len(plan.spoken)))
    reading = speaking = 0.0  # seconds an example, of all rows together
    for group in groups:
        contexts: Contexts = {}
        for row in group:
            speaker = row.speaker(trained, row.name)
            begin = time.monotonic()
            prepared = _prepared(plan, trained, row, speaker, range(first), False, contexts)
            _read(plan, speaker, range(first), prepared)
            middle = time.monotonic()
            # Of a sample, most replies are made where no true one is read, so their contexts are time of theirs.
            _speak(speaker, some, _prepared(plan, trained, row, speaker, some, False, contexts), decoding)
            share = 1 + row.persona * plan.swapped / plan.contexts
            reading += share * (middle - begin) / first
            speaking += (time.monotonic() - middle) / len(some)
    whole = reading * plan.contexts + speaking * len(plan.spoken)
    share = min(1.0, seconds / whole)
    sizes = {
        "contexts": max(first, int(share * plan.contexts)),
        "swapped": int(share * plan.swapped),
        "replies": max(min(_CHATS, len(plan.spoken)), int(share * len(plan.spoken))),
    }
    say(f"all rows on all of the plan would take {whole / 60:.0f} minutes; {share:.0%} of it is measured")
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps({"of": of, "sample": sizes}))
    os.replace(partial, kept)
    return plan.sample(**sizes)
