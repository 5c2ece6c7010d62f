"""The tree that is to be written: its files, their headers, and where every row will lie."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from eplb_cli.checkpoint.expert_maps import map_for
from eplb_cli.checkpoint.layout import file_name, has_parts, key_name, numbering
from eplb_cli.checkpoint.places import Extents
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, refuse_twice
from eplb_cli.checkpoint.shards import TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import DATA_ALIGNMENT, build_header
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.plan.hosting import Hosting
from eplb_cli.values import dataclass

MAX_PART_NBYTES = 5 << 30
"""A new part starts where a file would grow past this, as vLLM splits its shards."""


class OutputTensor(NamedTuple):
    """A tensor of the output.

    Attributes:
        row_nbytes: bytes that move as one; all of them for another tensor.
        cell: (layer, tensor, slots): which rows it holds, in order; None for another tensor.
        source: where another tensor comes from, and src_rank the old rank; None for one that is made.
        content: of a tensor that is made.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    row_nbytes: int
    cell: tuple[int, int, range] | None = None
    source: TensorAt | None = None
    src_rank: int = 0
    content: bytes | None = None


@dataclass(frozen=True)
class OutputFile:
    """A file of the output, of new rank `rank`.

    Attributes:
        others: keys of other tensors to (offset, nbytes).
        same_as: the number of an earlier rank's file that this one is the same as, under another name.
    """

    name: str
    rank: int
    header: bytes
    nbytes: int
    others: dict[str, tuple[int, int]]
    same_as: int | None = None

    @property
    def header_digest(self) -> str:
        """Hexadecimal sha256 of everything before the data."""
        return hashlib.sha256(self.header).hexdigest()


class OtherCopy(NamedTuple):
    """Another tensor on its way: old rank, place in SRC, new rank, place in the output."""

    key: str
    src_rank: int
    source: TensorAt
    dst_rank: int
    dst_file: int
    dst_offset: int


class Made(NamedTuple):
    """Another tensor of the output whose content follows from NEW."""

    key: str
    dst_rank: int
    dst_file: int
    dst_offset: int
    content: bytes


@dataclass(frozen=True, eq=False)
class OutputTree:
    """All files of the output.

    Attributes:
        extents: where each (layer, tensor, slot) of NEW lies.
        others: other tensors that come from SRC.
        made: other tensors that do not.
    """

    files: tuple[OutputFile, ...]
    extents: Extents
    others: tuple[OtherCopy, ...]
    made: tuple[Made, ...] = ()

    @property
    def num_own(self) -> int:
        """Files that are not the same as another."""
        return sum(file.same_as is None for file in self.files)

    @property
    def nbytes(self) -> int:
        """Apparent bytes of all shard files."""
        return sum(file.nbytes for file in self.files)

    @property
    def own_nbytes(self) -> int:
        """Apparent bytes of the files that are not the same as another."""
        return sum(file.nbytes for file in self.files if file.same_as is None)

    @property
    def other_nbytes(self) -> int:
        """Bytes of other tensors, summed over new ranks."""
        return sum(nbytes for file in self.files for _, nbytes in file.others.values())


def source_rank(rank: int, num_old_ranks: int) -> int:
    """The old rank whose other tensors a new rank has."""
    return rank % num_old_ranks


def plan_output(
    checkpoint: ShardedCheckpoint,
    new: Placement,
    shared: frozenset[str] = frozenset(),
    hosts: Hosting | None = None,
) -> OutputTree:
    """Lay out the files of NEW.

    Args:
        shared: other tensors that all ranks have alike. Where a rank can have several files they are in
            files of their own, behind the others, which are written for the first rank of each host and
            linked by the rest of it.
        hosts: who hosts which rank; None for one worker. It decides where bytes come from, and not what they
            are: headers are those of `source_rank` whoever hosts it.

    Raises:
        CheckpointError: what `check_output` raises.
    """
    check_output(checkpoint, new)
    hosts = hosts or Hosting.one_host(checkpoint.placement.num_ranks, new.num_ranks)
    shape = (*checkpoint.row_nbytes.shape, new.num_slots)
    extents = Extents(np.full(shape, -1, np.int32), np.zeros(shape, np.int64))
    files: list[OutputFile] = []
    others: list[OtherCopy] = []
    made: list[Made] = []
    shareable = _shareable(checkpoint, shared) if new.num_ranks > 1 else frozenset()
    common: dict[tuple[str, int, int], int] = {}
    said, by_eplb = _metadata_by_rank(checkpoint), {"eplb.placement_digest": new.digest}
    for rank in range(new.num_ranks):
        metadata = {**said[source_rank(rank, len(said))], "eplb.rank": str(rank), **by_eplb}
        for series, tensors in _tensors_by_series(checkpoint, new, rank, shared, hosts).items():
            own = [tensor for tensor in tensors if tensor.key not in shareable]
            parts = _parts(own, series) if own or not tensors else []
            for part, members in enumerate(parts):
                name = file_name(series, rank, part, new.num_ranks)
                _add_file(rank, name, metadata, members, files, extents, others, made)
            in_common = [tensor for tensor in tensors if tensor.key in shareable]
            for number, members in enumerate(_parts(in_common, series) if in_common else []):
                name = file_name(series, rank, len(parts) + number, new.num_ranks)
                first = common.setdefault((series, number, int(hosts.node_of_new[rank])), len(files))
                if first < len(files):
                    files.append(replace(files[first], name=name, rank=rank, same_as=first))
                    continue
                of_all = {**said[0], "eplb.rank": "all", **by_eplb}
                _add_file(rank, name, of_all, members, files, extents, others, made)
    for array in (extents.file, extents.offset):
        array.setflags(write=False)
    return OutputTree(tuple(files), extents, tuple(others), tuple(made))


