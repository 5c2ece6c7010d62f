"""The files of a checkpoint, before a placement says what their rows are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.checkpoint.beside import FileBeside
from eplb_cli.checkpoint.complete import is_weight
from eplb_cli.checkpoint.layout import ExpertKey, Layout, ShardName
from eplb_cli.checkpoint.layout_file import find_layout, layout_from_json, preset
from eplb_cli.checkpoint.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_NBYTES,
    Manifest,
    file_beside,
    is_digest_file,
    manifest_of,
)
from eplb_cli.checkpoint.part import files_of, ranks_away, refuse_part
from eplb_cli.checkpoint.pooled import Pool, pool
from eplb_cli.checkpoint.presharded import INDEX_NAME, READY_NAME, SERIES, SUFFIX, is_presharded, read_index
from eplb_cli.checkpoint.seen import SHARD_SUFFIX, list_names, see
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.files import Stamp
from eplb_cli.formats.safetensors_header import Header, TensorEntry, read_header
from eplb_cli.models.config import ModelConfig, config_beside
from eplb_cli.models.names import LayerNames, number_layers
from eplb_cli.placements.placement import MAX_ENTRIES
from eplb_cli.progress import tell
from eplb_cli.values import dataclass


class ShardFile(NamedTuple):
    """One part of one rank's shard, with the identity it had when its header was read.

    Attributes:
        nbytes, mtime_ns: of several hosts, what the first that has it says.
        inode: of several hosts, what tells it from other files; None where it is to be asked here.
        own: what it is on this host, where another host is the first that has it.
    """

    path: Path
    name: ShardName
    header: Header
    nbytes: int
    mtime_ns: int
    inode: tuple[int, int, int] | None = None
    own: Stamp | None = None

    @property
    def stamp(self) -> Stamp:
        """What it has to be whenever it is opened again."""
        return self.own or Stamp(self.nbytes, self.mtime_ns)


class TensorAt(NamedTuple):
    """A tensor and where its bytes are: a file's number, and the offset in that file."""

    file: int
    offset: int
    entry: TensorEntry


class PlacedKey(NamedTuple):
    """What the key of an expert's tensor says, its layer numbered as all of the checkpoint are.

    Attributes:
        template: the key with `{row}` or `{expert}` left open, and `{layer}` for layers of the main module.
        number: the row or the expert in the key; None for a stacked tensor.
        home: the module of experts, as its layer calls it.
    """

    layer: int
    template: str
    tensor: str
    number: int | None
    home: str


