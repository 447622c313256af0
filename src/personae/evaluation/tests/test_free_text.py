"""What replies stand for, and how sure the share of those that agree is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from personae.data.survey import Question
from personae.evaluation import free_text
from personae.evaluation.fitted import Fitted
from personae.evaluation.free_text import stance_agreement, stances
from personae.evaluation.intervals import Bootstrap
from personae.evaluation.plan import make_plan
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import answer_ids, text_prompt
from personae.lm.tiny import tiny_lm

LETTERS = Question("q1", "Which is it?", ("A", "B"))
WORDS = Question("q2", "Should the city build more bike lanes?", ("no, fewer", "yes, and many more of them", "maybe"))


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


def by_hand(lm: FrozenLM, said: str, question: Question) -> int:
    """One whole pass an option, with and without the reply."""

    def score(about: str, option: str) -> float:
        prompt = text_prompt(lm, question.text, question.options, "before", about).text_ids
        tokens = answer_ids(lm, option)
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*prompt, *tokens]])).logits[0].float()
        log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        return float(log_p[torch.arange(len(tokens)), tokens].mean())

    about = f'Somebody was asked: "{question.text}" They said: "{said}"'
    return int(np.argmax([score(about, o) - score("", o) for o in question.options]))


def test_stances_are_those_of_plain_passes(lm):
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(["tea", "is", "far", "too", "good", "no", "yes"], 5)) for _ in range(12)]
    asked = [LETTERS, WORDS] * 6
    expected = [by_hand(lm, t, q) for t, q in zip(said, asked, strict=True)]
    assert stances(lm, [*said, ""], [*asked, WORDS]).tolist() == [*expected, -1]
    assert len(set(zip(expected, asked, strict=True))) > 2  # not all the same


def test_options_of_a_single_token(lm):
    assert all(len(answer_ids(lm, o)) == 1 for o in LETTERS.options)
    said = ["I am for A.", "B, of course!"]
    assert stances(lm, said, [LETTERS] * 2).tolist() == [by_hand(lm, t, LETTERS) for t in said]


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
