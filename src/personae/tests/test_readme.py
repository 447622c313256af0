"""What the README and the guides show is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[3] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")


GUIDES = ["README.md", "docs/evaluate.md", "docs/converse.md"]


@pytest.mark.parametrize("name", GUIDES)
def test_its_python_runs(name):
    found = doctest.testfile(str(README.parent / name), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 5
    assert not found.failed


@pytest.mark.parametrize("name", [*GUIDES, "docs/architecture.md", "docs/results/README.md", "recipes/README.md"])
def test_its_files_exist(name):
    page = README.parent / name
    linked = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [file for file in linked if not (page.parent / file).exists()]
    assert not missing


def test_its_make_targets_exist():
    targets = set(re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE))
    rules = (README.parent / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in targets)
