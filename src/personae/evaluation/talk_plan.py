"""The plan of a comparison of conversations: dialogues to learn from, others for choices, and those to be tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from personae.data.dialogues import Dialogues, Example
from personae.evaluation.conversation import Examples, anchors

PARTS = ("test", "choices")
_LEAST = 2  # dialogues of a part: somebody else's persona and replies have to come from somewhere


@dataclass(frozen=True)
class TalkPlan:
    """Who is learned from, and which true replies are read and replied to.

    Attributes
    ----------
    train : Dialogues
    examples : list of Example
        True replies of whole dialogues of the examined part, these in random order: the NLL is that of the first
        ``contexts``.
    contexts : int
    swapped : int
        Of the first so many the NLL with somebody else's persona is read, too; 0 where nobody has persona sentences.
    spoken : tuple of int
        Places of those examples to which every method replies, in random order.
    strangers : mapping
        To each persona somebody else's.
    settings : dict
        How the plan was made.
    """

    train: Dialogues
    examples: list[Example]
    contexts: int
    swapped: int
    spoken: tuple[int, ...]
    strangers: Mapping[tuple[str, ...], tuple[str, ...]]
    settings: dict[str, Any] = field(default_factory=dict)

    def sample(self, contexts: int, swapped: int, replies: int) -> TalkPlan:
        """The plan with fewer of everything; contexts end with a dialogue. A smaller one is part of a larger one."""
        contexts = _whole(self.examples[: self.contexts], contexts)
        swapped = _whole(self.examples[:contexts], min(swapped, self.swapped))  # the gap is to the own persona's NLL
        return replace(self, contexts=contexts, swapped=swapped, spoken=self.spoken[:replies])

    def stranger(self, example: Example) -> Example:
        """The example with somebody else's persona."""
        return replace(example, persona=self.strangers[example.persona])

    @property
    def fingerprint(self) -> str:
        """Of everything that is learned from and examined, whatever part of it: sha256, 16 hexadecimal digits."""
        digest = hashlib.sha256(self.train.fingerprint.encode())
        for e in self.examples:
            said = [(turn.speaker, turn.text) for turn in e.history]
            digest.update(repr((e.dialogue, e.speaker, e.persona, said, e.reply)).encode())
        return digest.hexdigest()[:16]

    @property
    def has_personas(self) -> bool:
        """Whether anything is known of those who reply."""
        return any(e.persona for e in self.examples)


def make_talk_plan(
    dialogues: Dialogues,
    test: Dialogues | None = None,
    part: str = "test",
    held_out: float = 0.1,
    contexts: int | None = None,
    swapped: int = 1000,
    replies: int = 1000,
    seed: int = 0,
) -> TalkPlan:
    """Split dialogues at random.

    Parameters
    ----------
    dialogues : Dialogues
        To learn from; a share is held out for choices.
    test : Dialogues, optional
        For claims, once. Without it another share of ``dialogues`` is held out.
    part : {"test", "choices"}
        Which is examined. Whatever is chosen (steps, tokens, a recipe) is chosen on ``"choices"``.
    held_out : float in (0, 1)
        The share.
    contexts : int, optional
        True replies whose NLL is read, rounded up to whole dialogues; all by default.
    swapped : int
        Of these, with somebody else's persona, too.
    replies : int
        Contexts that every method replies to.

    Examples
    --------
    >>> from personae.data.dialogues import Dialogue, Turn
    >>> talk = (Turn("bob", "Tea?"), Turn("ann", "Coffee, please."))
    >>> dialogues = Dialogues([Dialogue(str(i), talk, {"ann": (f"I am {i}.",)}) for i in range(40)])
    >>> plan = make_talk_plan(dialogues, replies=3)
    >>> plan.train, len(plan.examples), plan.stranger(plan.examples[0]).persona != plan.examples[0].persona
    (Dialogues(32 dialogues, 64 turns, 2 speakers), 4, True)
    """
    if part not in PARTS:
        raise ValueError(f'"{part}" is no part of the dialogues; choose on "choices", report on "test"')
    for name, number in (("contexts", contexts), ("replies", replies)):
        if number is not None and number < 2:
            raise ValueError(f"{name} is {number}; at least two replies can be compared")
    train, choices = dialogues.split(held_out, seed)
    if test is None and len(train) >= 2:
        train, test = train.split(min(0.5, held_out * len(dialogues) / len(train)), seed)
    examined = test if part == "test" else choices
    if examined is None or len(examined) < _LEAST:
        raise ValueError(f"{len(dialogues)} dialogues leave too few to {part}; give more, or a larger share")
    order = np.random.default_rng(seed).permutation(len(examined))
    mixed = Dialogues([examined[int(i)] for i in order])
    examples = mixed.examples(None if any(d.personas for d in mixed) else "each")
    if len(examples) < 2:
        raise ValueError(f"there are {len(examples)} replies in the {len(examined)} dialogues to {part}; give more")
    strangers = _strangers(examples, seed)
    spoken = np.random.default_rng([seed, 1]).permutation(len(examples))
    settings = {
        "part": part,
        "held_out": held_out,
        "seed": seed,
        "dialogues": dialogues.fingerprint,
        "test": None if test is None else test.fingerprint,
        "train_dialogues": len(train),
        "examined_dialogues": len(examined),
    }
    whole = TalkPlan(
        train,
        examples,
        len(examples),
        len(examples) if strangers else 0,
        tuple(spoken.tolist()),
        strangers,
        settings,
    )
    plan = whole.sample(contexts or len(examples), swapped, replies)
    anchors(compared([examples[i] for i in plan.spoken]))  # raises now, not after hours
    return plan


def passes(examples: Sequence[Example], dialogues: int) -> Iterator[slice]:
    """Some dialogues' examples at a time, in order."""
    starts = [i for i, e in enumerate(examples) if not i or e.dialogue != examples[i - 1].dialogue]
    ends = [*starts[dialogues::dialogues], len(examples)]
    yield from (slice(a, b) for a, b in zip(starts[::dialogues], ends, strict=False))  # none of none


def compared(examples: Sequence[Example]) -> Examples:
    """Examples as the measures of conversations take them."""
    said = [e.history[-1] if e.history else None for e in examples]
    partner = ["" if t is None or t.speaker == e.speaker else t.text for e, t in zip(examples, said, strict=True)]
    return Examples([e.reply for e in examples], partner, np.array([e.dialogue for e in examples]))


def who(example: Example) -> str:
    """Who replies: a persona is the same person in every dialogue; without one a name is."""
    return " ".join(example.persona) or example.speaker


def _whole(examples: Sequence[Example], n: int) -> int:
    """At least n examples, up to the end of a dialogue."""
    n = min(n, len(examples))
    while 0 < n < len(examples) and examples[n].dialogue == examples[n - 1].dialogue:
        n += 1
    return n


def _strangers(examples: Sequence[Example], seed: int) -> dict[tuple[str, ...], tuple[str, ...]]:
    """To each persona the next one in a random circle; empty where there are not two of them."""
    personas = list(dict.fromkeys(e.persona for e in examples if e.persona))
    if len(personas) < 2 or not all(e.persona for e in examples):
        return {}
    circle = [personas[i] for i in np.random.default_rng([seed, 2]).permutation(len(personas))]
    return dict(zip(circle, [*circle[1:], circle[0]], strict=True))
