"""How fast a command starts, and what it does not import.

Times are ratios to `python -c "import typer, numpy"` in the same run: the least of several, taken in turns,
so that a busy machine slows down both.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eplb_cli.cli.app import SUMMARIES
from tests.cli.tree import NEW, OLD, placement, stacked, write_json, write_tree

EPLB = [str(Path(sys.executable).with_name("eplb"))]
BASE = [sys.executable, "-c", "import typer, numpy"]
MIN_ROUNDS, MAX_ROUNDS = 5, 25

LOADED_AFTER_EACH = """
import json, sys

from eplb_cli.cli.entry import main

packages = {"torch", "triton", "rich", "numpy", "safetensors", "xxhash", "pydantic", "tomllib", "asyncio"}
packages.add("plotly")
result = []
for line in sys.argv[2:]:
    sys.argv = ["eplb", *line.split()]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    result.append([code, sorted(packages & {name.split(".")[0] for name in sys.modules})])
print(json.dumps(result), file=open("modules", "w"))
"""


LOADED_BY_ONE = """
import json, os, sys

from eplb_cli.cli import main

try:
    main()
    code = 0
except SystemExit as end:
    code = end.code or 0
threads = len(os.listdir("/proc/self/task"))
print(json.dumps([code, threads, sorted(sys.modules)]), file=open("modules", "w"))
"""
BARE = "import sys, typer{}; print(*sys.modules)"


def environment() -> dict[str, str]:
    """Ours, but modules are compiled once and not at each start, and nothing measures coverage."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "COVERAGE_")
    return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}