@dataclass(frozen=True)
class Shards:
    """The files of a checkpoint, before a placement says what their rows are.

    Attributes:
        files: all parts of all ranks, by rank, series and part.
        tensors: per rank, all its tensors by key.
        carried: names of the files that are no shards and travel along.
        manifest: what `eplb` wrote beside the shards, if it did.
        lost: the numbers of ranks whose files are gone; those that are left have closed up.
        missing_from: where the last rank is, which has the experts that were lost; see `left`.
        pool: what all hosts see; None where there is one host alone.
    """

    path: Path
    layout: Layout
    files: tuple[ShardFile, ...]
    tensors: tuple[Mapping[str, TensorAt], ...]
    carried: tuple[str, ...]
    manifest: Manifest | None
    lost: tuple[int, ...] = field(default=(), kw_only=True)
    missing_from: Path | None = field(default=None, kw_only=True)
    pool: Pool | None = field(default=None, kw_only=True, compare=False)

    @property
    def node(self) -> int:
        """The number of this host."""
        return 0 if self.pool is None else self.pool.node

    @cached_property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """Per file the hosts that see it, ascending; () of each where there is one host alone."""
        if self.pool is None:
            return ((),) * len(self.files)
        nodes = {shard.name: shard.nodes for shard in self.pool.shards}
        return tuple(nodes[file.path.name] for file in self.files)

    @cached_property
    def is_here(self) -> NDArray[np.bool_]:
        """(F,) the files that this host sees."""
        return np.array([not nodes or self.node in nodes for nodes in self.nodes], np.bool_)

    @cached_property
    def is_read_here(self) -> NDArray[np.bool_]:
        """(F,) the files that this host reads where one host is enough: those that several see, in turn."""
        in_turn = [
            not nodes or nodes[file % len(nodes)] == self.node for file, nodes in enumerate(self.nodes)
        ]
        return np.array(in_turn, np.bool_)

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.tensors)

    @property
    def recorded_ranks(self) -> list[int]:
        """The numbers that ranks of `path` have in its manifest."""
        left = self.num_ranks - (self.missing_from is not None)
        return sorted({*range(left + len(self.lost))} - {*self.lost})

    @property
    def nbytes(self) -> int:
        """Bytes of all shard files."""
        return sum(file.nbytes for file in self.files)

    def beside(self, name: str) -> FileBeside:
        """A small file beside the shards, with what their manifest says of it."""
        content = None if self.pool is None else self.pool.contents.get(name)
        return replace(file_beside(self.path, name, self.manifest), content=content)

    def read(self, number: int, offset: int, nbytes: int) -> bytes:
        """A few bytes of a shard file, by its number; of one that is not here, what planning may ask for.

        Raises:
            CheckpointError: EP201 or EP220.
        """
        file = self.files[number]
        if not self.is_here[number]:
            return self._read_elsewhere(file, offset, nbytes)
        content = bytearray(nbytes)
        with files.opened_source(file.path, file.stamp) as descriptor:
            files.read_into(descriptor, memoryview(content), offset, file.path)
        return bytes(content)

    def _read_elsewhere(self, file: ShardFile, offset: int, nbytes: int) -> bytes:
        content = None if self.pool is None else self.pool.read_small(file.path.name, offset, nbytes)
        if content is None:
            problem = f"{file.path} is on another host, which has not said what it holds at byte {offset:,}"
            raise CheckpointError("EP201", problem)
        return content

    def to_carry(self) -> dict[str, FileBeside]:
        """By name, the files that travel along. Raises EP506 where the manifest names one that is gone."""
        lost = set() if self.manifest is None else self.manifest.carried.keys() - set(self.carried)
        if lost:
            raise unlike_manifest(self, f"that {min(lost)} is missing")
        return {name: self.beside(name) for name in self.carried}

    @cached_property
    def config(self) -> ModelConfig | None:
        """The config.json beside the shards, None where none can be read.

        Raises:
            BytesError: EP506, it is not what the manifest says.
        """
        return config_beside(self.path, lambda path, limit: self.beside(path.name).read(limit))

    @cached_property
    def layers(self) -> LayerNames:
        """The layers that have rows of experts, each with a number of its own.

        Raises:
            BytesError: EP506, config.json is not what the manifest says.
            CheckpointError: EP212, the layers that placements speak of cannot be told.
        """
        hidden = None if self.config is None else self.config.num_hidden_layers
        places = (
            found.place
            for tensors in self.tensors
            for key, at in tensors.items()
            if (found := self._matched[key]) is not None and (found.number is not None or at.entry.shape)
        )
        return number_layers(places, hidden, self.layout.main)

    @cached_property
    def expert_keys(self) -> dict[str, PlacedKey]:
        """What the key of each tensor of an expert says; other tensors are not there."""
        layers, found = self.layers, {}
        for key, expert in self._matched.items():
            if expert is not None and expert.place in layers.numbers:
                template = expert.of_layers if layers.is_open(expert.place) else expert.template
                layer, home = layers.numbers[expert.place], expert.place.home
                found[key] = PlacedKey(layer, template, expert.tensor, expert.number, home)
        return found

    @cached_property
    def _matched(self) -> dict[str, ExpertKey | None]:
        return {key: self.layout.match_key(key) for key in dict.fromkeys(chain.from_iterable(self.tensors))}

    @cached_property
    def moe_layers(self) -> list[int]:
        """The numbers of all layers that have expert tensors, ascending."""
        return sorted(self._rows_by_layer)

    @cached_property
    def slots_per_rank(self) -> NDArray[np.int64]:
        """(R,) rows of each rank, as the first MoE layer that placements speak of has them."""
        return self.rows_of((self.layers.placed or self.moe_layers)[0])

    def rows_of(self, layer: int) -> NDArray[np.int64]:
        """(R,) rows of each rank in a layer."""
        rows = self._rows_by_layer[layer]
        return np.array([rows.get(rank, 0) for rank in range(self.num_ranks)], np.int64)

    def named_experts(self, layer: int) -> list[list[int]]:
        """By rank, the numbers in the keys of a layer, ascending."""
        return [sorted(self._numbers.get((layer, rank), ())) for rank in range(self.num_ranks)]

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], set[int]]:
        """By layer and rank, the numbers in keys."""
        numbers: dict[tuple[int, int], set[int]] = defaultdict(set)
        for rank, tensors in enumerate(self.tensors):
            for key in tensors:
                found = self.expert_keys.get(key)
                if found is not None and found.number is not None:
                    numbers[found.layer, rank].add(found.number)
        return dict(numbers)

    @cached_property
    def _rows_by_layer(self) -> dict[int, dict[int, int]]:
        """By layer and rank, the numbers in keys, or dim 0 of most weights, or else of most tensors."""
        dims: dict[tuple[int, int], Counter[tuple[bool, int]]] = defaultdict(Counter)
        for rank, tensors in enumerate(self.tensors):
            for key, at in tensors.items():
                found = self.expert_keys.get(key)
                if found is not None and found.number is None and at.entry.shape:
                    dims[found.layer, rank][is_weight(found.tensor), at.entry.shape[0]] += 1
        rows: dict[int, dict[int, int]] = defaultdict(dict)
        for (layer, rank), counted in dims.items():
            rows[layer][rank] = max(counted, key=lambda kind: (kind[0], counted[kind], -kind[1]))[1]
        for (layer, rank), numbers in self._numbers.items():
            rows[layer][rank] = len(numbers)
        return rows


