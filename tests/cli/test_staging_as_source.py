"""What a run has written so far is no checkpoint, for whoever reads one, whatever it is called."""

from __future__ import annotations

import errno
import os
import shutil
import signal

import pytest

from eplb_cli import files
from tests.cli.case import assert_error
from tests.cli.tree import placement, write_json
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint


@pytest.fixture
def trees(case, monkeypatch):
    """Staging of a reshard and of a bake that a full disk has ended, under names of their own; and a map."""
    rows = [[3, 2, 1, 0]] * len(MOE_LAYERS)
    write_json(case.home / "map.json", placement(rows, layer_ids=list(MOE_LAYERS)))
    write_checkpoint(case.home / "hf", deepseek_v3(), "deepseek_v3")
    placed = ["--placement", case.home / "map.json"]
    ended_commands = {
        "shards": case.arguments(),
        "baked": ["bake", case.home / "hf", case.home / "b", *placed],
    }
    for name, arguments in ended_commands.items():
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_directory", _fail)
            result = case.eplb(*arguments)
        assert result.code == 6, result.err
        (staging,) = case.home.glob(".*.eplb-staging")
        # A run that is ended before it has proved all has its own directory still.
        (staging / ".eplb").mkdir(exist_ok=True)
        staging.rename(case.home / name)
    return case


def _fail(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def commands(case):
    """Every command that reads a checkpoint, and how."""
    shards, baked, out = case.home / "shards", case.home / "baked", case.home / "out"
    old, new, mapped = case.home / "old.json", case.home / "new.json", case.home / "map.json"
    placed = ["--placement", mapped]
    return [
        ["inspect", shards],
        ["inspect", shards, "--deep"],
        ["inspect", case.src, "--identify", baked],
        ["inspect", shards, "--identify", case.home / "hf"],
        ["reshard", shards, out, "--new", new],
        ["reshard", shards, out, "--new", new, "--dry-run"],
        ["plan", old, new, "--checkpoint", shards],
        ["validate", new, "--checkpoint", shards],
        ["validate", mapped, "--checkpoint", baked],
        ["convert", new, out, "--to", "tensorrt-llm", "--checkpoint", shards],
        ["convert", mapped, out, "--to", "tensorrt-llm", "--checkpoint", baked],
        ["verify", shards],
        ["verify", case.src, "--against", shards],
        ["verify", case.src, "--against", baked],
        ["shard", baked, out, *placed, "--engine", "sglang"],
        ["bake", baked, out, *placed],
        ["merge", shards, out],
        ["merge", shards, out, "--bake"],
    ]


def test_every_reader_refuses_it(trees):
    """EP233, with what it is."""
    for arguments in commands(trees):
        result = trees.eplb(*arguments)
        assert_error(result, "EP233", "is what a run has written so far, and no checkpoint")
        assert not (trees.home / "out").exists()


def test_the_hint_is_the_command_that_goes_on(case, monkeypatch):
    """As the run that wrote it was called."""
    with monkeypatch.context() as patch:
        patch.setattr("eplb_cli.output.staging.reopen", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert case.eplb(*case.arguments()).code == 130
    staging = case.home / ".dst.eplb-staging"
    words = " ".join(map(str, ["eplb", *case.arguments("--resume")]))
    assert_error(case.eplb("inspect", staging), "EP233", str(staging), f"hint: `{words}` goes on with it")
    (staging / ".eplb" / "owner.json").write_text('{"command": ["x; rm -rf /", "y"]}')
    assert_error(case.eplb("inspect", staging), "EP233", "`eplb 'x; rm -rf /' y --resume` goes on with it")
    for nonsense in ("", "[]", '{"command": 1}', '{"command": [1]}'):
        (staging / ".eplb" / "owner.json").write_text(nonsense)
        assert_error(case.eplb("inspect", staging), "EP233", "with --resume added")


def test_what_was_published_is_a_checkpoint(case):
    """Also under the name of staging."""
    case.reshard()
    case.dst.rename(case.home / ".dst.eplb-staging")
    assert case.eplb("verify", case.home / ".dst.eplb-staging", "--against", case.src).code == 0
    shutil.rmtree(case.home / ".dst.eplb-staging")
