"""Commands that only pass on what somebody else computes."""

from __future__ import annotations

import json


def test_models(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path))
    found = json.loads(run("models", "--json").stdout)
    assert [(row["name"], row["kind"]) for row in found] == [("smollm2-135m", "LM"), ("minilm", "sentence encoder")]
    assert [row["folder"] for row in found] == [None, None]
    assert "fetched when first used" in run("models").stdout
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    (tmp_path / "models" / "smollm2-135m" / "config.json").write_text("{}")
    assert json.loads(run("models", "--json").stdout)[0]["folder"] == str(tmp_path / "models" / "smollm2-135m")


def test_demo(run, monkeypatch):
    seen = {}

    def fake(source, out, steps, *rest, quiet):
        seen.update(source=source, steps=steps, quiet=quiet)
        return {"seconds": 1.0}

    monkeypatch.setattr("personae.demo.run", fake)
    assert run("demo", "--steps", 5).stdout == ""
    assert seen == {"source": "sample", "steps": 5, "quiet": False}
    assert json.loads(run("demo", "a.csv", "--json").stdout) == {"seconds": 1.0}
    assert seen == {"source": "a.csv", "steps": 200, "quiet": True}
