"""Synthetic checkpoints: written by hand, and judged by hand.

`tensors_of_rank` says what a rank's shard holds under a placement. SRC is written from it, and the
result is compared with it. Nothing here uses eplb's or anybody's safetensors code.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from eplb_cli.placements.placement import Placement
from tests.support.weights import expert_row, garbage, other_tensor

Style = Literal["stacked", "row", "expert"]
"""One tensor per layer; one per slot, named by its row; one per slot, named by its expert."""

BITS = {
    "BOOL": 8,
    "F4": 4,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "F32": 32,
    "I64": 64,
}


class Tensor(NamedTuple):
    """A tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class ExpertTensor(NamedTuple):
    """One of the tensors an expert consists of: its name and one row of it."""

    name: str
    dtype: str
    row_shape: tuple[int, ...] = ()

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.row_shape) * BITS[self.dtype] // 8


class OtherTensor(NamedTuple):
    """Any other tensor: every rank's own where `own`, with dim 0 its number of rows where `rows`."""

    key: str
    dtype: str = "BF16"
    shape: tuple[int, ...] = (3,)
    own: bool = False
    rows: bool = False


@dataclass(frozen=True)
class Model:
    """What a checkpoint holds, whatever its placement.

    Attributes:
        prefix: of the keys of a layer's experts, with `{layer}`.
        layers: the model's own layer number to the tensors of its experts.
        source_ranks: R of SRC: a new rank has the other tensors of old rank `rank % R`.
        num_stages: pipeline stages, in SGLang's file names; 0 for the other names.
    """

    style: Style
    prefix: str
    layers: Mapping[int, tuple[ExpertTensor, ...]]
    others: tuple[OtherTensor, ...]
    source_ranks: int
    num_stages: int = 0

    def stage_of(self, key: str) -> int:
        """The stage whose files a tensor is in."""
        return zlib.crc32(key.encode()) % self.num_stages

    def expert_nbytes(self, layer: int) -> int:
        """Bytes of one expert with all its tensors."""
        return sum(tensor.row_nbytes for tensor in self.layers[layer])


def slots_of_rank(placement: Placement, rank: int) -> range:
    return range(int(placement.first_slot[rank]), int(placement.first_slot[rank + 1]))


def tensors_of_rank(model: Model, placement: Placement, rank: int, *, zeros: bool) -> dict[str, Tensor]:
    """All that the shard of a rank holds; empty slots hold zeros, or garbage."""
    slots = slots_of_rank(placement, rank)
    held = {other.key: _other(other, rank % model.source_ranks, len(slots)) for other in model.others}
    for index in range(placement.num_layers):
        layer = placement.layer_number(index)
        experts = [int(placement.physical_to_logical[index, slot]) for slot in slots]
        for tensor in model.layers[layer]:
            prefix = model.prefix.format(layer=layer)
            rows = [
                _row(layer, expert, tensor, slot, zeros=zeros)
                for slot, expert in zip(slots, experts, strict=True)
            ]
            if model.style == "stacked":
                shape = (len(rows), *tensor.row_shape)
                held[prefix + tensor.name] = Tensor(tensor.dtype, shape, b"".join(rows))
                continue
            for row, (expert, data) in enumerate(zip(experts, rows, strict=True)):
                number = row if model.style == "row" else expert
                if number >= 0:
                    held[f"{prefix}{number}.{tensor.name}"] = Tensor(tensor.dtype, tensor.row_shape, data)
    return held


def _other(other: OtherTensor, rank: int, num_rows: int) -> Tensor:
    shape = (num_rows, *other.shape[1:]) if other.rows else other.shape
    nbytes = math.prod(shape) * BITS[other.dtype] // 8
    return Tensor(other.dtype, shape, other_tensor(other.key, rank if other.own else None, nbytes))


