"""What is installed, by which words, and what they leave out."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIGHT = "configs/requirements-light.txt"
INSTALL_LIGHT = f"pip install -r {LIGHT} && pip install --no-deps ."
FOLDERS = ("eplb_cli", "docs", "configs")


def test_the_light_install_lacks_torch_and_nothing_else():
    """The same bounds as in pyproject.toml, in the same order."""
    lines = (ROOT / LIGHT).read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    wanted = [line for line in PROJECT["dependencies"] if not line.startswith("torch>=")]
    assert (listed, len(PROJECT["dependencies"]) - len(listed)) == (wanted, 1)


def test_the_light_install_is_one_command():
    """The same in the file itself and in the README."""
    for name in (LIGHT, "README.md"):
        assert INSTALL_LIGHT in (ROOT / name).read_text(), name


def test_the_action_makes_the_light_install():
    """From that file and no list of its own; scipy alone is left out, and pip is held to what CI has."""
    script = (ROOT / "scripts/light").read_text()
    for line in (
        f"grep -v '^scipy' \"$here/{LIGHT}\"",
        '--constraint "$here/constraints.txt" -r "$environment/requirements.txt"',
        'pip install -qq --no-compile --no-deps "$here"',
    ):
        assert line in script


def test_nobody_is_sent_to_an_index():
    """As long as the name is on none, what is installed is a directory, `.`, or a package of others."""
    paths = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
    texts = {path: path.read_text() for path in paths if path.is_file() and path.suffix != ".pyc"}
    assert len(texts) > 200
    for path, text in texts.items():
        assert not re.search(r"pip install [^`\n]*(?<![./])\beplb\b", text), path


def test_every_python_that_is_named_is_allowed():
    """From the oldest that pyproject.toml requires on, without a gap; and no address that is not there."""
    prefix = "Programming Language :: Python :: 3."
    named = [int(line.removeprefix(prefix)) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    oldest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert named
    assert named == list(range(oldest, oldest + len(named)))
    assert "urls" not in PROJECT


@pytest.mark.parametrize("word", ["--help", "0", "a[$(touch x)]"])
def test_nightly_takes_a_share_and_nothing_else(tmp_path, word):
    """It works for hours, so that a word which is no share begins nothing; there is nothing here to begin."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/nightly", tmp_path / ".ci")
    done = subprocess.run([tmp_path / ".ci/nightly", word], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: [SEED=N] .ci/nightly [PERCENT]\n")
