"""A dry run and the run after it end alike: the same exit code, the same error in the same words.

But for what only the bytes of rows can say: a run that has read them may still refuse with EP5xx.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.cli.tree import placement, write_json
from tests.support.faults import run_here
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, qwen3_moe, write_checkpoint
from tests.support.mutations import mutate
from tests.support.oracle.fuzz import case_of
from tests.support.oracle.judge import Ended, WrongError, in_process, judge
from tests.support.scratch import scratch

SEED = 16
NUM_OF_ORACLE, NUM_OF_HUGGING_FACE = 200, 100


def problem(said: str) -> list[str]:
    """The lines of the error: its code, its message and its hint."""
    return [line for line in said.splitlines() if line.startswith(("error", "  hint", "Error"))]


def require_alike(tried: tuple[int, str], ended: tuple[int, str], where: str) -> None:
    """Both end alike, or only the one that reads rows has found something."""
    if (tried[0], ended[0]) != (0, 5):
        assert (tried[0], problem(tried[1])) == (ended[0], problem(ended[1])), where


def tried_first(arguments: list[str]) -> Ended:
    """Run a command, after a dry run of it where that can be."""
    if arguments[0] != "reshard":
        return in_process(arguments)
    tried = in_process([*arguments, "--dry-run"])
    ended = in_process(arguments)
    require_alike(tried, ended, " ".join(arguments))
    return ended


def test_reshard(watchdog, count):
    """On the random trees and mistakes of the oracle."""
    for number in range(NUM_OF_ORACLE):
        watchdog()
        with scratch() as path, suppress(WrongError):  # what comes of a run is for test_oracle to say
            judge(case_of(SEED, number), path, ["--backend", "file"], tried_first)
    count("dry runs beside their runs", NUM_OF_ORACLE)


Damage = Callable[[Random, Path], None]


def _mutated(pattern: str) -> Damage:
    """A way to damage one file of that name, where there is one."""

    def damage(chance: Random, path: Path) -> None:
        for file in sorted(path.glob(pattern))[:1]:
            file.write_bytes(mutate(chance, file.read_bytes(), [b"{}"]))

    return damage


def _header(chance: Random, path: Path) -> None:
    file = chance.choice(sorted(path.glob("*.safetensors")))
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = mutate(chance, content[8 : 8 + size], [b"{}"])
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


def _lost(chance: Random, path: Path) -> None:
    chance.choice(sorted(path.iterdir())).unlink()


def _own_name(chance: Random, path: Path) -> None:
    (path / chance.choice(["eplb.json", "eplb-digests-rank-0.npy", "notes.txt"])).write_text("{}")


def _none(chance: Random, path: Path) -> None:
    pass


DAMAGES: list[Damage] = [
    _none,
    _mutated("config.json"),
    _mutated("*.index.json"),
    _mutated("eplb*.json"),
    _header,
    _lost,
    _own_name,
]


def _map(chance: Random, path: Path) -> Path:
    """A placement that fits, or one that does not, or no placement at all."""
    rows = [chance.sample(range(4), 4) for _ in MOE_LAYERS]
    if chance.random() < 0.3:
        rows[0][0] = chance.choice([rows[0][1], 4, -1])
    file = write_json(path, placement(rows, layer_ids=list(MOE_LAYERS)))
    if chance.random() < 0.2:
        file.write_bytes(mutate(chance, file.read_bytes(), [b"{}"]))
    return file


@pytest.mark.parametrize("name", ["shard", "bake", "merge"])
def test_hugging_face(name, watchdog, count):
    """On checkpoints and shards of which one file is damaged, with maps of which some are wrong."""
    good = 0
    for number in range(NUM_OF_HUGGING_FACE):
        watchdog()
        chance = Random(f"{SEED} {name} {number}")
        with scratch() as home:
            words = _command(name, chance, home)
            chance.choice(DAMAGES)(chance, home / ("shards" if name == "merge" else "hf"))
            tried = run_here(*words, "--dry-run")
            assert not (home / "out").exists()
            ended = run_here(*words)
            require_alike((tried.code, tried.err), (ended.code, ended.err), f"{number}: {words}")
            good += ended.code == 0
            shutil.rmtree(home / "out", ignore_errors=True)
    assert 0 < good < NUM_OF_HUGGING_FACE
    count("dry runs beside their runs", NUM_OF_HUGGING_FACE)


def _command(name: str, chance: Random, home: Path) -> list[object]:
    """The words of a command on a checkpoint that is made for it."""
    family, tensors = chance.choice([("deepseek_v3", deepseek_v3()), ("qwen3_moe", qwen3_moe())])
    write_checkpoint(home / "hf", tensors, family)
    if family == "deepseek_v3":
        placed: list[object] = ["--placement", _map(chance, home / "map.json")]
    else:
        placed = ["--placement", "linear", "--num-ranks", chance.choice([1, 2, 3, 4])]
    if name == "bake":
        return ["bake", home / "hf", home / "out", *placed]
    engine = ["--engine", chance.choice(["sglang", "huggingface"])]
    if name == "shard":
        return ["shard", home / "hf", home / "out", *placed, *engine]
    linear = ["--placement", "linear", "--num-ranks", 2]
    assert run_here("shard", home / "hf", home / "shards", *linear, *engine).code == 0
    return ["merge", home / "shards", home / "out", *chance.choice([[], ["--bake"]])]
