from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def by_paper(run, fitted, tiny_folder, tmp_path_factory) -> Path:
    """A bundle whose virtual tokens depend on the person alone; read only."""
    folder = tmp_path_factory.mktemp("paper") / "people"
    shutil.copytree(fitted, folder)
    run("steer", folder, "--recipe", "paper", "--placement", "before", "--lm", tiny_folder, "--steps", 2)
    return folder


def test_an_adapter(run, by_paper, tmp_path):
    text = run("export", "peft", by_paper, "--persona", "cohort-1", tmp_path / "adapter").stdout
    assert "PROMPT_TUNING, 1 virtual tokens of cohort-1" in text
    assert "exact for every question, answered by letter" in text
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == 1
    args = ["--as", "cohort-0", "--question", "q1", "--json"]
    found = json.loads(run("export", "peft", by_paper, tmp_path / "other", *args).stdout)
    assert found["persona"] == "cohort-0"
    assert list(found["letters"]) == ["A", "B"]


@pytest.mark.parametrize(
    ("args", "status", "sentence"),
    [
        (["--persona", "cohort-1"], 1, "personae steer BUNDLE --recipe paper"),
        (["--persona", "cohort-9"], 1, 'no persona "cohort-9"'),
        (["--persona", "cohort-1", "--question", "q9"], 1, 'there is no question "q9"'),
        (["--persona", "cohort-1", "--question", "q1", "--message", "Hi"], 2, "one --question or one --message"),
        ([], 2, "Missing option '--persona'"),
    ],
)
def test_what_cannot_be_an_adapter(run, steered, tmp_path, args, status, sentence):
    result = run("export", "peft", steered, tmp_path / "adapter", *args, status=status)
    assert sentence in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_requests(run, steered, tmp_path):
    out = tmp_path / "requests.jsonl"
    args = ["--question", "Free trains?", "--options", "yes|no", "--message", "Hi", "--model", "m"]
    text = run("export", "vllm", steered, *args, "--out", out).stdout
    assert text == f"{out}: 4 requests to /v1/chat/completions and /v1/completions\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["0-cohort-0", "0-cohort-1", "1-cohort-0", "1-cohort-1"]
    assert {line["body"]["model"] for line in lines} == {"m"}
    found = json.loads(run("export", "vllm", steered, *args, "--as", "r007", "--out", out, "--json").stdout)
    assert [r["persona"] for r in found["requests"]] == ["r007", "r007"]
    assert list(found["requests"][0]["options"].values()) == ["yes", "no"]
    assert "say what is asked" in run("export", "vllm", steered, status=2).stderr


def test_upload_and_use_from_the_hub(run, fitted, monkeypatch):
    seen = {}

    def push(bundle, repo_id, **how):
        seen.update(bundle=bundle.folder, repo_id=repo_id, **how)
        return "https://huggingface.co/ann/town/commit/1"

    monkeypatch.setattr("personae.export.hub.push", push)
    result = run("export", "hub", fitted, "ann/town", "--license", "cc0-1.0")
    assert result.stdout == "https://huggingface.co/ann/town/commit/1\n"
    assert (seen["repo_id"], seen["private"], seen["license"]) == ("ann/town", True, "cc0-1.0")
    found = json.loads(run("export", "hub", fitted, "ann/town", "--public", "--json").stdout)
    assert found == {"repo_id": "ann/town", "commit": "https://huggingface.co/ann/town/commit/1"}
    assert seen["private"] is False

    monkeypatch.setattr("personae.export.hub.snapshot_download", lambda name, **how: str(fitted))
    here, there = (json.loads(run("ask", name, "q0", "--json").stdout) for name in (fitted, "hf:ann/town"))
    assert here == there
    for command in ("steer", "report"):
        refused = run(command, "hf:ann/town", status=1).stderr
        assert refused == "hf:ann/town is on the hub; get a folder first: hf download ann/town --local-dir FOLDER\n"


def test_a_folder_that_cannot_be_written_is_told_before_the_training(run, fitted, tmp_path):
    folder = tmp_path / "people"
    shutil.copytree(fitted, folder)
    (folder / "README.md").write_text("mine")
    refused = run("steer", folder, "--lm", "nowhere", status=1).stderr.splitlines()
    assert len(refused) == 1
    assert "holds README.md, which is not its own and would be lost" in refused[0]
