"""Mistakes on the command line: exit code 2, and what was probably meant."""

from __future__ import annotations

import re

import pytest

from eplb_cli import __version__
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.cli.app import app
from eplb_cli.huggingface.engines import engine_names
from eplb_cli.placements.dialects.registry import NAMES
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint
from tests.support.huggingface import qwen3_moe, write_checkpoint

COMMANDS = [str(command.name) for command in app.registered_commands]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reshard", "a", "b", "--nwe", "x"], "--new"),
        (["reshard", "--new", "x"], "Missing argument 'SRC'"),
        (["reshard", "a", "b", "c", "--new", "x"], "unexpected extra argument"),
        (["reshard", "a", "b", "--new"], "requires an argument"),
        (["reshard", "a", "b", "--new", "x", "--backend", "mpi"], "mpi"),
        (["reshard", "a", "b", "--new", "x", "--timeout", "0"], "0"),
        (["reshard", "a", "b", "--new", "x", "--nproc-per-node", "0"], "0"),
        (["reshard", "a", "b", "--new", "x", "--num-ranks", "-1"], "-1"),
        (["plan", "a", "b", "--format", "yaml"], "yaml"),
        (["plan", "a"], "Missing argument 'NEW'"),
        (["validate"], "Missing argument"),
        (["reshrad"], "reshard"),
        (["verify", "--quick", "a"], "--quick"),
    ],
)
def test_a_mistake(eplb, arguments, says):
    """The message names the option; stdout stays empty."""
    result = eplb(*arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert "Error: " in result.err


@pytest.mark.parametrize(
    "size", ["", "0", "-1", "x", "1.5.2", "10TiB", "1e9", "0.4", "12 parsecs", "9" * 15 + "G"]
)
def test_a_size_that_is_none(case, size):
    """EP001 shows what sizes look like, before anything is read."""
    case.refuse("EP001", "256MiB", exit_code=2, options=("--buffer-size", size))
    result = case.eplb("plan", "a", "b", "--expert-bytes", size)
    assert result.code == 2


@pytest.mark.parametrize("size", ["65536", "1k", "1KiB", "1.5 MB", "1gb", "1024GiB", "2M"])
def test_sizes(case, size):
    """Decimal and binary units, in any case."""
    sides = (case.home / "old.json", case.home / "new.json")
    assert case.eplb("plan", *sides, "--expert-bytes", size).code == 0


@pytest.mark.parametrize("size", ["1048576", "1 MiB", "1.5 MB", "1024GiB"])
def test_sizes_of_buffers(case, size):
    """From 1 MiB on."""
    case.reshard("--buffer-size", size)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--buffer-size", "1"], "the least is 1,048,576 (1MiB)"),
        (["--buffer-size", "1023KiB"], "the least is 1,048,576 (1MiB)"),
        (["--threads", "0"], "0"),
        (["--threads", "1000000000"], "1000000000"),
        (["--nproc-per-node", "0"], "0"),
        (["--nproc-per-node", "1000000"], "--nproc-per-node is 1,000,000, not from 1 to 1,024"),
        (["--backend", "gloo", "--nproc-per-node", "9"], "--nproc-per-node is 9, for 2 ranks"),
        (["--timeout", "0"], "0"),
        (["--timeout", "-1"], "-1"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--timeout", "inf"], "--timeout is inf"),
        (["--timeout", "1e999"], "--timeout is inf"),
        (["--ranks-per-node", "0"], "0"),
        (["--ranks-per-node", "-2"], "-2"),
        (["--ranks-per-node", "1000000000000"], "1000000000000"),
        (["--num-ranks", "0"], "0"),
        (["--old-num-ranks", "0"], "0"),
        (["--num-logical-experts", "0"], "0"),
        (["--num-redundant-experts", "-1"], "-1"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_numbers_that_no_run_can_have(case, options, says, dry):
    """Exit code 2 and the range, before anything is written, in a dry run too."""
    defaults = [] if "--backend" in options else ["--backend", "file"]
    before = fingerprint(case.home)
    words = [word for word in case.arguments() if word not in {"--backend", "file"}]
    result = case.eplb(*words, *defaults, *options, *(["--dry-run"] if dry else []))
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert fingerprint(case.home) == before


@pytest.mark.parametrize(
    "option",
    [
        *([["--bandwidth", f"disk={rate}"] for rate in ("0", "-1", "nan", "inf", "0.5", "9" * 16)]),
        *([["--expert-bytes", size] for size in ("-1", "0", "nan", "2000GiB", "9" * 30)]),
        ["--ranks-per-node", "0"],
        ["--num-ranks", "0"],
    ],
)
def test_numbers_that_no_plan_can_have(case, option):
    """The same for `plan`."""
    result = case.eplb("plan", case.home / "old.json", case.home / "new.json", *option)
    assert (result.code, result.out) == (2, "")


def test_more_ranks_than_anybody_has(case):
    """Refused for a file and for a named map, however large the number is."""
    for number in (10**7, 10**12, 10**30):
        options = ("--num-ranks", number)
        case.refuse("EP108", options=options)
        case.refuse("EP114", options=options, new="linear")


def test_options_that_exclude_each_other(case):
    """EP001: two answers to one question."""
    case.refuse("EP001", "--backend file", exit_code=2, options=("--nproc-per-node", 2))
    result = case.eplb("plan", "a", "b", "--checkpoint", "c", "--expert-bytes", "5")
    assert result.code == 2
    assert "error[EP001]" in result.err


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_nccl_without_a_device(case, monkeypatch, visible):
    """EP001 before a worker is started; with one device there is no place for two workers."""
    pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options = ("--dry-run", "--backend", "nccl")
    result = case.eplb(*case.arguments(*options))
    assert result.code == 2
    assert "0 are visible" in result.err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert case.eplb(*case.arguments(*options)).code == 0
    assert case.eplb(*case.arguments(*options, "--nproc-per-node", 2)).code == 2


def test_no_command(eplb):
    """A mistake in the usage, and stderr has the help: what there is, in the order of the application."""
    result = eplb()
    assert (result.code, result.out) == (2, "")
    assert result.err == eplb("--help").out
    listed = re.findall(r"^  ([a-z]+) +[A-Z]", result.err.partition("Commands:")[2], re.MULTILINE)
    assert listed == COMMANDS


def test_the_version(eplb):
    """On stdout, alone."""
    assert eplb("--version").out == f"eplb {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command(eplb, command):
    """It names every option with what it does, in 80 columns."""
    result = eplb(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out == eplb(command, "-h").out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "--format" in result.out


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "a", "b", "--to", "eplb", "--from"],
        ["convert", "a", "b", "--to"],
        ["plan", "a", "b", "--old-from"],
        ["bake", "a", "b", "--placement", "c", "--from"],
    ],
)
def test_a_dialect_that_is_none(eplb, command):
    """The option is named, and what it takes is listed as the help has it."""
    result = eplb(*command, "sglan")
    assert (result.code, result.out) == (2, "")
    listed = ", ".join(map(repr, NAMES))
    assert f"Invalid value for '{command[-1]}': 'sglan' is not one of {listed}." in result.err
    assert f"{command[-1]} <{'|'.join(NAMES)}>" in eplb(command[0], "--help").out


@pytest.mark.parametrize(
    ("option", "word", "says"),
    [
        ("--num-ranks", "sixteen", "'sixteen' is not a whole number from 1 on."),
        ("--num-ranks", "1.5", "'1.5' is not a whole number from 1 on."),
        ("--ranks-per-node", "0", "'0' is not a whole number from 1 to 1,000,000."),
        ("--num-redundant-experts", "-1", "'-1' is not a whole number from 0 on."),
        ("--timeout", "soon", "'soon' is not a number of seconds from 1 on."),
    ],
)
def test_a_number_that_is_none(eplb, option, word, says):
    """Said as a person says it."""
    result = eplb("reshard", "a", "b", "--new", "c", option, word)
    assert (result.code, result.out) == (2, "")
    assert f"Invalid value for '{option}'" in result.err
    assert result.err.endswith(f": {says}\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["plan", "liner", "linear", "--num-ranks", "2", "--num-logical-experts", "4"], "linear"),
        (["plan", "linear", "round-robin", "--num-ranks", "2", "--num-logical-experts", "4"], "round_robin"),
        (["validate", "Trivial"], "trivial"),
        (["plan", "linear", "linear", "--num-ranks", "2", "--model", "olmoe-1b-7"], "olmoe-1b-7b"),
        (["inspect", "{src}", "--layout", "per-rows"], "per-row"),
        (["inspect", "{src}", "--layout", "Auto"], "auto"),
        (["convert", "a", "b", "--to", "sglan"], "sglang"),
    ],
)
def test_what_was_probably_meant(case, arguments, meant):
    """For maps, presets, layouts and dialects; nothing is guessed for a word that is like none."""
    result = case.eplb(*(word.format(src=case.src) for word in arguments))
    assert result.code in {2, 3}
    assert f"id you mean {meant}?" in result.err
    assert "you mean" not in case.eplb("plan", "nothing.json", "linear").err


