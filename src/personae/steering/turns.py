"""Dialogues as a chat model sees them, and which of their replies a step learns from."""

from __future__ import annotations

import numpy as np

from personae.data.dialogues import Dialogues, Example, truncate
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message

_PEOPLE, _TURNS = 4, 2  # of a step: people, and turns of each
_VALIDATION, _VALIDATED = 0.05, 128  # share of the dialogues held out to stop early, and replies of them that are read
_CONTEXT_TOKENS = 512


def as_messages(example: Example) -> list[Message]:
    """A dialogue as the one who replies sees it: persona sentences as system message, the own turns as the assistant's.

    Turns of one side that follow each other become one message, since chat templates alternate. An opening by somebody
    of whom nothing is known has an empty system message, since templates want one message at least.

    Examples
    --------
    >>> from personae.data.dialogues import Turn
    >>> talk = (Turn("ann", "hi !"), Turn("ann", "tea ?"))
    >>> as_messages(Example("1", "bob", ("i like tea .", "i am old ."), talk, "please ."))
    [{'role': 'system', 'content': 'i like tea . i am old .'}, {'role': 'user', 'content': 'hi !\\ntea ?'}]
    """
    messages: list[Message] = [{"role": "system", "content": " ".join(example.persona)}] if example.persona else []
    for turn in example.history:
        role = "assistant" if turn.speaker == example.speaker else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n{turn.text}"}
        else:
            messages.append({"role": role, "content": turn.text})
    return messages or [{"role": "system", "content": ""}]


def within(lm: FrozenLM, example: Example, tokens: int = _CONTEXT_TOKENS) -> Example:
    """The example with as many of its last turns as fit into a number of tokens."""
    history = truncate(example.history, lambda turn: len(lm.tokens(turn.text)) + 5, tokens)
    return Example(example.dialogue, example.speaker, example.persona, history, example.reply)


class Turns:
    """Which replies a step learns from, and which are held out.

    Parameters
    ----------
    dialogues : Dialogues
        The turns of those who have persona sentences are learned, or those of everybody where nobody has; dialogues
        without such a turn are left out.

    Attributes
    ----------
    learned, held_out : list of Example
        Of different dialogues.
    """

    def __init__(self, dialogues: Dialogues, seed: int) -> None:
        speaker = None if any(d.personas for d in dialogues) else "each"
        some = [d for d in dialogues if any(speaker or turn.speaker in d.personas for turn in d.turns)]
        if len(some) < 2:
            whose = "" if speaker else " by somebody with persona sentences"
            raise ValueError(
                "replies are learned from two dialogues at least, of which one is held out to stop early; "
                f"there are {len(some)} with replies{whose} among {len(dialogues):,}"
            )
        learned, held_out = (part.examples(speaker) for part in Dialogues(some).split(_VALIDATION, seed))
        read = np.random.default_rng(seed).permutation(len(held_out))[:_VALIDATED]
        self.learned, self.held_out = learned, [held_out[i] for i in np.sort(read)]
        self.seed, self.fingerprint = seed, dialogues.fingerprint
        of_person: dict[tuple[str, str], list[Example]] = {}
        for example in learned:
            of_person.setdefault(person(example), []).append(example)
        self._of_person = list(of_person.values())

    def draw(self, step: int, batch: int = 0) -> list[Example]:
        """A few people and some turns of each, so that a step has turns of one person and of different people."""
        rng = np.random.default_rng([self.seed, step, batch])
        people = rng.choice(len(self._of_person), min(_PEOPLE, len(self._of_person)), replace=False)
        return [self._of_person[p][i] for p in people for i in rng.permutation(len(self._of_person[p]))[:_TURNS]]


def person(example: Example) -> tuple[str, str]:
    """Who replies: a speaker's name may mean somebody else in every dialogue."""
    return example.dialogue, example.speaker