def open_shards(path: Path, layout: str | Layout = "auto", lost: Collection[int] | None = ()) -> Shards:
    """Read the names and headers of a checkpoint's shards.

    A tree that eplb wrote says its layout itself; "auto" takes that.

    Args:
        lost: the numbers of ranks whose files are gone; None for those of which no file is here, where
            the manifest says which ranks there are.

    Raises:
        CheckpointError: EP201 to EP206, the directory, a file or the layout cannot be used; EP208, no
            placement has so many rows; EP214, the manifest is damaged; EP233, a run has not finished it.
        BytesError: EP506, shards or what their headers say are not those of the manifest.
    """
    names = list_names(path)
    if not lost and is_presharded(names) and not any(name.endswith(SHARD_SUFFIX) for name in names):
        return _require_experts(_open_presharded(path, names, layout))
    return open_pool(pool(path, [see(path, names)], 0, [""]), layout, lost)


def open_pool(found: Pool, layout: str | Layout = "auto", lost: Collection[int] | None = ()) -> Shards:
    """The checkpoint that one host sees, or all of them together. Raises as `open_shards`."""
    path, names = found.path, [shard.name for shard in found.shards]
    if not names:
        problem = f"{path} holds no .safetensors file{found.asked}"
        raise CheckpointError("EP201", problem, "is it the directory of shards?")
    manifest = None
    if MANIFEST_NAME in found.beside:
        manifest = manifest_of(found.file(MANIFEST_NAME).read(MAX_MANIFEST_NBYTES), path / MANIFEST_NAME)
    if manifest is not None and layout == "auto":
        layout = layout_from_json(manifest.layout, path / MANIFEST_NAME)
    if not isinstance(layout, Layout):
        layout = find_layout(
            layout, names, dict.fromkeys(key for one in found.headers for key in one.tensors)
        )
    tell("layout", f"{path}: {layout.name}")
    if lost is None:
        lost = set() if manifest is None else ranks_away(names, layout, manifest)
    elif manifest is not None and not lost and not found.is_of_many:
        refuse_part(path, names, layout, manifest)
    opened = shards_of(found, layout, manifest, lost)
    _require_headers_as_in_manifest(opened)
    return _require_experts(opened)


