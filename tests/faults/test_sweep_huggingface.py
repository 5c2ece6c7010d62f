"""Every call of `shard`, `merge`, `bake` and `convert` fails once: the output is whole or absent."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from tests.cli.tree import placement, write_json
from tests.support.faults import HARMLESS, Fault, Kind, num_open, run_here
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint
from tests.support.scratch import scratch

ORDER = placement([[3, 2, 1, 0], [1, 0, 3, 2]], layer_ids=list(MOE_LAYERS))


def small() -> dict:
    """A checkpoint of a few tensors: every call is made again for each of them."""
    keep = ("embed", "norm", "lm_head", "layers.1.")
    tensors = {key: at for key, at in deepseek_v3().items() if any(part in key for part in keep)}
    return {key: at for key, at in tensors.items() if "layers.0." not in key and "layers.2." not in key}


def contents(path: Path) -> dict[str, bytes]:
    """All files of a directory; or the one that it is."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def home():
    """A checkpoint, shards of it, and a placement, in memory."""
    with scratch() as path:
        write_checkpoint(path / "hf", small(), "deepseek_v3")
        write_json(path / "map.json", {**ORDER, "layer_ids": [1], "physical_to_logical_map": [[3, 2, 1, 0]]})
        shard = [
            "shard",
            path / "hf",
            path / "shards",
            "--placement",
            path / "map.json",
            "--engine",
            "sglang",
        ]
        assert run_here(*shard).code == 0
        yield path


def command(home: Path, name: str, output: Path) -> list[object]:
    """The arguments of one of the four."""
    placed = ["--placement", home / "map.json"]
    return {
        "shard": ["shard", home / "hf", output, *placed, "--engine", "sglang"],
        "merge": ["merge", home / "shards", output],
        "bake": ["bake", home / "hf", output, *placed],
        "convert": ["convert", home / "map.json", output, "--to", "tensorrt-llm"],
    }[name]


@pytest.mark.parametrize(("first", "kind"), [*enumerate(["EIO", "ENOSPC", "EINTR", "short"])])
@pytest.mark.parametrize(
    ("name", "output"), [("shard", "out"), ("merge", "out"), ("bake", "out"), ("convert", "out.yaml")]
)
def test_every_call(home: Path, name: str, output: str, first: int, kind: Kind, record_property):
    """Each in one of the four ways, until a run has no such call; nothing is left beside the output.

    But what was done, where the message says so, and --resume goes on from there.
    """
    destination = home / output
    assert run_here(*command(home, name, destination)).code == 0
    whole, before = contents(destination), {path.name for path in home.iterdir()} - {output}
    remove(destination)
    open_before = num_open()
    sources = {part: contents(home / part) for part in ("hf", "shards", "map.json")}
    number = 0
    for number in itertools.count(first, 4):
        fault = Fault(number, kind)
        ended = run_here(*command(home, name, destination), fault=fault)
        if fault.hit is None:
            assert ended.code == 0
            break
        where = f"{fault}: {ended}"
        assert "Traceback" not in ended.err, where
        assert {part: contents(home / part) for part in sources} == sources, where
        if kind in HARMLESS or fault.hit[0] == "advise":
            assert ended.code == 0, where
        assert ended.code in {0, 3, 6}, where
        assert ended.err.count("error[EP") == (1 if ended.code else 0), where
        assert destination.exists() or ended.code, where
        if destination.exists():
            assert contents(destination).keys() == whole.keys(), where
            assert ended.code == 0 or "is there" in ended.err or name == "convert", where
            remove(destination)
        kept = home / f".{output}.eplb-staging"
        assert kept.exists() == (f"is kept in {kept}: " in ended.err), where
        if kept.exists():
            again = run_here(*command(home, name, destination), "--resume")
            assert again.code == 0, (where, again)
            assert contents(destination) == whole, where
            remove(destination)
        assert {path.name for path in home.iterdir()} == before, where
    assert num_open() <= open_before
    assert number > (5 if name == "convert" else 100)
    record_property("cases", (f"calls of {name} that fail", number // 4))
    remove(destination)


def remove(path: Path) -> None:
    """A file or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