def _shareable(checkpoint: ShardedCheckpoint, shared: frozenset[str]) -> frozenset[str]:
    """The shared keys that are in files of one series on all ranks, of which a rank can have several."""
    found = set()
    for key in shared:
        series = {checkpoint.shards.files[tensors[key].file].name.series for tensors in checkpoint.others}
        if len(series) == 1 and has_parts(series.pop()):
            found.add(key)
    return frozenset(found)


def check_output(checkpoint: ShardedCheckpoint, new: Placement) -> None:
    """Refuse a NEW that no files of this checkpoint can hold, as far as headers tell.

    Raises:
        CheckpointError: EP213, another tensor is sharded by its shape and R changes; EP218, the layout
            cannot hold an expert twice on a rank.
    """
    _check_others(checkpoint, new)
    if not checkpoint.shards.layout.names_experts:
        return
    for rank, layer in np.ndindex(new.num_ranks, new.num_layers):
        slots = slice(int(new.first_slot[rank]), int(new.first_slot[rank + 1]))
        refuse_twice(new.physical_to_logical[layer, slots], new.layer_number(layer), rank)


def _check_others(checkpoint: ShardedCheckpoint, new: Placement) -> None:
    old = checkpoint.placement
    same_ranks = old.num_ranks == new.num_ranks
    if not same_ranks and checkpoint.sharded_others:
        raise sharded_error(checkpoint.sharded_others, old.num_ranks, new.num_ranks)


