from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from personae.bundle import Bundle
from personae.people.persona import ANYONE

RECIPES = Path(__file__).parents[4] / "recipes"
SMALL = ("--steps", 2, "--prompts", 2, "--tokens", 2)
PERSONAS = ("i like tea .", "i like dogs .", "i have a cat .", "i am old .")


def convai2(path: Path, n: int, first: int = 0) -> Path:
    lines = []
    for i in range(first, first + n):
        lines += [
            f"1 your persona: {PERSONAS[i % 4]}",
            f"2 hello {i} ?\t{'tea please .' if i % 2 else 'my dog !'}",
            f"3 and ?\tmore {i}",
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def train_file(tmp_path_factory) -> Path:
    return convai2(tmp_path_factory.mktemp("dialogues") / "train.txt", 24)


@pytest.fixture(scope="module")
def bank(run, train_file, tiny_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bank") / "b"
    result = run("converse", "train", train_file, "--lm", tiny_folder, "--out", out, *SMALL)
    assert "Dialogues(24 dialogues, 96 turns, 2 speakers)" in result.stdout
    assert "of 2" in next(line for line in result.stdout.splitlines() if line.startswith("prompts in use"))
    assert f"personae converse chat {out}" in result.stdout
    assert not list(out.parent.glob("*.training"))
    return out


# train -----------------------------------------------------------------------------------------------------------
def test_a_bundle_of_dialogues_has_no_people(bank, train_file):
    bundle = Bundle.open(bank)
    assert bundle.manifest["data"]["dialogues"] == 24
    assert bundle.manifest["data"]["source"]["path"] == str(train_file)
    assert bundle.manifest["seeds"] == {"steerer": 0}
    assert bundle.manifest["steerer"]["method"] == "selective"
    assert bundle.persona("anyone") is ANYONE
    assert {p.name for p in bank.iterdir()} == {"manifest.json", "steerer"}


def test_json_says_whether_the_bank_is_used(run, train_file, tiny_folder, tmp_path):
    args = ("converse", "train", train_file, "--lm", tiny_folder, "--out", tmp_path / "b", "--json")
    found = json.loads(run(*args, "--recipe", "paper", *SMALL).stdout)
    assert found["prompts"] == 2
    assert 1 <= found["prompts_in_use"] <= 2
    assert found["collapsed"] in (True, False)
    assert found["validation"]["step"] == 2


def test_a_collapsed_bank_is_called_one_prompt(run, train_file, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("personae.steering.selective.Selective.effective_prompts_", 1.01)
    result = run("converse", "train", train_file, "--lm", tiny_folder, "--out", tmp_path / "b", *SMALL)
    assert "in truth one prompt, not 2" in result.stdout


def test_an_interrupted_training_goes_on(run, train_file, tiny_folder, tmp_path, monkeypatch):
    from personae.steering.replies import RepliesTask

    out = tmp_path / "b"
    args = ("converse", "train", train_file, "--lm", tiny_folder, "--out", out, "--prompts", 2, "--steps", 52)
    assert "does not exist" in run(*args, "--resume", status=1).stderr
    losses = RepliesTask.losses

    def stop(self, step, *rest):
        if step == 51:
            raise KeyboardInterrupt
        return losses(self, step, *rest)

    monkeypatch.setattr(RepliesTask, "losses", stop)
    assert "go on with: personae" in run(*args, status=130).stderr
    assert not out.exists()
    monkeypatch.setattr(RepliesTask, "losses", losses)
    run(*args, "--resume")
    assert Bundle.open(out).steerer.history_[-1]["step"] == 52


def test_two_processes_write_one_bundle(train_file, tiny_folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "personae"]
    args = ["converse", "train", train_file, "--lm", tiny_folder, "--out", tmp_path / "b", *SMALL, "--batches", 2]
    done = subprocess.run([*launch, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Dialogues(24 dialogues") == done.stdout.count("prompts in use") == 1
    about = json.loads((tmp_path / "b" / "steerer" / "steerer.json").read_text())
    assert about["parameters"]["batches"] == 2
    assert not list(tmp_path.glob("*.training"))


def test_a_bundle_that_is_there_is_not_replaced(run, bank, train_file):
    assert "is a bundle already" in run("converse", "train", train_file, "--out", bank, status=1).stderr


# the same chat and ask -------------------------------------------------------------------------------------------
def test_ask_and_chat_open_it(run, bank):
    args = ("ask", bank, "Tea or coffee?", "--options", "tea|coffee", "--json")
    (anyone,) = json.loads(run(*args).stdout)["personas"]
    assert anyone["name"] == "anyone"
    assert sum(anyone["steered_lm"].values()) == pytest.approx(1)
    assert "trained on dialogues and has no people" in run(*args, "--answers", "a=b", status=1).stderr
    said = json.loads(run("chat", bank, "--as", "anyone", "--once", "hi", "--json").stdout)
    assert said["persona"] == "anyone"
    assert "knows nobody by name" in run("chat", bank, "--as", "cohort-0", "--once", "hi", status=1).stderr
    assert "anyone" in run("chat", bank, "--as", "anyone", input="/personas\n").stderr
    assert "has no people" in run("report", bank, status=1).stderr


# chat ------------------------------------------------------------------------------------------------------------
def test_why_says_which_prompt_replied(run, bank):
    typed = "/why\nhi\n/why\n/about i like dogs .\n/why\nhi\n/nonsense\n/reset\n/quit\nnot read\n"
    result = run("converse", "chat", bank, "--about", "i like tea .", "--temperature", 0, input=typed)
    heard = [line for line in result.stderr.splitlines() if not line.startswith("loading")]
    assert heard[0].startswith("/why")
    assert heard[1] == "nothing was said yet"
    first = Bundle.open(bank).steerer.choose(
        [[{"role": "system", "content": "i like tea ."}, {"role": "user", "content": "hi"}]]
    )[0]
    each = ", ".join(f"prompt {k} {100 * p:.0f}%" for k, p in enumerate(first))
    assert heard[2] == f"prompt {first.argmax()} replied: {each}"
    assert heard[3:5] == ["about: i like dogs .", "nothing was said yet"]
    assert heard[5].startswith("/why")
    assert heard[6] == "forgotten"


def test_once_as_json(run, bank):
    args = ("converse", "chat", bank, "--about", "i like tea .", "--once", "hi", "--json")
    said = json.loads(run(*args).stdout)
    assert (said["about"], said["message"]) == ("i like tea .", "hi")
    assert sum(said["prompts"]) == pytest.approx(1, abs=1e-5)
    assert run(*args).stdout == run(*args).stdout


def test_a_bundle_of_people_has_no_bank(run, fitted, steered):
    assert "make one with: personae converse train" in run("converse", "chat", fitted, "--once", "a", status=1).stderr
    stderr = run("converse", "chat", steered, "--once", "a", status=1).stderr
    assert "talk with its people by: personae chat" in stderr


# inspect ---------------------------------------------------------------------------------------------------------
def test_use_of_prompts_over_turns_and_people(run, bank, train_file, tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "use.png"
    found = json.loads(run("converse", "inspect", bank, "--out", figure, "--json").stdout)
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert found["replies"] == 48
    assert [row["turn"] for row in found["by_turn"]] == [1, 2]
    assert {row["person"] for row in found["by_person"]} == set(PERSONAS)
    assert sum(row["n"] for row in found["by_person"]) == 48
    assert sum(found["share"]) == pytest.approx(1)
    shown = run("converse", "inspect", bank, train_file, "--dialogues", 4, "--out", figure).stdout
    assert "own turn 2" in shown
    assert "prompts in use" in shown


# evaluate --------------------------------------------------------------------------------------------------------
def test_rows_are_listed(run):
    rows = json.loads(run("converse", "evaluate", "--list", "--json").stdout)
    assert {"raw LM", "persona as text", "prompt tuning, K x n tokens", "SPT", "LoRA"} <= rows.keys()
    assert all(rows.values())
    assert "fine-tuning of all weights" in run("converse", "evaluate", "--list").stdout


def test_a_table_with_a_test_file(run, train_file, tiny_folder, tmp_path):
    test = convai2(tmp_path / "valid.txt", 8, first=100)
    rows = ("--row", "raw LM", "--row", "SPT")
    sizes = ("--replies", 4, "--swapped", 4, "--contexts", 6)
    args = ("converse", "evaluate", train_file, "--test", test, "--lm", tiny_folder, "--out", tmp_path / "o")
    shown = run(*args, *SMALL, *rows, *sizes).stdout
    assert "6 true replies, 4 of them with somebody else's persona" in shown
    names = [line.split("  ")[0] for line in shown.splitlines()]
    assert [n for n in names if n in ("human", "constant", "copy", "random", "raw LM", "SPT")] == [
        *("human", "constant", "copy", "random"),
        *("raw LM", "SPT"),
        "SPT",  # the use of its prompts
    ]
    assert "\u2026" not in shown  # nothing was cut
    found = json.loads(run(*args, *SMALL, *rows, *sizes, "--json").stdout)
    assert found["settings"]["source"] == {"dialogues": "train.txt", "test": "valid.txt"}
    assert found["sizes"]["train"] == "Dialogues(22 dialogues, 88 turns, 2 speakers)"
    assert 'no row "SPTT"' in run(*args, *SMALL, "--row", "SPTT", status=1).stderr


def test_the_recipe(tiny_folder, tmp_path, monkeypatch, capsys):
    """All rows on a synthetic folder of the same shape."""
    convai2(tmp_path / "train_self_original.txt", 24)
    convai2(tmp_path / "valid_self_original.txt", 8, first=100)
    monkeypatch.chdir(tmp_path)
    sizes = ("--replies", 4, "--swapped", 4, "--contexts", 6)
    # The sentence encoder is fetched; a recipe's own options come first, so that these take its place.
    monkeypatch.setattr("personae.lm.encoder.SentenceEncoder.load", lambda name: None)
    given = [str(tmp_path), "--lm", str(tiny_folder), *map(str, (*SMALL, *sizes))]
    monkeypatch.setattr(sys, "argv", ["convai2.py", *given])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / "convai2.py"), run_name="__main__")
    assert not end.value.code
    assert "SPT, as published" in capsys.readouterr().out
    found = json.loads((tmp_path / "convai2" / "result.json").read_text())
    from personae.evaluation.talk_rows import TALK_ROWS

    assert {line["row"] for line in found["table"]} == {*TALK_ROWS, "human", "constant", "copy", "random"}
