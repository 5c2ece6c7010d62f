"""Disks that do not answer: the command ends all the same, says so, and keeps what was done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import ExpertTensor, Model, write_tree
from tests.support.faults import Fault, path_of
from tests.support.forked import LAUNCHER, run_forked
from tests.support.mounts import ext4, system
from tests.support.placements import placement
from tests.support.runs import SLOW_WRITES, command, contents, run, start, wait_until
from tests.support.scratch import scratch
from tests.support.small import SmallCase, small_case

GLOO = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 64)
FILE = ("--backend", "file")


@pytest.fixture
def case(monkeypatch):
    """A small checkpoint, in memory, of which even small tensors are worth a file that ranks share."""
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
    with scratch() as path:
        (path / "said").mkdir()
        (path / "work").mkdir()
        yield small_case(path / "work")


class Stuck(Fault):
    """Lets no call of a kind come back, on paths that have a word in them."""

    def __init__(self, operation: str, word: str) -> None:
        super().__init__(-1, "EIO")
        self._operation, self._word = operation, word

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        if operation == self._operation and self._word in path_of(call, args[0]):
            time.sleep(3600)
        return call(*args)


STUCK = [
    ("read", "src/model-rank-1"),
    ("write", "eplb-staging/model-rank-1"),
    ("write", "eplb-staging/eplb.json"),
    ("sync", "eplb-staging"),
    ("rename", "eplb-staging"),
]


@pytest.mark.parametrize(("operation", "word"), STUCK)
@pytest.mark.parametrize("options", [FILE, GLOO], ids=["file", "gloo"])
def test_a_call_of_the_command_that_never_comes_back(case: SmallCase, options, operation, word):
    """EP403 and exit 4, whatever the call and the stage; SRC is as it was, and a resume completes it."""
    said = case.home.parent / "said"
    ended = run_forked(said, case.command(*options, "--timeout", 2), {LAUNCHER: Stuck(operation, word)})
    if ended.code == 0:  # with workers, the command itself makes no such call
        assert options == GLOO
        assert contents(case.destination) == case.result
        return
    assert ended.code == 4, ended
    assert "error[EP403]: no progress for 2 s" in ended.err
    assert "--resume goes on" in ended.err
    assert "Traceback" not in ended.err
    assert contents(case.source) == case.source_contents
    assert not case.destination.exists()
    again = run_forked(said, case.command(*FILE, "--resume"), {})
    assert again.code == 0, again
    assert contents(case.destination) == case.result


def test_work_without_calls_is_no_standstill(case: SmallCase):
    """A command that computes longer than --timeout between two calls goes on."""
    said = case.home.parent / "said"
    ended = run_forked(said, case.command(*FILE, "--timeout", 1), {LAUNCHER: Thoughtful()})
    assert ended.code == 0, ended
    assert contents(case.destination) == case.result


class Thoughtful(Fault):
    """Computes before the manifest is written: the call has begun only when that is over."""

    def __init__(self) -> None:
        super().__init__(-1, "EIO")

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        from eplb_cli.output import commit
        from eplb_cli.run import reshard

        if operation == "open" and not hasattr(self, "_before"):
            self._before = commit.write_manifest

            def slow(*given: Any, **named: Any) -> None:
                time.sleep(2.5)
                self._before(*given, **named)

            reshard.__dict__["write_manifest"] = slow
        return call(*args)


def test_the_judge_ends_as_the_command_does(case: SmallCase):
    """A signal to what the shell started reaches the command, and its death is the death of that."""
    started, child = with_child(case)
    os.kill(child, signal.SIGKILL)
    started.communicate()
    assert started.returncode == -signal.SIGKILL
    started, child = with_child(case)
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate()
    assert (started.returncode, out) == (130, ""), err
    assert not Path(f"/proc/{child}").exists()
    started, child = with_child(case)
    started.kill()
    started.communicate()
    wait_until(lambda: not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize("is_one", [True, False], ids=["one pipe", "two pipes"])
def test_what_is_captured_is_all_that_was_said(case: SmallCase, is_one: bool):
    """In the order in which it was said, where stdout and stderr are one pipe."""
    ended = subprocess.run(
        command(*case.command(*FILE)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if is_one else subprocess.PIPE,
        text=True,
        check=True,
    )
    assert "proved against SRC" in ended.stdout
    said = ended.stdout if is_one else ended.stderr
    assert "file: " in said.splitlines()[0]


def with_child(case: SmallCase) -> tuple[subprocess.Popen[str], int]:
    """A command that has just become a judge, and its child."""
    started = start(*case.command(*FILE))
    wait_until(lambda: children(started.pid), started)
    (child,) = children(started.pid)
    return started, child


def children(pid: int) -> list[int]:
    """The processes whose parent this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(process.name))
        except OSError:
            continue
    return found


OLD = placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, -1]], 2, 4, [3, 4])
NEW = placement([[3, 0, 0, 1, 2, 2], [0, 1, -1, 3, 3, 2]], 2, 4, [3, 4])
LARGE = Model(
    "stacked",
    "model.layers.{layer}.mlp.experts.",
    {
        layer: (ExpertTensor("w13_weight", "BF16", (1024, 512)), ExpertTensor("w2_weight", "BF16", (2, 1)))
        for layer in (3, 4)
    },
    (),
    source_ranks=2,
)


@contextmanager
def frozen(path: Path) -> Iterator[None]:
    """A file system on which every write waits."""
    system("fsfreeze", "--freeze", path)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path], check=True)


@pytest.mark.parametrize("options", [FILE, (*GLOO[:4], "--buffer-size", "1MiB")], ids=["file", "gloo"])
def test_a_frozen_file_system(tmp_path: Path, options):
    """EP403 while it is frozen, though no thread that waits for it can be killed; a resume completes it."""
    from eplb_cli.placements.own_format import format_placement

    source = tmp_path / "src"
    source.mkdir()
    write_tree(source, LARGE, OLD)
    for name, side in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.json").write_text(format_placement(side))
    with ext4(tmp_path / "disk", 64 << 20) as disk:
        staging = disk / ".dst.eplb-staging"
        arguments = ["reshard", source, disk / "dst", "--old", tmp_path / "old.json"]
        arguments += ["--new", tmp_path / "new.json", *options]
        started = start(*arguments, "--timeout", 2, module=SLOW_WRITES)
        wait_until(lambda: any(staging.glob("*.safetensors")), started)
        with frozen(disk):
            out, err = started.communicate(timeout=60)  # pipes too: whoever captures them goes on
            assert (started.returncode, out) == (4, ""), err
            assert "error[EP403]: no progress for 2 s" in err
            assert "--resume goes on" in err
            assert staging.exists()
        done: list[subprocess.CompletedProcess[str]] = []

        def completed() -> bool:
            """Whether a resume has ended, other than because the killed run is not gone yet."""
            done[:] = [run(*arguments, "--resume")]
            return "error[EP605]" not in done[0].stderr

        wait_until(completed)
        assert done[0].returncode == 0, done[0].stderr
        assert run("verify", disk / "dst", "--against", source).returncode == 0
        assert json.loads((disk / "dst" / "eplb.json").read_text())["options"]["verified"] is True
