"""Options from EPLB_* variables, and how much a command says: -q and -v."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from eplb_cli.cli.app import SUMMARIES, made
from eplb_cli.cli.command import option_name, variable_of
from tests.cli.case import assert_error

NO_OPTIONS = {"DEBUG", "PUSH", "VERIFY", "LIGHT", "REPOSITORY", "REF", "PRESENT"}
"""Variables that mean something else."""
OPTIONS = [(name, option) for name in SUMMARIES for option in made(name).options()]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{at}--{option_name(o)}" for at, o in OPTIONS])
def test_every_option_has_a_variable(name, option):
    """EPLB_ and its first long name in capitals, which nothing else has; and it has a help text."""
    assert option.envvar == variable_of(option) == f"EPLB_{option_name(option).replace('-', '_').upper()}"
    word = option.envvar.removeprefix("EPLB_")
    assert word not in NO_OPTIONS
    assert not word.startswith("TEST_")
    assert option.help.endswith(".")


def plan(case, *options):
    """A plan for the two placements of the case."""
    return case.eplb("plan", case.home / "old.json", case.home / "new.json", *options)


def test_a_variable_is_an_option(case, monkeypatch):
    """A word, a number, a flag; what is empty says nothing, and the command line beats it."""
    for name, value in (("FORMAT", "json"), ("EXPERT_BYTES", "1kB"), ("FULL", "1"), ("NUM_RANKS", "")):
        monkeypatch.setenv(f"EPLB_{name}", value)
    assert plan(case).json["totals"]["remote_bytes"] % 1000 == 0
    assert plan(case, "--format", "text").out.startswith("plan for 2 ranks")


def test_required_options_too(case, monkeypatch):
    """Those that a command cannot do without."""
    monkeypatch.setenv("EPLB_TO", "vllm")
    assert case.eplb("convert", case.home / "old.json", "-").code == 0


@pytest.mark.parametrize("value", ["0", "false", "no", "off"])
def test_a_flag_can_be_off(case, monkeypatch, value):
    """Where a file says that it is on, for one."""
    monkeypatch.setenv("EPLB_DRY_RUN", value)
    case.reshard()
    assert case.dst.exists()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EPLB_DRY_RUN", "maybe", "EPLB_DRY_RUN: 'maybe' is not a valid boolean"),
        ("EPLB_NUM_RANKS", "two", "EPLB_NUM_RANKS: 'two' is not a whole number from 1 on."),
        ("EPLB_SENDERS", "vlm", "'vlm' is not one of 'balanced', 'vllm'. Did you mean vllm?"),
    ],
)
def test_a_value_that_is_none(case, monkeypatch, variable, value, says):
    """EP001 names the variable, which the command line does not show."""
    monkeypatch.setenv(variable, value)
    assert_error(plan(case), "EP001", says, exit_code=2)


def test_a_word_for_other_commands(case, monkeypatch):
    """A variable speaks to all commands: what only some take leaves the others as they are."""
    monkeypatch.setenv("EPLB_FORMAT", "github")
    result = plan(case, "-v")
    assert (result.code, result.out.startswith("plan for 2 ranks")) == (0, True)
    assert "option: --format" not in result.err
    assert plan(case, "--format", "json").json
    (case.home / "old.json").write_text("{}")
    assert case.eplb("validate", case.home / "old.json").out.startswith("::error")
    monkeypatch.setenv("EPLB_FORMAT", "gitub")
    assert_error(plan(case), "EP001", "EPLB_FORMAT: 'gitub' is not one of", exit_code=2)


def test_json_is_json_for_mistakes_too(case, monkeypatch):
    """Whoever has set EPLB_FORMAT=json is a program."""
    monkeypatch.setenv("EPLB_FORMAT", "json")
    assert_error(case.eplb("plan", "a", "b", "--nwe"), "EP001", "No such option: --nwe", exit_code=2)
    assert_error(plan(case, "--from", "no"), "EP001", exit_code=2)


def test_a_saved_job_has_all_options(case, monkeypatch):
    """Also those that a variable or a file says here, since on other hosts there may be neither."""
    monkeypatch.chdir(case.home)
    monkeypatch.setenv("EPLB_FULL", "0")
    monkeypatch.setenv("EPLB_NO_FSYNC", "1")
    monkeypatch.setenv("EPLB_SAVE_JOB", "job.json")
    (case.home / "eplb.toml").write_text("[reshard]\nthreads = 2\n")
    assert case.eplb("reshard", "src", "dst", "--new", "new.json", "--old", "old.json").code == 0
    words = json.loads((case.home / "job.json").read_text())["arguments"]
    said = ["reshard", "src", "dst", "--new", "new.json", "--old", "old.json"]
    assert words == [*said, "--threads", "2", "--no-fsync", "--config", "none"]


def test_a_contradiction_with_what_nobody_sees(case, monkeypatch):
    """The hint says where the other half comes from."""
    monkeypatch.setenv("EPLB_MODEL", "deepseek-v3")
    result = plan(case, "--checkpoint", case.src)
    assert_error(result, "EP001", "leave one out; --model comes from EPLB_MODEL", exit_code=2)
    assert "comes from" not in case.eplb("plan", "a", "b", "--rank-scalars", "max").err


def test_quiet(case):
    """Stdout as ever; on stderr only what is wrong, and engines that would answer nonsense."""
    loud = case.reshard()
    again = case.eplb(*case.arguments("-q", "--no-fsync", dst=case.home / "again"))
    assert (loud.code, again.code) == (0, 0)
    assert "file: " in loud.err
    assert [line.partition(":")[0] for line in again.err.splitlines()] == ["warning"] * 2
    assert "answer nonsense" in again.err
    assert "12 of 12 rows proved" in again.out
    guessed = ("plan", "linear", "linear", "--num-ranks", 2, "--num-logical-experts", 4)
    assert case.eplb(*guessed, "--quiet").err == ""
    assert_error(case.eplb("plan", "nothing.json", "linear", "-q"), "EP101")


def test_quiet_hides_notes_and_warnings(case):
    """A number of experts that is a guess is a warning, and only that."""
    bare = case.home / "bare.json"
    bare.write_text("[[0, 1, 2, 3]]")
    arguments = ("plan", bare, bare, "--num-ranks", 2, "--old-num-ranks", 2)
    assert "warning" in case.eplb(*arguments).err
    assert case.eplb(*arguments, "-q").err == ""


def test_quiet_hides_the_note_about_workers(case):
    """Which is said before anything is read."""
    arguments = ("reshard", case.src, case.dst, "--new", "nothing.json", "--old", "linear")
    assert case.eplb(*arguments).err.startswith("note: ")
    assert case.eplb(*arguments, "-q").err.startswith("error[EP101]")


def test_verbose(case, monkeypatch):
    """Where options came from, what was decided, and the stages: on stderr, and stdout as without."""
    monkeypatch.setenv("EPLB_THREADS", "2")
    monkeypatch.setenv("EPLB_FULL", "0")
    result = case.reshard("-v")
    says = [
        f"option: --new {case.home}/new.json, from the command line",
        "option: --backend file, from the command line",
        "option: --threads 2, from EPLB_THREADS",
        "option: --full off, from EPLB_FULL",
        f"layout: {case.src}: sharded-state",
        f"placement: {case.home}/old.json\ndialect: eplb\n",
        "backend: file, workers: 1 (asked for: file, ",
        "stage: plan, ",
        "transfer: buffers of ",
        "stage: move, ",
        "stage: commit, ",
    ]
    places = [result.err.index(line) for line in says]
    assert all(before < after for before, after in pairwise(places))
    assert "option: --timeout" not in result.err
    assert "rows proved" in result.out
    assert "option:" not in case.eplb("verify", case.dst).err


def test_quiet_and_verbose(case, monkeypatch):
    """Both at once are a contradiction; one of them in a variable gives way."""
    assert_error(plan(case, "-q", "-v"), "EP001", "contradict", exit_code=2)
    monkeypatch.setenv("EPLB_QUIET", "1")
    assert "option: --verbose" in plan(case, "-v").err
    monkeypatch.setenv("EPLB_VERBOSE", "1")
    assert_error(plan(case), "EP001", "contradict", exit_code=2)


def test_verbose_where_workers_are(case):
    """They go on saying nothing, in a process that no test has changed."""
    pytest.importorskip("torch")
    words = [*map(str, case.arguments("--nproc-per-node", 1, "-v", "--no-fsync")), "--backend", "gloo"]
    line = [sys.executable, "-m", "eplb_cli", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("backend: gloo, workers: 1") == 1
