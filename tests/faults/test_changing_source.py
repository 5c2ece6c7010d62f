"""A file of SRC that is written to while it is open: refused by every command, whatever it opens it for."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections import Counter
from pathlib import Path

import pytest

from eplb_cli import files
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint, placement, write_json, write_shard
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint
from tests.support.mounts import xfs

ORDER = placement([[3, 2, 1, 0], [1, 0, 3, 2]], layer_ids=list(MOE_LAYERS))
DENSE = "model-dense.safetensors"

COMMANDS = {
    "shard": ("shard", "hf", "dst", "--placement", "new.json", "--engine", "sglang"),
    "bake": ("bake", "hf", "dst", "--placement", "new.json"),
    "reshard": ("reshard", "tree", "dst", "--new", "linear", "--backend", "file"),
    "merge": ("merge", "tree", "dst"),
    "merge --bake": ("merge", "tree", "dst", "--bake"),
    "inspect --identify": ("inspect", "tree", "--identify", "hf"),
    "inspect --deep": ("inspect", "tree", "--deep"),
    "verify": ("verify", "tree"),
    "verify --against": ("verify", "again", "--against", "tree"),
    "plan": ("plan", "new.json", "linear", "--checkpoint", "tree"),
    "convert": ("convert", "new.json", "dst.json", "--to", "vllm", "--checkpoint", "tree"),
    "validate": ("validate", "new.json", "--checkpoint", "tree"),
}


def write_source(home: Path) -> Path:
    """A checkpoint of which one file has neither an expert nor a router."""
    tensors = deepseek_v3()
    dense = {"lm_head.weight": tensors.pop("lm_head.weight")}
    source = write_checkpoint(home / "hf", tensors, "deepseek_v3")
    write_shard(source / DENSE, dense)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = DENSE
    path.write_text(json.dumps(index))
    write_json(home / "new.json", ORDER)
    return source


@pytest.fixture
def home(tmp_path, eplb, monkeypatch):
    """The checkpoint in `hf`, shards of it in `tree`, and those resharded in `again`."""
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path)
    assert eplb("shard", "hf", "tree", *COMMANDS["shard"][3:]).code == 0
    assert eplb("reshard", "tree", "again", "--new", "linear", "--backend", "file").code == 0
    return tmp_path


class Writer:
    """Instead of the last step to the system: the files of SRC that are opened, one of which changes."""

    def __init__(self, home: Path) -> None:
        self._sources = tuple(f"{home / source}/" for source in ("hf", "tree", "again"))
        self.start(None)

    def start(self, target: int | None) -> None:
        """Count again; `target` is the number of the opened file that changes before it is read."""
        self.target, self.changed = target, Path()
        self.opened: list[tuple[str, int]] = []
        self._times: Counter[str] = Counter()

    def make_call(self, operation, call, *args):
        if operation == "open":
            self._times[str(Path(args[0]).resolve())] += 1
        if operation == "clone":
            self._look(struct.unpack("qQQQ", args[2])[0])
            return self._clone(args[0], *struct.unpack("qQQQ", args[2]))
        if call is os.preadv:
            self._look(args[0])
        return call(*args)

    def _look(self, descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        moment = (path, self._times[path])
        if moment in self.opened or not path.startswith(self._sources):
            return
        if len(self.opened) == self.target:
            self.changed = Path(path)
            status = self.changed.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
        self.opened.append(moment)

    @staticmethod
    def _clone(destination, source, src_offset, nbytes, dst_offset):
        """What a file system that can share blocks does."""
        return os.pwrite(destination, os.pread(source, nbytes, src_offset), dst_offset)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_file_of_src_is_the_same_when_it_is_closed(name, home, eplb, monkeypatch, count):
    """EP220 wherever one changes between its opening and its first byte, and no DST."""
    writer = Writer(home)
    monkeypatch.setattr(files, "make_call", writer.make_call)
    tried = 0
    while True:
        writer.start(tried)
        result = eplb(*COMMANDS[name])
        if writer.changed == Path():
            break
        assert result.code == 3, (writer.changed, writer.opened[-1], result.err)
        is_shared = writer.changed.stat().st_nlink > 1  # and has the name of another rank, too
        assert_error(result, "EP220", "" if is_shared else writer.changed.name)
        assert not (home / "dst").exists()
        tried += 1
    assert result.code == 0, result.err
    assert tried > 2
    count("files of SRC that change while they are open, all refused", tried)


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_a_file_without_experts_that_is_cloned(tmp_path, eplb, monkeypatch, size):
    """EP220 on an XFS too, where `bake` shares its blocks and reads nothing: not even longer or shorter."""
    with xfs(tmp_path / "disk") as disk:
        source = write_source(disk)
        cloned: list[object] = []
        monkeypatch.chdir(disk)
        real = files.make_call

        def make_call(operation, call, *args):
            if operation == "clone" and not cloned:
                content = (source / DENSE).read_bytes()
                (source / DENSE).write_bytes((content + b"x")[: len(content) + size])
            if operation == "clone":
                cloned.append(args)
            return real(operation, call, *args)

        assert eplb(*COMMANDS["bake"]).code == 0
        shutil.rmtree("dst")
        monkeypatch.setattr(files, "make_call", make_call)
        assert_error(eplb(*COMMANDS["bake"]), "EP220", DENSE)
        assert cloned
        before = fingerprint(source)
        assert sorted(path.name for path in disk.iterdir()) == ["hf", "new.json"]
        assert fingerprint(source) == before
