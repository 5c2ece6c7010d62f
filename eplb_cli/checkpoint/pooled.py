"""What all hosts see of SRC, as one checkpoint: whose files they are, which are copies, and what some lack.

A file that several hosts see is one on shared storage where its inode, size and times are the same, and a
copy where its size and header are; the bytes of copies have to be compared (`transfer/copies`). All that
differs between hosts and may not is refused, so that every host derives the same from what it is told::

    seen = look(path)                          each host
    found = pool(path, [of all hosts])         of all
    found = found.with_contents([provide(found) of all hosts])
    shards = open_pool(found)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from eplb_cli import files
from eplb_cli.checkpoint.beside import FileBeside, file_entry
from eplb_cli.checkpoint.packed import pack, unpack
from eplb_cli.checkpoint.seen import Entry, Seen, SeenShard, unusable
from eplb_cli.checkpoint.small_reads import Extent, SmallReads, read_small, small_extents, total_nbytes
from eplb_cli.errors import CheckpointError, Where
from eplb_cli.files import Stamp
from eplb_cli.formats.safetensors_header import Header, parse_header
from eplb_cli.values import dataclass

MAX_CONTENT_NBYTES = 1 << 29
"""Of a file beside shards that hosts without it are given."""

_MAX_ASKED = 8
"""Hosts that a message names."""


class PooledShard(NamedTuple):
    """A shard as all hosts together see it.

    Attributes:
        nbytes, mtime_ns: what the first host that has it says.
        inode: tells it from other files; two names of one file have the same.
        nodes: the hosts that have it, ascending; none where there is only one host.
        own: what it is on this host, None where it is not.
        copies: the first host of each copy, ascending; none where there is only one.
    """

    name: str
    nbytes: int
    mtime_ns: int
    header: Header
    inode: tuple[int, int, int]
    nodes: tuple[int, ...]
    own: Stamp | None
    copies: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pool:
    """What all hosts see of SRC, and where this one does.

    Attributes:
        path: SRC here.
        node: this host.
        names: of all hosts, as their systems call them.
        seens: what each host sees.
        shards: all of them, by name.
        beside: by name, the other files and the first host that has each.
        contents: by name, what this host has been told of files that it lacks.
    """

    path: Path
    node: int
    names: tuple[str, ...]
    seens: tuple[Seen, ...]
    shards: tuple[PooledShard, ...]
    beside: Mapping[str, tuple[int, Entry | None]]
    contents: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_of_many(self) -> bool:
        """Whether there are other hosts."""
        return len(self.seens) > 1

    @property
    def doubtful(self) -> tuple[PooledShard, ...]:
        """Shards of which there are copies: they are one only if their bytes are the same."""
        return tuple(shard for shard in self.shards if shard.copies)

    def name_of(self, node: int) -> str:
        """A host in words."""
        return f"host {node} ({self.names[node]})"

    @property
    def asked(self) -> str:
        """In a message, which hosts were asked, and where they looked; nothing where there is only one."""
        if not self.is_of_many:
            return ""
        said = [f"{self.name_of(node)} in {seen.path}" for node, seen in enumerate(self.seens[:_MAX_ASKED])]
        more = f" and {len(self.seens) - _MAX_ASKED:,} more" if len(self.seens) > _MAX_ASKED else ""
        return f" (asked: {', '.join(said)}{more})"

    def lacking_on(self, node: int) -> frozenset[str]:
        """Names of the files that a host lacks, and another has."""
        seen = self.seens[node]
        every = {*self.beside, *(shard.name for shard in self.shards)}
        return frozenset(every - seen.beside.keys() - {shard.name for shard in seen.shards})

    @cached_property
    def lacking(self) -> Mapping[str, int]:
        """By name, the first host that has a file which some host lacks: the one that says what is in it."""
        counts = dict.fromkeys(self.beside, 0)
        for seen in self.seens:
            for name in seen.beside:
                counts[name] += 1
        first = {shard.name: shard.nodes[0] for shard in self.shards if shard.nodes}
        first |= {name: node for name, (node, _) in self.beside.items()}
        counts |= {shard.name: len(shard.nodes) for shard in self.shards if shard.nodes}
        return {name: node for name, node in sorted(first.items()) if counts[name] < len(self.seens)}

    def file(self, name: str) -> FileBeside:
        """A file beside the shards, here or with the content that another host says."""
        return FileBeside(self.path / name, content=self.contents.get(name))

    def with_contents(self, said: Sequence[bytes]) -> Pool:
        """The same with what each host says (`provide`) of files that this one lacks.

        Raises:
            CheckpointError: EP237, a host says another content than it has seen, or none.
        """
        found: dict[str, bytes] = {}
        for node, content in enumerate(said):
            fault = partial(unusable, self.name_of(node))
            names, parts = unpack(content, fault)
            if names != [name for name, first in self.lacking.items() if first == node] or len(names) != len(
                parts
            ):
                raise fault("it tells of other files than it was asked for")
            found |= zip(names, parts, strict=True)
        mine = self.lacking_on(self.node)
        self._require_as_seen(found)
        return replace(self, contents={name: found[name] for name in sorted(mine)})

    def _require_as_seen(self, contents: Mapping[str, bytes]) -> None:
        for shard in self.shards:
            if shard.name in contents and len(contents[shard.name]) != total_nbytes(self.extents(shard)):
                raise unusable(
                    self.name_of(self.lacking[shard.name]), f"{shard.name} has other small tensors"
                )
        for name, (node, entry) in self.beside.items():
            if name in contents and entry is not None and file_entry(contents[name]) != entry._asdict():
                raise CheckpointError("EP220", f"{name} changed on {self.name_of(node)} while it was read")

    def extents(self, shard: PooledShard) -> list[Extent]:
        """What may be read of a shard on hosts that lack it."""
        return self._extents[id(shard.header)]

    @cached_property
    def _extents(self) -> dict[int, list[Extent]]:
        """By header, of which most ranks have the same."""
        return {id(header): small_extents(header) for header in self.headers}

    @cached_property
    def headers(self) -> list[Header]:
        """The different headers of all shards."""
        return list({id(shard.header): shard.header for shard in self.shards}.values())

    def read_small(self, name: str, offset: int, nbytes: int) -> bytes | None:
        """A few bytes of a shard that is not here; None where nobody has said them."""
        reads = self._small_reads.get(name)
        return None if reads is None else reads.read(offset, nbytes)

    @cached_property
    def _small_reads(self) -> dict[str, SmallReads]:
        shards = [shard for shard in self.shards if shard.name in self.contents]
        return {shard.name: SmallReads(self.extents(shard), self.contents[shard.name]) for shard in shards}

    def to_bytes(self) -> bytes:
        """The pool for the workers of this host. Raises EP237 where it is too much."""
        index = [str(self.path), self.node, self.names, list(self.contents)]
        parts = [*(seen.to_bytes() for seen in self.seens), *self.contents.values()]
        return pack(index, parts, partial(unusable, self.name_of(self.node)))

    @classmethod
    def from_bytes(cls, content: bytes) -> Pool:
        """What `to_bytes` made. Raises EP237."""
        fault = partial(unusable, "the leader of this host")
        index, parts = unpack(content, fault)
        path, node, names, lacked = index
        seens = [Seen.from_bytes(part) for part in parts[: len(names)]]
        contents = dict(zip(lacked, parts[len(names) :], strict=True))
        return replace(pool(Path(path), seens, node, names), contents=contents)


def pool(path: Path, seens: Sequence[Seen], node: int, names: Sequence[str]) -> Pool:
    """What all hosts see, as one.

    Args:
        path: SRC on this host, of number `node`.
        seens: of each host.
        names: of each host, as its system calls it.

    Raises:
        CheckpointError: EP237, two hosts have different files of one name; EP203, a header is none.
    """
    found = Pool(path, node, tuple(names), tuple(seens), (), {})
    holders: dict[str, dict[int, SeenShard]] = defaultdict(dict)
    beside: dict[str, tuple[int, Entry | None]] = {}
    for number, seen in enumerate(seens):
        for shard in seen.shards:
            holders[shard.name][number] = shard
        for name, entry in seen.beside.items():
            first, known = beside.setdefault(name, (number, entry))
            if known != entry:
                raise unlike(found, name, (first, number), "its content")
    header_of = _Headers(found)
    shards = tuple(_pooled(found, holders[name], header_of) for name in sorted(holders))
    return replace(found, shards=shards, beside=dict(sorted(beside.items())))


def _pooled(found: Pool, holders: Mapping[int, SeenShard], header_of: _Headers) -> PooledShard:
    """One shard, from what each host that has it says. Raises EP203 or EP237."""
    (node, first), *others = holders.items()
    copies = {first.identity: node}
    for other, shard in others:
        if shard.nbytes != first.nbytes:
            raise unlike(
                found, first.name, (node, other), f"its size, {first.nbytes:,} and {shard.nbytes:,} bytes,"
            )
        if header_of.number(other, shard) != header_of.number(node, first):
            raise unlike(found, first.name, (node, other), "its header")
        copies.setdefault(shard.identity, other)
    own = holders.get(found.node)
    return PooledShard(
        first.name,
        first.nbytes,
        first.mtime_ns,
        header_of(node, first),
        (node, first.device, first.inode),
        tuple(holders) if found.is_of_many else (),
        None if own is None else own.stamp,
        tuple(copies.values()) if len(copies) > 1 else (),
    )


class _Headers:
    """The headers of all hosts; those with the same text are parsed once, and are one."""

    def __init__(self, found: Pool) -> None:
        self._found = found
        numbers: dict[bytes, int] = {}
        self._numbers = [
            [numbers.setdefault(text, len(numbers)) for text in seen.headers] for seen in found.seens
        ]
        self._parsed: dict[tuple[int, int], Header] = {}

    def number(self, node: int, shard: SeenShard) -> int:
        """The same for the same text, whoever says it."""
        return self._numbers[node][shard.header]

    def __call__(self, node: int, shard: SeenShard) -> Header:
        """The header of a shard. Raises EP203."""
        key, seen = (self.number(node, shard), shard.nbytes), self._found.seens[node]
        if key not in self._parsed:
            text = seen.headers[shard.header]
            host = f" on {self._found.name_of(node)}" if self._found.is_of_many else ""
            place = f"{seen.path / shard.name}{host}"
            self._parsed[key] = parse_header(text, shard.nbytes - 8 - len(text), place)
        return self._parsed[key]


def unlike(found: Pool, name: str, nodes: tuple[int, int], what: str) -> CheckpointError:
    """EP237 for a file that two hosts have, and that is not the same on both."""
    hosts = " and ".join(f"{found.name_of(node)}, in {found.seens[node].path}" for node in nodes)
    return CheckpointError(
        "EP237", f"{name} is not the same on {hosts}: {what} differs", where=Where(file=name)
    )


def provide(found: Pool) -> bytes:
    """What this host says of the files that others lack, where it is the first that has them.

    Raises:
        CheckpointError: EP201, EP204 or EP220, one cannot be read; EP201, it is too large to be sent.
    """
    shards = {shard.name: shard for shard in found.shards}
    mine = [name for name, node in found.lacking.items() if node == found.node]
    parts = [
        _small_tensors(found, shards[name]) if name in shards else _content(found, name) for name in mine
    ]
    return pack(mine, parts, partial(unusable, found.name_of(found.node)))


def _small_tensors(found: Pool, shard: PooledShard) -> bytes:
    path = found.path / shard.name
    with files.opened_source(path, shard.own) as descriptor:
        return read_small(descriptor, found.extents(shard), path)


def _content(found: Pool, name: str) -> bytes:
    _, entry = found.beside[name]
    if entry is not None and entry.nbytes > MAX_CONTENT_NBYTES:
        problem = f"{found.path / name} has {entry.nbytes:,} bytes, and there are hosts that do not have it"
        raise CheckpointError("EP201", problem, "copy it there: so large a file is not sent to them")
    return found.file(name).read(MAX_CONTENT_NBYTES)
