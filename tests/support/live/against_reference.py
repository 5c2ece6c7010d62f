"""What ranks do with the reference and with eplb, in the same group and on equal weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli import live as rearrange
from tests.support.live.problems import Contents, Problem
from tests.support.live.runs import rearrange_inplace
from tests.support.live.weights import Group, buffers_of, live, tables
from tests.support.reference import load_reference

Masks = list[tuple[str, list[Any]]]
"""dtype and values of all fields of a `MoveToBufferResult`."""


@cache
def reference() -> ModuleType:
    """The reference."""
    return load_reference()


def _reference_runs(group: Group, device: torch.device) -> AbstractContextManager[object]:
    """What the reference needs: a device to wait for, and with nccl a first collective of all ranks."""
    if device.type == "cuda":
        dist.barrier(group)
        return nullcontext()
    return mock.patch.object(torch.cuda, "synchronize")


def both(group: Group, device: torch.device, problem: Problem) -> tuple[Contents, Contents]:
    """All memory after `rearrange_expert_weights_inplace`: ours, and the reference's."""
    ours, theirs = (live(problem, group, device) for _ in range(2))
    rearrange_inplace(problem, ours.weights, group)
    with _reference_runs(group, device):
        reference().rearrange_expert_weights_inplace(
            *tables(problem), theirs.plain(), group, rank_mapping=problem.rank_mapping
        )
    return ours.contents(), theirs.contents()


class Transferred(NamedTuple):
    """What became of a rank in all layers: results, buffers, and weights in the end."""

    masks: list[Masks]
    buffers: Contents
    weights: Contents


def both_by_layer(
    group: Group, device: torch.device, problem: Problem, function: str
) -> tuple[Transferred, Transferred]:
    """Ours and the reference's `transfer_layer` or `move_to_buffer`, then `move_from_buffer`."""
    ours = _by_layer(group, device, problem, rearrange, function)
    with _reference_runs(group, device):
        theirs = _by_layer(group, device, problem, reference(), function)
    return ours, theirs


def _by_layer(
    group: Group, device: torch.device, problem: Problem, module: ModuleType, function: str
) -> Transferred:
    weights, buffers = live(problem, group, device), buffers_of(problem, group, device)
    plain = module is not rearrange
    layers = weights.plain() if plain else weights.weights
    spare = buffers.plain() if plain else buffers.weights
    call: Callable[..., Any] = getattr(_Layer(problem, module, group), function)
    results = [call(layers, spare[layer], layer) for layer in range(len(layers))]
    filled = buffers.contents()
    for layer, result in enumerate(results):
        new = _group_tables(problem)[1][layer]
        module.move_from_buffer(layers[layer], spare[layer], *result, new, group)
    return Transferred([_masks(result) for result in results], filled, weights.contents())


def _group_tables(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """OLD and NEW over the ranks of the group."""
    old, new = tables(problem)
    mapping = problem.rank_mapping
    if mapping is not None and len(mapping) == problem.num_ranks:
        new = reference()._map_new_expert_indices_with_rank_mapping(new, mapping)
    elif mapping is not None:
        old = reference()._map_old_expert_indices_with_rank_mapping(old, mapping, problem.num_ranks)
    return old.numpy(), new.numpy()


class _Layer(NamedTuple):
    """The functions that do one layer, called alike."""

    problem: Problem
    module: ModuleType
    group: Group

    def transfer_layer(self, layers: Any, buffers: Any, layer: int) -> Any:
        mapping = self.problem.rank_mapping
        return asyncio.run(
            self.module.transfer_layer(
                *tables(self.problem), layers, buffers, self.group, layer=layer, rank_mapping=mapping
            )
        )

    def transfer_layer_from_the_end(self, layers: Any, buffers: Any, layer: int) -> Any:
        return self.transfer_layer(layers, buffers, layer - len(layers))

    def move_to_buffer(self, layers: Any, buffers: Any, layer: int) -> Any:
        old, new = _group_tables(self.problem)
        return self.module.move_to_buffer(
            self.problem.num_rows, old[layer], new[layer], layers[layer], buffers, None, self.group
        )


def _masks(result: Any) -> Masks:
    is_unchanged, is_received_locally, metadata = result
    fields = (is_unchanged, is_received_locally, *astuple(metadata))
    return [(str(np.asarray(field).dtype), np.asarray(field).tolist()) for field in fields]
