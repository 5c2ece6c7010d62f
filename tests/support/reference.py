"""vLLM's own rearrangement, run for all ranks at once in one process, with every operation recorded."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections import defaultdict, deque
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

SEED = Path(__file__).parents[2].parent / "shared" / "seed" / "rebalance_execute.py"
"""Beside the repository, where the reference is present at all."""


def load_reference() -> ModuleType:
    """The reference as a module of its own, with a stand-in for the logger it imports."""
    stubs = {"vllm": ModuleType("vllm"), "vllm.logger": ModuleType("vllm.logger")}
    stubs["vllm.logger"].init_logger = logging.getLogger  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("rebalance_execute", SEED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known
    return module


class Sent(NamedTuple):
    """One row that went from one rank to another."""

    layer: int
    sender: int
    receiver: int
    expert: int
    source_row: int
    destination_row: int


class _Group(NamedTuple):
    """As much of a process group as the reference asks for."""

    me: int
    num_ranks: int

    def rank(self) -> int:
        return self.me

    def size(self) -> int:
        return self.num_ranks


class _Operation(NamedTuple):
    """Stands in for `P2POp`."""

    op: Any
    tensor: torch.Tensor
    peer: int


class Reference:
    """The reference with its communication replaced by queues.

    Weights are two tensors per rank, whose rows are numbered by the slots of OLD: after a run each row
    says which slot it came from.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self._posted: list[_Operation] = []
        module.P2POp = _Operation  # type: ignore[attr-defined]
        module.get_global_rank = lambda _, rank: rank  # type: ignore[attr-defined]
        module.batch_isend_irecv = self._post  # type: ignore[attr-defined]

    def _post(self, operations: list[_Operation]) -> list[Any]:
        self._posted += operations
        return []

    def run_layer(
        self, layer: int, old: np.ndarray, new: np.ndarray, num_ranks: int
    ) -> tuple[list[Sent], list[int]]:
        """All rows that travel, and per slot of NEW the slot of OLD whose row is there afterwards.

        Args:
            old, new: (P,) the expert in each slot.
        """
        rows = len(old) // num_ranks
        weights = [_numbered(rank * rows, rows) for rank in range(num_ranks)]
        buffers = [[torch.full_like(tensor, -7) for tensor in tensors] for tensors in weights]
        results, posted = [], []
        for rank in range(num_ranks):
            self._posted = []
            group = _Group(rank, num_ranks)
            results.append(
                self.module.move_to_buffer(rows, old, new, weights[rank], buffers[rank], None, group)
            )
            posted.append(self._posted)
        sent = self._deliver(layer, old, new, posted)
        for rank, (is_unchanged, is_local, metadata) in enumerate(results):
            self.module.move_from_buffer(
                weights[rank], buffers[rank], is_unchanged, is_local, metadata, new, _Group(rank, num_ranks)
            )
        landed = [[int(row) for row in tensors[0][:, 0]] for tensors in weights]
        assert landed == [[int(row) for row in tensors[1][:, 2]] for tensors in weights]
        return sent, [slot for of_rank in landed for slot in of_rank]

    @staticmethod
    def _deliver(layer: int, old: np.ndarray, new: np.ndarray, posted: list[list[_Operation]]) -> list[Sent]:
        """Pair the k-th send from a to b with the k-th receive of b from a; none is left over."""
        queues: dict[tuple[int, int], deque[torch.Tensor]] = defaultdict(deque)
        for rank, operations in enumerate(posted):
            for operation in operations:
                if operation.op is torch.distributed.isend:
                    queues[rank, operation.peer].append(operation.tensor)
        rows = len(old) // len(posted)
        sent = []
        for rank, operations in enumerate(posted):
            for operation in operations:
                if operation.op is not torch.distributed.irecv:
                    continue
                tensor = queues[operation.peer, rank].popleft()
                assert tensor.shape == operation.tensor.shape
                operation.tensor.copy_(tensor)
                if tensor.shape == (1,):
                    source, target = int(tensor.storage_offset()), int(operation.tensor.storage_offset())
                    expert = int(old[operation.peer * rows + source])
                    assert new[rank * rows + target] == expert
                    sent.append(Sent(layer, operation.peer, rank, expert, source, target))
        assert not any(queues.values())
        return sent


def _numbered(first_slot: int, rows: int) -> list[torch.Tensor]:
    """Two tensors, of rows of 1 and of 3 numbers; each row is full of the number of its slot."""
    slots = torch.arange(first_slot, first_slot + rows, dtype=torch.int64)
    return [slots[:, None].repeat(1, width) for width in (1, 3)]
