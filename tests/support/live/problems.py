"""What ranks are asked to rearrange, and which bytes they must have in the end.

Nothing here needs torch: a tensor is described by a `Rows`, and its memory is an array of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.weights import expert_row, stream

Bytes = NDArray[np.uint8]
Contents = list[list[bytes]]
"""All memory behind the tensors of a rank, per layer and tensor: gaps between rows too."""

Table = tuple[tuple[int, ...], ...]

DEFAULT_BUFFER_NBYTES = 2 << 30

ITEM_NBYTES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
}


class Rows(NamedTuple):
    """An expert tensor: `shape` of a row, and elements before the first row and between rows."""

    dtype: str = "float32"
    shape: tuple[int, ...] = (3,)
    offset: int = 0
    gap: int = 0

    @property
    def numel(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape)

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return self.numel * ITEM_NBYTES[self.dtype]

    def row_start(self, row: int) -> int:
        """Bytes before a row."""
        return (self.offset + row * (self.numel + self.gap)) * ITEM_NBYTES[self.dtype]


@dataclass(frozen=True)
class Problem:
    """A rearrangement among ranks of as many rows each.

    Attributes:
        old, new: (L, P) expert in each slot, as a caller gives them.
        layers: per layer, its expert tensors.
        replicas_differ: every row has bytes of its own, so that it shows where a copy came from;
            otherwise a row is a function of layer, expert and tensor.
    """

    num_ranks: int
    old: Table
    new: Table
    layers: tuple[tuple[Rows, ...], ...]
    buffer_size: int = DEFAULT_BUFFER_NBYTES
    rank_mapping: dict[int, int] | None = None
    replicas_differ: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of a rank."""
        ranks_of_new = self.num_ranks
        if self.rank_mapping is not None and len(self.rank_mapping) == self.num_ranks:
            ranks_of_new = sum(new >= 0 for new in self.rank_mapping.values())
        return len(self.new[0]) // ranks_of_new

    def reversed(self) -> Problem:
        """The way back."""
        return replace(self, old=self.new, new=self.old)


def problem(
    num_ranks: int,
    old: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
    *layers: Sequence[Rows],
    buffer_size: int = DEFAULT_BUFFER_NBYTES,
    rank_mapping: dict[int, int] | None = None,
) -> Problem:
    """A problem whose layers, if one is given or none, are all alike."""
    tensors = [tuple(layer) for layer in layers] or [(Rows(),)]
    tensors = tensors * len(old) if len(tensors) == 1 else tensors
    before, after = (tuple(tuple(row) for row in table) for table in (old, new))
    return Problem(num_ranks, before, after, tuple(tensors), buffer_size, rank_mapping)


def before(problem: Problem, rank: int) -> list[list[Bytes]]:
    """The memory of a rank: rows that hold an expert, and other bytes where there is none."""
    return [
        [_memory(problem, rank, layer, number, rows) for number, rows in enumerate(tensors)]
        for layer, tensors in enumerate(problem.layers)
    ]


def after(problem: Problem, rank: int) -> list[list[Bytes]]:
    """The memory of a rank when NEW is in place; rows that NEW leaves empty are as they were."""
    memory = before(problem, rank)
    for layer, tensors in enumerate(problem.layers):
        for number, rows in enumerate(tensors):
            _put_experts(memory[layer][number], rows, problem.new[layer], layer, number, (rank, problem))
    return memory


def _memory(problem: Problem, rank: int, layer: int, number: int, rows: Rows) -> Bytes:
    nbytes = rows.row_start(problem.num_rows)
    name = f"rank {rank} layer {layer} tensor {number}"
    memory = np.frombuffer(stream(name, nbytes), np.uint8).copy()
    if not problem.replicas_differ:
        _put_experts(memory, rows, problem.old[layer], layer, number, (rank, problem))
    return memory


def _put_experts(
    memory: Bytes, rows: Rows, held: Sequence[int], layer: int, number: int, where: tuple[int, Problem]
) -> None:
    """Write the rows of the experts that a rank holds."""
    rank, problem = where
    first = rank * problem.num_rows
    for row, expert in enumerate(held[first : first + problem.num_rows]):
        if expert >= 0:
            start = rows.row_start(row)
            content = expert_row(layer, expert, f"tensor {number}", rows.row_nbytes)
            memory[start : start + rows.row_nbytes] = np.frombuffer(content, np.uint8)


def contents(memory: list[list[Bytes]]) -> Contents:
    """Memory as values that can be compared."""
    return [[array.tobytes() for array in arrays] for arrays in memory]


def require_same(found: Sequence[Contents], expected: Sequence[Contents]) -> None:
    """The same bytes on all ranks, or where the first difference is."""
    assert len(found) == len(expected)
    for rank, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert [len(layer) for layer in ours] == [len(layer) for layer in theirs]
        for layer, pair in enumerate(zip(ours, theirs, strict=True)):
            for number, (mine, due) in enumerate(zip(*pair, strict=True)):
                if mine != due:
                    different = [at for at, (a, b) in enumerate(zip(mine, due, strict=True)) if a != b]
                    where = f"rank {rank}, layer {layer}, tensor {number}"
                    raise AssertionError(
                        f"{where}: {len(different)} of {len(due)} bytes differ, from byte {different[0]} on"
                    )


def require_new(problem: Problem, found: Sequence[Contents]) -> None:
    """NEW is in place on all ranks."""
    require_same(found, [contents(after(problem, rank)) for rank in range(problem.num_ranks)])
