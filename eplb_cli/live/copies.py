"""Many small copies in one step: tables of addresses, carried out by the host or by the device."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray

from eplb_cli.arrays import Int, stable_order
from eplb_cli.errors import WorkerError
from eplb_cli.values import dataclass

PROGRAMS_SHARE = 4
"""The part of a device's multiprocessors that a step takes: one in so many."""

_WORDS = (16, 4, 1)
"""Bytes that a kernel copies at a time; the widest that divides both addresses and the size."""


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies of `nbytes` from address to address, columns of shape (N,), in steps.

    The copies of one step are independent of each other.
    """

    step: Int
    source: Int
    destination: Int
    nbytes: Int

    @property
    def num_steps(self) -> int:
        """Number of steps; there is nothing to do in any other."""
        return int(self.step.max(initial=-1)) + 1


class HostMover:
    """Copies in host memory."""

    def __init__(self, copies: Copies) -> None:
        order = stable_order(copies.step, copies.num_steps)
        self._columns = [column[order] for column in (copies.destination, copies.source, copies.nbytes)]
        self._bounds = np.searchsorted(copies.step[order], np.arange(copies.num_steps + 1)).tolist()

    def run(self, step: int, *, alone: bool = False) -> None:
        """Carry out one step."""
        del alone
        if step + 1 >= len(self._bounds):
            return
        part = slice(self._bounds[step], self._bounds[step + 1])
        for destination, source, nbytes in zip(
            *(column[part].tolist() for column in self._columns), strict=True
        ):
            ctypes.memmove(destination, source, nbytes)


class DeviceMover:
    """Copies in the memory of a CUDA device, a kernel for each step and width of words.

    The table is on the device before the first step. A step takes a quarter of the multiprocessors, so
    that two lanes leave half of them free: a program of NCCL needs a whole one to start at all.
    """

    def __init__(self, copies: Copies, device: torch.device) -> None:
        try:
            from eplb_cli.live import copy_kernel
        except ImportError as error:
            raise WorkerError(
                "EP404", "live tensors on a CUDA device need triton", "install the triton your torch names"
            ) from error
        self._kernel = copy_kernel
        low_bits = copies.source | copies.destination | copies.nbytes
        group = copies.step * len(_WORDS) + (low_bits % 16 != 0) + (low_bits % 4 != 0)
        order = stable_order(group, copies.num_steps * len(_WORDS))
        blocks = -(-copies.nbytes[order] // copy_kernel.BLOCK_NBYTES)
        first = np.cumsum(blocks) - blocks
        bounds = np.searchsorted(group[order], np.arange(copies.num_steps * len(_WORDS) + 1))
        self._bounds = np.r_[first, blocks.sum()][bounds].tolist()
        columns = np.stack([copies.source[order], copies.destination[order], copies.nbytes[order], first])
        self._columns = list(_to_device(columns, device))
        self._row_of_block = _to_device(np.repeat(np.arange(len(order), dtype=np.int32), blocks), device)
        self._all_programs = torch.cuda.get_device_properties(device).multi_processor_count
        self._programs = max(self._all_programs // PROGRAMS_SHARE, 1)

    def run(self, step: int, *, alone: bool = False) -> None:
        """Start one step on the current stream.

        Args:
            alone: nothing moves beside it, so that it may take the whole device.
        """
        kernel = self._kernel
        if (step + 1) * len(_WORDS) >= len(self._bounds):
            return
        for number, word in enumerate(_WORDS):
            begin, end = self._bounds[step * len(_WORDS) + number : step * len(_WORDS) + number + 2]
            if begin == end:
                continue
            kernel.copy_blocks[(min(end - begin, self._all_programs if alone else self._programs),)](
                *self._columns,
                self._row_of_block,
                begin,
                end,
                WORD=word,
                TILE=kernel.TILE_WORDS,
                BLOCK=kernel.BLOCK_NBYTES,
                num_warps=kernel.NUM_WARPS,
            )


def _to_device(array: NDArray[np.integer], device: torch.device) -> torch.Tensor:
    """An array on the device; not through pinned memory, which takes longer to get than the copy takes."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def make_mover(copies: Copies, device: torch.device) -> HostMover | DeviceMover:
    """The mover for tensors of a device."""
    return DeviceMover(copies, device) if device.type == "cuda" else HostMover(copies)
