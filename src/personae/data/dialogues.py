"""`Dialogues`: turns with speakers and what is known of each speaker, validated; the examples to learn replies from."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from personae.data.account import Account, SurveyError

MAX_TEXT = 100_000  # characters of an utterance or persona sentence; a longer one is a pasted file, nobody says it


@dataclass(frozen=True)
class Turn:
    """What one speaker says before another one speaks (or before the next entry of the file)."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Dialogue:
    """Turns in order, and the persona sentences of those speakers of whom there are any.

    Parameters
    ----------
    id : str
        Unique among the dialogues.
    turns : tuple of Turn
        None at all where nobody said anything; the same speaker may stand several times in a row.
    personas : mapping of str to tuple of str
        Speaker to sentences; kept as a mapping that cannot be changed.
    """

    id: str
    turns: tuple[Turn, ...]
    personas: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        sentences = {speaker: tuple(persona) for speaker, persona in self.personas.items()}
        object.__setattr__(self, "turns", tuple(self.turns))
        object.__setattr__(self, "personas", MappingProxyType(sentences))


@dataclass(frozen=True)
class Example:
    """A reply to learn, with all that was said before it.

    Attributes
    ----------
    dialogue : str
        Id of the dialogue.
    speaker : str
        Who replies.
    persona : tuple of str
        The sentences about the one who replies; empty if unknown.
    history : tuple of Turn
        Every turn before the reply, of everybody; empty for an opening. `truncate` cuts it to a budget.
    reply : str
    """

    dialogue: str
    speaker: str
    persona: tuple[str, ...]
    history: tuple[Turn, ...]
    reply: str


