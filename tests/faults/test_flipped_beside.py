"""A flipped byte of a file beside the shards is found by every command that reads the file."""

from __future__ import annotations

import json
import shutil
from random import Random

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import reseal
from tests.faults.test_changing_source import COMMANDS, home

__all__ = ["home"]

CARRIED = {"config.json", "tokenizer.json", "eplb-huggingface.json"}
DIGESTS = {"eplb-digests-rank-0.npy", "eplb-digests-rank-1.npy"}
READ = {
    "reshard": CARRIED | DIGESTS,
    "merge": CARRIED,
    "merge --bake": CARRIED,
    "inspect --deep": {"config.json"},
    "verify --against": {"config.json"} | DIGESTS,
    "plan": {"config.json"} | DIGESTS,
    "convert": {"config.json"},
    "validate": {"config.json"},
}
"""What each command reads of the files beside the shards, and uses."""


def flip(path, offset, change):
    content = bytearray(path.read_bytes())
    content[offset] ^= change
    path.write_bytes(content)


@pytest.mark.parametrize("command", READ)
def test_what_has_a_digest_is_compared_where_it_is_read(command, home, eplb, count):
    """EP506 with the file and exit code 5, and no DST; what a command does not read is no matter to it."""
    rng, tried = Random(3), 0
    for name in sorted(CARRIED | DIGESTS):
        path = home / "tree" / name
        good = path.read_bytes()
        for offset in (0, len(good) // 2, len(good) - 1, rng.randrange(len(good))):
            flip(path, offset, rng.randrange(1, 256))
            result = eplb(*COMMANDS[command])
            path.write_bytes(good)
            (home / "dst.json").unlink(missing_ok=True)
            if name not in READ[command]:
                assert result.code == (1 if command == "inspect --deep" else 0), (name, result.err)
                shutil.rmtree(home / "dst", ignore_errors=True)
                continue
            assert_error(result, "EP506", name, exit_code=5)
            assert not (home / "dst").exists()
            tried += 1
    assert eplb(*COMMANDS[command]).code == 0
    count("flipped bytes beside the shards of SRC, all found where they are read", tried)


def test_the_commands_that_look_for_damage(home, eplb):
    """`verify` says EP505 of a tree's own files, and `inspect --deep` has it among its findings."""
    for name in ("tokenizer.json", "eplb-digests-rank-1.npy"):
        path = home / "tree" / name
        good = path.read_bytes()
        flip(path, len(good) // 2, 1)
        assert_error(eplb("verify", "tree"), "EP505", name, exit_code=5)
        result = eplb("inspect", "tree", "--deep")
        assert (result.code, "EP505" in result.out) == (1, True)
        path.write_bytes(good)


@pytest.mark.parametrize("command", ["reshard", "merge", "merge --bake"])
@pytest.mark.parametrize("name", ["tokenizer.json", "eplb-huggingface.json"])
def test_a_carried_file_that_is_gone(command, name, home, eplb):
    """It does not stay behind without a word."""
    (home / "tree" / name).unlink()
    result = eplb(*COMMANDS[command])
    assert result.code in {3, 5}, result.err
    assert name in result.err
    assert not (home / "dst").exists()


@pytest.mark.parametrize("key", ["model.layers.1.mlp.gate.weight", "model.layers.2.mlp.experts.w2_weight"])
@pytest.mark.parametrize("command", ["reshard", "merge", "merge --bake", "verify --against"])
def test_rows_and_routers(command, key, home, eplb):
    """EP506, also for a router, of which `merge --bake` moves the rows."""
    for path in sorted((home / "tree").glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        if key in header:
            flip(path, start + header[key]["data_offsets"][0], 1)
            break
    assert_error(eplb(*COMMANDS[command]), "EP506", exit_code=5)
    assert not (home / "dst").exists()


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"shard", "bake", "verify", "convert"}))
def test_a_header(command, home, eplb):
    """EP506, or a header that is none: the padding of a shard may have changed as well."""
    path = home / "tree" / "model-rank-0-part-0.safetensors"
    content = path.read_bytes()
    flip(path, 7 + int.from_bytes(content[:8], "little"), ord(" ") ^ ord("\n"))
    result = eplb(*COMMANDS[command])
    assert_error(result, "EP506", path.name, exit_code=5)
    assert not (home / "dst").exists()


def test_a_manifest_that_agrees(home, eplb):
    """Only what the manifest says counts: a file that it was made for again is read."""
    path = home / "tree" / "tokenizer.json"
    flip(path, 0, 1)
    reseal(home / "tree", "tokenizer.json")
    assert eplb(*COMMANDS["reshard"]).code == 0
    assert (home / "dst" / "tokenizer.json").read_bytes() == path.read_bytes()
