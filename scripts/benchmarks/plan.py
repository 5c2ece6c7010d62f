"""`scripts/bench plan`: planning of DeepSeek-V3's size, of live tensors, and of up to 10,240 ranks."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.plan import plan_reshard
from scripts.benchmarks.machine import heading
from scripts.benchmarks.scale import NUM_LAYERS, SLOTS_PER_RANK, measure, render_sizes
from scripts.benchmarks.table import Line, render
from scripts.benchmarks.timing import EPLB, PYTHON, Sample, interleave, run
from scripts.benchmarks.trees import SEED, random_placement, write_placement

NUM_EXPERTS = 256
PLAN = "eplb plan --format json"
PLAN_S = 0.35
"""The most that a whole command may take, on two cores of the machine in docs/performance.md."""

IMPORTS = "python -c 'import typer, numpy'"


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    options = _parse(arguments)
    old, new = (
        random_placement(options.layers, NUM_EXPERTS, options.slots - NUM_EXPERTS, options.ranks, seed)
        for seed in (SEED, SEED + 1)
    )
    with tempfile.TemporaryDirectory() as scratch:
        print(heading("plan", arguments, Path(scratch)))
        print(
            f"plan:     {options.layers} layers, {options.slots} slots, {options.ranks} ranks\n", flush=True
        )
        lines = [*_in_process(old, new, options.runs), *_commands(old, new, Path(scratch), options.runs)]
        print(render(lines))
        if options.live_runs:
            from scripts.benchmarks import live_plan  # needs torch, as nothing else here

            print("\nplan:     live tensors of a rank of two, before the first chunk\n", flush=True)
            print(render(live_plan.lines(options.live_runs)))
        if options.scale_runs:
            print(f"\nplan:     {NUM_LAYERS} layers, {SLOTS_PER_RANK} slots a rank\n", flush=True)
            print(render_sizes(measure(Path(scratch), options.scale_runs)))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench plan", description=__doc__)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--slots", type=int, default=288, help=f"{NUM_EXPERTS} experts and redundant ones")
    parser.add_argument("--ranks", type=int, default=32)
    parser.add_argument("--runs", type=int, default=15, help="rounds, after a warm-up")
    parser.add_argument("--live-runs", type=int, default=9, help="rounds with live tensors; 0 for none")
    parser.add_argument("--scale-runs", type=int, default=3, help="rounds of the larger sizes; 0 for none")
    return parser.parse_args(arguments)


def _in_process(old: Placement, new: Placement, runs: int) -> list[Line]:
    """Milliseconds of planning, for both choices of senders, and of checking the plan."""
    plan = plan_reshard(old, new)

    def planner(senders: Senders) -> Callable[[], object]:
        return lambda: plan_reshard(old, new, senders)

    calls: dict[str, Callable[[], object]] = {
        f"plan_reshard, {senders}": planner(senders) for senders in get_args(Senders)
    }
    calls["verify_plan"] = lambda: verify_plan(plan)
    samples = interleave({name: _timed(call) for name, call in calls.items()}, runs)
    return [
        Line(name, values=[sample["whole"] * 1e3 for sample in samples[name]], unit="ms", digits=1)
        for name in calls
    ]


def _timed(call: Callable[[], object]) -> Callable[[], Sample]:
    def once() -> Sample:
        started = time.perf_counter()
        call()
        return {"whole": time.perf_counter() - started}

    return once


def _commands(old: Placement, new: Placement, scratch: Path, runs: int) -> list[Line]:
    """Whole commands, against the imports that none of them can do without."""
    paths = scratch / "old.json", scratch / "new.json"
    for path, content in zip(paths, (old, new), strict=True):
        write_placement(path, content)
    old_path, new_path = map(str, paths)
    commands = {
        PLAN: ([EPLB, "plan", old_path, new_path, "--format", "json"], 2.2),
        "eplb validate --format json": ([EPLB, "validate", new_path, "--format", "json"], 1.6),
        "eplb --help": ([EPLB, "--help"], 1.6),
    }
    sides = {name: _command(command) for name, (command, _) in commands.items()}
    samples = interleave({IMPORTS: _command([PYTHON, "-c", "import typer, numpy"]), **sides}, runs)
    base = [sample["whole"] for sample in samples[IMPORTS]]
    lines = [
        Line(name, IMPORTS, [sample["whole"] for sample in samples[name]], base, limit=limit, digits=3)
        for name, (_, limit) in commands.items()
    ]
    whole = [sample["whole"] for sample in samples[PLAN]]
    return [*lines, Line(PLAN, f"{PLAN_S} s", whole, [PLAN_S] * len(whole), limit=1, digits=3)]


def _command(command: list[str]) -> Callable[[], Sample]:
    return lambda: {"whole": run(command).seconds}