class Dialogues:
    """A validated, unchangeable sequence of dialogues.

    Parameters
    ----------
    dialogues : sequence of Dialogue
        At least one; unique ids; speakers, utterances and persona sentences are not empty, and no text is longer than
        100,000 characters.
    account : Account, optional
        What the reader skipped and why.

    Attributes
    ----------
    speakers : mapping of str to int
        How many turns each speaker has, in the order in which they first speak.
    fingerprint : str

    Raises
    ------
    SurveyError
        An empty or repeated id, an empty or endless text, a speaker without a name.

    Examples
    --------
    >>> talk = (Turn("ann", "Tea?"), Turn("bob", "Coffee, please."), Turn("ann", "Of course."))
    >>> dialogues = Dialogues([Dialogue("1", talk, {"bob": ("I never drink tea.",)})])
    >>> dialogues
    Dialogues(1 dialogue, 3 turns, 2 speakers)
    >>> dialogues.examples()
    [Example(dialogue='1', speaker='bob', persona=('I never drink tea.',),
             history=(Turn(speaker='ann', text='Tea?'),), reply='Coffee, please.')]
    """

    def __init__(self, dialogues: Sequence[Dialogue], account: Account | None = None) -> None:
        self._dialogues = tuple(dialogues)
        self.account = account or Account("memory", "dialogues")
        if not self._dialogues:
            raise SurveyError("there is no dialogue; give at least one")
        seen: set[str] = set()
        for dialogue in self._dialogues:
            _check(dialogue)
            if dialogue.id in seen:
                raise SurveyError(f'dialogue "{dialogue.id}" occurs more than once; give every dialogue its own id')
            seen.add(dialogue.id)

    def __len__(self) -> int:
        return len(self._dialogues)

    def __iter__(self) -> Iterator[Dialogue]:
        return iter(self._dialogues)

    def __getitem__(self, i: int) -> Dialogue:
        return self._dialogues[i]

    def __repr__(self) -> str:
        sizes = {"dialogue": len(self), "turn": sum(self.speakers.values()), "speaker": len(self.speakers)}
        return f"Dialogues({', '.join(f'{n:,} {what}' + 's' * (n != 1) for what, n in sizes.items())})"

    @cached_property
    def speakers(self) -> Mapping[str, int]:
        return MappingProxyType(Counter(turn.speaker for dialogue in self for turn in dialogue.turns))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the content: ids, turns and personas in order; not of the file."""
        h = hashlib.sha256()
        for dialogue in self:
            turns = [(turn.speaker, turn.text) for turn in dialogue.turns]
            h.update(json.dumps([dialogue.id, turns, sorted(dialogue.personas.items())]).encode() + b"\n")
        return h.hexdigest()

    def examples(self, speaker: str | None = None) -> list[Example]:
        """One example for each turn of the chosen speaker, in order.

        Parameters
        ----------
        speaker : str, optional
            A speaker's name; ``"each"`` for every turn of everybody; by default the turns of those of whom the
            dialogue has persona sentences (``"self"`` in ConvAI2).

        Returns
        -------
        list of Example
            With the whole history. Openings are examples too, with an empty history.

        Raises
        ------
        SurveyError
            Nobody has persona sentences, or nobody has that name.
        """
        if speaker is None and not any(dialogue.personas for dialogue in self):
            raise SurveyError(
                'no speaker has persona sentences, so say whose turns are replies: examples(speaker="each"), or a name'
            )
        if speaker not in (None, "each", *self.speakers):
            near = difflib.get_close_matches(str(speaker), self.speakers) or list(self.speakers)[:6]
            raise SurveyError(f'nobody named "{speaker}" speaks; there are: {", ".join(near)}')
        return [
            Example(dialogue.id, turn.speaker, dialogue.personas.get(turn.speaker, ()), dialogue.turns[:i], turn.text)
            for dialogue in self
            for i, turn in enumerate(dialogue.turns)
            if speaker in ("each", turn.speaker) or (speaker is None and turn.speaker in dialogue.personas)
        ]

    def split(self, share: float, seed: int = 0) -> tuple[Dialogues, Dialogues]:
        """Two parts without a dialogue in common, each in the order of the whole.

        Whole dialogues are drawn at random; somebody who speaks in several dialogues may stand on both sides.

        Parameters
        ----------
        share : float
            Of the dialogues that the second part gets, rounded; both parts get at least one.
        seed : int
            The same seed draws the same dialogues.

        Returns
        -------
        tuple of Dialogues
            (the rest, the share)

        Raises
        ------
        SurveyError
            The share is not between 0 and 1, or there is only one dialogue.
        """
        if not 0 < share < 1:
            raise SurveyError(f"the share of a split lies between 0 and 1, not at {share}")
        if len(self) < 2:
            raise SurveyError("a single dialogue cannot be split into two parts")
        size = min(max(round(share * len(self)), 1), len(self) - 1)
        drawn = set(np.random.default_rng(seed).permutation(len(self))[:size].tolist())
        parts: tuple[list[Dialogue], list[Dialogue]] = ([], [])
        for i, dialogue in enumerate(self):
            parts[i in drawn].append(dialogue)
        return Dialogues(parts[0], self.account), Dialogues(parts[1], self.account)


def truncate(history: Sequence[Turn], cost: Callable[[Turn], int], budget: int) -> tuple[Turn, ...]:
    """The longest end of a history that fits a budget; whole turns are dropped from the left.

    The last turn is always kept, even where it alone exceeds the budget: a reply answers it. Whoever cannot take so
    long a turn has to cut inside it, which takes a tokenizer.

    Parameters
    ----------
    history : sequence of Turn
    cost : callable
        Of one turn, at least 0, e.g. its number of tokens.
    budget : int
        In the unit of ``cost``.

    Examples
    --------
    >>> history = (Turn("ann", "one two three"), Turn("bob", "one"), Turn("ann", "one two"))
    >>> [turn.text for turn in truncate(history, cost=lambda turn: len(turn.text.split()), budget=5)]
    ['one', 'one two']
    """
    spent, start = 0, len(history)
    while start > 0:
        spent += cost(history[start - 1])
        if spent > budget and start < len(history):
            break
        start -= 1
    return tuple(history[start:])


def _check(dialogue: Dialogue) -> None:
    if not dialogue.id.strip():
        raise SurveyError("a dialogue has an empty id; give every dialogue its own")
    here = f'dialogue "{dialogue.id}"'
    for i, turn in enumerate(dialogue.turns, 1):
        if not turn.speaker.strip():
            raise SurveyError(f"{here}: turn {i} has no speaker")
        _check_text(turn.text, f"{here}: turn {i}")
    for speaker, sentences in dialogue.personas.items():
        if not speaker.strip():
            raise SurveyError(f"{here} has persona sentences of a speaker without a name")
        if not sentences:
            raise SurveyError(f'{here} has an empty persona of "{speaker}"; leave out who is unknown')
        for sentence in sentences:
            _check_text(sentence, f'{here}: a persona sentence of "{speaker}"')


def _check_text(text: str, where: str) -> None:
    if not text.strip():
        raise SurveyError(f"{where} is empty; leave it out")
    if len(text) > MAX_TEXT:
        raise SurveyError(f"{where} has {len(text):,} characters; more than {MAX_TEXT:,} is nothing that somebody says")
