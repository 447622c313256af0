"""Run the rows of the table of conversations: finished parts are kept, an interrupted run goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import personae
from personae.data.dialogues import Example
from personae.evaluation.kept import claim, slug, write
from personae.evaluation.likeness import BertScore
from personae.evaluation.talk_plan import TalkPlan, passes
from personae.evaluation.talk_rows import Speaker, TalkRow, Trained, read_in_parts, talk_rows
from personae.evaluation.talk_table import Measured, as_markdown, score
from personae.lm.encoder import SentenceEncoder
from personae.lm.frozen import FrozenLM
from personae.lm.generation import finish, stream
from personae.lm.prompts import Prompt, chat_prompt, reply_ids
from personae.lm.reading import Prepared, prepare
from personae.people.bench import machine
from personae.steering.turns import as_messages, within

_TOGETHER = 4  # dialogues of one pass: the turns of a dialogue cost as much as its last one
_BLOCK = 40  # dialogues of a file that is kept
_SPOKEN, _CHATS = 64, 16  # replies of a file that is kept, and of one batch


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
        Trained steerers, what was measured, ``result.json``, ``result.md`` and figures are kept here; the same call
        goes on where it was interrupted, one with more rows adds them to the tables.
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
        for kind in ("own", "swapped"):
            _read_all(plan, trained, speakers, out, kind, say)
        _speak_all(plan, trained, speakers, out, decoding, say)
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
    if importlib.util.find_spec("matplotlib") is None:
        say("figures need matplotlib, which is not installed; run: pip install 'personae[eval]'")
    else:
        from personae.evaluation.talk_figures import draw

        draw(found, out)
    return found


# reading true replies --------------------------------------------------------------------------------------------
def _read_all(
    plan: TalkPlan, trained: Trained, speakers: Sequence[Own], out: Path, kind: str, say: Callable[[str], None]
) -> None:
    """-log of the probability of true replies, with the own persona or somebody else's, a block of dialogues at a time;
    what several rows see alike is computed once."""
    examples = plan.examples[: plan.contexts if kind == "own" else plan.swapped]
    wanted = [(row, speaker) for row, speaker in speakers if kind == "own" or row.persona]
    for number, block in enumerate(passes(examples, _BLOCK)):
        places = range(block.start, block.stop)
        left = [(row, s) for row, s in wanted if _get(_path(out, kind, row.name, number), places) is None]
        if not left:
            continue
        say(f"{kind} persona, replies {block.start + 1:,} to {block.stop:,} of {len(examples):,}: {len(left)} rows")
        tables: dict[str, list[pd.DataFrame]] = {row.name: [] for row, _ in left}
        for some in passes(examples[block], _TOGETHER):
            part = range(block.start + some.start, block.start + some.stop)
            contexts: Contexts = {}
            for row, speaker in left:
                tables[row.name].append(_read(plan, trained, row, speaker, part, kind == "swapped", contexts))
        for name, found in tables.items():
            write(_path(out, kind, name, number), pd.concat(found))


@torch.no_grad()
def _read(
    plan: TalkPlan,
    trained: Trained,
    row: TalkRow,
    speaker: Speaker,
    places: Sequence[int],
    swapped: bool,
    contexts: Contexts,
) -> pd.DataFrame:
    """Some replies as one row reads them; the columns are those of `Measured.own`."""
    lm = speaker.lm
    some = [plan.stranger(plan.examples[i]) if swapped else plan.examples[i] for i in places]
    replies = [reply_ids(lm, e.reply) for e in some]
    found = read_in_parts(speaker, _prepared(trained, row, speaker, some, contexts), replies)
    table = pd.DataFrame({"example": list(places), "nll": found.nll.cpu().numpy(), "tokens": [len(r) for r in replies]})
    for name, of_prompts in (("p", found.choice), ("nll", found.each)):
        if of_prompts is not None:
            table[[f"{name}{k}" for k in range(of_prompts.shape[1])]] = of_prompts.cpu().numpy()
    if found.prompt is not None:
        table["prompt"] = found.prompt.cpu().numpy()
    return table


# replying --------------------------------------------------------------------------------------------------------
def _speak_all(
    plan: TalkPlan,
    trained: Trained,
    speakers: Sequence[Own],
    out: Path,
    decoding: Decoding,
    say: Callable[[str], None],
) -> None:
    """Replies of every row, different chats in one batch; what several rows see alike is computed once."""
    for number, start in enumerate(range(0, len(plan.spoken), _SPOKEN)):
        places = plan.spoken[start : start + _SPOKEN]
        left = [(row, s) for row, s in speakers if _get(_path(out, decoding.kind, row.name, number), places) is None]
        if not left:
            continue
        say(f"to reply, {start + 1:,} to {start + len(places):,} of {len(plan.spoken):,}: {len(left)} rows")
        heard = {i: sum(len(m["content"]) for m in as_messages(within(trained.lm, plan.examples[i]))) for i in places}
        order = sorted(places, key=heard.__getitem__)  # batches of similar length
        tables: dict[str, list[pd.DataFrame]] = {row.name: [] for row, _ in left}
        for first in range(0, len(order), _CHATS):
            some = order[first : first + _CHATS]
            contexts: Contexts = {}
            for row, speaker in left:
                tables[row.name].append(_speak(plan, trained, row, speaker, some, decoding, contexts))
        for name, found in tables.items():
            whole = pd.concat(found).set_index("example").loc[list(places)].reset_index()
            write(_path(out, decoding.kind, name, number), whole)


def _speak(
    plan: TalkPlan,
    trained: Trained,
    row: TalkRow,
    speaker: Speaker,
    places: Sequence[int],
    decoding: Decoding,
    contexts: Contexts,
) -> pd.DataFrame:
    """Some replies of one row: example, text, and whether it stopped by itself."""
    prepared = _prepared(trained, row, speaker, [plan.examples[i] for i in places], contexts)
    rows = speaker.rows(prepared)
    made = stream(
        speaker.lm,
        rows.prompts,
        rows.virtual,
        decoding.new_tokens,
        decoding.temperature,
        decoding.top_p,
        seeds=places,  # the same draws for every row, whatever the batch
        mixed=rows.mixed,
        contexts=rows.contexts,
    )
    texts, stopped = finish(made)
    return pd.DataFrame({"example": list(places), "text": texts, "stopped": stopped})


def _prepared(
    trained: Trained, row: TalkRow, speaker: Speaker, examples: Sequence[Example], contexts: Contexts
) -> Prepared:
    """Contexts as a row sees them, taken from or put among those of other rows of the same LM."""
    lm = speaker.lm
    prompts = tuple(chat_prompt(lm, row.told(trained, within(lm, e)), speaker.placement) for e in examples)
    if prompts not in contexts:
        contexts[prompts] = prepare(lm, prompts)
    return contexts[prompts]


# what is kept ----------------------------------------------------------------------------------------------------
def _path(out: Path, kind: str, row: str, number: int) -> Path:
    return out / kind / slug(row) / f"{number:04d}.parquet"


def _get(path: Path, places: Sequence[int]) -> pd.DataFrame | None:
    """What was measured of these examples, if it was; of a block that a larger plan has more of it was not."""
    if not path.exists():
        return None
    table = pd.read_parquet(path)
    return table if table["example"].tolist() == list(places) else None


def _kept(plan: TalkPlan, row: TalkRow, out: Path, decoding: Decoding) -> Measured | None:
    """Everything of a row, if all of it is there."""

    def whole(kind: str, blocks: Iterator[Sequence[int]]) -> pd.DataFrame | None:
        parts = [_get(_path(out, kind, row.name, number), places) for number, places in enumerate(blocks)]
        there = [p for p in parts if p is not None]
        return pd.concat(there, ignore_index=True) if there and len(there) == len(parts) else None

    def of_dialogues(n: int) -> Iterator[Sequence[int]]:
        return (range(block.start, block.stop) for block in passes(plan.examples[:n], _BLOCK))

    own = whole("own", of_dialogues(plan.contexts))
    spoken = whole(decoding.kind, (plan.spoken[i : i + _SPOKEN] for i in range(0, len(plan.spoken), _SPOKEN)))
    swapped = whole("swapped", of_dialogues(plan.swapped)) if row.persona and plan.swapped else None
    if own is None or spoken is None or (swapped is None and row.persona and plan.swapped):
        return None
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
    first = next(passes(plan.examples, _TOGETHER))
    reading = speaking = 0.0  # seconds an example, of all rows together
    some = plan.spoken[: min(_CHATS, len(plan.spoken))]
    for group in groups:
        to_read: Contexts = {}
        to_answer: Contexts = {}
        for row in group:
            speaker = row.speaker(trained, row.name)
            begin = time.monotonic()
            _read(plan, trained, row, speaker, range(first.stop), False, to_read)
            middle = time.monotonic()
            _speak(plan, trained, row, speaker, some, decoding, to_answer)
            share = 1 + row.persona * plan.swapped / plan.contexts
            reading += share * (middle - begin) / first.stop
            speaking += (time.monotonic() - middle) / len(some)
    whole = reading * plan.contexts + speaking * len(plan.spoken)
    share = min(1.0, seconds / whole)
    sizes = {
        "contexts": max(first.stop, int(share * plan.contexts)),
        "swapped": int(share * plan.swapped),
        "replies": max(min(_CHATS, len(plan.spoken)), int(share * len(plan.spoken))),
    }
    say(f"all rows on all of the plan would take {whole / 60:.0f} minutes; {share:.0%} of it is measured")
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps({"of": of, "sample": sizes}))
    os.replace(partial, kept)
    return plan.sample(**sizes)
