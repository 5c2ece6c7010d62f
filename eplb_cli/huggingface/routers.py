"""What names experts besides their own tensors: router rows, groups, and whatever is not understood.

A baked checkpoint has its experts in another order, and with them the rows of the router. That computes
the same only if everything that speaks of an expert by its number is permuted. So families say what was
looked at and tried, and a tensor in the block of the experts that is not known is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import CheckpointError
from eplb_cli.huggingface.engine import split_key
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.families import FAMILIES, Family
from eplb_cli.placements.named_map import slots_of_linear
from eplb_cli.placements.placement import EMPTY, Placement

_NAMES_AN_EXPERT = re.compile(r"(?<!shared_)experts\\*\.(?:[0-9]|\(|\[(?!0-9\][+*]))")
"""A number, or a choice of numbers; patterns that are about all experts alike name none of them."""


def find_family(config: ModelConfig) -> Family:
    """The family of a model whose routers are known. Raises EP226 for any other."""
    family = FAMILIES.get(config.model_type)
    if family is None or not family.router:
        known = ", ".join(name for name, other in FAMILIES.items() if other.router)
        problem = f"the router of models of type {config.model_type!r} is not known"
        raise unbakeable(problem, f"known are {known}")
    return family


def check_tensors(family: Family, keys: Iterable[str], moe_layers: Iterable[int]) -> None:
    """EP226 for a tensor beside the experts of a layer that may speak of them by number."""
    layers = set(moe_layers)
    for key in keys:
        template, layer, expert = split_key(key)
        if "experts" in template.split(".") and not template.startswith(family.block + "experts."):
            raise unbakeable(f"{key!r} is of experts with another router, and nobody has looked")
        rest = template.removeprefix(family.block)
        if layer not in layers or rest == template or expert is not None or template in family.routers:
            continue
        if not rest.startswith(("experts.", "shared_experts.")):
            raise unbakeable(f"{key!r} may name experts by their number, and nobody has looked")


def check_texts(texts: Mapping[str, bytes]) -> None:
    """EP226 for a configuration with a list that names experts, as for what is not quantized."""
    for name, text in texts.items():
        found = _NAMES_AN_EXPERT.search(text.decode("utf-8", "replace"))
        if found:
            raise unbakeable(f"{name} names single experts ({found[0]!r}), which would have other numbers")


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
