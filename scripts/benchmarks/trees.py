"""Generated checkpoints: shards with the experts of Qwen3-30B-A3B, and placements for them.

A row's bytes are a function of (layer, tensor, expert), so that replicas are equal and no two other rows
are: a window of one random block, with a number of its own in front.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.formats.safetensors_header import build_header
from eplb_cli.placements.own_format import placement_to_json
from eplb_cli.placements.placement import Placement

HIDDEN = 2048
INTERMEDIATE = 768
NUM_EXPERTS = 128
NUM_REDUNDANT = 16
SEED = 20250213

BLOCK_NBYTES = 64 << 20
_WINDOW_STEP = 7919 * 64


class Tensor(NamedTuple):
    """A tensor of a shard; `cell` is (layer, tensor) for an expert tensor, None for another one."""

    name: str
    shape: tuple[int, ...]
    cell: tuple[int, int] | None

    @property
    def nbytes(self) -> int:
        """Size in bytes: everything here is bf16."""
        return 2 * math.prod(self.shape)


@dataclass(frozen=True)
class Shape:
    """What a generated checkpoint looks like.

    Attributes:
        width: the intermediate size; a row of w13 has 2 * width * HIDDEN values, one of w2 half as many.
        aligned: data starts on a page and large tensors come first, as in what eplb writes; otherwise
            tensors are in the order of their names behind a header of any length, as vLLM writes them.
    """

    num_layers: int
    width: int = INTERMEDIATE
    num_ranks: int = 4
    aligned: bool = True

    @property
    def num_slots(self) -> int:
        """P."""
        return NUM_EXPERTS + NUM_REDUNDANT

    @property
    def layer_nbytes(self) -> int:
        """All rows of one layer."""
        return self.num_slots * 3 * self.width * HIDDEN * 2

    @property
    def gigabytes(self) -> float:
        """All rows of all layers, in 10^9 bytes."""
        return self.num_layers * self.layer_nbytes / 1e9

    @property
    def narrow(self) -> Shape:
        """Twice the layers of half the width."""
        return replace(self, num_layers=2 * self.num_layers, width=self.width // 2)

    @property
    def name(self) -> str:
        """For a directory and for the table."""
        header = "aligned" if self.aligned else "unaligned"
        return f"{self.gigabytes:.2f} GB, {self.num_layers} × {self.width}, {header}"


def shape_of(gigabytes: float, num_ranks: int, *, aligned: bool = True) -> Shape:
    """Whole layers, at least so many GB of them; below two layers, two layers of a smaller width."""
    whole = Shape(math.ceil(gigabytes * 1e9 / Shape(1).layer_nbytes), INTERMEDIATE, num_ranks, aligned)
    if whole.num_layers > 1:
        return whole
    width = max(2, int(INTERMEDIATE * gigabytes * 1e9 / (2 * Shape(1).layer_nbytes)))
    return replace(whole, num_layers=2, width=width - width % 2)


def linear(shape: Shape) -> Placement:
    """Experts in order, and the redundant ones from expert 0 on."""
    row = np.arange(shape.num_slots) % NUM_EXPERTS
    return placement(np.tile(row, (shape.num_layers, 1)), NUM_EXPERTS, shape.num_ranks)


def shuffled(shape: Shape, seed: int = SEED) -> Placement:
    """In every layer another random order, with other experts replicated."""
    return random_placement(shape.num_layers, NUM_EXPERTS, NUM_REDUNDANT, shape.num_ranks, seed)


def random_placement(
    num_layers: int, num_experts: int, num_redundant: int, num_ranks: int, seed: int
) -> Placement:
    """Every expert once, and `num_redundant` distinct ones again, in any order."""
    random = np.random.default_rng(seed)
    rows = [
        random.permutation(
            np.r_[np.arange(num_experts), random.choice(num_experts, num_redundant, replace=False)]
        )
        for _ in range(num_layers)
    ]
    return placement(np.array(rows), num_experts, num_ranks)


def placement(table: NDArray[np.int64], num_experts: int, num_ranks: int) -> Placement:
    """A placement whose ranks have equally many slots."""
    num_layers, num_slots = table.shape
    first_slot = np.arange(num_ranks + 1) * (num_slots // num_ranks)
    return Placement(table, first_slot, num_experts, np.arange(num_layers))


def write_placement(path: Path, content: Placement) -> None:
    """A placement file."""
    path.write_text(json.dumps(placement_to_json(content)), encoding="utf-8")


def write_tree(path: Path, shape: Shape) -> None:
    """Write the shards of all ranks under the linear placement."""
    path.mkdir(parents=True)
    block = np.random.default_rng(SEED).bytes(BLOCK_NBYTES)
    old = linear(shape)

    def write(rank: int) -> None:
        slots = slice(int(old.first_slot[rank]), int(old.first_slot[rank + 1]))
        _write_shard(path / shard_name(rank), shape, old.physical_to_logical[:, slots], memoryview(block))

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(shape.num_ranks)))
    (path / "config.json").write_text('{"model_type": "qwen3_moe"}\n', encoding="utf-8")


def shard_name(rank: int) -> str:
    """As vLLM names it."""
    return f"model-rank-{rank}-part-0.safetensors"


def expert_key(layer: int, tensor: int) -> str:
    """The name of w13 (0) or w2 (1)."""
    return f"model.layers.{layer}.mlp.experts.{('w13_weight', 'w2_weight')[tensor]}"


def _write_shard(path: Path, shape: Shape, experts: NDArray[np.int64], block: memoryview) -> None:
    tensors = _tensors(shape, num_rows=experts.shape[1])
    header = _header(tensors, aligned=shape.aligned)
    with path.open("wb", buffering=0) as file:
        file.write(header)
        for tensor in tensors:
            for parts in _rows(tensor, experts, block):
                os.writev(file.fileno(), parts)
    expected = len(header) + sum(tensor.nbytes for tensor in tensors)
    if path.stat().st_size != expected:
        raise OSError(f"{path} was not written whole: is the disk full?")


def _tensors(shape: Shape, num_rows: int) -> list[Tensor]:
    """The tensors of a shard, in the order of their bytes."""
    tensors = [Tensor("model.norm.weight", (HIDDEN,), None)]
    for layer in range(shape.num_layers):
        tensors += [
            Tensor(expert_key(layer, 0), (num_rows, 2 * shape.width, HIDDEN), (layer, 0)),
            Tensor(expert_key(layer, 1), (num_rows, HIDDEN, shape.width), (layer, 1)),
            Tensor(f"model.layers.{layer}.mlp.gate.weight", (NUM_EXPERTS, HIDDEN), None),
        ]
    return sorted(tensors, key=lambda tensor: (-tensor.nbytes if shape.aligned else 0, tensor.name))


def _header(tensors: list[Tensor], *, aligned: bool) -> bytes:
    if aligned:
        return build_header(((t.name, "BF16", t.shape, t.nbytes) for t in tensors), {})[0]
    entries, begin = {}, 0
    for tensor in tensors:
        end = begin + tensor.nbytes
        entries[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(math.ceil(len(text) / 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _rows(
    tensor: Tensor, experts: NDArray[np.int64], block: memoryview
) -> Iterator[list[memoryview | bytes]]:
    """The bytes of each row, in pieces; another tensor is one row, the same on all ranks."""
    if tensor.cell is None:
        yield [block[: tensor.nbytes]]
        return
    layer, number = tensor.cell
    row_nbytes = tensor.nbytes // tensor.shape[0]
    for expert in experts[layer].tolist():
        salt = (2 * layer + number) * NUM_EXPERTS + expert
        begin = salt * _WINDOW_STEP % (len(block) - row_nbytes)
        yield [salt.to_bytes(8, "little"), block[begin : begin + row_nbytes - 8]]
