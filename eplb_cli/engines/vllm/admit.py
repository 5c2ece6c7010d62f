"""Whether DST and what vLLM has built fit each other: everything that can be wrong is found before a read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.checkpoint.shards import TensorAt
from eplb_cli.engines.vllm.engine import Engine, Layer, Parameter
from eplb_cli.engines.vllm.tree import Tree
from eplb_cli.errors import CheckpointError
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.names import is_mtp
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass

_CAST = {"BF16", "F16", "F32", "F64"}
"""Plain numbers, of which vLLM takes any as any other: `--dtype` says which."""

_SAME_MODEL = ("num_hidden_layers", "num_logical_experts", "intermediate_size", "vocab_size")
"""What two configs of one model agree on; the shapes of all tensors say the rest."""


class Wanted(NamedTuple):
    """A tensor to read for a parameter.

    Attributes:
        key: the one of the parameter's names that the shards have.
        is_whole: the parameter takes its own part out of it; else both have the same shape.
    """

    key: str
    at: TensorAt
    parameter: Parameter
    is_whole: bool


@dataclass(frozen=True)
class Admitted:
    """DST and vLLM fit.

    Attributes:
        rank: whose tensors are read.
        layers: for each layer of the engine, its index in the placement.
        table: (layers, P), what the slots of these layers hold.
        must_map: whether ids of experts have to be mapped to slots; else they are the same.
        wanted: what to read, in the order in which it lies in the files.
    """

    rank: int
    layers: tuple[int, ...]
    table: Int
    must_map: bool
    wanted: tuple[Wanted, ...]


def admit(tree: Tree, engine: Engine) -> Admitted:
    """What to read and what to set for this rank.

    Raises:
        CheckpointError: EP234, other ranks, slots or experts; EP202, the files of this rank are not here;
            EP212, a layer without a map; EP235, the placement would not be followed; EP236, another model.
    """
    placement, path = tree.placement, tree.shards.path
    if not engine.layers:
        raise CheckpointError("EP236", f"vLLM has built a model without experts, and {path} has some")
    _require_config(tree, engine)
    if engine.num_stages > 1:
        hint = "start it with --pipeline-parallel-size 1"
        raise CheckpointError("EP234", f"vLLM was started with {engine.num_stages} pipeline stages", hint)
    for layer in engine.layers:
        _require_numbers(placement, layer, str(path))
    layers = tuple(_layer_index(tree, layer) for layer in engine.layers)
    table = placement.physical_to_logical[list(layers)]
    _require_full(placement, layers)
    must_map = engine.has_eplb or bool((table != np.arange(placement.num_slots)).any())
    _require_followed(engine, must_map=must_map)
    rank = engine.layers[0].rank
    wanted = sorted(_wanted(tree, engine, rank), key=lambda each: (each.at.file, each.at.offset))
    return Admitted(rank, layers, table, must_map, tuple(wanted))


def _require_config(tree: Tree, engine: Engine) -> None:
    """EP236 where vLLM's config is not the one beside the shards."""
    known = tree.shards.config
    if known is None:
        return
    taken = ModelConfig(known.path, engine.config)
    for name in _SAME_MODEL:
        here, there = getattr(known, name), getattr(taken, name)
        if None not in (here, there) and here != there:
            raise CheckpointError(
                "EP236",
                f"vLLM took a config with {name} {there:,}, and {known.path} says {here:,}",
                "leave out --hf-config-path and --hf-overrides",
            )


def _require_numbers(placement: Placement, layer: Layer, path: str) -> None:
    """EP234 unless ranks, experts and slots are those of the placement."""
    if layer.num_ranks != placement.num_ranks:
        enable = "" if layer.num_ranks > 1 else "with --enable-expert-parallel, "
        hint = f"{enable}tensor parallel × data parallel has to be {placement.num_ranks}; or reshard DST"
        raise _other(path, placement.num_ranks, "ranks", layer.num_ranks, "expert-parallel ranks", hint)
    if layer.num_experts != placement.num_logical_experts:
        hint = "is it the checkpoint that DST was made from?"
        raise _other(path, placement.num_logical_experts, "experts", layer.num_experts, "experts", hint)
    redundant = placement.num_slots - placement.num_logical_experts
    if layer.num_slots != placement.num_slots:
        config = json.dumps({"num_redundant_experts": redundant})
        hint = (
            f"--enable-eplb --eplb-config '{config}'"
            if redundant
            else "DST has no redundant experts: start it without"
        )
        raise _other(path, placement.num_slots, "slots a layer", layer.num_slots, "slots", hint)
    rows = int(placement.slots_per_rank[layer.rank])
    if layer.num_rows != rows:
        hint = "vLLM gives all ranks as many, the first ones one more: reshard DST to such ranks"
        raise _other(f"{path}, rank {layer.rank},", rows, "slots a layer", layer.num_rows, "slots", hint)


