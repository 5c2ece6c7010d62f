"""`eplb reshard` beside an oracle that shares no code with it: random checkpoints and random mistakes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.oracle import truth
from tests.support.oracle.fuzz import WAYS, Tally, case_of, run_case
from tests.support.oracle.judge import WrongError, in_process, judge
from tests.support.scratch import scratch

SEED = 1
NUM_CASES, BATCH = 240, 60


def test_the_oracle_shares_no_code():
    """What says how a tree has to be imports nothing of eplb."""
    imported = [
        name
        for node in ast.walk(ast.parse(Path(truth.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    ]
    assert not [name for name in imported if name.startswith(("eplb_cli", "tests"))]


@pytest.mark.parametrize("batch", range(NUM_CASES // BATCH))
def test_trees_and_refusals_are_what_the_oracle_says(batch, watchdog, count):
    """Exit 0 and every byte of DST, or the code of the one thing that is wrong: nothing else."""
    tally, failures = Tally(), []
    with scratch() as path:
        home = path / "case"
        home.mkdir()
        for number in range(batch * BATCH, (batch + 1) * BATCH):
            watchdog()
            if failure := run_case(SEED, number, home, path, tally):
                repeat = f"scripts/bench faults --oracle 1 --seed {SEED} --first {number}"
                failures.append(f"{failure.message}\n{repeat}")
    count("of the oracle, to be refused", tally.kinds["refused"].total())
    count("of the oracle", tally.cases)
    assert not failures, "\n\n".join(failures)


def test_a_wrong_byte_is_seen(tmp_path):
    """One bit of one tensor of DST is another, or one of SRC: the judge says so."""
    number = next(at for at in range(100) if not case_of(SEED, at).refusal)
    for name in ("src", "dst0"):
        home = tmp_path / f"home-{name}"
        home.mkdir()

        def run(arguments, home=home, name=name):
            ended = in_process(arguments)
            file = max((home / name).glob("*.safetensors"), key=lambda path: path.stat().st_size)
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
            return ended

        with pytest.raises(WrongError, match="step 0"):
            judge(case_of(SEED, number), home, ["--backend", "file"], run)


def test_there_are_many_ways_to_go_wrong():
    """Each of them has a sentence, and none stands there twice."""
    assert len({way.__doc__ for way in WAYS}) == len(WAYS) > 25
