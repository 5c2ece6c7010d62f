"""What names experts besides their own tensors: router rows, groups, and whatever is not understood.

A baked checkpoint has its experts in another order, and with them the rows of the router. That computes
the same only if everything that speaks of an expert by its number is permuted. So families say what was
looked at and tried, and a tensor in the block of the experts that is not known is an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import CheckpointError
from eplb_cli.huggingface.one_rank import OneRank
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.families import FAMILIES, Family
from eplb_cli.models.names import looks_like_experts
from eplb_cli.placements.named_map import slots_of_linear
from eplb_cli.placements.placement import EMPTY, Placement

_TABLES = {"tid2eid": "the experts of each token, by their numbers"}
"""What tensors with such a name at the end hold: a baked model would need it anew."""

_WITHOUT_NUMBERS = ("shared_experts.", "shared_expert.", "shared_expert_gate.")
"""What stands beside the experts of a layer and names none of them."""


def find_family(config: ModelConfig) -> Family:
    """The family of a model whose routers are known. Raises EP226 for any other."""
    family = FAMILIES.get(config.model_type)
    if family is None or not family.router:
        known = ", ".join(name for name, other in FAMILIES.items() if other.router)
        problem = f"the router of models of type {config.model_type!r} is not known"
        raise unbakeable(problem, f"known are {known}")
    return family


def refuse_tables(checkpoint: OneRank) -> None:
    """EP226 for a tensor that is known to hold numbers of experts."""
    for key in checkpoint.keys:
        if content := _TABLES.get(key.rpartition(".")[2]):
            raise unbakeable(f"{key!r} holds {content}")


def check_tensors(family: Family, checkpoint: OneRank) -> None:
    """EP226 for experts with another router, and for a tensor beside experts that may name them by number."""
    layers = {said.layer for said in checkpoint.keys.values() if said.is_expert}
    for key, said in checkpoint.keys.items():
        in_block = said.template.startswith(family.block)
        rest = said.template.removeprefix(family.block)
        is_of_experts = said.is_expert or looks_like_experts(key)
        if is_of_experts and not (in_block and rest.startswith("experts.")):
            raise unbakeable(f"{key!r} is of experts with another router, and nobody has looked")
        if said.is_expert or not in_block or said.layer not in layers or said.template in family.routers:
            continue
        is_number = rest.startswith("experts.") and not checkpoint.tensors[0][key].entry.shape
        if not is_number and not rest.startswith(_WITHOUT_NUMBERS):
            raise unbakeable(f"{key!r} may name experts by their number, and nobody has looked")


def check_placement(placement: Placement, family: Family, config: ModelConfig) -> None:
    """EP226 for a placement that no order of the experts can be.

    An engine that takes no map gives each rank the next experts: so each expert has one slot, and ranks have
    as many as vLLM's `linear` gives them. Routers that choose groups first need groups to stay together.
    """
    table, num_experts = placement.physical_to_logical, placement.num_logical_experts
    if placement.num_slots != num_experts or (table == EMPTY).any():
        problem = f"it has {placement.num_slots:,} slots for {num_experts:,} experts"
        raise unbakeable(f"{problem}: each expert needs one slot, and there are no replicas in a checkpoint")
    if not np.array_equal(placement.slots_per_rank, slots_of_linear(num_experts, placement.num_ranks)):
        raise unbakeable("its ranks have other numbers of slots than engines give them by default")
    count = (config.values.get(family.groups) if family.groups else None) or 1
    if type(count) is not int or count < 1 or num_experts % count:
        raise unbakeable(f"config.json says {family.groups} {count!r} for {num_experts:,} experts")
    _check_groups(placement, table.reshape(len(table), count, -1) // (num_experts // count))


def _check_groups(placement: Placement, groups: NDArray[np.int64]) -> None:
    """EP226 where a group (L, G, E / G) of slots holds experts of several groups."""
    mixed = np.argwhere((groups != groups[:, :, :1]).any(axis=2))
    if len(mixed):
        layer, group = (int(number) for number in mixed[0])
        raise unbakeable(
            f"layer {placement.layer_number(layer)}: the slots of expert group {group} hold experts of "
            "several groups, and the router chooses groups first",
            "move experts only within their group, or whole groups",
        )


def unbakeable(problem: str, hint: str = "") -> CheckpointError:
    """EP226."""
    return CheckpointError("EP226", f"cannot be baked: {problem}", hint)
