"""What an engine takes as a map of experts: one table, for `validate --engine` and what is said of shards.

Read in the engines' own sources, autumn 2026: vLLM 0.33, SGLang 0.5, vllm-ascend, and TensorRT-LLM, whose
`MoeLoadBalancerConfig` asserts that ranks divide the slots, and that a map has each layer it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from eplb_cli.placements.choice import EngineName
from eplb_cli.placements.findings import Finding, first_of_each_layer, repeats_on_ranks
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.named_map import slots_of_linear
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Engine:
    """What holds for one engine; all of them want every slot filled.

    Attributes:
        title: what it is called.
        counts: which rows its map has: one for each MoE layer, for each hidden layer, or by layer number.
        deals_out: without replicas its ranks have as many slots as it deals experts out to, one more for the
            first ones; otherwise, and for the other engines, all ranks have the same.
        takes_repeats: whether a rank may hold an expert twice.
        without_replicas: families whose models have no slots for replicas there.
        without_maps: families whose models take no map there, of those looked at.
    """

    title: str
    counts: Literal["moe", "hidden", "number"]
    deals_out: bool = False
    takes_repeats: bool = True
    without_replicas: frozenset[str] = frozenset()
    without_maps: frozenset[str] = frozenset()


_TABLE: dict[EngineName, Engine] = {
    "vllm": Engine(
        "vLLM", "moe", deals_out=True, without_replicas=frozenset({"gpt_oss", "olmoe", "qwen2_moe"})
    ),
    "sglang": Engine(
        "SGLang",
        "hidden",
        without_replicas=frozenset({"glm4_moe"}),
        without_maps=frozenset({"mixtral", "olmoe"}),
    ),
    "tensorrt-llm": Engine("TensorRT-LLM", "number"),
    "ascend": Engine("vllm-ascend", "moe", takes_repeats=False),
}


def engine_called(name: EngineName) -> Engine:
    """The engine of a name."""
    return _TABLE[name]


def check_engine(placement: Placement, engine: Engine, hints: Hints) -> list[Finding]:
    """All that keeps an engine from taking a placement as its map: EP123 to EP126, and EP129.

    Args:
        hints: which layers the model has; without them it is a note that rows could not be compared.
    """
    family = "" if hints.model is None else hints.model.family
    return [
        *slot_findings(placement, engine),
        *_rows(placement, engine, hints),
        *_of_family(placement, engine, family),
    ]


def slot_findings(placement: Placement, engine: Engine) -> Iterator[Finding]:
    """EP123, EP124 and EP126: what an engine cannot do with the slots, whatever the model."""
    yield from _shape(placement, engine)
    for index, slot, rest in first_of_each_layer(placement.physical_to_logical == EMPTY):
        layer, rank = placement.layer_number(index), int(placement.rank_of_slot[slot])
        message = f"layer {layer}, slot {slot} is empty, and {engine.title} wants an expert in each{rest}"
        yield Finding("EP124", "error", message, layer=layer, slot=slot, rank=rank)
    if engine.takes_repeats:
        return
    for index, slot, rest in first_of_each_layer(repeats_on_ranks(placement)):
        layer, rank = placement.layer_number(index), int(placement.rank_of_slot[slot])
        expert = placement.physical_to_logical[index, slot]
        message = (
            f"layer {layer}, slot {slot}: {engine.title} has expert {expert} on rank {rank} only once{rest}"
        )
        yield Finding("EP126", "error", message, layer=layer, slot=slot, rank=rank)


def _shape(placement: Placement, engine: Engine) -> Iterator[Finding]:
    """EP123: P % R, or what the engine deals out by itself."""
    slots, num_slots, num_ranks = placement.slots_per_rank, placement.num_slots, placement.num_ranks
    has_replicas = num_slots > placement.num_logical_experts
    if engine.deals_out and not has_replicas:
        own = slots_of_linear(num_slots, num_ranks)
        differing = np.flatnonzero((slots != own) | (slots == 0))
        wanted = f"would give it {own[differing[0]]:,}" if len(differing) else ""
    else:
        differing = np.flatnonzero((slots != slots[0]) | (slots == 0))
        wanted = f"wants as many on each of the {num_ranks:,} ranks"
    if len(differing):
        rank = int(differing[0])
        if num_slots % num_ranks:
            wanted += f", and {num_slots:,} slots do not divide over them"
        message = f"rank {rank} has {slots[rank]:,} slots; {engine.title} {wanted}"
        yield Finding("EP123", "error", message, rank=rank)


def _rows(placement: Placement, engine: Engine, hints: Hints) -> Iterator[Finding]:
    """EP125: a row for each MoE layer of the model. Rows of dense layers, for SGLang, `convert` adds."""
    layers = None if hints.model is None else hints.own_layers
    if placement.layer_ids is None and engine.counts == "number":
        message = f"{engine.title} finds rows by the model's own number of the layer, which nothing says"
        yield Finding("EP125", "error", message, "add layer_ids to the file, or --model PRESET|config.json")
    elif layers is None:
        message = f"rows are not compared with what {engine.title} counts: nothing says the model's layers"
        yield Finding("EP125", "note", message, "add --model PRESET|config.json, or --checkpoint DIR")
    elif placement.layer_ids is not None:
        missing = sorted({*layers} - {*placement.layer_ids.tolist()})
        if missing:
            further = f" and {len(missing) - 1:,} more have" if len(missing) > 1 else " has"
            message = f"MoE layer {missing[0]}{further} no row, and {engine.title} wants one for each"
            yield Finding("EP125", "error", message)


def _of_family(placement: Placement, engine: Engine, family: str) -> Iterator[Finding]:
    """EP129: no map at all, or no slots for replicas, whatever the map."""
    has_replicas = placement.num_slots > placement.num_logical_experts
    if family in engine.without_maps:
        yield Finding("EP129", "error", f"{engine.title} takes no map for models of the family {family}")
    elif has_replicas and family in engine.without_replicas:
        yield Finding("EP129", "error", f"{engine.title} has no replicas for models of the family {family}")
