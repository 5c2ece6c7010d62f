"""`scripts/bench start`: whole commands with next to nothing to do, beside imports that they must do."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.machine import heading
from scripts.benchmarks.table import Line, render
from scripts.benchmarks.timing import EPLB, PYTHON, Sample, interleave, run
from scripts.benchmarks.trees import (
    SEED,
    Shape,
    linear,
    random_placement,
    shuffled,
    write_placement,
    write_tree,
)

TINY = Shape(num_layers=2, width=2)
"""7 MB on 4 ranks."""

IMPORTS = "import typer, numpy"
BARE = ("pass", "import typer", "import numpy", IMPORTS)
COMPLETION = ("_EPLB_COMPLETE=complete_bash", "COMP_WORDS=eplb plan a b --model deep", "COMP_CWORD=5")
"""What bash asks for where somebody completes a preset."""

LIMITS = {"plan": 1.25, "validate": 1.25, "convert": 1.25, "reshard": 2.0, "--help": 1.0, "--version": 1.0}
"""The most that the whole command may take, in times of `python -c 'import typer, numpy'`."""


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench start", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="rounds, after a warm-up")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        print(heading("start", arguments, home), flush=True)
        sides = {f"python -c {code!r}": _side([PYTHON, "-c", code], home) for code in BARE}
        commands = _commands(home)
        sides |= {name: _side([EPLB, *line], home) for name, line in commands.items()}
        sides["eplb plan a b --model deep<TAB>"] = _side(["env", *COMPLETION, EPLB], home)
        samples = interleave(sides, options.runs)
    print(render([line for kind in ("whole", "cpu") for line in _lines(samples, commands, kind)]))
    return 0


def _commands(home: Path) -> dict[str, list[str]]:
    """Command lines by what the table calls them, and their inputs."""
    for number, name in enumerate(("old", "new")):
        write_placement(home / f"{name}.json", random_placement(58, 256, 32, 32, SEED + number))
    write_tree(home / "src", TINY)
    write_placement(home / "tiny-old.json", linear(TINY))
    write_placement(home / "tiny-new.json", shuffled(TINY))
    old, new, tiny_old, tiny_new, src, out = (
        str(home / name) for name in ("old.json", "new.json", "tiny-old.json", "tiny-new.json", "src", "out")
    )
    to_json = ["--format", "json"]
    return {
        "eplb --version": ["--version"],
        "eplb --help": ["--help"],
        "eplb plan --format json": ["plan", old, new, *to_json],
        "eplb validate --format json": ["validate", old, *to_json],
        "eplb convert --format json": ["convert", old, f"{out}/map.json", "--to", "eplb", *to_json],
        "eplb inspect --format json": ["inspect", src, *to_json],
        "eplb reshard --backend file": [
            *("reshard", src, f"{out}/dst", "--old", tiny_old, "--new", tiny_new),
            *("--backend", "file", "--no-fsync", *to_json),
        ],
    }


def _side(command: list[str], home: Path) -> Callable[[], Sample]:
    """One run of a command, into an empty directory."""

    def once() -> Sample:
        out = home / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        done = run(command)
        return {"whole": done.seconds, "cpu": done.cpu_s}

    return once


def _lines(samples: dict[str, list[Sample]], commands: dict[str, list[str]], kind: str) -> list[Line]:
    """All sides by the wall clock or in processor time; only the former have bars."""
    base = [sample[kind] for sample in samples[f"python -c {IMPORTS!r}"]]
    what = {"whole": "", "cpu": ", processor time"}[kind]
    return [
        Line(
            name + what,
            IMPORTS,
            [sample[kind] for sample in found],
            base,
            limit=LIMITS.get(commands[name][0]) if name in commands and kind == "whole" else None,
            digits=3,
        )
        for name, found in samples.items()
    ]
