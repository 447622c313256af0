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
from personae.lm.prompts import Message, text_prompt
from personae.lm.reading import option_logits, prepare
from personae.people.persona import Persona
from personae.steering.base import Steerer
from personae.steering.text import TextPrompt, describe_by_traits

_ASK = "{} Tell me in one sentence."
_BATCH = 16  # replies decoded together
_TOKENS = 40
_EXAMPLES = 10


def replies(steerer: Steerer, personas: Sequence[Persona], questions: Sequence[Question]) -> list[str]:
    """One sentence of each persona on the question beside it, greedily."""
    out = [""] * len(personas)
    for question in dict.fromkeys(questions):
        at = [i for i, q in enumerate(questions) if q == question]
        message: list[Message] = [{"role": "user", "content": _ASK.format(question.text)}]
        for start in range(0, len(at), _BATCH):
            places = at[start : start + _BATCH]
            for pieces in steerer.stream(message, [personas[i] for i in places], _TOKENS):
                for i, piece in zip(places, pieces, strict=True):
                    out[i] += piece
    return [text.strip() for text in out]


@torch.no_grad()
def stances(lm: FrozenLM, texts: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
    """Which option each reply stands for: the one whose text becomes likelier by the reply.

    Parameters
    ----------
    texts : replies, one a question beside it

    Returns
    -------
    int array (n,)

    Notes
    -----
    argmax_k log P(option_k | question, reply) - log P(option_k | question), both a token and by the frozen LM without
    virtual tokens. The second term takes out what the LM believes of the options anyway, else every reply would stand
    for the option that the LM likes.
    """

    def scores(said: Sequence[str]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for start in range(0, len(said), _BATCH):
            asked = questions[start : start + _BATCH]
            about = [
                f'Somebody was asked: "{q.text}" They said: "{text}"' if text else ""
                for q, text in zip(asked, said[start:], strict=False)
            ]
            prompts = [text_prompt(lm, q.text, q.options, "late", a) for q, a in zip(asked, about, strict=True)]
            nothing = torch.zeros(len(prompts), 1, 0, lm.hidden_size, dtype=lm.dtype, device=lm.device)
            logits = option_logits(lm, prepare(lm, prompts), nothing, [q.options for q in asked], by="text")[:, 0]
            found += [row[: len(q.options)].cpu().numpy() for row, q in zip(logits, asked, strict=True)]
        return found

    alone = dict(zip(questions, scores([""] * len(questions)), strict=True))
    return np.array([int((s - alone[q]).argmax()) for s, q in zip(scores(texts), questions, strict=True)])


def stance_agreement(fitted: Fitted, cell: Cell, n: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """Share of replies that stand for the option the person gave, for the steered LM and its controls.

    Returns
    -------
    list of dict
        row, agreement with low and high (95 %, bootstrap over people), different (how many replies differ), n, and
        ``examples``.
    """
    cell = cell[cell.pairs.sampled(n, seed)]
    pairs, group = cell.pairs, fitted.group(cell)
    mine = [
        Persona(who, vector, np.zeros((len(vector),) * 2), 1.0)
        for who, vector in zip(pairs.respondents, group.vectors[group.row], strict=True)
    ]
    other = np.random.default_rng(seed).permutation(len(mine))
    questions = [pairs.questions[j] for j in pairs.question]
    steered = fitted.steerer("persona prompt", "persona_prompt")
    ways: list[tuple[str, Steerer, list[Persona]]] = [
        ("raw LM", TextPrompt(fitted.lm).fit(), mine),
        ("LM with traits as text", TextPrompt(fitted.lm, describe_by_traits(fitted.plan)).fit(), mine),
        ("steered LM, shuffled people", steered, [mine[i] for i in other]),
        ("steered LM, person", steered, mine),
    ]
    bootstrap = Bootstrap(pairs.respondents)
    out = []
    for name, steerer, personas in ways:
        said = replies(steerer, personas, questions)
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
