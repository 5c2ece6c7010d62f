"""Mistakes on the command line: exit code 2, and what was probably meant."""

from __future__ import annotations

import pytest

from eplb_cli import __version__

COMMANDS = ("reshard", "plan", "validate", "verify", "inspect")


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
    case.reshard("--buffer-size", size)


def test_options_that_exclude_each_other(case):
    """EP001: two answers to one question."""
    case.refuse("EP001", "--backend file", exit_code=2, options=("--nproc-per-node", 2))
    result = case.eplb("plan", "a", "b", "--checkpoint", "c", "--expert-bytes", "5")
    assert result.code == 2
    assert "error[EP001]" in result.err


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_nccl_without_a_device(case, monkeypatch, visible):
    """EP001 before a worker is started; with one device there is no place for two workers."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options = ("--dry-run", "--backend", "nccl")
    result = case.eplb(*case.arguments(*options))
    assert result.code == 2
    assert "0 are visible" in result.err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert case.eplb(*case.arguments(*options)).code == 0
    assert case.eplb(*case.arguments(*options, "--nproc-per-node", 2)).code == 2


def test_no_command(eplb):
    """The help says what there is."""
    result = eplb()
    assert result.code in (0, 2)
    assert all(command in result.out + result.err for command in COMMANDS)


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


def test_the_help_is_whole(eplb):
    """No summary is cut short, and the exit codes are there."""
    result = eplb("--help")
    assert "..." not in result.out.replace("[ARGS]...", "")
    assert "5 bytes differ" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
