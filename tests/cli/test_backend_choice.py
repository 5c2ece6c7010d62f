"""What chooses the backend, and what is said of it before the work."""

from __future__ import annotations

import pytest

from eplb_cli.run import preparing
from tests.cli.case import assert_error
from tests.cli.tree import NEW, read_tree, stacked

NOTE = (
    "note: one process can open SRC and DST here: `--backend file`, or EPLB_BACKEND=file, does the same "
    "without starting workers\n"
)


def arguments(case, *options):
    """A run that does not say its backend."""
    words = case.arguments()
    return [*words[: words.index("--backend")], *options]


def test_auto_is_torchrun_and_says_first_what_would_do(case):
    """The first line of stderr; there is nothing of it after the work, on the page or elsewhere."""
    pytest.importorskip("torch")
    result = case.eplb(*arguments(case, "--nproc-per-node", 1))
    assert result.code == 0, result.err
    assert result.err.startswith(NOTE)
    assert result.out.startswith(
        tuple(f"resharded 2 ranks with {name}, 1 worker" for name in ("gloo", "nccl"))
    )
    assert "backend file" not in result.out
    assert result.err.count("backend file") == 1
    assert list(read_tree(case.dst).values()) == stacked(NEW)


def test_it_is_said_before_anything_is_read(case):
    """Also where the inputs turn out not to be usable, and for `--backend auto` in so many words."""
    pytest.importorskip("torch")
    (case.home / "new.json").unlink()
    for options in ([], ["--backend", "auto"]):
        result = case.eplb(*arguments(case, *options))
        assert result.err.startswith(f"{NOTE}error[EP101]"), result.err


def test_of_several_hosts_it_is_not_said(case):
    """One process sees what one host has."""
    pytest.importorskip("torch")
    (case.home / "new.json").unlink()
    hosts = ("--nnodes", 2, "--node-rank", 1, "--rdzv-endpoint", "127.0.0.1:1", "--timeout", 1)
    assert "one process can" not in case.eplb(*arguments(case, *hosts)).err


@pytest.mark.parametrize(
    ("option", "variable"),
    [("file", None), ("gloo", None), (None, "file"), (None, "gloo"), ("gloo", "file"), ("file", "mpi")],
)
def test_whoever_chose_is_told_nothing(case, monkeypatch, option, variable):
    """Neither with the option nor with the variable."""
    if variable:
        monkeypatch.setenv("EPLB_BACKEND", variable)
    (case.home / "new.json").unlink()
    result = case.eplb(*arguments(case, *(["--backend", option] if option else [])))
    assert_error(result, "EP101")
    assert result.err.startswith("error[EP101]")


@pytest.mark.parametrize(
    ("option", "variable", "chosen"),
    [
        ([], "file", "file"),
        ([], "gloo", "gloo"),
        ([], "", "auto"),
        ([], "auto", "auto"),
        (["--backend", "gloo"], "file", "gloo"),
        (["--backend", "auto"], "file", "auto"),
        (["--backend", "file"], "mpi", "file"),
    ],
)
def test_the_variable_chooses_and_the_option_beats_it(case, monkeypatch, option, variable, chosen):
    """EPLB_BACKEND is for who cannot change the command line; empty it says nothing."""
    pytest.importorskip("torch")
    asked, choose = [], preparing.choose_backend

    def spied(request, num_ranks):
        asked.append(request.backend)
        return choose(request, num_ranks)

    monkeypatch.setattr(preparing, "choose_backend", spied)
    monkeypatch.setenv("EPLB_BACKEND", variable)
    assert case.eplb(*arguments(case, "--dry-run", *option)).code == 0
    assert asked == [chosen]


def test_the_variable_runs(case, monkeypatch):
    """No worker is started."""
    monkeypatch.setenv("EPLB_BACKEND", "file")
    result = case.eplb(*arguments(case))
    assert (result.code, "with file, 1 worker" in result.out) == (0, True)


@pytest.mark.parametrize("word", ["mpi", "File", " file", "x" * 500])
def test_a_word_that_is_no_backend(case, monkeypatch, word):
    """EP001 names the variable, and what there is."""
    monkeypatch.setenv("EPLB_BACKEND", word)
    for options in ([], ["--dry-run"]):
        result = case.eplb(*arguments(case, *options))
        says = (f"EPLB_BACKEND: {word[:80]!r}", "is not one of 'auto', 'nccl', 'gloo', 'file'.")
        assert_error(result, "EP001", *says, exit_code=2)
        assert len(result.err) < 300
    assert not case.dst.exists()


def test_workers_for_a_backend_that_has_none(case, monkeypatch):
    """The hint thinks of the variable, which the command line does not show."""
    monkeypatch.setenv("EPLB_BACKEND", "file")
    result = case.eplb(*arguments(case, "--nproc-per-node", 2))
    assert_error(result, "EP001", "has one process", "--backend comes from EPLB_BACKEND", exit_code=2)
