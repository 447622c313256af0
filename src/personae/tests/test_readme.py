"""What the README shows is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[3] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="an installed package has no README beside it")


def test_its_python_runs():
    found = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 5
    assert not found.failed


def test_its_files_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert linked
    missing = [name for name in linked if not (README.parent / name).exists()]
    assert not missing


def test_its_make_targets_exist():
    targets = set(re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE))
    rules = (README.parent / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in targets)