def _other(path: str, here: int, what: str, there: int, as_what: str, hint: str) -> CheckpointError:
    problem = f"{path} has {here:,} {what}, and vLLM was started with {there:,} {as_what}"
    return CheckpointError("EP234", problem, hint)


def _layer_index(tree: Tree, layer: Layer) -> int:
    """The index of a layer in the placement. Raises EP212."""
    prefix = f"{layer.name}."
    numbers = {expert.layer for key, expert in tree.shards.expert_keys.items() if key.startswith(prefix)}
    placed = [] if tree.placement.layer_ids is None else tree.placement.layer_ids.tolist()
    index = next((placed.index(number) for number in numbers if number in placed), None)
    if index is None:
        what = "map" if numbers else "experts"
        problem = f"{tree.shards.path} has no {what} for vLLM's layer {layer.name!r}"
        raise CheckpointError("EP212", problem, "make DST again, with a map of every layer")
    return index


def _require_full(placement: Placement, layers: tuple[int, ...]) -> None:
    """EP235 for a slot without an expert."""
    empty = np.argwhere(placement.physical_to_logical[list(layers)] == EMPTY)
    if len(empty):
        at, slot = (int(number) for number in empty[0])
        problem = f"layer {placement.layer_number(layers[at])}, slot {slot} is empty, which vLLM cannot say"
        raise CheckpointError("EP235", problem, "put a replica there: `eplb reshard DST NEW_DST --new NEW`")


def _require_followed(engine: Engine, *, must_map: bool) -> None:
    """EP235 where a kernel would take experts from other slots than DST has them in."""
    if engine.is_elastic:
        hint = "leave out --enable-elastic-ep"
        raise CheckpointError("EP235", "with elastic expert parallelism the ranks of DST do not last", hint)
    if engine.has_eplb and not engine.can_have_eplb:
        raise CheckpointError("EP235", "vLLM's EPLB does not know such a model", "leave out --enable-eplb")
    for layer in engine.layers:
        if layer.strategy != "linear":
            hint = "leave out --expert-placement-strategy: DST has the placement"
            problem = f"{layer.name}: vLLM was told to place experts by {layer.strategy}"
            raise CheckpointError("EP235", problem, hint)
        if must_map:
            require_mapped(layer)


def require_mapped(layer: Layer) -> None:
    """EP235 where ids of experts do not become slots before a kernel sees them."""
    if layer.why_not:
        hint = "choose another --moe-backend, or reshard DST to linear, which needs no map"
        raise CheckpointError("EP235", f"{layer.name}: {layer.why_not}", hint)


def _wanted(tree: Tree, engine: Engine, rank: int) -> Iterator[Wanted]:
    """A tensor of the rank for every parameter, and none left over. Raises EP202 or EP236."""
    tensors = tree.shards.tensors[tree.here(rank)]
    for parameter in engine.parameters:
        key = next((name for name in parameter.names if name in tensors), None)
        if key is None:
            problem = f"{parameter.names[0]!r} of the model is not in the shards of rank {rank}"
            raise CheckpointError("EP236", problem)
        yield _fitting(tree, key, tensors[key], parameter)
    known = {name for parameter in engine.parameters for name in parameter.names}
    beside = _of_other_modules(tree)
    for key in tensors:
        is_beside = key.startswith(beside) or is_mtp(key) or tree.shards.layout.is_map(key)
        if key not in known and not is_beside:
            raise CheckpointError("EP236", f"rank {rank} has {key!r}, and the model has no such tensor")


def _of_other_modules(tree: Tree) -> tuple[str, ...]:
    """What the names of tensors begin with that are in layers of MTP or of another module."""
    layers = tree.shards.layers
    beside = set(layers.beside)
    return tuple(f"{place.path}." for place, number in layers.numbers.items() if number in beside)


def _fitting(tree: Tree, key: str, at: TensorAt, parameter: Parameter) -> Wanted:
    """The tensor of a parameter. Raises EP236 for another shape or dtype."""
    dtype, shape = at.entry.dtype, at.entry.shape
    where = f"{key!r} is {dtype} {list(shape)}"
    if not parameter.is_real:
        hint = "leave out --quantization: DST is loaded as it is"
        raise CheckpointError("EP236", f"{where}, and vLLM would quantise it while it loads", hint)
    same_kind = dtype == parameter.dtype or {dtype, parameter.dtype} <= _CAST
    is_same, is_expert = shape == parameter.shape, key in tree.shards.expert_keys
    may_cut = parameter.has_loader and not is_expert and not tree.checkpoint.sharded_others
    if not same_kind or not (is_same or may_cut):
        wants = f"{parameter.dtype or 'something else'} {list(parameter.shape)}"
        raise CheckpointError("EP236", f"{where} in DST, and vLLM wants {wants}")
    return Wanted(key, at, parameter, not is_same)
