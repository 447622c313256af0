from __future__ import annotations

import json
import shutil

import pytest

from personae.bundle import Bundle


def test_the_steerer_is_in_the_bundle(steered, tiny_folder):
    manifest = Bundle.open(steered).manifest
    assert manifest["steerer"]["method"] == "persona_prompt"
    assert manifest["steerer"]["lm"]["name"] == str(tiny_folder)
    assert set(manifest["seeds"]) == {"people", "cohorts", "steerer"}
    assert sorted(p.name for p in steered.parent.iterdir()) == ["people"]  # the checkpoint is gone


@pytest.fixture
def moved(run, survey_folder, tmp_path):
    """A survey whose folder was moved after the fit, and its bundle."""
    there = shutil.copytree(survey_folder, tmp_path / "there")
    run("fit", there, "--out", tmp_path / "b", "--cohorts", 2)
    return there.rename(tmp_path / "here")


def test_the_survey_has_moved(run, moved, tiny_folder, tmp_path):
    how = ["--lm", tiny_folder, "--steps", 1]
    result = run("steer", tmp_path / "b", *how, status=1)
    assert "the survey is no longer at" in result.stderr.splitlines()[-1]
    result = run("steer", tmp_path / "b", moved, *how)
    assert f"personae chat {tmp_path / 'b'} --as cohort-0" in result.stdout
    assert "steerer" in Bundle.open(tmp_path / "b")


def test_another_survey_is_refused(run, moved, tiny_folder, tmp_path):
    file = moved / "respondents.csv"
    file.write_text(file.read_text().replace("left", "right", 1))
    result = run("steer", tmp_path / "b", moved, "--lm", tiny_folder, status=1)
    assert "is not the survey that b was fitted to (its content differs)" in result.stderr.splitlines()[-1]


def test_nothing_to_resume_and_no_such_lm(run, fitted):
    assert "there is no interrupted run to resume" in run("steer", fitted, "--resume", status=1).stderr
    assert 'there is no LM "gpt5"' in run("steer", fitted, "--lm", "gpt5", status=1).stderr


def test_an_interrupted_run_says_how_to_go_on(run, fitted, tiny_folder, monkeypatch):
    checkpoint = fitted.with_name("people.training")

    def interrupted(*_: object, **__: object) -> None:
        checkpoint.write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr("personae.steering.persona_prompt.PersonaPrompt.fit", interrupted)
    monkeypatch.setattr("sys.argv", ["personae", "steer", str(fitted), "--steps", "5"])
    result = run("steer", fitted, "--lm", tiny_folder, status=130)
    assert f"go on with: personae steer {fitted} --steps 5 --resume" in result.stderr
    assert result.stderr.splitlines()[-1] == "stopped"
    checkpoint.unlink()


def test_another_lm_is_refused(run, steered, tiny_folder, tmp_path):
    """The folder of the LM now holds another one; asked in a process that has not loaded the first."""
    import subprocess
    import sys

    from personae.lm.tiny import tiny_lm

    bundle = shutil.copytree(steered, tmp_path / "b")
    aside = tiny_folder.rename(tiny_folder.with_name("aside"))
    try:
        other = tiny_lm("llama", seed=1)
        other.model.save_pretrained(tiny_folder)
        other.tokenizer.save_pretrained(tiny_folder)
        command = [sys.executable, "-m", "personae.cli.main", "ask", str(bundle), "q0"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(tiny_folder)
        aside.rename(tiny_folder)
    assert result.returncode == 1
    assert "has another embedding_sha256; give the same LM, or train again" in result.stderr.splitlines()[-1]


def test_a_steerer_of_an_unknown_method(run, steered, tmp_path):
    bundle = shutil.copytree(steered, tmp_path / "b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    for method in ("telepathy", "../evil"):
        manifest["steerer"]["method"] = method
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        assert f"does not know the method {method}" in run("ask", bundle, "q0", status=1).stderr.splitlines()[-1]
