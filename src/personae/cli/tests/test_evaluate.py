from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

RECIPES = Path(__file__).parents[4] / "recipes"
FAST = ("--row", "majority", "--row", "opinion model", "--row", "uniform", "--replies", 0, "--answers", 200)


def test_rows_are_listed(run):
    rows = json.loads(run("evaluate", "--list", "--json").stdout)
    assert {"majority", "steered LM, person", "lora", "raw LM"} <= rows.keys()
    assert all(rows.values())
    assert "steered LM, prefix" in run("evaluate", "--list").stdout


def test_tables_sorted_by_accuracy(run, tmp_path, tiny_folder):
    result = run("evaluate", "sample", "--out", tmp_path, "--lm", tiny_folder, "--ceiling", 0.9, *FAST)
    for cell in ("seen", "new", "unseen-1", "unseen-10", "unseen-new"):
        assert cell in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.strip().startswith(("majority", "opinion model"))]
    assert lines[0].split()[0] == "opinion"
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["tables"]["seen"][0]["n"] == 200
    assert "lift" in saved["tables"]["seen"][0]
    again = json.loads(
        run("evaluate", "sample", "--out", tmp_path, "--lm", tiny_folder, "--ceiling", 0.9, *FAST, "--json").stdout
    )
    assert again["tables"] == saved["tables"]


def test_an_unknown_row_is_one_sentence(run, tmp_path, tiny_folder):
    result = run("evaluate", "--out", tmp_path, "--lm", tiny_folder, "--row", "majorty", status=1)
    assert 'there is no row "majorty"' in result.stderr
    assert "Traceback" not in result.stderr


# recipes ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def wave(tmp_path) -> Path:
    """A synthetic wave of OpinionQA: 120 people of two camps, ten questions."""
    folder = tmp_path / "W26"
    folder.mkdir()
    keys = [f"Q{j}_W26" for j in range(10)]
    info = "".join(
        f"{j},{j},{key},{{}},Is {j} good?,\"['Yes', 'No', 'Refused']\",\"[1.0, 2.0]\"\n" for j, key in enumerate(keys)
    )
    (folder / "info.csv").write_text(f",Unnamed: 0,key,option_mapping,question,references,option_ordinal\n{info}")
    rng = np.random.default_rng(0)
    lines = ["QKEY," + ",".join(keys) + ",WEIGHT_W26,SEX"]
    for i in range(120):
        said = rng.random(10) < (0.85 if i % 2 else 0.15)
        lines.append(",".join([str(1000 + i), *np.where(said, "Yes", "No"), "1.0", "Female" if i % 3 else "Male"]))
    (folder / "responses.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_opinionqa_recipe(wave, tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["opinionqa.py", str(wave), "--lm", str(tiny_folder), *map(str, FAST)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / "opinionqa.py"), run_name="__main__")
    assert not end.value.code
    assert "opinion model" in capsys.readouterr().out
    rows = {r["row"]: r for r in json.loads((tmp_path / "opinionqa" / "result.json").read_text())["tables"]["seen"]}
    assert rows["opinion model"]["accuracy"] > rows["majority"]["accuracy"] + 0.1


@pytest.mark.parametrize("name", ["gss2018", "bowling_green"])
def test_recipes_know_their_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    assert not end.value.code
    assert "Predict held-out answers" in capsys.readouterr().out


def test_questions_that_letters_cannot_name_are_left_out_by_name(run, tmp_path, tiny_folder):
    brands = [f"brand {i}" for i in range(27)]
    table = [f"vote,Who?,{'|'.join(brands)}", *(f"q{j},Question {j}?,yes|no" for j in range(5))]
    (tmp_path / "questions.csv").write_text("question,text,options\n" + "\n".join(table) + "\n")
    rows = [f"r{i},{brands[i % 27]}," + ",".join(("yes", "no")[i * j % 3 % 2] for j in range(5)) for i in range(120)]
    (tmp_path / "r.csv").write_text("respondent,vote,q0,q1,q2,q3,q4\n" + "\n".join(rows))
    args = ["--questions", tmp_path / "questions.csv", "--out", tmp_path / "out", "--lm", tiny_folder]
    result = run("evaluate", tmp_path / "r.csv", *args, *FAST, "--row", "raw LM")
    assert "left out, since letters reach to 26 options and they have more: vote" in result.stderr
    assert "raw LM" in result.stdout
