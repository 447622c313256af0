"""What replies stand for, and how sure the share of those that agree is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from personae.data.sample import load_sample
from personae.data.survey import Question
from personae.evaluation import free_text
from personae.evaluation.fitted import Fitted
from personae.evaluation.free_text import stance_agreement, stances
from personae.evaluation.intervals import Bootstrap
from personae.evaluation.plan import make_plan
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import chat_prompt, reply_ids
from personae.lm.tiny import tiny_lm
from personae.steering.talk import reply

LETTERS = Question("q1", "Which is it?", ("A", "B"))
WORDS = Question("q2", "Should the city build more bike lanes?", ("no, fewer", "yes, and many more of them", "maybe"))


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


def by_hand(lm: FrozenLM, said: str, question: Question) -> int:
    """One whole pass an option."""

    def score(option: str) -> float:
        answer = f'You were asked: "{question.text}" Your answer is: {option}.'
        asked = [
            {"role": "system", "content": answer},
            {"role": "user", "content": f"{question.text} Tell me in one sentence."},
        ]
        prompt, tokens = chat_prompt(lm, asked, "late").text_ids, reply_ids(lm, said)
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*prompt, *tokens]])).logits[0].float()
        log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        return float(log_p[torch.arange(len(tokens)), tokens].sum())

    return int(np.argmax([score(o) for o in question.options]))


@pytest.mark.parametrize("chat", [True, False])
def test_stances_are_those_of_plain_passes(chat):
    lm = tiny_lm("llama", chat=chat)
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(["tea", "is", "far", "too", "good", "no", "yes"], 5)) for _ in range(24)]
    asked = [LETTERS, WORDS] * 12
    expected = [by_hand(lm, t, q) for t, q in zip(said, asked, strict=True)]
    assert stances(lm, [*said, "", said[0]], [*asked, WORDS, LETTERS]).tolist() == [*expected, -1, expected[0]]
    assert len(set(zip(expected, asked, strict=True))) > 2  # not all the same


@pytest.mark.model
def test_the_real_model_reads_what_is_stated():
    lm, rng = FrozenLM.load("smollm2-135m"), np.random.default_rng(0)
    asked = [q for q in load_sample().questions[:6] for _ in q.options]
    options = [option for q in load_sample().questions[:6] for option in q.options]
    said = [reply(q, option, rng) for q, option in zip(asked, options, strict=True)]
    read = [q.options[k] for q, k in zip(asked, stances(lm, said, asked), strict=True)]
    assert np.mean([a == b for a, b in zip(read, options, strict=True)]) > 0.9


@pytest.mark.parametrize("name", ["seen", "new"])
def test_intervals_of_new_questions_are_over_questions_too(lm, two_camps, monkeypatch, name):
    plan = make_plan(two_camps, 0.25, questions=0.4)
    cell = plan.cells[name]
    said = {id(q): i % 2 for i, q in enumerate(cell.pairs.questions)}
    monkeypatch.setattr(free_text, "replies", lambda steerer, personas, questions: ["x"] * len(questions))
    # Right of every other question, of whomever it is asked
    right = np.array([said[id(cell.pairs.questions[j])] for j in cell.pairs.question], float)
    monkeypatch.setattr(
        free_text,
        "stances",
        lambda lm, texts, questions: np.where([said[id(q)] for q in questions], cell.pairs.option[: len(texts)], -1),
    )
    fitted = Fitted(plan, lm, steerers={"persona prompt": None})
    row = stance_agreement(fitted, cell, len(cell))[0]
    expected = Bootstrap(cell.pairs.respondents, question=cell.pairs.question if name == "new" else None).interval(
        right
    )
    assert (row["agreement"], row["low"], row["high"]) == pytest.approx(tuple(expected))
