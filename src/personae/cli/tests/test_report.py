"""One HTML file about a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from personae.bundle import Bundle


def test_the_report_lies_beside_the_bundle(run, fitted):
    out = fitted.with_name("people-report.html")
    assert run("report", fitted).stdout.strip() == str(out)
    html = out.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "has no steerer" in html
    Bundle.open(fitted)
    out.unlink()


def test_json_names_the_file(run, steered, tmp_path):
    found = json.loads(run("report", steered, "--out", tmp_path / "r.html", "--json").stdout)
    assert found == {"report": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size}
    assert 'aria-label="training curve"' in Path(found["report"]).read_text(encoding="utf-8")


def test_slips(run, fitted, tmp_path, monkeypatch):
    assert "there is no result.json" in run("report", fitted, "--evaluation", tmp_path, status=1).stderr
    assert "write the report beside it" in run("report", fitted, "--out", fitted / "r.html", status=1).stderr
    assert "there is no bundle" in run("report", tmp_path / "none", status=1).stderr
    for name in [m for m in sys.modules if m.split(".")[0] == "plotly" or m.startswith("personae.report")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("personae.people.figures", "personae.people.map"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "pip install 'personae[report]'" in run("report", fitted, status=1).stderr
