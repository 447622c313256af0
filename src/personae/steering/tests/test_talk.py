from __future__ import annotations

import numpy as np
import pytest
import torch

from personae.data.survey import Question
from personae.steering import talk
from personae.steering.recall import apartness


def question(text="Should we?", options=("No", "Yes"), title="") -> Question:
    return Question("q", text, tuple(options), title)


def replies(option: str, title: str = "") -> set[str]:
    rng = np.random.default_rng(0)
    return {talk.reply(question(options=(option, "other"), title=title), option, rng) for _ in range(40)}


def asked(text: str, title: str = "") -> set[str]:
    rng = np.random.default_rng(0)
    return {talk.ask(question(text, title=title), rng) for _ in range(60)}


# replies ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "stated"),
    [
        ("Too little", "too little"),
        ("About right.", "about right"),
        ("yes", "yes"),
        ("Don't know", "don't know"),
        ("A great deal", "a great deal"),
        ("A", "A"),
        ("I agree", "I agree"),
        ("I'm not sure", "I'm not sure"),
        ("I\u2019d rather not", "I\u2019d rather not"),
        ("NATO", "NATO"),
        ("US troops", "US troops"),
        ("McDonald", "McDonald"),
        ("1 - Never", "1 - Never"),
        ("50%", "50%"),
        ("Yes!", "yes"),
        ("Never .", "never"),
        ("Überhaupt nicht", "überhaupt nicht"),
        ("1...5", "1...5"),
        ("It depends... mostly yes", "it depends... mostly yes"),
    ],
)
def test_a_reply_states_the_option(option, stated):
    found = replies(option)
    assert len(found) > 1
    assert all(reply.endswith(f" {stated}.") for reply in found)
    assert all(reply[0].isupper() for reply in found)


@pytest.mark.parametrize(("option", "stated"), [("...", '"..."'), ("?", '"?"'), ("+", "+"), ("-", "-")])
def test_an_option_that_is_nothing_but_marks_is_still_stated(option, stated):
    assert all(reply.endswith(f" {stated}.") for reply in replies(option))


@pytest.mark.parametrize(
    ("title", "named"),
    [("The environment", "the environment"), ("crime.", "crime"), ("NATO", "NATO"), ("Who pays?", "who pays")],
)
def test_a_reply_names_the_title(title, named):
    found = replies("Too much.", title)
    assert len(found) > 1
    for reply in found:
        assert named in reply
        assert reply.endswith("too much.")
        assert ".." not in reply
        assert "?" not in reply


def test_every_option_of_the_same_question_reads_the_same():
    q = question(options=("Too little", "About right", "Too much"), title="crime")
    for seed in range(10):
        said = [talk.reply(q, option, np.random.default_rng(seed)) for option in q.options]
        assert len({s.replace(o.lower(), "") for s, o in zip(said, q.options, strict=True)}) == 1


# questions -------------------------------------------------------------------------------------------------------
def test_a_question_is_put_in_several_ways():
    found = asked("Should we spend more on roads?", "Roads")
    by_text = {ask for ask in found if "Should we spend more on roads?" in ask}
    by_title = found - by_text
    assert len(by_text) > 2
    assert len(by_title) > 1
    assert all("roads?" in ask for ask in by_title)


def test_without_a_title_the_wording_is_always_there():
    assert all("Should we?" in ask for ask in asked("Should we?"))


@pytest.mark.parametrize("text", ["Cars should be banned", "Ban cars (all of them)", 'They said "no"'])
def test_a_statement_does_not_run_into_the_next_sentence(text):
    found = asked(text)
    assert f"{text}. What do you think?" in found
    assert all(text + "." in ask for ask in found)


@pytest.mark.parametrize("text", ['Who said "why?"', "Is it so?", "It is so.", "Is it:", "Well\u2026"])
def test_what_is_closed_is_not_closed_again(text):
    assert text in asked(text)
    assert not any(ask.startswith(text + ".") for ask in asked(text))


@pytest.mark.parametrize("braces", ["{x}", "{}", "{0}", "{text}", "{", "}", "{title.__class__}", "%s", "{{a}}"])
def test_braces_of_users_stay_what_they_are(braces):
    assert all(braces in ask for ask in asked(f"Is {braces} good?", f"the {braces} thing"))
    assert all(reply.count(braces) == 2 for reply in replies(f"more {braces} now", f"the {braces} thing"))


# telling ---------------------------------------------------------------------------------------------------------
MARGINAL = np.array(
    [[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6], [0.5, 0.5, 0.0], [0.1, 0.9, 0]]
)


def telling(p: np.ndarray, marginal: np.ndarray, n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    return talk.telling(apartness(torch.as_tensor(p).log(), torch.as_tensor(marginal)).numpy(), n, rng)


def test_the_answers_that_set_somebody_apart():
    p = MARGINAL.copy()
    p[1] = [0.2, 0.8, 0.0]  # most people say the other thing
    p[3] = [0.9, 0.0, 0.1]
    rng = np.random.default_rng(0)
    assert {telling(p, MARGINAL, 1, rng)[0] for _ in range(20)} == {(1, 1)}  # the most telling one
    pairs = [telling(p, MARGINAL, 2, rng) for _ in range(60)]
    assert {first for first, _ in pairs} == {(1, 1)}
    others = {j for _, (j, _) in pairs}
    assert 3 in others  # drawn from those that follow, and not always the same
    assert 1 < len(others) <= 3


def test_what_everybody_says_is_not_telling():
    p = MARGINAL.copy()
    p[5] = [0.04, 0.96, 0.0]  # likely, but of everybody
    p[0], p[2], p[4] = [0.1, 0.9, 0], [0.9, 0.05, 0.05], [0.95, 0.05, 0]
    rng = np.random.default_rng(0)
    assert all(j in (0, 2, 4) for _ in range(30) for j, _ in telling(p, MARGINAL, 1, rng))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 20])
def test_as_many_as_wanted_each_once_and_never_an_option_that_is_not_there(n):
    rng = np.random.default_rng(n)
    p = np.where(MARGINAL > 0, rng.random(MARGINAL.shape), 0)
    p /= p.sum(1, keepdims=True)
    found = telling(p, MARGINAL, n, rng)
    assert len(found) == min(n, len(MARGINAL))
    assert len({j for j, _ in found}) == len(found)
    assert all(p[j, k] > 0 for j, k in found)


def test_somebody_like_everybody_is_not_given_an_option_that_is_not_there():
    p = MARGINAL * (1 - 1e-12)  # every weight is a little below nothing
    rng = np.random.default_rng(0)
    assert all(MARGINAL[j, k] > 0 for _ in range(20) for j, k in telling(p, MARGINAL, 3, rng))


def test_a_question_nobody_answered_tells_nothing():
    p, marginal = np.full((4, 2), 0.5), np.full((4, 2), 0.5)
    p[2], marginal[1] = [0.6, 0.4], 0.0
    rng = np.random.default_rng(0)
    found = {j for _ in range(40) for j, _ in telling(p, marginal, 3, rng)}
    assert found == {0, 2, 3}


def test_the_same_draw_the_same_sentences():
    q = question("A statement", title="A title")
    assert [talk.ask(q, np.random.default_rng(s)) for s in range(9)] == [
        talk.ask(q, np.random.default_rng(s)) for s in range(9)
    ]
    assert len({talk.ask(q, np.random.default_rng(s)) for s in range(9)}) > 2
