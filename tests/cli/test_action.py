"""The GitHub Action, the workflow that uses it, and the pre-commit hook, each in a fresh repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.cli.tree import OLD, placement, write_json
from tests.support.action import ROOT, commit, copy_of_this, outside, run_action, skip_where_unreachable

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / "configs/workflows/validate-placements.yml").read_text())
BAD = {**OLD, "physical_to_logical_map": [[0, 1, 2, 9, 0, 1], [3, 2, 1, 0, 2, 3]]}
ECHO = """#!/usr/bin/env bash
printf '%s\\0' "${EPLB_FORMAT-}" "$@" >>"$GITHUB_STEP_SUMMARY"
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """This repository as it is now, committed."""
    return copy_of_this(tmp_path_factory.mktemp("eplb"))


@pytest.fixture(scope="session")
def light(checkout):
    """The same with its environment made; skipped where packages cannot be had."""
    done = subprocess.run(
        [checkout / "scripts" / "light", "--version"],
        env={**outside(), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        skip_where_unreachable(done.stderr)
    assert (done.returncode, done.stdout[:5]) == (0, "eplb "), done.stderr
    return checkout


@pytest.fixture
def repository(tmp_path):
    """One that keeps placements, one good and one bad, and something else beside them."""
    home = tmp_path / "repository"
    (home / "placements" / "more").mkdir(parents=True)
    write_json(home / "placements" / "good.json", OLD)
    write_json(home / "placements" / "more" / "bad.json", BAD)
    write_json(home / "placements" / "package.json", {"name": "x"})
    return home


@pytest.fixture
def words(tmp_path, repository):
    """The words that the action gives to eplb, for some inputs: of the last step, behind EPLB_FORMAT."""
    action = tmp_path / "action"
    (action / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "action.yml", action)
    (action / "scripts" / "light").write_text(ECHO)
    (action / "scripts" / "light").chmod(0o755)

    def run(**given: str) -> list[str]:
        ran = run_action(action, repository, {name.replace("_", "-"): each for name, each in given.items()})
        assert ran.code == 0, ran.err
        install, *validate = ran.summary.split("\0")[1:-1]
        assert (install, validate[:2]) == ("--version", ["github", "validate"])
        return validate[2:]

    return run


def test_inputs_become_options(words):
    """Empty ones are left out, and paths stand behind all options."""
    assert words() == ["--", "placements"]
    given = words(
        paths="a.json\nmaps of mine\n",
        model="deepseek-v3",
        engine="sglang",
        against="old.json",
        max_moved_bytes="5GB",
        load="load.npy",
        max_imbalance="1.2",
        select="EP1",
        ignore="EP12",
        strict="true",
        args="--num-ranks\n32\n",
    )
    named = ["--model=deepseek-v3", "--engine=sglang", "--against=old.json", "--max-moved-bytes=5GB"]
    named += ["--load=load.npy", "--max-imbalance=1.2", "--select=EP1", "--ignore=EP12"]
    assert given == [*named, "--strict", "--num-ranks", "32", "--", "a.json", "maps of mine"]


def test_no_input_is_obeyed(words):
    """Neither by the shell nor as another option: each stays one word."""
    hostile = "$(touch gone) `touch gone`; touch gone * \"'"
    assert words(paths=hostile, model=hostile) == [f"--model={hostile}", "--", hostile]
    assert words(paths="--help") == ["--", "--help"]
    assert words(strict="; touch gone") == ["--", "placements"]


def test_every_input_is_used():
    """And what is used is an input."""
    (env,) = [step["env"] for step in ACTION["runs"]["steps"] if "env" in step]
    used = {value for name, value in env.items() if name.startswith("INPUT_")}
    assert used == {f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]}


def test_the_workflow_uses_the_action():
    """It checks out eplb to where it then finds the action, and says only what there is."""
    checked_out, python, validate = WORKFLOW["jobs"]["validate"]["steps"][1:]
    assert validate["uses"] == f"./{checked_out['with']['path']}"
    assert validate["with"].keys() <= ACTION["inputs"].keys()
    assert python["with"]["python-version"] == "3.11"
    assert not any("run" in step for step in WORKFLOW["jobs"]["validate"]["steps"])


def test_the_action(light, repository):
    """Really installed and run: annotations on stdout, all findings in the summary, exit code 1."""
    given = WORKFLOW["jobs"]["validate"]["steps"][-1]["with"]
    ran = run_action(light, repository, given)
    assert ran.code == 1, ran.err
    lines = [line for line in ran.out.splitlines() if line.startswith("::")]
    (line,) = [line for line in lines if line.startswith("::error ")]
    assert line.startswith("::error file=placements/more/bad.json,line=1,col=")
    assert ",title=EP105::layer 3, slot 3: 9 is not an expert" in line
    assert "| error | EP105 | placements/more/bad.json:1 | layer 3, slot 3: 9 is not an expert" in ran.summary
    assert "2 files checked" in ran.summary

    (repository / "placements" / "more" / "bad.json").unlink()
    assert run_action(light, repository, given).code == 0
    assert run_action(light, repository, {"paths": "nowhere"}).code == 3


def test_what_is_installed(light):
    """Neither torch nor scipy; about 100 MB with pip."""
    environment = light / "build" / "light"
    packages = {path.name for path in environment.glob("lib/*/site-packages/*")}
    assert not {"torch", "scipy"} & packages
    assert {"numpy", "typer", "eplb_cli"} <= packages
    nbytes = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
    assert nbytes < 130_000_000


@pytest.mark.parametrize(
    "line",
    [
        "explain EP106",
        "validate good.json --engine vllm --format sarif",
        "plan good.json new.json --expert-bytes 1MB --format json",
        "convert good.json map.json --to vllm",
        "verify --help",
    ],
)
def test_commands_there(light, tmp_path, line):
    """More than the action needs."""
    write_json(tmp_path / "good.json", OLD)
    write_json(tmp_path / "new.json", placement([[1, 0, 3, 2, 0, 1], [3, 2, 1, 0, 2, 3]]))
    command = [light / "scripts" / "light", *line.split()]
    done = subprocess.run(command, cwd=tmp_path, env=outside(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "1 file checked: 1 note\n" if "sarif" in line else "")


def test_pre_commit(light, repository, tmp_path):
    """A commit with a bad placement is refused, with the finding; without it, it passes."""
    pre_commit = shutil.which("pre-commit", path=str(Path(sys.executable).parent))
    if pre_commit is None:
        pytest.skip("pre-commit is not installed")
    hooks = yaml.safe_load((light / ".pre-commit-hooks.yaml").read_text())
    (repository / ".pre-commit-config.yaml").write_text(
        json.dumps({"repos": [{"repo": str(light), "rev": "HEAD", "hooks": [{"id": hooks[0]["id"]}]}]})
    )
    commit(repository)
    home = {"PRE_COMMIT_HOME": str(tmp_path / "pre-commit"), "PYTHON": sys.executable}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [pre_commit, "run", "--all-files"],
            cwd=repository,
            env={**outside(), **home},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = run()
    skip_where_unreachable(refused.stdout)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "error[EP105]: line 1: layer 3, slot 3" in refused.stdout
    write_json(repository / "placements" / "more" / "bad.json", OLD)
    (repository / "placements" / "package.json").unlink()
    passed = run()
    assert passed.returncode == 0, passed.stdout
