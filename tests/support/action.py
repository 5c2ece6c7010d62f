"""A composite action as GitHub runs it, and a checkout of this repository as it is now."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
BASH = ("bash", "--noprofile", "--norc", "-e", "-o", "pipefail")
"""`shell: bash` (docs.github.com: "Workflow syntax", jobs.<job_id>.steps[*].shell)."""

_IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
_UNREACHABLE = re.compile(
    r"No matching distribution|Could not find a version|onnection|name resolution|timed out"
)


@dataclass(frozen=True)
class Ran:
    """What the steps of an action came to: the exit code of the last one that ran."""

    code: int
    out: str
    err: str
    summary: str


def git(home: Path, *words: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *_IDENTITY, *words], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(home: Path) -> None:
    """A repository of all that is in a directory."""
    git(home, "init", "-q")
    git(home, "add", "-A")
    git(home, "commit", "-q", "-m", "all")


def copy_of_this(home: Path) -> Path:
    """A repository with the files of this one as they are now, without those of tests; skips without git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git, and a checkout")
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, home / name)
    commit(home)
    return home


def outside() -> dict[str, str]:
    """The environment of a process that knows nothing of this checkout, nor of its options."""
    left_out = ("EPLB_", "GITHUB_", "PYTHON", "INPUT_")
    return {key: value for key, value in os.environ.items() if not key.startswith(left_out)}


def skip_where_unreachable(said: str) -> None:
    """Skip where packages cannot be had; whatever else went wrong is no reason."""
    if _UNREACHABLE.search(said):
        pytest.skip(f"the package index cannot be reached: {said.strip().splitlines()[-1][:200]}")


def run_action(action: Path, workspace: Path, given: Mapping[str, str]) -> Ran:
    """Run the steps of the action in a directory, one after the other, until one fails."""
    content = yaml.safe_load((action / "action.yml").read_text())
    assert content["runs"]["using"] == "composite"
    assert given.keys() <= content["inputs"].keys()
    inputs = {name: str(given.get(name, said["default"])) for name, said in content["inputs"].items()}
    summary = workspace.parent / f"summary-{workspace.name}"
    summary.write_text("")
    github = {"GITHUB_ACTION_PATH": str(action), "GITHUB_STEP_SUMMARY": str(summary)}
    out, err, code = "", "", 0
    for step in content["runs"]["steps"]:
        done = _run_step(step, workspace, inputs, github)
        out, err, code = out + done.stdout, err + done.stderr, done.returncode
        if code:
            break
    return Ran(code, out, err, summary.read_text())


def _run_step(
    step: Mapping[str, Any], workspace: Path, inputs: Mapping[str, str], github: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    assert step["shell"] == "bash"
    assert "${{" not in step["run"], "an input would become part of the script"

    def filled(value: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: inputs[match[1]], value)

    said = {name: filled(str(value)) for name, value in step.get("env", {}).items()}
    script = workspace.parent / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        [*BASH, str(script)],
        cwd=workspace,
        env={**outside(), **github, **said},
        capture_output=True,
        text=True,
        check=False,
    )
