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
from personae.lm.prompts import Message, Prompt, chat_prompt, reply_ids
from personae.lm.reading import prepare, read, text_log_probs
from personae.people.persona import Persona
from personae.steering import talk
from personae.steering.base import ChatRows, Steerer
from personae.steering.text import TextPrompt, describe_by_traits

_ASK = "{} Tell me in one sentence."
_SHUFFLED = "steered LM, shuffled people"
_ANSWER = 'You were asked: "{}" Your answer is: {}.'
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
    """Which option each reply stands for: the one that is likeliest by the reply.

    Parameters
    ----------
    texts : replies, one a question beside it

    Returns
    -------
    int array (n,)
        -1 for an empty reply, which stands for nothing.

    Notes
    -----
    argmax_k P(option_k | question, reply) = argmax_k P(reply | question, option_k), all options alike before the reply:
    under which answer would the frozen LM, without virtual tokens, have said this? Read the other way round, by the
    options' probabilities after the reply, what the LM believes of them anyway and their lengths decide more than
    the reply does.
    """
    found = np.full(len(texts), -1)
    for question in dict.fromkeys(q for text, q in zip(texts, questions, strict=True) if text):
        at = [i for i, q in enumerate(questions) if q == question and texts[i]]
        told = [Message(role="user", content=_ASK.format(question.text))]
        answers = [Message(role="system", content=_ANSWER.format(question.text, option)) for option in question.options]
        prompts = [chat_prompt(lm, [answer, *told], "late") for answer in answers]
        # Their last token stands behind the empty place of virtual tokens, so that replies are branches of it.
        split = [Prompt(p.before[:-1], p.before[-1:]) for p in prompts]
        prepared = prepare(lm, split)
        nothing = torch.zeros(len(split), 1, 0, lm.hidden_size, dtype=lm.dtype, device=lm.device)
        said = list(dict.fromkeys(texts[i] for i in at))
        stands: dict[str, int] = {}
        for start in range(0, len(said), _BATCH):
            some = said[start : start + _BATCH]
            branches = [[reply_ids(lm, text) for text in some]] * len(split)
            each = text_log_probs(lm, read(lm, prepared, nothing, branches), branches, mean=False)
            stands |= zip(some, torch.cat(each).argmax(0).tolist(), strict=True)  # from (K, texts)
        found[at] = [stands[texts[i]] for i in at]
    return found


def stance_agreement(fitted: Fitted, cell: Cell, n: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """Share of replies that stand for the option the person gave, for the steered LM and its controls.

    Of at most 40 questions, so that many replies share the reading of each.
    The last row is the true answer itself, put in a sentence: the ceiling of what can be read from a reply.

    Returns
    -------
    list of dict
        row, agreement with low and high (95 %, bootstrap over people, and over questions where these are new),
        less_shuffled (the paired difference to shuffled people: estimate, low, high), different (how many replies
        differ), n, and ``examples``.
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
        (_SHUFFLED, steered, other),
        ("steered LM, person", steered, mine),
    ]
    bootstrap = Bootstrap(pairs.respondents, question=pairs.question if cell.new else None)
    out = []
    told = [(name, replies(steerer, personas, questions)) for name, steerer, personas in ways]
    # What the reader makes of the true answer put in a sentence: no reply can be read better than that.
    rng = np.random.default_rng(seed)
    stated = [talk.reply(q, q.options[k], rng) for q, k in zip(questions, pairs.option, strict=True)]
    ways_to_say = {**dict(told), "the answer itself, stated": stated}
    right = {name: stances(fitted.lm, said, questions) == pairs.option for name, said in ways_to_say.items()}
    for name, said in ways_to_say.items():
        found = bootstrap.interval(right[name].astype(float))
        less = bootstrap.difference(right[name], right[_SHUFFLED])
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
                "less_shuffled": {"estimate": less.estimate, "low": less.low, "high": less.high},
                "different": len(set(said)),
                "n": len(said),
                "examples": examples,
            }
        )
    return out
