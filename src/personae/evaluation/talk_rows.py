"""The rows of the table of conversations: every way to reply, from the raw LM to selective prompt tuning.

A row is a function from what was trained to a speaker: it says how likely a true reply is in its context, and what the
LM is to continue. Rows are registered by a decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from personae.data.dialogues import Example
from personae.evaluation.kept import slug
from personae.evaluation.talk_plan import TalkPlan
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, Placement
from personae.lm.reading import Prepared, read, text_log_probs
from personae.steering.base import ChatRows
from personae.steering.lora import LoRA
from personae.steering.replies import Batch, reply_nll, represent
from personae.steering.selective import Selective
from personae.steering.text import nothing
from personae.steering.turns import as_messages

_EXAMPLES = 2  # dialogues that are shown to the LM
_READ = 16  # contexts that are continued in one pass


class Reading(NamedTuple):
    """What a speaker makes of B true replies.

    Attributes
    ----------
    nll : Tensor (B,)
        -log of each reply's probability, in nats.
    choice : Tensor (B, K) or None
        Probabilities of a bank's prompts.
    prompt : int Tensor (B,) or None
        Which one is used, where it is one.
    each : Tensor (B, K) or None
        -log of each reply's probability under each prompt, where all are used.
    """

    nll: Tensor
    choice: Tensor | None = None
    prompt: Tensor | None = None
    each: Tensor | None = None


class Speaker(Protocol):
    """Whoever replies.

    Attributes
    ----------
    lm : FrozenLM
    placement : str
        Of virtual tokens; contexts of speakers with the same LM and placement are computed once.
    """

    lm: FrozenLM
    placement: Placement

    def read(self, prepared: Prepared, replies: Sequence[list[int]]) -> Reading:
        """How likely it finds a true reply in each context."""

    def rows(self, prepared: Prepared) -> ChatRows:
        """What the LM is to continue in each context."""


class Plain:
    """An LM as it is, or fine-tuned."""

    placement: Placement = "late"

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm

    def read(self, prepared: Prepared, replies: Sequence[list[int]]) -> Reading:
        """A reply's first token follows from the context alone; it is then what virtual tokens are to a bank."""
        lm = self.lm
        first = torch.tensor([reply[0] for reply in replies], device=lm.device)
        last = prepared.representation[:, : lm.hidden_size].to(lm.dtype)  # (B, H)
        nll = torch.nn.functional.cross_entropy(lm.logits(last), first, reduction="none")
        longer = [i for i, reply in enumerate(replies) if len(reply) > 1]
        if longer:
            begun = lm.embed(first[longer].tolist())[:, None, None]  # (L, 1, 1, H)
            rest = [[replies[i][1:]] for i in longer]
            found = read(lm, prepared.select(longer), begun, rest)
            nll[longer] -= torch.cat(text_log_probs(lm, found, rest, mean=False))[:, 0]
        return Reading(nll)

    def rows(self, prepared: Prepared) -> ChatRows:
        """The contexts alone."""
        return ChatRows(prepared.prompts, None, contexts=prepared.parts)


class Bank:
    """A bank of prompts."""

    def __init__(self, steerer: Selective) -> None:
        self.steerer, self.lm, self.placement = steerer, steerer.lm_, steerer.placement_

    def read(self, prepared: Prepared, replies: Sequence[list[int]]) -> Reading:
        """As `Selective.nll` and `Selective.choose` in one pass."""
        steerer = self.steerer
        mixture = steerer.selection == "mixture"
        found = reply_nll(self.lm, steerer.network_, self._batch(prepared, replies), steerer.choice, mixture)
        if found.log_p.shape[1] == 1:
            return Reading(found.nll)
        return Reading(found.nll, found.log_p.exp(), None if mixture else found.log_p.argmax(1), found.each)

    def rows(self, prepared: Prepared) -> ChatRows:
        """See `Selective.rows`."""
        return self.steerer.rows_of(self._batch(prepared, []))

    def _batch(self, prepared: Prepared, replies: Sequence[list[int]]) -> Batch:
        h, z = self.steerer.network_.standardise(represent(self.lm, prepared, self.steerer.encoder_), None)
        return Batch(prepared, h, z, list(replies))


def read_in_parts(speaker: Speaker, prepared: Prepared, replies: Sequence[list[int]]) -> Reading:
    """A speaker's reading of any number of replies, those of similar length together: a pass is as long as its longest
    row."""
    order = sorted(range(len(replies)), key=lambda i: len(prepared.prompts[i].after) + len(replies[i]))
    parts = [order[start : start + _READ] for start in range(0, len(order), _READ)]
    found = [speaker.read(prepared.select(part), [replies[i] for i in part]) for part in parts]
    place = torch.tensor(order).argsort()

    def joined(values: Sequence[Tensor | None]) -> Tensor | None:
        there = [v for v in values if v is not None]
        return torch.cat(there)[place] if there else None

    nll, *rest = map(joined, zip(*found, strict=True))
    assert nll is not None
    return Reading(nll, *rest)


