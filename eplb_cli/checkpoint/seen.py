"""What one host sees of SRC: names, headers and sizes, and digests of the small files beside the shards.

A checkpoint is assembled from that alone (`pooled`, `shards`), whoever has seen it: one host, or many.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eplb_cli.checkpoint.beside import FileBeside, read_entry
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, is_file_name
from eplb_cli.checkpoint.packed import pack, unpack
from eplb_cli.checkpoint.presharded import is_presharded
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import CheckpointError, UsageError
from eplb_cli.files import Stamp, not_regular, reading
from eplb_cli.formats.safetensors_header import read_header_text
from eplb_cli.values import dataclass

SHARD_SUFFIX = ".safetensors"
_INDEX_SUFFIX = f"{SHARD_SUFFIX}.index.json"
_NUM_STATS, _NUM_SIGNED = 6, 3
"""Numbers of a shard, and those of them that may be less than 0."""

_MASK = (1 << 64) - 1
_HEX_DIGITS = frozenset("0123456789abcdef")


class SeenShard(NamedTuple):
    """A shard as its host sees it; `header` is the number of its text among those of the host."""

    name: str
    nbytes: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    header: int

    @property
    def stamp(self) -> Stamp:
        """What it has to be whenever it is opened again."""
        return Stamp(self.nbytes, self.mtime_ns)

    @property
    def identity(self) -> tuple[int, int, int, int]:
        """The same on two hosts that see one file, on storage that they share."""
        return self.inode, self.nbytes, self.mtime_ns, self.ctime_ns


class Entry(NamedTuple):
    """A small file beside shards: its bytes, and their xxh3-128 in hexadecimal digits."""

    nbytes: int
    digest: str


@dataclass(frozen=True, eq=False)
class Seen:
    """What one host sees.

    Attributes:
        path: where it looked.
        shards: by name.
        headers: the different texts of their headers, not yet parsed; most ranks have the same.
        beside: by name the other files, without indexes; None for what nobody has read yet.
    """

    path: Path
    shards: tuple[SeenShard, ...] = ()
    headers: tuple[bytes, ...] = ()
    beside: Mapping[str, Entry | None] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """What `from_bytes` makes the same of, on any host. Raises EP237 where it is too much."""
        stats = [[number & _MASK for number in shard[1:]] for shard in self.shards]
        index = {
            "path": str(self.path),
            "shards": [shard.name for shard in self.shards],
            "beside": self.beside,
        }
        return pack(
            index, [np.array(stats, np.uint64).tobytes(), *self.headers], partial(unusable, "this host")
        )

    @classmethod
    def from_bytes(cls, content: bytes, host: str = "a host") -> Seen:
        """What a host says that it sees. Raises EP237 where that cannot be."""
        fault = partial(unusable, host)
        index, parts = unpack(content, fault)
        if not isinstance(index, dict) or index.keys() != {"path", "shards", "beside"} or not parts:
            raise fault("it has no path, shards and files beside them")
        path, names = index["path"], index["shards"]
        if not isinstance(path, str) or not isinstance(names, list) or not all(map(_is_shard, names)):
            raise fault("it has a path, or names of shards, that cannot be")
        if names != sorted(set(names)) or len(parts[0]) != len(names) * _NUM_STATS * 8:
            raise fault("it has not as many sizes as names")
        signed = np.frombuffer(parts[0], np.int64).reshape(-1, _NUM_STATS)
        stats = (*signed[:, :_NUM_SIGNED].T.tolist(), *signed.view(np.uint64)[:, _NUM_SIGNED:].T.tolist())
        shards = tuple(map(SeenShard, names, *stats))
        if any(not 0 <= shard.header < len(parts) - 1 or shard.nbytes < 0 for shard in shards):
            raise fault("it has a size, or the number of a header, that cannot be")
        return cls(Path(path), shards, tuple(parts[1:]), _read_beside(index["beside"], host))


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and name.endswith(SHARD_SUFFIX) and is_file_name(name)


def _read_beside(raw: Any, host: str) -> dict[str, Entry | None]:  # noqa: ANN401 - of JSON
    if not isinstance(raw, dict):
        raise unusable(host, "it has no files beside shards")
    found: dict[str, Entry | None] = {}
    for name, entry in raw.items():
        is_pair = isinstance(entry, list) and len(entry) == len(Entry._fields)
        if not is_pair or not is_file_name(name) or type(entry[0]) is not int or entry[0] < 0:
            raise unusable(host, f"{name[:80]!r} is no file of so many bytes")
        if not isinstance(entry[1], str) or len(entry[1]) != 2 * DIGEST_NBYTES or set(entry[1]) - _HEX_DIGITS:
            raise unusable(host, f"{name[:80]!r} has no digest")
        found[name] = Entry(*entry)
    return found


def unusable(host: str, reason: str) -> CheckpointError:
    """EP237 for what a host says of SRC and cannot be."""
    problem = f"what {host} says of SRC cannot be used: {reason[:300]}"
    return CheckpointError("EP237", problem, "do all hosts run the same eplb?")


def look(path: Path) -> Seen:
    """What this host, one of several, sees of a checkpoint: nothing where there is none, or no shard.

    Raises:
        CheckpointError: EP201, EP203, EP204 or EP220, what is there cannot be read; EP233, a run has not
            finished it.
        UsageError: EP001, it is SGLang's presharded form.
    """
    if not os.path.lexists(path):
        return Seen(path)
    names = list_names(path)
    if is_presharded(names):
        hint = "reshard it on one host, or let SGLang write a sharded_state"
        raise UsageError(
            "EP001", f"{path} is of SGLang's presharded form, which several hosts do not read", hint
        )
    seen = see(path, names)
    return Seen(path, seen.shards, seen.headers, {name: entry_of(path / name) for name in seen.beside})


def see(path: Path, names: Sequence[str]) -> Seen:
    """The headers of those of some files that are shards.

    Raises:
        CheckpointError: EP201, EP203, EP204 or EP220, one cannot be read.
    """
    numbers: dict[bytes, int] = {}
    shards = []
    for name in names:
        if name.endswith(SHARD_SUFFIX):
            text, status = read_header_text(path / name)
            times = (status.st_mtime_ns, status.st_ctime_ns)
            number = numbers.setdefault(text, len(numbers))
            shards.append(SeenShard(name, status.st_size, *times, status.st_dev, status.st_ino, number))
    beside = {name: None for name in names if not name.endswith((SHARD_SUFFIX, _INDEX_SUFFIX))}
    return Seen(path, tuple(shards), tuple(numbers), beside)


def entry_of(path: Path) -> Entry:
    """What a file beside shards holds. Raises EP201, EP204 or EP220."""
    with FileBeside(path).opened() as (_, blocks):
        entry = read_entry(blocks)
    return Entry(int(str(entry["nbytes"])), str(entry["digest"]))


def list_names(path: Path) -> list[str]:
    """Names in `path`, sorted, refusing what is no regular file; directories and hidden files stay behind.

    Raises:
        CheckpointError: EP201 or EP204; EP233, a run has not finished it.
    """
    refuse_staging(path)
    with reading(path), os.scandir(path) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    names = []
    for entry in listed:
        if entry.is_symlink():
            raise not_regular(path / entry.name, "a symbolic link")
        if entry.is_file():
            names.append(entry.name)
        elif entry.name.endswith(SHARD_SUFFIX) or entry.name == MANIFEST_NAME or not entry.is_dir():
            raise not_regular(path / entry.name, "not a regular file")
    return [name for name in names if not name.startswith(".")]