def shards_of(found: Pool, layout: Layout, manifest: Manifest | None, lost: Collection[int] = ()) -> Shards:
    """Shards by their headers, which were read.

    Args:
        lost: the numbers of the ranks of which there are no headers.

    Raises:
        CheckpointError: EP202, EP205 or EP206, the files are not all of all other ranks.
    """
    shards = _closed_up(found, sorted(_named(found, layout), key=_in_order), frozenset(lost))
    if manifest is not None and lost:
        manifest = _of_those_left(manifest, layout, frozenset(lost))
    carried = tuple(sorted(name for name in found.beside if not _is_ours(name)))
    tensors = _by_rank(found, shards, len(lost))
    opened = Shards(found.path, layout, tuple(shards), tensors, carried, manifest, lost=tuple(sorted(lost)))
    return replace(opened, pool=found) if found.is_of_many else opened


def _in_order(shard: ShardFile) -> tuple[int, str, int]:
    return shard.name.rank, shard.name.series, shard.name.part


def _named(found: Pool, layout: Layout) -> Iterator[ShardFile]:
    """The shards with what their names say. Raises EP206 for one that has another name."""
    for shard in found.shards:
        name, path = layout.match_file(shard.name), found.path / shard.name
        if name is None:
            hint = f"layout {layout.name} has {' and '.join(layout.files)}"
            raise CheckpointError("EP206", f"{path} is not named like a shard", hint)
        of_many = (shard.inode, shard.own) if found.is_of_many else ()
        yield ShardFile(path, name, shard.header, shard.nbytes, shard.mtime_ns, *of_many)


def _require_experts(found: Shards) -> Shards:
    """EP206 for shards without an expert, EP208 for more rows than any placement has."""
    path, layout = found.path, found.layout
    if not found.moe_layers:
        raise CheckpointError("EP206", f"{path} has no tensor that layout {layout.name} knows as an expert's")
    if (most := int(found.slots_per_rank.max())) > MAX_ENTRIES:
        raise CheckpointError(
            "EP208", f"{path} has a rank of {most:,} rows; more than {MAX_ENTRIES:,} are too many"
        )
    return found


def _open_presharded(path: Path, names: list[str], layout: str | Layout) -> Shards:
    """SGLang's presharded form: its names, and where they lead to.

    Raises:
        CheckpointError: EP206, a rank reads what is in no file; what `read_index` and `read_header` raise.
    """
    reads = read_index(path)
    file_names = [name for name in names if name.endswith(SUFFIX)]
    headers = {name: read_header(path / name) for name in file_names}
    readers = {one.file: rank for rank in reversed(range(len(reads))) for one in reads[rank]}
    shards = tuple(
        ShardFile(
            path / name,
            ShardName(SERIES, readers.get(name, 0), number),
            headers[name][0],
            headers[name][1].st_size,
            headers[name][1].st_mtime_ns,
        )
        for number, name in enumerate(file_names)
    )
    numbers = {name: number for number, name in enumerate(file_names)}
    tensors: list[dict[str, TensorAt]] = [{} for _ in reads]
    for rank, of_rank in enumerate(reads):
        for name, key, tensor in of_rank:
            header = headers[name][0] if name in headers else None
            if header is None or key not in header.tensors or tensor in tensors[rank]:
                problem = f"{path / INDEX_NAME}: {tensor!r} of rank {rank} is in no file, or there twice"
                raise CheckpointError("EP206", problem, "are all files there?")
            entry = header.tensors[key]
            tensors[rank][tensor] = TensorAt(numbers[name], header.data_start + entry.begin, entry)
    found = preset("sharded-state") if layout == "auto" else layout
    found = found if isinstance(found, Layout) else find_layout(found, (), ())
    carried = [name for name in names if not name.endswith(SUFFIX) and name not in {INDEX_NAME, READY_NAME}]
    return Shards(path, found, shards, tuple(tensors), tuple(sorted(carried)), None)


