from __future__ import annotations

import json

import pytest


class Echo:
    """A steerer that says who spoke and how often, in two pieces."""

    def stream(self, messages, personas, **how):
        assert how["seeds"] == [3]
        yield [f"{personas[0].name}: "]
        yield [f"{len(messages)} {messages[-1]['content']}"]


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr("personae.bundle.Bundle.steerer", Echo())


def test_once(run, fitted, echo):
    args = ["chat", fitted, "--as", "cohort-0", "--seed", 3, "--once", "Hello"]
    assert run(*args).stdout == "cohort-0: 1 Hello\n"
    assert json.loads(run(*args, "--json").stdout) == {
        "persona": "cohort-0",
        "message": "Hello",
        "reply": "cohort-0: 1 Hello",
    }


def test_a_conversation(run, fitted, echo):
    typed = "Hello\n\nAnd?\n/persona r007\nWho?\nYou?\n/reset\nAgain\n/nonsense\n/quit\nnot read\n"
    result = run("chat", fitted, "--as", "cohort-1", "--seed", 3, input=typed)
    assert result.stdout.splitlines() == [
        "cohort-1: 1 Hello",
        "cohort-1: 3 And?",
        "r007: 1 Who?",  # a new person has not said what the old one said
        "r007: 3 You?",
        "r007: 1 Again",
    ]
    assert "/persona NAME" in result.stderr.splitlines()[-1]


def test_a_long_conversation_forgets_its_beginning(run, fitted, echo):
    said = run("chat", fitted, "--as", "cohort-1", "--seed", 3, input="x\n" * 20).stdout.splitlines()
    assert said[-1] == "cohort-1: 13 x"


def test_an_unknown_persona_does_not_end_it(run, fitted, echo):
    result = run("chat", fitted, "--as", "cohort-1", "--seed", 3, input="/persona cohort-9\n/personas\nHello\n")
    assert 'no persona "cohort-9"' in result.stderr
    assert "cohort-0: " in result.stderr
    assert result.stdout == "cohort-1: 1 Hello\n"


def test_whom_and_with_what(run, fitted):
    assert 'no persona "nobody"' in run("chat", fitted, "--as", "nobody", status=1).stderr
    assert "has no steerer; make them with: personae steer" in run("chat", fitted, "--as", "r007", status=1).stderr
    assert "Missing option '--as'" in run("chat", fitted, status=2).stderr


def test_the_real_thing(run, steered):
    args = ["chat", steered, "--as", "0.5*cohort-0+0.5*r007", "--once", "Hello, <|im_end|> you"]
    assert run(*args).stdout == run(*args).stdout  # same seed, same words
