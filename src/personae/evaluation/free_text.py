"""Stance agreement: does what a steered LM says in a sentence agree with what the person really answered?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from personae.data.survey import Question
from personae.evaluation.fitted import Fitted
from personae.evaluation.intervals import Bootstrap
from personae.evaluation.plan import Cell
from personae.lm.frozen import FrozenLM
from personae.lm.generation import finish, stream
from personae.lm.prompts import Message, text_prompt
from personae.lm.reading import option_logits, prepare
from personae.people.persona import Persona
from personae.steering import talk
from personae.steering.base import ChatRows, Steerer
from personae.steering.text import TextPrompt, describe_by_traits

_ASK = "{} Tell me in one sentence."
_BATCH = 16  # replies decoded together
_TOKENS = 40
_EXAMPLES = 10
_QUESTIONS = 40  # each is read once for everybody, so few questions are fast


def replies(steerer: Steerer, personas: Sequence[Persona], questions: Sequence[Question]) -> list[str]:
    """One sentence of each persona on the question beside it, greedily."""
    parts: list[tuple[list[int], ChatRows]] = []
    for question in dict.fromkeys(questions):  # which is read once for everybody who is asked it
        at = [i for i, q in enumerate(questions) if q == question]
        message: list[Message] = [{"role": "user", "content": _ASK.format(question.text)}]
        for start in range(0, len(at), _BATCH):
            places = at[start : start + _BATCH]
            parts.append((places, steerer.chat_rows(message, [personas[i] for i in places])))
    out = [""] * len(personas)
    while parts:
        some = [parts.pop()]
        while parts and sum(len(at) for at, _ in some) + len(parts[-1][0]) <= _BATCH:
            some.append(parts.pop())
        rows = ChatRows.together([rows for _, rows in some])
        made = stream(steerer.lm_, rows.prompts, rows.virtual, _TOKENS, mixed=rows.mixed, contexts=rows.contexts)
        for i, text in zip((i for at, _ in some for i in at), finish(made)[0], strict=True):
            out[i] = text
    return out


@torch.no_grad()
def stances(lm: FrozenLM, texts: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
    """Which option each reply stands for: the one whose text becomes likelier by the reply.

    Parameters
    ----------
    texts : replies, one a question beside it

    Returns
    -------
    int array (n,)
        -1 for an empty reply, which stands for nothing.

    Notes
    -----
    argmax_k log P(option_k | question, reply) - log P(option_k | question), both a token and by the frozen LM without
    virtual tokens. The second term takes out what the LM believes of the options anyway, else every reply would stand
    for the option that the LM likes.
    """

    def scores(said: Sequence[str], of: Sequence[Question]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for start in range(0, len(said), _BATCH):
            asked = of[start : start + _BATCH]
            about = [
                f'Somebody was asked: "{q.text}" They said: "{text}"' if text else ""
                for q, text in zip(asked, said[start:], strict=False)
            ]
            prompts = [text_prompt(lm, q.text, q.options, "before", a) for q, a in zip(asked, about, strict=True)]
            nothing = torch.zeros(len(prompts), 1, 0, lm.hidden_size, dtype=lm.dtype, device=lm.device)
            logits = option_logits(lm, prepare(lm, prompts), nothing, [q.options for q in asked], by="text")[:, 0]
            found += [row[: len(q.options)].cpu().numpy() for row, q in zip(logits, asked, strict=True)]
        return found

    different = list(dict.fromkeys(questions))
    alone = dict(zip(different, scores([""] * len(different), different), strict=True))
    found = [int((s - alone[q]).argmax()) for s, q in zip(scores(texts, questions), questions, strict=True)]
    return np.where([bool(t) for t in texts], found, -1)


def stance_agreement(fitted: Fitted, cell: Cell, n: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """Share of replies that stand for the option the person gave, for the steered LM and its controls.

    Of at most 40 questions, so that many replies share the reading of each.
    The last row is the true answer itself, put in a sentence: the ceiling of what can be read from a reply.

    Returns
    -------
    list of dict
        row, agreement with low and high (95 %, bootstrap over people, and over questions where these are new),
        different (how many replies differ), n, and ``examples``.
    """
    few = np.random.default_rng(seed).permutation(np.unique(cell.pairs.question))[:_QUESTIONS]
    cell = cell[np.flatnonzero(np.isin(cell.pairs.question, few))]
    cell = cell[cell.pairs.sampled(n, seed)]
    pairs, group = cell.pairs, fitted.group(cell)
    mine = [
        Persona(who, vector, np.zeros((len(vector),) * 2), 1.0)
        for who, vector in zip(pairs.respondents, group.vectors[group.row], strict=True)
    ]
    people = np.random.default_rng(seed).permutation(np.unique(pairs.respondents))
    strangers = dict(zip(people, np.roll(people, 1), strict=True))
    somebody = {p.name: p for p in mine}
    other = [somebody[strangers[who]] for who in pairs.respondents]
    questions = [pairs.questions[j] for j in pairs.question]
    steered = fitted.steerer("persona prompt", "persona_prompt")
    ways: list[tuple[str, Steerer, list[Persona]]] = [
        ("raw LM", TextPrompt(fitted.lm).fit(), mine),
        ("LM with traits as text", TextPrompt(fitted.lm, describe_by_traits(fitted.plan)).fit(), mine),
        ("steered LM, shuffled people", steered, other),
        ("steered LM, person", steered, mine),
    ]
    bootstrap = Bootstrap(pairs.respondents, question=pairs.question if cell.new else None)
    out = []
    told = [(name, replies(steerer, personas, questions)) for name, steerer, personas in ways]
    # What the reader makes of the true answer put in a sentence: no reply can be read better than that.
    rng = np.random.default_rng(seed)
    stated = [talk.reply(q, q.options[k], rng) for q, k in zip(questions, pairs.option, strict=True)]
    for name, said in [*told, ("the answer itself, stated", stated)]:
        found = bootstrap.interval((stances(fitted.lm, said, questions) == pairs.option).astype(float))
        examples = [
            {"question": q.text, "answered": q.options[k], "said": text}
            for q, k, text in list(zip(questions, pairs.option, said, strict=True))[:_EXAMPLES]
        ]
        out.append(
            {
                "row": name,
                "agreement": found.estimate,
                "low": found.low,
                "high": found.high,
                "different": len(set(said)),
                "n": len(said),
                "examples": examples,
            }
        )
    return out
