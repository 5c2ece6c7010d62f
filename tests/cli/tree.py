"""Small trees of shards for the command line to work on, written and read without any code under test.

A row's bytes are a function of (layer, expert, tensor), so what a tree has to hold under a placement is
computed and never recorded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "U8": 8,
    "I8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "BF16": 16,
    "F16": 16,
    "I32": 32,
    "F32": 32,
    "I64": 64,
}

Kinds = dict[str, tuple[str, tuple[int, ...]]]

KINDS: Kinds = {
    "w13_weight": ("F8_E4M3", (4, 6)),
    "w13_weight_scale_inv": ("F32", (1, 2)),
    "w2_weight": ("F8_E4M3", (6, 2)),
    "w2_weight_scale_inv": ("F32", (1, 1)),
}
"""Tensors of an expert: dtype and shape of one row."""


class Tensor(NamedTuple):
    """Dtype, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Rank = dict[str, Tensor]


def tensor(dtype: str, shape: Iterable[int], seed: str) -> Tensor:
    """A tensor whose bytes follow from `seed`."""
    sizes = tuple(shape)
    return Tensor(dtype, sizes, hashlib.shake_256(seed.encode()).digest(math.prod(sizes) * BITS[dtype] // 8))


def row(layer: int, expert: int, name: str, kind: tuple[str, tuple[int, ...]]) -> bytes:
    """The bytes of one tensor of an expert; an empty slot has zeros."""
    data = tensor(*kind, f"{layer} {expert} {name}").data
    return data if expert >= 0 else bytes(len(data))


def placement(rows: list[list[int]], num_ranks: int | None = 2, **changes: Any) -> dict[str, Any]:
    """The JSON of a placement of layers 3, 4, ...; a change to None drops a key."""
    content = {
        "format": "eplb-placement/1",
        "num_ranks": num_ranks,
        "num_logical_experts": max(map(max, rows)) + 1,
        "layer_ids": list(range(3, 3 + len(rows))),
        "physical_to_logical_map": rows,
        **changes,
    }
    return {key: value for key, value in content.items() if value is not None}


OLD = placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]])
NEW = placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]])


def slots_of_rank(content: Mapping[str, Any]) -> list[range]:
    """The slots of each rank of a placement."""
    num_slots = len(content["physical_to_logical_map"][0])
    sizes = content.get("slots_per_rank") or [num_slots // content["num_ranks"]] * content["num_ranks"]
    ends = [sum(sizes[: rank + 1]) for rank in range(len(sizes))]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def others(rank: int = 0, *, shared: bool = True) -> Rank:
    """Tensors that are no expert's; `shared` ones are the same on all ranks."""
    seed = "all" if shared else str(rank)
    return {
        "model.embed_tokens.weight": tensor("BF16", (8, 3), f"embed {seed}"),
        "model.layers.3.mlp.gate.weight": tensor("F32", (4, 3), f"gate {seed}"),
        "model.layers.3.mlp.experts.e_score_correction_bias": tensor("F32", (4,), f"bias {seed}"),
        "model.layers.3.self_attn.attn._k_scale": tensor("F32", (), f"k {seed}"),
        "model.norm.weight": tensor("BF16", (3,), f"norm {seed}"),
    }


def stacked(
    content: Mapping[str, Any],
    kinds: Mapping[str, tuple[str, tuple[int, ...]]] = KINDS,
    *,
    shared: bool = True,
    prefix: str = "model.layers.{layer}.mlp.experts",
) -> list[Rank]:
    """The tensors of each rank, one stacked tensor for each layer and kind."""
    ranks = []
    for rank, slots in enumerate(slots_of_rank(content)):
        tensors = others(rank, shared=shared)
        for layer, experts in zip(content["layer_ids"], content["physical_to_logical_map"], strict=True):
            for name, kind in kinds.items():
                data = b"".join(row(layer, experts[slot], name, kind) for slot in slots)
                key = f"{prefix.format(layer=layer)}.{name}"
                tensors[key] = Tensor(kind[0], (len(slots), *kind[1]), data)
        ranks.append(tensors)
    return ranks


def singles(
    content: Mapping[str, Any],
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    key: str,
    *,
    shared: bool = True,
) -> list[Rank]:
    """The tensors of each rank, one for each expert; `key` has {layer}, {tensor} and {row} or {expert}."""
    ranks = []
    for rank, slots in enumerate(slots_of_rank(content)):
        tensors = {name: at for name, at in others(rank, shared=shared).items() if "experts" not in name}
        for layer, experts in zip(content["layer_ids"], content["physical_to_logical_map"], strict=True):
            for number, slot in enumerate(slots):
                expert = experts[slot]
                if expert < 0 and "{expert}" in key:
                    continue
                for name, kind in kinds.items():
                    full = key.format(layer=layer, tensor=name, row=number, expert=expert)
                    tensors[full] = Tensor(kind[0], kind[1], row(layer, expert, name, kind))
        ranks.append(tensors)
    return ranks


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The header of a safetensors file with these tensors in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
    return header


def file_bytes(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header, which is text already or becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_shard(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file."""
    path.write_bytes(
        file_bytes(header_of(tensors, metadata), b"".join(tensor.data for tensor in tensors.values()))
    )


def read_shard(path: Path) -> Rank:
    """All tensors of a safetensors file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: Tensor(
            entry["dtype"],
            tuple(entry["shape"]),
            content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


STACKED_NAME = "model-rank-{rank}-part-{part}.safetensors"


def write_tree(path: Path, ranks: list[Rank], name: str = STACKED_NAME, parts: int = 1) -> Path:
    """Write the shards of all ranks, each spread over `parts` files."""
    path.mkdir(parents=True, exist_ok=True)
    for rank, tensors in enumerate(ranks):
        items = list(tensors.items())
        for part in range(parts):
            file = name.format(rank=rank, part=part, world=len(ranks))
            write_shard(path / file, dict(items[part::parts]))
    return path


def read_tree(path: Path) -> dict[str, Rank]:
    """All tensors of all shard files, by what the file's name says before its part."""
    ranks: dict[str, Rank] = {}
    for file in sorted(path.glob("*.safetensors")):
        ranks.setdefault(file.name.split("-part-")[0], {}).update(read_shard(file))
    return ranks


def fingerprint(path: Path) -> dict[str, tuple[int, int, str | None]]:
    """Kind, mode, time and content of everything below a directory; pipes are not opened."""
    found: dict[str, tuple[int, int, str | None]] = {}
    for file in sorted(path.rglob("*")):
        status = file.lstat()
        content = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.is_symlink():
            content = os.readlink(file)  # noqa: PTH115 - its text, whatever it leads to
        found[str(file.relative_to(path))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def write_json(path: Path, content: object) -> Path:
    """Write JSON, and give the path back."""
    path.write_text(json.dumps(content))
    return path


def reseal(tree: Path, name: str) -> None:
    """The manifest of a tree takes over what a file is now."""
    content = json.loads((tree / "eplb.json").read_text())
    del content["digest"]
    data = (tree / name).read_bytes()
    content["carried"][name] = {"nbytes": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}
    digest = hashlib.sha256(json.dumps(content, indent=1, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**content, "digest": digest}, indent=1, sort_keys=True)
    (tree / "eplb.json").write_text(text + "\n")


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str
    json: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.out.startswith("{"):
            self.json = json.loads(self.out)