def test_an_engine_that_was_probably_meant(eplb, tmp_path):
    """In a Hugging Face checkpoint, which is read first."""
    write_checkpoint(tmp_path / "hf", qwen3_moe(), "qwen3_moe")
    options = ("--placement", "linear", "--num-ranks", 2, "--engine", "vlm")
    result = eplb("shard", tmp_path / "hf", tmp_path / "dst", *options)
    assert_error(result, "EP224", "did you mean vllm? engines: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_on_a_narrow_terminal(eplb, monkeypatch, command):
    """In 60 columns all is there but for the ends of long examples; and nothing is in colour."""
    monkeypatch.setenv("COLUMNS", "60")
    page, _, examples = eplb(command, "--help").out.rpartition("\n\n")
    long = [line for line in page.splitlines() if len(line) > 60]
    assert [line for line in long if not re.fullmatch(r"  -[-\w, ]+ <[\w|-]+>", line)] == []
    assert examples.startswith("  Example")
    assert "\x1b" not in page


def test_the_help_uses_the_width(eplb, monkeypatch):
    """Of a wide terminal, but no more of it than can be read."""
    for columns, least, most in (("120", 100, 120), ("400", 130, 160)):
        monkeypatch.setenv("COLUMNS", columns)
        page = eplb("plan", "-h").out
        assert page == eplb("plan", "--help").out
        assert least < max(map(len, page.splitlines())) <= most


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_says_what_is_wanted(eplb, command):
    """No single letters, and no riddles."""
    page = " ".join(eplb(command, "--help").out.split())
    assert not re.findall(r"--[a-z-]+ [A-Z] ", page)
    for riddle in ("is not to say it", "where it does not say", "where nothing says"):
        assert riddle not in page


def test_layouts_and_engines_are_listed(eplb):
    """Whatever there is, in the help of the option."""
    for command, names in (("inspect", LAYOUTS.names), ("shard", engine_names())):
        said = re.sub(r"\s+", " ", eplb(command, "--help").out)
        assert f": {', '.join(names)}" in said


def test_the_help_is_whole(eplb):
    """No summary is cut short, and the exit codes are there."""
    result = eplb("--help")
    assert "..." not in result.out.replace("[ARGS]...", "")
    assert "5 bytes differ" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