def sharded_error(keys: list[str], num_old: int, num_new: int) -> CheckpointError:
    """EP213 for other tensors that are not the same on all old ranks."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return CheckpointError(
        "EP213",
        f"{keys[0]!r}{more}: sharded over the ranks, which become {num_new} instead of {num_old}",
    )


def _tensors_by_series(
    checkpoint: ShardedCheckpoint, new: Placement, rank: int, shared: frozenset[str], hosts: Hosting
) -> dict[str, list[OutputTensor]]:
    grouped: dict[str, list[OutputTensor]] = defaultdict(list)
    for layer, tensor in np.argwhere(checkpoint.row_nbytes >= 0):
        series = checkpoint.series[layer, tensor]
        if series is not None:
            grouped[series].extend(_expert_tensors(checkpoint, new, rank, int(layer), int(tensor)))
    for series, tensor in _other_tensors(checkpoint, new, rank, shared, hosts):
        grouped[series].append(tensor)
    if not grouped:  # a rank without a tensor has a file all the same, or ranks could not be counted
        grouped[checkpoint.shards.files[0].name.series] = []
    return grouped


def _other_tensors(
    checkpoint: ShardedCheckpoint, new: Placement, rank: int, shared: frozenset[str], hosts: Hosting
) -> Iterator[tuple[str, OutputTensor]]:
    """Series and other tensors of a new rank: as its old rank has them, but for what is settled otherwise.

    What old ranks have alike comes from the nearest of them; where R changes that is all that is not settled.
    """
    num_old, maps, settled = checkpoint.placement.num_ranks, checkpoint.maps, checkpoint.settled
    origin = source_rank(rank, num_old)
    near = hosts.nearest(origin, rank)
    layers = [new.layer_number(layer) for layer in range(new.num_layers)]
    for key, own in checkpoint.others[origin].items():
        src_rank = checkpoint.chosen_rank.get(key, origin)
        at = own if src_rank == origin else checkpoint.others[src_rank][key]
        tensor = OutputTensor(key, at.entry.dtype, at.entry.shape, at.entry.nbytes, at.entry.nbytes)
        if key in maps and maps[key] in layers:
            layer, length = layers.index(maps[key]), at.entry.shape[0]
            content = map_for(checkpoint.placement, new, length, layer, rank)
            kind = "<i4" if at.entry.dtype == "I32" else "<i8"
            data = content.astype(kind).tobytes()
            tensor = tensor._replace(
                shape=content.shape, nbytes=len(data), row_nbytes=len(data), content=data
            )
        series = checkpoint.shards.files[at.file].name.series
        if near != origin and key not in settled and (key in shared or new.num_ranks != num_old):
            src_rank, at = near, checkpoint.others[near][key]
        yield series, tensor._replace(source=at, src_rank=src_rank)


def _expert_tensors(
    checkpoint: ShardedCheckpoint, new: Placement, rank: int, layer: int, tensor: int
) -> Iterator[OutputTensor]:
    """The tensor or tensors that hold one (layer, tensor) of a rank."""
    template = checkpoint.expert_tensors[tensor].template
    dtype, row_shape = checkpoint.dtype[layer, tensor], checkpoint.row_shape[layer, tensor]
    row_nbytes = int(checkpoint.row_nbytes[layer, tensor])
    first, last = int(new.first_slot[rank]), int(new.first_slot[rank + 1])
    layer_id = new.layer_number(layer)
    numbered = numbering(template)
    if numbered == "stacked":
        key = key_name(template, layer_id, None)
        slots = range(first, last)
        shape = (last - first, *row_shape)
        yield OutputTensor(key, dtype, shape, row_nbytes * len(slots), row_nbytes, (layer, tensor, slots))
        return
    experts = new.physical_to_logical[layer, first:last]
    for row, expert in enumerate(experts.tolist()):
        if numbered == "expert" and expert == EMPTY:
            continue
        key = key_name(template, layer_id, expert if numbered == "expert" else row)
        slots = range(first + row, first + row + 1)
        yield OutputTensor(key, dtype, row_shape, row_nbytes, row_nbytes, (layer, tensor, slots))


def _parts(tensors: list[OutputTensor], series: str) -> list[list[OutputTensor]]:
    """Tensors in the order of their bytes, cut into files where there can be several."""
    ordered = sorted(
        tensors, key=lambda tensor: (tensor.row_nbytes % DATA_ALIGNMENT != 0, -tensor.nbytes, tensor.key)
    )
    parts: list[list[OutputTensor]] = [[]]
    nbytes = 0
    for tensor in ordered:
        if parts[-1] and nbytes + tensor.nbytes > MAX_PART_NBYTES and has_parts(series):
            parts.append([])
            nbytes = 0
        parts[-1].append(tensor)
        nbytes += tensor.nbytes
    return parts


def _add_file(  # noqa: PLR0913, PLR0917 - what it appends to comes last
    rank: int,
    name: str,
    metadata: dict[str, str],
    tensors: list[OutputTensor],
    files: list[OutputFile],
    extents: Extents,
    others: list[OtherCopy],
    made: list[Made],
) -> None:
    """Append one file, and say where its rows and other tensors lie."""
    header, offsets = build_header(
        ((tensor.key, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in tensors), metadata
    )
    number = len(files)
    other_extents = {}
    for tensor in tensors:
        offset = offsets[tensor.key]
        if tensor.cell is not None:
            layer, which, slots = tensor.cell
            extents.file[layer, which, slots.start : slots.stop] = number
            extents.offset[layer, which, slots.start : slots.stop] = (
                offset + np.arange(len(slots)) * tensor.row_nbytes
            )
            continue
        other_extents[tensor.key] = (offset, tensor.nbytes)
        if tensor.content is not None:
            made.append(Made(tensor.key, rank, number, offset, tensor.content))
        elif tensor.source is not None:
            others.append(OtherCopy(tensor.key, tensor.src_rank, tensor.source, rank, number, offset))
    nbytes = len(header) + sum(tensor.nbytes for tensor in tensors)
    files.append(OutputFile(name, rank, header, nbytes, other_extents))


def _metadata_by_rank(checkpoint: ShardedCheckpoint) -> list[dict[str, str]]:
    """What the first file of each old rank says of itself, without what eplb wrote there."""
    said: list[dict[str, str]] = [{} for _ in range(checkpoint.placement.num_ranks)]
    for file in reversed(checkpoint.shards.files):
        metadata = file.header.metadata.items()
        said[file.name.rank] = {key: value for key, value in metadata if not key.startswith("eplb.")}
    return said