def _row(layer: int, expert: int, tensor: ExpertTensor, slot: int, *, zeros: bool) -> bytes:
    if expert >= 0:
        return expert_row(layer, expert, tensor.name, tensor.row_nbytes)
    return bytes(tensor.row_nbytes) if zeros else garbage(tensor.name, slot, tensor.row_nbytes)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file: 8 bytes of header length, a JSON header, the tensors back to back."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        header[key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values())
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; they follow one another without a hole."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    tensors, position = {}, 0
    for key, entry in entries:
        begin, end = entry["data_offsets"]
        assert begin == position, f"{path.name}: {key} starts at {begin}, not at {position}"
        tensors[key] = Tensor(entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
        position = end
    assert start + position == len(content), f"{path.name} has {len(content)} bytes, not {start + position}"
    return tensors


def write_tree(path: Path, model: Model, placement: Placement, num_parts: int = 1) -> None:
    """SRC: rank r is spread over up to `num_parts` files, those of r + 1 over one fewer, and so on."""
    for rank in range(placement.num_ranks):
        tensors = tensors_of_rank(model, placement, rank, zeros=False)
        for series, keys in _series(model, rank, placement.num_ranks, sorted(tensors)).items():
            count = 1 if "{part}" not in series else 1 + (num_parts - 1 - rank) % num_parts
            for part in range(count):
                members = {key: tensors[key] for key in keys[part::count]}
                write_file(path / series.replace("{part}", str(part)), members, {"format": "pt"})


def _series(model: Model, rank: int, num_ranks: int, keys: list[str]) -> dict[str, list[str]]:
    """The keys of each series of files that a rank has, by file name without the part."""
    if model.style == "expert":
        return {f"model{rank}-mp{num_ranks}.safetensors": keys}
    if not model.num_stages:
        return {f"model-rank-{rank}-part-{{part}}.safetensors": keys}
    return {
        f"model-pp-{stage}-tp-{rank}-part-{{part}}.safetensors": [
            key for key in keys if model.stage_of(key) == stage
        ]
        for stage in range(model.num_stages)
    }


_NAMES = tuple(
    re.compile(pattern + re.escape(".safetensors"))
    for pattern in (
        "model-rank-(?P<rank>[0-9]+)-part-[0-9]+",
        "model-pp-(?P<stage>[0-9]+)-tp-(?P<rank>[0-9]+)-part-[0-9]+",
        "model(?P<rank>[0-9]+)-mp(?P<world>[0-9]+)",
    )
)


def read_tree(path: Path, model: Model | None = None) -> dict[int, dict[str, Tensor]]:
    """The tensors of each rank, from whatever part; no key is in two parts, nor in a stage not its own."""
    ranks: dict[int, dict[str, Tensor]] = {}
    worlds = set()
    for file in sorted(path.glob("*.safetensors")):
        name = next(filter(None, (pattern.fullmatch(file.name) for pattern in _NAMES)), None)
        assert name, f"{file.name} is no name of a shard"
        found = name.groupdict()
        worlds.add(found.get("world"))
        held = ranks.setdefault(int(found["rank"]), {})
        for key, tensor in read_file(file).items():
            assert key not in held, f"{key} is in two parts"
            assert model is None or "stage" not in found or model.stage_of(key) == int(found["stage"])
            held[key] = tensor
    assert worlds <= {None} or worlds == {str(len(ranks))}
    return ranks


def assert_tree(path: Path, model: Model, placement: Placement) -> None:
    """The oracle: every tensor of every rank is what the model says of the placement, and nothing else."""
    ranks = read_tree(path, model)
    assert sorted(ranks) == list(range(placement.num_ranks))
    for rank, found in ranks.items():
        expected = tensors_of_rank(model, placement, rank, zeros=True)
        assert sorted(found) == sorted(expected)
        for key, tensor in expected.items():
            assert found[key][:2] == tensor[:2], f"rank {rank}, {key}"
            assert found[key].data == tensor.data, f"rank {rank}, {key}: {_first_wrong(found[key], tensor)}"


def _first_wrong(found: Tensor, expected: Tensor) -> str:
    pairs = enumerate(zip(found.data, expected.data, strict=True))
    byte = next(number for number, (one, other) in pairs if one != other)
    rows = expected.shape[0] if expected.shape else 1
    row = byte * rows // len(expected.data)
    return f"byte {byte} (row {row} of {rows}) is {found.data[byte]}, not {expected.data[byte]}"
