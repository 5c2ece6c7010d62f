"""The weights of a rank as tensors, made of the bytes that a problem says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from tests.support.live.problems import Bytes, Contents, Problem, Rows, before

Group = dist.ProcessGroup

_ODD = [
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2")
    if hasattr(torch, name)
]
"""One byte each, and not for every backend: the reference is given their bytes."""


class Live:
    """The weights of a rank, and the memory they are in."""

    def __init__(
        self,
        memory: list[list[Bytes]],
        layers: Sequence[Sequence[Rows]],
        num_rows: int,
        device: torch.device,
    ) -> None:
        self._filled = [[torch.from_numpy(array) for array in arrays] for arrays in memory]
        self.memory = [[array.to(device, copy=True) for array in arrays] for arrays in self._filled]
        self.weights = [
            [_tensor(raw, rows, num_rows) for raw, rows in zip(arrays, tensors, strict=True)]
            for arrays, tensors in zip(self.memory, layers, strict=True)
        ]

    def plain(self) -> list[list[torch.Tensor]]:
        """The same memory, in dtypes that every backend sends."""
        return [
            [tensor.view(torch.uint8) if tensor.dtype in _ODD else tensor for tensor in tensors]
            for tensors in self.weights
        ]

    def refill(self) -> None:
        """Make all memory what it was first."""
        for arrays, filled in zip(self.memory, self._filled, strict=True):
            for raw, content in zip(arrays, filled, strict=True):
                raw.copy_(content)

    def contents(self) -> Contents:
        """All memory."""
        return [[raw.cpu().numpy().tobytes() for raw in arrays] for arrays in self.memory]


def _tensor(raw: torch.Tensor, rows: Rows, num_rows: int) -> torch.Tensor:
    """The tensor that lies in the memory."""
    strides = torch.empty(rows.shape, device="meta").stride()
    stride = max(rows.numel + rows.gap, 1)
    typed = raw.as_strided((raw.numel(),), (1,)).view(getattr(torch, rows.dtype))
    return typed.as_strided((num_rows, *rows.shape), (stride, *strides), rows.offset)


def live(problem: Problem, group: Group, device: torch.device) -> Live:
    """The weights of this rank before anything."""
    return Live(before(problem, group.rank()), problem.layers, problem.num_rows, device)


def tables(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """OLD and NEW as a caller gives them."""
    return torch.tensor(problem.old, dtype=torch.int64), torch.tensor(problem.new, dtype=torch.int64)


def buffers_of(problem: Problem, group: Group, device: torch.device) -> Live:
    """Buffers shaped like the weights of each layer, full of other bytes."""
    layers = [[Rows(rows.dtype, rows.shape) for rows in tensors] for tensors in problem.layers]
    num_rows = problem.num_rows
    memory = [[np.full(rows.row_nbytes * num_rows, 0xA5, np.uint8) for rows in tensors] for tensors in layers]
    return Live(memory, layers, num_rows, device)
