"""Hosts that cannot be one run say so before the first byte, all of them alike."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import eplb_cli
from eplb_cli.placements.own_format import format_placement
from tests.support.spread import placed

pytestmark = pytest.mark.distributed


def refused(case, processes):
    """What hosts said that refused, each with the same exit code as the others; nothing is written."""
    ended = [process.wait() for process in processes]
    for machine, end in zip(case.machines, ended, strict=True):
        assert end.code, ended
        assert end.err.count("error[EP") == 1, ended
        assert "Traceback" not in end.err, ended
        assert end.out == ""
        assert not case.staging(machine).exists()
    case.require_nothing()
    return [end.err for end in ended]


def test_another_new(spread):
    """EP302 names both hosts."""
    case = spread([[0, 1], [2, 3]])
    (case.machines[1].path / "new.json").write_text(format_placement(placed(4, 3)))
    for said in refused(case, case.start()):
        assert "error[EP302]" in said
        assert all(words in said for words in ("host 0 (node-a)", "host 1 (node-b)", "NEW"))


def test_other_options(spread):
    """EP302 names the option."""
    case = spread([[0, 1], [2, 3]])
    words = [case.words(node, *options) for node, options in enumerate([(), ("--senders", "vllm")])]
    started = [machine.fork(said) for machine, said in zip(case.machines, words, strict=True)]
    for said in refused(case, started):
        assert "error[EP302]" in said
        assert "--senders" in said


def test_another_version(spread):
    """EP404 names both; these are commands as people start them."""
    case = spread([[0, 1], [2, 3]])
    other = case.machines[1].path / "other"
    shutil.copytree(
        Path(eplb_cli.__file__).parent, other / "eplb_cli", ignore=shutil.ignore_patterns("__pycache__")
    )
    module = other / "eplb_cli" / "__init__.py"
    told = module.read_text()
    assert f'"{eplb_cli.__version__}"' in told
    module.write_text(told.replace(f'"{eplb_cli.__version__}"', '"9.9.9"'))
    roots = [str(Path(eplb_cli.__file__).parents[1]), str(case.machines[1].home / "other")]
    started = [
        machine.popen(
            [sys.executable, "-P", "-m", "eplb_cli", *case.words(node)], env={"PYTHONPATH": roots[node]}
        )
        for node, machine in enumerate(case.machines)
    ]
    for said in refused(case, started):
        assert "error[EP404]" in said
        assert all(
            words in said for words in (f"node-a) has {eplb_cli.__version__}", "node-b) has eplb 9.9.9")
        )


def test_a_number_that_two_hosts_have(spread):
    """EP001 names both."""
    case = spread([[0, 1], [2], [3]])
    started = [machine.fork(case.words(min(node, 1))) for node, machine in enumerate(case.machines)]
    for said in refused(case, started):
        assert "error[EP001]" in said
        assert all(words in said for words in ("node-b", "node-c", "--node-rank 1"))


def test_a_number_that_is_none_and_a_host_that_does_not_come(spread):
    """Who is wrong knows at once, and the others after --timeout."""
    case = spread([[0, 1], [2, 3]])
    started = [
        machine.fork(case.words(2 * node, "--timeout", 3)) for node, machine in enumerate(case.machines)
    ]
    waited, wrong = refused(case, started)
    assert "error[EP001]: --node-rank is 2" in wrong
    assert "error[EP407]: host 1 of 2 did not join within 3 s" in waited


def test_nobody_is_at_the_address(spread):
    """EP407 says where it was looked."""
    case = spread([[0, 1], [2, 3]])
    case.machines[0].cut()
    words = case.words(1, "--timeout", 3)
    ended = case.machines[1].fork(words).wait()
    assert ended.code == 4
    assert "error[EP407]: nobody answers at 10.77.0.1:29400 for 3 s" in ended.err
    case.require_nothing()