def seconds(command: list[str]) -> float:
    """The wall-clock time of one run."""
    started = time.perf_counter()
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def least_ratio(command: list[str], bar: float) -> float:
    """The least time of a command over the least time of the base, over as many rounds as it takes."""
    ours = theirs = float("inf")
    for number in range(MAX_ROUNDS):
        ours, theirs = min(ours, seconds(command)), min(theirs, seconds(BASE))
        if number >= MIN_ROUNDS and ours <= bar * theirs:
            break
    return ours / theirs


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two placements of 58 layers, 288 slots and 32 ranks, as DeepSeek-V3 has them."""
    rng = random.Random(0)

    def row() -> list[int]:
        experts = [*range(256), *range(32)]
        rng.shuffle(experts)
        return experts

    home = tmp_path_factory.mktemp("large")
    return [
        write_json(home / f"{name}.json", placement([row() for _ in range(58)], 32))
        for name in ("old", "new")
    ]


@pytest.fixture(scope="module")
def warm(large):
    """Whatever is compiled is compiled before."""
    for command in (BASE, [*EPLB, "--help"], [*EPLB, "plan", "--format", "json", *map(str, large)]):
        seconds(command)


def test_the_time_of_help(warm):
    """`eplb --help`: no more than the base, which has numpy."""
    assert least_ratio([*EPLB, "--help"], 1.0) <= 1.0


def test_the_time_of_validate(warm, large):
    """`eplb validate --format json FILE`: at most 1.4 times the base, for a placement of full size."""
    assert least_ratio([*EPLB, "validate", "--format", "json", str(large[0])], 1.4) <= 1.4


def test_the_time_of_plan(warm, large):
    """`eplb plan --format json OLD NEW` of 58 x 288 slots and 32 ranks: at most 1.5 times the base."""
    assert least_ratio([*EPLB, "plan", "--format", "json", *map(str, large)], 1.5) <= 1.5


def loaded(home: Path, *lines: str) -> list[set[str]]:
    """The packages of interest that one process has loaded after each of several commands."""
    command = [sys.executable, "-c", LOADED_AFTER_EACH, "", *lines]
    result = subprocess.run(command, cwd=home, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads((home / "modules").read_text())
    assert [code or 0 for code, _ in found] == [0] * len(lines), result.stderr
    return [set(packages) for _, packages in found]


@pytest.fixture
def home(tmp_path):
    """A checkpoint and its placements."""
    write_tree(tmp_path / "src", stacked(OLD))
    write_json(tmp_path / "old.json", OLD)
    write_json(tmp_path / "new.json", NEW)
    write_json(tmp_path / "load.json", [[1, 2, 3, 4]] * 2)
    return tmp_path


RESHARD = "reshard src dst --old old.json --new new.json --backend file"
COMMANDS = [
    "validate old.json",
    "plan old.json new.json",
    "validate new.json --against old.json --checkpoint src",
    "plan old.json new.json --checkpoint src",
    "inspect src --deep",
    f"{RESHARD} --dry-run",
    RESHARD,
    "inspect dst --deep",
    "verify dst --against src",
    "plan old.json new.json --load load.json",
    "validate new.json --load load.json",
]
HEAVY = {"torch", "triton", "pydantic", "asyncio", "plotly"}


def test_no_command_imports_torch_or_for_json_rich(home):
    """Not even to open the result as an engine would."""
    lines = [f"{line} --format json" for line in COMMANDS]
    for line, found in zip(lines, loaded(home, *lines), strict=True):
        assert "numpy" in found, line
        assert not found & {*HEAVY, "rich"}, line
    assert (home / "dst" / "eplb.json").exists()


def test_placements_need_nothing_that_reads_shards(home):
    """Neither layouts nor digests are imported to look at two placements."""
    assert loaded(home, "validate old.json", "plan old.json new.json --format json") == [{"numpy"}] * 2


def test_rich_only_where_a_page_is_rendered(home):
    """Findings are text without it; every page after that may use it, and never torch."""
    found = loaded(home, *COMMANDS)
    assert ["rich" in packages for packages in found[:2]] == [False, True]
    assert not set.union(*found) & HEAVY


def test_help_imports_next_to_nothing(home):
    """No numpy, and none of the rest."""
    assert loaded(home, "--help", "reshard --help", "--version") == [set()] * 3


UNWANTED = {
    "torch", "triton", "scipy", "plotly", "pydantic", "rich", "yaml", "asyncio", "multiprocessing", "ssl",
    "email", "http", "socket", "numpy.ma", "numpy.random", "numpy.fft", "numpy.polynomial", "numpy.testing",
}  # fmt: skip
"""What no command needs that prints JSON, moves no tensors of torch and reads no YAML."""

OF_PLACEMENTS = UNWANTED | {"hashlib", "tomllib", "logging", "concurrent", "safetensors", "xxhash", "mmap"}
"""What placements alone do not need either."""

OF_TREES = {"checkpoint.shards", "output", "transfer", "exchange", "huggingface", "audit", "run.reshard"}
"""Of ours, what commands without shards do not need."""

OF_RUNS = {"transfer.transfer", "exchange.wire", "output.staging", "run.reshard", "huggingface.shard"}

ONE_BY_ONE = {
    "--version": UNWANTED | {"numpy"},
    "--help": UNWANTED | {"numpy"},
    "plan --help": UNWANTED | {"numpy"},
    "plan old.json new.json --format json": OF_PLACEMENTS | OF_TREES,
    "validate old.json new.json --format json": OF_PLACEMENTS | OF_TREES | {"plan.plan", "report.report"},
    "convert old.json out.json --to eplb": OF_PLACEMENTS | OF_TREES | {"plan.plan", "report.report"},
    "inspect src --format json": UNWANTED | {"huggingface", "run", *OF_RUNS},
    "reshard src dst --old old.json --new new.json --backend file --format json": UNWANTED
    | {"huggingface", "audit", "exchange.agree", "exchange.transport", "run.launch", "inputs.saved_plan"},
    "verify dst --format json": UNWANTED | {"run"},
}
"""What a command must not import, of others and of ours, that `import typer, numpy` has not imported."""


def loaded_by(home: Path, line: str) -> tuple[int, set[str]]:
    """How many threads one command has in the end, and the modules that it has beyond the bare ones."""
    needs_numpy = "numpy" not in ONE_BY_ONE[line]
    bare = subprocess.run(
        [sys.executable, "-c", BARE.format(", numpy" if needs_numpy else "")],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = [sys.executable, "-c", LOADED_BY_ONE, *line.split()]
    result = subprocess.run(command, cwd=home, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    code, threads, modules = json.loads((home / "modules").read_text())
    assert code == 0, result.stderr
    return threads, {name.removeprefix("eplb_cli.") for name in set(modules) - set(bare.stdout.split())}


@pytest.mark.parametrize("line", ONE_BY_ONE)
def test_what_a_command_does_not_use_is_not_imported(home, line):
    """Neither of what is heavy nor of ours: of the commands only the one that was called."""
    if line.startswith("verify"):
        loaded(home, RESHARD)
    threads, found = loaded_by(home, line)
    assert sorted(found & ONE_BY_ONE[line]) == []
    assert sorted(found & {f"cli.{name}" for name in SUMMARIES.keys() - {line.split()[0]}}) == []
    if not line.startswith(("reshard", "verify")):
        assert threads == 1, "a thread of BLAS for each core, and nothing multiplies matrices"