def _require_headers_as_in_manifest(shards: Shards) -> None:
    """EP506 where the shards of SRC, or what their headers say, are not those of its own manifest."""
    if shards.manifest is None:
        return
    known = {name: (file["nbytes"], file["header_digest"]) for name, file in shards.manifest.files.items()}
    found = {shard.path.name: (shard.nbytes, shard.header.digest) for shard in shards.files}
    wrong = [name for name in sorted(known.keys() | found.keys()) if known.get(name) != found.get(name)]
    if wrong:
        what = "its header" if wrong[0] in known.keys() & found.keys() else "that it is there, or is not,"
        raise unlike_manifest(shards, f"{wrong[0]}: {what}")


def unlike_manifest(shards: Shards, what: str) -> BytesError:
    """EP506 for what is not as the manifest of SRC says."""
    return BytesError("EP506", f"{shards.path}: {what} is not what eplb.json says")


def _is_ours(name: str) -> bool:
    return name == MANIFEST_NAME or is_digest_file(name)


def _closed_up(found: Pool, shards: list[ShardFile], lost: Collection[int]) -> list[ShardFile]:
    """Files of the ranks that are left, numbered anew. Raises EP202 where these are not all others."""
    if not lost:
        return shards
    ranks = {shard.name.rank for shard in shards}
    left = [rank for rank in range(len(ranks - {*lost}) + len(lost)) if rank not in lost]
    if wrong := sorted(ranks ^ {*left}):
        what = "is said to be lost, and its files are there" if wrong[0] in lost else "is missing as well"
        hint = "take its files away" if wrong[0] in lost else "is it lost, too?"
        raise CheckpointError("EP202", f"{found.path}: rank {wrong[0]} {what}", hint)
    return [shard._replace(name=shard.name._replace(rank=left.index(shard.name.rank))) for shard in shards]


def _of_those_left(manifest: Manifest, layout: Layout, lost: Collection[int]) -> Manifest:
    """What a manifest says of the files that are left."""
    ranks = files_of(manifest.files, layout)
    files = {name: file for name, file in manifest.files.items() if ranks.get(name) not in lost}
    return replace(manifest, files=files)


def _by_rank(found: Pool, shards: list[ShardFile], num_lost: int) -> tuple[Mapping[str, TensorAt], ...]:
    ranks = sorted({shard.name.rank for shard in shards})
    if ranks != list(range(len(ranks))):
        missing = next(rank for rank in range(len(ranks)) if rank not in ranks)
        raise CheckpointError(
            "EP202",
            f"{found.path} has files of rank {ranks[-1]} and none of rank {missing}{found.asked}",
            "copy all ranks",
        )
    for shard in shards:
        if shard.name.world not in (None, len(ranks) + num_lost):
            raise CheckpointError(
                "EP202",
                f"{shard.path} is one of {shard.name.world} ranks, and there are files of {len(ranks)}"
                f"{found.asked}",
            )
    _check_parts(found, shards)
    tensors: tuple[dict[str, TensorAt], ...] = tuple({} for _ in ranks)
    for number, shard in enumerate(shards):
        of_rank = tensors[shard.name.rank]
        for key, entry in shard.header.tensors.items():
            if key in of_rank:
                other = shards[of_rank[key].file].path
                raise CheckpointError(
                    "EP205",
                    f"{key!r} is in {other} and in {shard.path}",
                    "is one of them left over from before?",
                )
            of_rank[key] = TensorAt(number, shard.header.data_start + entry.begin, entry)
    return tensors


def _check_parts(found: Pool, shards: list[ShardFile]) -> None:
    parts: dict[tuple[str, int], list[int]] = defaultdict(list)
    for shard in shards:
        parts[shard.name.series, shard.name.rank].append(shard.name.part)
    for (series, rank), numbers in parts.items():
        if numbers != list(range(len(numbers))):
            missing = next((part for part in range(len(numbers)) if part not in numbers), numbers[0])
            problem = "has two files of" if missing in numbers else "lacks"
            raise CheckpointError(
                "EP202", f"rank {rank} {problem} part {missing} of {series}{found.asked}", "copy all parts"
            )
