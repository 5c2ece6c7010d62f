"""What a tree has to hold under a placement: an oracle in numpy that knows the design and no code of eplb.

Experts are rows of arrays, and the last row of each array is zeros: an empty slot, -1, takes that one. So a
rank's tensor under a placement is one look-up, and there are no moves, senders, buffers or plans in it.
Shards are written and read by hand: eight bytes of length, JSON, and the tensors back to back.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = {
    **dict.fromkeys(["F4"], 4),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"], 8),
    **dict.fromkeys(["F8_E5M2FNUZ", "F8_E4M3FNUZ"], 8),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 16),
    **dict.fromkeys(["I32", "U32", "F32"], 32),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 64),
}

Style = Literal["stacked", "row", "expert"]
"""One tensor a layer; one a slot, named by its row on the rank; one a slot, named by its expert."""


Role = Literal["weight", "scale", "extra", "input", "loose"]
"""Of a projection its weight, and what belongs to it; or a tensor of no projection."""


class Tensor(NamedTuple):
    """A tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Kind(NamedTuple):
    """One of the tensors that an expert of a layer consists of; `key` has `{number}` unless stacked."""

    key: str
    name: str
    dtype: str
    row_shape: tuple[int, ...]
    stage: int = 0
    projection: str = ""
    role: Role = "weight"

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.row_shape) * BITS[self.dtype] // 8


Shard = dict[str, Tensor]
Tree = dict[tuple[int, int], Shard]
"""(rank, pipeline stage) to what its files hold; shards without any tensor are left out."""


@dataclass
class Map:
    """A placement: `table` (L, P), the slots of each rank, the numbers of the layers, and E."""

    table: NDArray[np.int64]
    slots: list[int]
    layers: list[int]
    experts: int

    @property
    def num_ranks(self) -> int:
        return len(self.slots)

    def of_rank(self, rank: int) -> NDArray[np.int64]:
        """(L, S) the experts of a rank."""
        first = sum(self.slots[:rank])
        return self.table[:, first : first + self.slots[rank]]


@dataclass
class Model:
    """A checkpoint whatever its placement: rows of experts, and other tensors by (old rank, stage).

    `maps`: by layer a tensor that says where its experts are.
    """

    style: Style
    kinds: dict[int, list[Kind]]
    rows: dict[tuple[int, str], NDArray[np.uint8]]
    others: Tree
    file: str
    maps: dict[int, Kind] = field(default_factory=dict)


def random_rows(rng: np.random.Generator, kind: Kind, experts: int) -> NDArray[np.uint8]:
    """(E + 1, row_nbytes), the last of them zeros."""
    rows = rng.integers(0, 256, (experts + 1, kind.row_nbytes), np.uint8)
    rows[-1] = 0
    return rows


def tree_under(model: Model, placement: Map, origins: list[int], rubbish: int = 0) -> Tree:
    """What every rank holds. `origins`: which rank of SRC its other tensors are from.

    `rubbish` is what the bytes of empty slots are, which in a tree that eplb wrote are 0.
    """
    tree: Tree = defaultdict(dict)
    for rank, origin in enumerate(origins):
        for (of_rank, stage), others in model.others.items():
            if of_rank == origin:
                tree[rank, stage].update(others)
        for layer, experts in zip(placement.layers, placement.of_rank(rank), strict=True):
            for kind in model.kinds[layer]:
                rows = model.rows[layer, kind.name][experts]
                rows[experts < 0] = rubbish
                tree[rank, kind.stage].update(_tensors(model.style, kind, experts, rows))
            if layer in model.maps:
                said = model.maps[layer]
                tree[rank, said.stage][said.key] = _map(said.dtype, placement, rank, experts)
    return {key: shard for key, shard in tree.items() if shard}


def _tensors(style: Style, kind: Kind, experts: NDArray[np.int64], rows: NDArray[np.uint8]) -> Shard:
    """One tensor of all experts of a rank."""
    if style == "stacked":
        return {kind.key: Tensor(kind.dtype, (len(rows), *kind.row_shape), rows.tobytes())}
    numbers = range(len(rows)) if style == "row" else experts.tolist()
    return {
        kind.key.replace("{number}", str(number)): Tensor(kind.dtype, kind.row_shape, row.tobytes())
        for number, row in zip(numbers, rows, strict=True)
        if number >= 0
    }


FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<f4"}


def number_tensor(dtype: str, value: float) -> Tensor:
    """A tensor of one number."""
    content = np.array(value, FLOATS[dtype]).tobytes()
    return Tensor(dtype, (), content[2:] if dtype == "BF16" else content)


