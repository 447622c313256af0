from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.demo import run
from personae.lm.frozen import FrozenLM
from personae.lm.tiny import tiny_lm
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering import persona_prompt

SEEN, NEW = "held-out answers of seen people", "questions never trained on"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two camps of thirty people, in a wide table whose labels look like markup."""
    rng = np.random.default_rng(0)
    camp, lean = np.repeat([1, -1], 30), np.tile([1, -1], 4)
    yes = rng.random((60, 8)) < 1 / (1 + np.exp(-2 * camp[:, None] * lean))
    table = pd.DataFrame(np.where(yes, "[/b] yes", "[red] no"), columns=[f"q{j}" for j in range(8)])
    table.insert(0, "respondent", [f"r{i}" for i in range(60)])
    folder = tmp_path_factory.mktemp("survey [i") / "]"
    folder.mkdir()
    table.to_csv(folder / "responses.csv", index=False)
    questions = {"question": [f"q{j}" for j in range(8)], "options": ["[red] no|[/b] yes"] * 8}
    questions["text"] = [f"Is number {j} [/green] good?" for j in range(8)]
    pd.DataFrame(questions).to_csv(folder / "questions.csv", index=False)
    sides = pd.DataFrame({"respondent": [f"r{i}" for i in range(60)], "side": np.where(camp > 0, "left", "right")})
    sides.to_csv(folder / "respondents.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """A tiny LM wherever one is loaded, and a short warm start."""
    lm = tiny_lm("llama")
    monkeypatch.setattr(FrozenLM, "load", lambda *_, **__: lm)
    monkeypatch.setattr(persona_prompt, "TextOpinionModel", partial(TextOpinionModel, width=16, steps=40))


def test_the_whole_way(source, tmp_path, monkeypatch, capfd):
    chat = persona_prompt.PersonaPrompt.chat
    monkeypatch.setattr(persona_prompt.PersonaPrompt, "chat", lambda *a, **how: "So [/bold] be it. " + chat(*a, **how))
    result = run(str(source), tmp_path / "bundle", steps=6, new_questions=0.25, rows=60, question="More [/dim] roads?")
    printed = capfd.readouterr().out
    assert set(result["tables"]) == {SEEN, NEW}
    for table in result["tables"].values():
        names = [row["row"] for row in table]
        assert {"raw LM", "LM with traits as text", "steered LM, person", "steered LM, cohort"} < set(names)
        assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in table)
        assert all(np.isfinite(row["nll"]) and row["n"] > 0 for row in table)
        assert all(name in printed for name in names)
    assert result["tables"][SEEN][0]["row"] == "majority"
    assert result["tables"][NEW][0]["row"] == "uniform"
    assert result["training"][-1]["step"] == 6
    assert json.loads(json.dumps(result)) == result

    # Printed is what was found, and nothing of a user's text is taken for markup.
    cohorts = result["cohorts"]
    assert sum(cohort["people"] for cohort in cohorts) == 60
    assert all(cohort["cohort"] in printed for cohort in cohorts)
    assert len(result["replies"]) == 2
    assert "More [/dim] roads?" in printed
    assert printed.count("So [/bold] be it.") == 2
    assert "[red] no" in printed or "[/b] yes" in printed

    bundle = Bundle.open(tmp_path / "bundle")
    assert len(bundle.people) == 60
    assert len(bundle.cohorts) == len(cohorts)
    asked = bundle.steerer.answer("Well?", ["no", "yes"], [bundle.persona(name) for name in result["replies"]])
    np.testing.assert_allclose(asked.sum(axis=1), 1, atol=1e-5)
    said = {
        name: bundle.steerer.chat("More [/dim] roads?", bundle.persona(name), max_new_tokens=60)
        for name in result["replies"]
    }
    assert said == result["replies"]


def test_quiet_and_the_same_again(source, tmp_path, capfd):
    results = [run(str(source), tmp_path / "bundle", steps=2, rows=20, seed=3, quiet=True) for _ in range(2)]
    assert capfd.readouterr().out == ""
    first, again = ({k: v for k, v in result.items() if k != "seconds"} for result in results)
    assert first == again  # into the same folder: a bundle is replaced
    assert list(first["tables"]) == [SEEN]
    assert first["seed"] == 3


def test_a_folder_of_something_else_is_refused_before_the_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr("personae.demo.read_survey", lambda *_: pytest.fail("the work began"))
    (tmp_path / "thesis.txt").write_text("years of it")
    with pytest.raises(BundleError, match="not a bundle"):
        run(str(source), tmp_path, quiet=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of it"
