"""Damaged and hostile layouts, and trees of which one file is: commands end well, or with a coded error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from eplb_cli.audit.inspection import inspect
from eplb_cli.audit.verify import verify
from eplb_cli.checkpoint.layout import Layout, key_name
from eplb_cli.checkpoint.layout_file import layout_from_json, presets, read_layout
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.errors import CODES, CheckpointError, EplbError
from eplb_cli.run.request import Request
from eplb_cli.run.reshard import reshard
from tests.cli.tree import placement, stacked, write_json, write_tree
from tests.support.mutations import mutate, nudge, replace_token, restructure
from tests.support.scratch import scratch

NUM_LAYOUTS, LAYOUT_BATCH = 5_000, 1_000
NUM_TREES, TREE_BATCH = 1_000, 125
OLD = placement([[0, 1, 2, 3, 0, -1], [3, 2, 1, 0, 2, 3]])
NEW = placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, -1]])

KEYS = [
    "model.layers.3.mlp.experts.w13_weight",
    "layers.0.ffn.experts.7.w1.weight",
    "{layer}.layers.3.mlp.experts.w13_weight",
    "layers.3.mlp.experts.{row}.up_proj.weight",
    "." * 4096,
    "layers.0.mlp.experts." * 200,
    "0." * 2048,
    "",
    "\0\x1b[2J\n",
]
NAMES = ["model-rank-0-part-0.safetensors", "model3-mp8.safetensors", "model-rank-0-part-00.safetensors", ""]
TOMLS = [LAYOUTS.path(name).read_bytes() for name in LAYOUTS.names]


def assert_layout_works(layout: Layout) -> None:
    """Every key is one thing or the other, and an expert's can be written again."""
    for key in KEYS:
        found = layout.match_key(key)
        assert found is None or key_name(found.template, found.place.number, found.number) == key
        layout.is_known_other(key)
    for name in NAMES:
        layout.match_file(name)
    assert layout_from_json(json.loads(json.dumps(layout.as_json())), "again") == layout


@pytest.mark.parametrize("seed", range(NUM_LAYOUTS // LAYOUT_BATCH))
def test_damaged_layouts(seed, tmp_path, watchdog, count):
    """EP206 or a layout that works, from TOML and from the JSON of a manifest."""
    rng, accepted, file = Random(seed), 0, tmp_path / "x.toml"
    texts = [json.dumps(layout.as_json()).encode() for layout in presets()]
    for number in range(LAYOUT_BATCH):
        if number % 100 == 0:
            watchdog()
        try:
            if number % 2:
                file.write_bytes(mutate(rng, rng.choice(TOMLS), TOMLS)[: 1 << 14])
                layout = read_layout(file)
            else:
                layout = layout_from_json(json.loads(restructure(rng, rng.choice(texts), texts)), "x")
        except CheckpointError as error:
            is_short = len(error.message) < 500 + len(str(file))
            assert (error.code, is_short) == ("EP206", True)  # noqa: PT017 - both ends are right
        else:
            assert_layout_works(layout)
            accepted += 1
    count("mutated layouts", LAYOUT_BATCH)
    count("mutated layouts, of which accepted", accepted)
    assert LAYOUT_BATCH / 50 < accepted < LAYOUT_BATCH


def _header(rng: Random, tree: Path) -> None:
    file = tree / f"model-rank-{rng.randrange(2)}-part-0.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = rng.choice((nudge, replace_token, restructure))(rng, content[8:end], [content[8:end]])
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def _manifest(rng: Random, tree: Path) -> None:
    """An eplb.json that says something else of one of its keys, with a digest that fits it."""
    content = json.loads((tree / "eplb.json").read_bytes())
    del content["digest"]
    key = rng.choice(sorted(content))
    text = json.dumps(content[key]).encode()
    with contextlib.suppress(ValueError, RecursionError):
        content[key] = json.loads(rng.choice((nudge, replace_token, restructure))(rng, text, [text]))
    seal = hashlib.sha256(json.dumps(content, indent=1, sort_keys=True).encode()).hexdigest()
    content["digest"] = seal
    (tree / "eplb.json").write_bytes(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")


def _any_file(rng: Random, tree: Path) -> None:
    file = rng.choice(sorted(path for path in tree.iterdir() if path.is_file()))
    content = file.read_bytes()
    file.write_bytes(mutate(rng, content, [content]))


def _name(rng: Random, tree: Path) -> None:
    """A file with another name: a rank or part that is not there, or nothing at all."""
    file = rng.choice(sorted(path for path in tree.iterdir() if path.is_file()))
    new = nudge(rng, file.name.encode(), []).decode()
    if rng.random() < 0.5:
        new = rng.choice(
            ("x.safetensors", ".hidden", "model-rank-0-part-1.safetensors", "a\nb", "{rank}.json")
        )
    with contextlib.suppress(OSError):
        file.rename(tree / new)


DAMAGE: tuple[Callable[[Random, Path], None], ...] = (
    _header,
    _header,
    _manifest,
    _manifest,
    _any_file,
    _name,
)


def outcome(call: Callable[..., object], *arguments: object) -> str:
    """The code of the error that a call ends with, "" without one; nothing else may escape."""
    try:
        call(*arguments)
    except EplbError as error:
        assert error.code in CODES  # noqa: PT017 - both ends are right
        return error.code
    return ""


def inspect_deeply(tree: Path) -> None:
    inspect(tree, deep=True)


@pytest.fixture(scope="module")
def good():
    """A tree that eplb wrote, the one it was made from, and both placements."""
    with scratch() as home:
        write_tree(home / "src", stacked(OLD))
        write_json(home / "src" / "config.json", {"vocab_size": 16, "n_routed_experts": 4})
        for name, said in (("old.json", OLD), ("new.json", NEW)):
            write_json(home / name, said)
        first = Request(
            home / "src", home / "dst", str(home / "new.json"), str(home / "old.json"), backend="file"
        )
        reshard(first)
        yield home


@pytest.mark.parametrize("seed", range(NUM_TREES // TREE_BATCH))
def test_damaged_trees(seed, good, tmp_path, watchdog, count):
    """`verify`, with and without SRC, `inspect --deep` and `reshard`, which leaves DST or nothing at all."""
    rng, ends = Random(seed), set()
    for number in range(TREE_BATCH):
        watchdog()
        tree = tmp_path / str(number)
        shutil.copytree(good / "dst", tree)
        rng.choice(DAMAGE)(rng, tree)
        has_manifest = rng.random() < 0.7
        if not has_manifest:
            (tree / "eplb.json").unlink(missing_ok=True)
        old = None if has_manifest else str(good / "new.json")
        back = Request(tree, tmp_path / "back", str(good / "old.json"), old, backend="file", durable=False)
        last = outcome(reshard, back)
        ends |= {
            outcome(verify, tree),
            outcome(verify, tree, good / "src"),
            outcome(inspect_deeply, tree),
            last,
        }
        assert back.destination.exists() == (not last)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            {tree.name} | ({"back"} if not last else set())
        )
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
    count("damaged trees, four commands each", TREE_BATCH)
    assert {"", "EP203", "EP214", "EP505", "EP506"} <= ends