def number_of(tensor: Tensor) -> float:
    """What a tensor of one number says."""
    content = b"\0\0" + tensor.data if tensor.dtype == "BF16" else tensor.data
    return float(np.frombuffer(content, FLOATS[tensor.dtype])[0])


def _map(dtype: str, placement: Map, rank: int, experts: NDArray[np.int64]) -> Tensor:
    """The row on a rank that each expert has, or each slot where there are more slots than experts; or -1."""
    count = placement.table.shape[1]
    first = sum(placement.slots[:rank])
    ids = experts if count == placement.experts else np.arange(first, first + len(experts))
    rows = np.full(count, -1, {"I32": "<i4", "I64": "<i8"}[dtype])
    rows[ids] = np.arange(len(experts))
    return Tensor(dtype, (count,), rows.tobytes())


def shard_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], align: int) -> bytes:
    """A file of these tensors in this order, with data that starts at a multiple of `align`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    text = text.ljust(math.ceil((len(text) + 8) / align) * align - 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values())


def read_shard(path: Path) -> tuple[Shard, dict[str, str]]:
    """Tensors and metadata of a file; ValueError unless each of its bytes is a tensor's, once."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata, position, tensors = header.pop("__metadata__", {}), start, {}
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (start + offset for offset in entry["data_offsets"])
        if begin != position or (end - begin) * 8 != math.prod(entry["shape"]) * BITS[entry["dtype"]]:
            raise ValueError(f"{path.name}: {key} is at {begin} to {end}, and {position} is due")
        tensors[key] = Tensor(entry["dtype"], tuple(entry["shape"]), content[begin:end])
        position = end
    if position != len(content):
        raise ValueError(f"{path.name}: its tensors end at {position}, and it at {len(content)}")
    return tensors, metadata


def file_name(pattern: str, rank: int, part: int, stage: int, world: int) -> str:
    return pattern.format(rank=rank, part=part, stage=stage, world=world)


def write_tree(path: Path, tree: Tree, pattern: str, num_ranks: int, chance: Random) -> None:
    """Shards in a random order, in parts where names have them; every rank has a file."""
    stages = sorted({stage for _, stage in tree})
    align = chance.choice([1, 8, 4096])
    for rank in range(num_ranks):
        for stage in [stage for stage in stages if (rank, stage) in tree] or stages[:1]:
            items = list(tree.get((rank, stage), {}).items())
            chance.shuffle(items)
            parts = chance.choice([1, 1, 2, 3]) if "{part}" in pattern else 1
            metadata = {"format": "pt", "of": str(rank)} if chance.random() < 0.5 else {}
            for part in range(parts):
                name = file_name(pattern, rank, part, stage, num_ranks)
                (path / name).write_bytes(shard_bytes(dict(items[part::parts]), metadata, align))


def read_tree(path: Path, pattern: str, num_ranks: int) -> Tree:
    """What all shards hold; ValueError where their names, parts or marks are wrong."""
    expression = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern))
    tree: Tree = defaultdict(dict)
    ranks, parts = set(), defaultdict(set)
    for file in sorted(path.glob("*.safetensors")):
        found = re.fullmatch(expression, file.name)
        if not found or int(found.groupdict().get("world", num_ranks)) != num_ranks:
            raise ValueError(f"{file.name} is a name that no rank of {num_ranks} has")
        said = {key: int(value) for key, value in found.groupdict().items()}
        where = said["rank"], said.get("stage", 0)
        tensors, metadata = read_shard(file)
        if tensors.keys() & tree[where].keys() or metadata["eplb.rank"] not in ("all", found["rank"]):
            raise ValueError(f"{file.name}: a tensor is there twice, or its rank is {metadata}")
        tree[where].update(tensors)
        ranks.add(where[0])
        parts[where].add(said.get("part", 0))
    if ranks != set(range(num_ranks)) or any(p != set(range(len(p))) for p in parts.values()):
        raise ValueError(f"ranks {sorted(ranks)} of {num_ranks}, or parts, are not all there")
    return {key: shard for key, shard in tree.items() if shard}


def difference(found: Tree, expected: Tree) -> str:
    """The first place in which two trees differ; "" where there is none."""
    for where in sorted(found.keys() | expected.keys()):
        have, want = found.get(where, {}), expected.get(where, {})
        for key in sorted(have.keys() | want.keys()):
            if have.get(key) != want.get(key):
                return f"(rank, stage) {where}, {key}: {have.get(key)} instead of {want.get(key)}"
    return ""