class Trained:
    """Steerers trained on the dialogues of a plan, each when a row first asks for it.

    Parameters
    ----------
    plan : TalkPlan
    lm : FrozenLM
    folder : Path
        They are kept there; one that is there already is opened, an interrupted training goes on.
    n_prompts, n_tokens : int
        Prompts K of a bank, and virtual tokens n of each.
    steps : int
        Of eight replies each.
    """

    def __init__(
        self,
        plan: TalkPlan,
        lm: FrozenLM,
        folder: Path,
        n_prompts: int = 4,
        n_tokens: int = 8,
        steps: int = 400,
        seed: int = 0,
        progress: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.plan, self.lm, self.folder, self.progress, self.say = plan, lm, folder, progress, say
        self.n_prompts, self.n_tokens, self.steps, self.seed = n_prompts, n_tokens, steps, seed

    def bank(self, name: str, **parameters: Any) -> Bank:
        """A bank of K prompts of n tokens unless the parameters say otherwise."""
        sizes = {"n_prompts": self.n_prompts, "n_tokens": self.n_tokens}
        return Bank(self._opened(name, Selective, {}, {**sizes, **parameters}))

    def fine_tuned(self, name: str, rank: int | None) -> Plain:
        """The LM fine-tuned on the same dialogues."""
        return Plain(self._opened(name, LoRA, {"describe": nothing}, {"rank": rank}).lm_)

    def _opened(self, name: str, cls: Any, told: dict[str, Any], parameters: dict[str, Any]) -> Any:
        home = self.folder / slug(name)
        if not (home / "steerer.json").exists():
            self.say(f"training: {name}")
            steerer = cls(self.lm, steps=self.steps, random_state=self.seed, **told, **parameters)
            checkpoint = home.with_suffix(".safetensors")
            steerer.fit(self.plan.train, checkpoint=checkpoint, resume=True, progress=self.progress)
            steerer.save(home)
            checkpoint.unlink(missing_ok=True)
        return cls.load(home, lm=self.lm, **told)

    @cached_property
    def shown(self) -> str:
        """Some dialogues of the training part in words, for a system message."""
        some = np.random.default_rng(self.seed).permutation(len(self.plan.train))[:_EXAMPLES]
        texts = []
        for dialogue in (self.plan.train[int(i)] for i in some):
            speaker = next(iter(dialogue.personas), dialogue.turns[-1].speaker if dialogue.turns else "")
            said = [f"{'You' if t.speaker == speaker else 'They'}: {t.text}" for t in dialogue.turns]
            texts.append("\n".join([" ".join(dialogue.personas.get(speaker, ())), *said]).strip())
        return "\n\n".join(["How people talk:", *texts, "Now talk like that yourself."])


MakeSpeaker = Callable[[Trained, str], Speaker]
Told = Callable[[Trained, Example], list[Message]]


# the rows --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TalkRow:
    """One way to reply.

    Attributes
    ----------
    name : str
    speaker : callable
        From `Trained` and the name to a `Speaker`.
    told : callable
        What the LM is told: from `Trained` and an example to messages.
    persona : bool
        Whether it is told the persona.
    fine_tuned : bool
        Whether it has an LM of its own.
    """

    name: str
    speaker: MakeSpeaker
    told: Told
    persona: bool = True
    fine_tuned: bool = False


TALK_ROWS: dict[str, TalkRow] = {}


def its_persona(trained: Trained, example: Example) -> list[Message]:
    """The persona sentences as system message, and the dialogue."""
    return as_messages(example)


def no_persona(trained: Trained, example: Example) -> list[Message]:
    """The dialogue alone."""
    return as_messages(replace(example, persona=()))


def with_examples(trained: Trained, example: Example) -> list[Message]:
    """The persona sentences after some dialogues of other people."""
    own = as_messages(example)
    persona = own.pop(0)["content"] if own[0]["role"] == "system" else ""
    return [{"role": "system", "content": f"{trained.shown}\n\n{persona}".strip()}, *own]


def row(name: str, told: Told = its_persona, **about: Any) -> Callable[[MakeSpeaker], MakeSpeaker]:
    """Register a function as a row of the table."""

    def register(speaker: MakeSpeaker) -> MakeSpeaker:
        TALK_ROWS[name] = TalkRow(name, speaker, told, **about)
        return speaker

    return register


@row("raw LM", no_persona, persona=False)
def raw(trained: Trained, name: str) -> Speaker:
    """The LM, told nothing of who it is."""
    return Plain(trained.lm)


@row("persona as text")
def persona_text(trained: Trained, name: str) -> Speaker:
    """The LM with the persona sentences as system message; every row below has them, too."""
    return Plain(trained.lm)


@row("example dialogues in the context", with_examples)
def in_context(trained: Trained, name: str) -> Speaker:
    """The LM that is shown two dialogues of other people before."""
    return Plain(trained.lm)


@row("prompt tuning, n tokens")
def prompt_tuning(trained: Trained, name: str) -> Speaker:
    """One soft prompt of n tokens for every context, at the LM's input alone, as are P-tuning and SPT as published."""
    return trained.bank(name, n_prompts=1, shift=False, deep=False)


@row("prompt tuning, K x n tokens")
def prompt_tuning_long(trained: Trained, name: str) -> Speaker:
    """One soft prompt with as many tokens as a bank of K has together."""
    n_tokens = trained.n_prompts * trained.n_tokens
    return trained.bank(name, n_prompts=1, n_tokens=n_tokens, shift=False, deep=False)


@row("P-tuning")
def p_tuning(trained: Trained, name: str) -> Speaker:
    """One soft prompt that comes out of a small recurrent network."""
    return trained.bank(name, n_prompts=1, shift=False, reparametrise=True)


@row("deep prompt, n tokens")
def deep_prompt(trained: Trained, name: str) -> Speaker:
    """One soft prompt whose tokens are corrected before every layer, as all rows below unless they say otherwise."""
    return trained.bank(name, n_prompts=1, shift=False)


@row("deep prompt, K x n tokens")
def deep_prompt_long(trained: Trained, name: str) -> Speaker:
    """The same with as many tokens, and numbers, as a bank of K has together."""
    return trained.bank(name, n_prompts=1, n_tokens=trained.n_prompts * trained.n_tokens, shift=False)


@row("contextual prompt")
def contextual(trained: Trained, name: str) -> Speaker:
    """One soft prompt, shifted by the LM's representation of the context."""
    return trained.bank(name, n_prompts=1)


@row("contextual prompt, K x n tokens")
def contextual_long(trained: Trained, name: str) -> Speaker:
    """The same with as many tokens as a bank of K has together: what SPT is without selection."""
    return trained.bank(name, n_prompts=1, n_tokens=trained.n_prompts * trained.n_tokens)


@row("K prompts, one at random")
def at_random(trained: Trained, name: str) -> Speaker:
    """The default recipe with a random choice."""
    return trained.bank(name, choice="random")


@row("K prompts, mixed evenly")
def evenly(trained: Trained, name: str) -> Speaker:
    """The default recipe with all prompts of the same weight."""
    return trained.bank(name, choice="uniform", selection="mixture")


@row("SPT, as published, before")
def paper_before(trained: Trained, name: str) -> Speaker:
    """Selective prompt tuning by the paper's losses and retriever, the prompt before the context."""
    return trained.bank(name, recipe="paper", placement="before")


@row("SPT, as published, late")
def paper_late(trained: Trained, name: str) -> Speaker:
    """The same, the prompt after the context."""
    return trained.bank(name, recipe="paper", placement="late")


@row("SPT, at the input alone")
def shallow(trained: Trained, name: str) -> Speaker:
    """Selective prompt tuning by our default recipe, its prompts at the LM's input alone."""
    return trained.bank(name, deep=False)


@row("SPT, before")
def default_before(trained: Trained, name: str) -> Speaker:
    """Selective prompt tuning by our default recipe, the prompt before the context."""
    return trained.bank(name, placement="before")


@row("SPT")
def default(trained: Trained, name: str) -> Speaker:
    """Selective prompt tuning by our default recipe: the prompt after the context, the likeliest one."""
    return trained.bank(name)


@row("SPT, mixed")
def default_mixed(trained: Trained, name: str) -> Speaker:
    """The same, learned for and spoken by all prompts, each weighted by its probability."""
    return trained.bank(name, selection="mixture")


@row("LoRA", fine_tuned=True)
def lora(trained: Trained, name: str) -> Speaker:
    """The LM fine-tuned on the same dialogues by adapters of rank 8."""
    return trained.fine_tuned(name, 8)


@row("fine-tuning of all weights", fine_tuned=True)
def all_weights(trained: Trained, name: str) -> Speaker:
    """The LM fine-tuned on the same dialogues in all its weights."""
    return trained.fine_tuned(name, None)


def talk_rows(plan: TalkPlan, names: Sequence[str] | None = None) -> list[TalkRow]:
    """The rows of these names, all by default, as far as they differ: without personas to be told all replies alike.

    Raises
    ------
    ValueError
        There is no row of a name.
    """
    import difflib

    for name in names or ():
        if name not in TALK_ROWS:
            near = difflib.get_close_matches(name, TALK_ROWS) or list(TALK_ROWS)
            raise ValueError(f'there is no row "{name}"; there are: {", ".join(near)}')
    wanted = [r for r in TALK_ROWS.values() if names is None or r.name in names]
    return [r for r in wanted if plan.has_personas or r.name != "persona as text"]
