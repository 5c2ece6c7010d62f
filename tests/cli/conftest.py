"""The command line in this process, and a small checkpoint to damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from typing import Any

import pytest

from eplb_cli.cli import entry
from eplb_cli.interrupts import SIGNALS
from tests.cli.case import Case, Run
from tests.cli.tree import NEW, OLD, Result, stacked, write_tree
from tests.support.formats import require_valid_output

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """80 columns, no colours, no debugging, and no options but those of the test."""
    monkeypatch.setenv("COLUMNS", "80")
    ours = [name for name in os.environ if name.startswith("EPLB_") and name != "EPLB_LIGHT"]
    for name in ("NO_COLOR", "FORCE_COLOR", "GITHUB_STEP_SUMMARY", *ours):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def eplb(monkeypatch, capsys) -> Run:
    """Run a command as `main` would: without starting a process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["eplb", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        capsys.readouterr()
        code: Any = 0
        try:
            entry.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out or "EPLB_DEBUG" in os.environ
        if code == 0:
            require_valid_output(tuple(map(str, arguments)), captured.out)
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def case(tmp_path, eplb) -> Case:
    """A checkpoint of 2 layers, 4 experts and 2 ranks of 3 slots, in the layout of vLLM."""
    result = Case(tmp_path, eplb)
    write_tree(result.src, stacked(OLD))
    (result.src / "config.json").write_text(json.dumps({"model_type": "test"}))
    result.old(OLD)
    result.new(NEW)
    return result


@pytest.fixture(scope="module")
def browser():
    """Chromium, where this machine has one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=options)
        yield started
        started.close()
