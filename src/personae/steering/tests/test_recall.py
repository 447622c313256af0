"""Which of somebody's answers a chat is told."""

from __future__ import annotations

import pytest
import torch

from personae.data.survey import Question
from personae.lm.tiny import tiny_lm
from personae.steering.recall import Recall

# Titles and options of one letter: the tiny tokenizer's tokens are letters.
QUESTIONS = [
    Question("parks", "More parks?", ("L", "m"), "P"),
    Question("tea", "Is tea good?", ("y", "n", "u"), "T"),
    *(Question(f"q{j}", f"And {j}?", ("a", "b"), str(j)) for j in range(8)),
]
Q = len(QUESTIONS)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def chats() -> torch.Tensor:
    """What all questions share is far larger than what tells them apart."""
    draw = torch.Generator().manual_seed(0)
    return 50 * torch.randn(64, generator=draw) + torch.randn(Q, 64, generator=draw)


@pytest.fixture(scope="module")
def recall(lm, chats) -> Recall:
    return Recall.of(lm, QUESTIONS, chats, uniform().exp())


def uniform() -> torch.Tensor:
    """log-probabilities (Q, 3) of somebody who is undecided."""
    n = torch.tensor([len(q.options) for q in QUESTIONS])
    return torch.where(torch.arange(3) < n[:, None], -n[:, None].log(), -torch.inf)


def leaning(question: int, option: int, by: float = 2.0) -> torch.Tensor:
    logits = uniform()
    logits[question, option] += by
    return logits


def elsewhere(chats: torch.Tensor) -> torch.Tensor:
    """A chat that is like no question: in the common part alone."""
    return chats.mean(0, keepdim=True)


def told(recall: Recall, lm, h: torch.Tensor, *people: torch.Tensor, without: list[int] | None = None) -> list[str]:
    """The words of each person in a chat."""
    words = recall(h, torch.stack(people)[None], None if without is None else torch.tensor(without))
    assert words.shape == (1, len(people), 15, lm.hidden_size)
    known = lm.embedding.weight
    ids = torch.cdist(words[0].float(), known.float()).argmin(-1)
    return [lm.tokenizer.decode(row).rstrip(".") for row in ids.tolist()]


def test_the_expected_answer_to_the_question_that_a_chat_is_about(recall, lm, chats):
    other_words = chats[1:2] + 0.2 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    assert told(
        recall, lm, other_words, leaning(1, 0), leaning(1, 2, 0.1), leaning(0, 1, 9.0) + leaning(1, 1, 0.1)
    ) == [
        " T, y",
        " T, u",
        " T, n",
    ]


def test_every_question_is_found_in_other_words(recall, lm, chats):
    noise = 0.2 * torch.randn(chats.shape, generator=torch.Generator().manual_seed(2))
    for j, question in enumerate(QUESTIONS):
        assert told(recall, lm, (chats + noise)[j : j + 1], leaning(j, 1)) == [
            f" {question.title}, {question.options[1]}"
        ]


def test_where_no_question_is_near_it_is_what_sets_somebody_apart(recall, lm, chats):
    people = leaning(0, 1), leaning(1, 2)
    assert told(recall, lm, elsewhere(chats), *people) == [" P, m", " T, u"]


def test_a_question_that_is_taken_for_new_is_not_recalled(recall, lm, chats):
    assert told(recall, lm, chats[:1], leaning(5, 1), without=[-1])[0].startswith(" P,")
    assert told(recall, lm, chats[:1], leaning(5, 1), without=[0]) == [" 3, b"]
    of_itself = leaning(0, 1, 9.0) + leaning(5, 1, 0.5)  # that very question sets this person most apart
    assert told(recall, lm, elsewhere(chats), of_itself, without=[-1]) == [" P, m"]
    assert told(recall, lm, chats[:1], of_itself, without=[0]) == [" 3, b"]


def test_the_only_question_that_was_answered_is_told_all_the_same(lm, chats):
    marginal = torch.zeros(Q, 3)
    marginal[1] = uniform()[1].exp()
    recall = Recall.of(lm, QUESTIONS, chats, marginal)
    assert told(recall, lm, chats[1:2], leaning(1, 2), without=[1]) == [" T, u"]


def test_what_a_reply_will_say_is_told_where_its_question_is_recalled(recall, lm, chats):
    logits, said = leaning(1, 0)[None, None].expand(3, 1, -1, -1), torch.tensor([[1, 2], [1, 2], [-1, -1]])
    h = torch.cat([chats[1:2], elsewhere(chats), chats[1:2]])
    words = recall(h, logits, None, said)[:, 0]
    ids = torch.cdist(words.float(), lm.embedding.weight.float()).argmin(-1)
    assert [lm.tokenizer.decode(row).rstrip(".") for row in ids.tolist()] == [" T, u", " T, y", " T, y"]


def test_what_nobody_answered_sets_nobody_apart(lm, chats):
    marginal = uniform().exp()
    marginal[0] = 0
    recall = Recall.of(lm, QUESTIONS, chats, marginal)
    assert told(recall, lm, elsewhere(chats), leaning(0, 1, 9.0) + leaning(1, 2, 0.5)) == [" T, u"]


def test_a_survey_of_one_question(lm):
    one = Recall.of(lm, QUESTIONS[:1], torch.randn(1, 12), torch.tensor([[0.5, 0.5]]))
    assert told(one, lm, torch.randn(1, 12), torch.tensor([0.0, 1.0])[None], without=[0]) == [" P, m"]


def test_saved_and_opened(recall, lm, chats):
    again = Recall.from_state(recall.state_dict())
    logits = torch.randn(Q, 2, Q, 3)
    assert torch.equal(again(chats, logits), recall(chats, logits))
