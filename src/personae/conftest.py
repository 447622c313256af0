"""Where ``CI=true``, a test that should have run and was skipped has failed."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

_SHARED = Path(__file__).parents[3] / "shared"

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a ``model`` or ``program`` test, and of a ``shared`` one beside that folder, into a failure."""
    report = yield
    must_run = bool({"model", "program"} & set(item.keywords)) or ("shared" in item.keywords and _SHARED.is_dir())
    if os.environ.get("CI") == "true" and report.skipped and must_run and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but it must run here: {report.longrepr}"
    return report
