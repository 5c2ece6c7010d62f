"""Cases made illegal on purpose, each in one way, with the exit code and the error code that are due.

A function of `WAYS` changes a legal case of one step and says what is due; where the case is not of the kind
that can go wrong in its way it says None, and another way is tried. What is done to files on disk is done by
`case.damage`, just before the last step.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

from tests.support.oracle.cases import Case
from tests.support.oracle.truth import Kind, Map

Due = tuple[int, str] | None
Way = Callable[[Case, Random], Due]

WAYS: list[Way] = []


def way(function: Way) -> Way:
    """Add a way to go wrong."""
    WAYS.append(function)
    return function


def said_of(placement: Map, **changes: object) -> dict[str, Any]:
    """The JSON of a placement that leaves nothing out; None drops a key."""
    said = {
        "format": "eplb-placement/1",
        "slots_per_rank": placement.slots,
        "num_logical_experts": placement.experts,
        "layer_ids": placement.layers,
        "physical_to_logical_map": placement.table.tolist(),
        **changes,
    }
    return {key: value for key, value in said.items() if value is not None}


def say(case: Case, old: dict[str, Any] | None = None, new: dict[str, Any] | None = None) -> None:
    step = case.steps[0]
    step.recorded = step.new
    step.old_said, step.new_said = old or said_of(case.first), new or said_of(step.new)
    step.options = [option for option in step.options if option not in ("--no-digest", "--no-verify")]
    for option in ("--num-ranks", "--num-logical-experts", "--num-redundant-experts"):
        if option in step.options:
            place = step.options.index(option)
            del step.options[place : place + 2]


def has_mtp(case: Case) -> bool:
    return "MTP" in case.traits


def keys_of(case: Case, kind: Kind) -> list[tuple[tuple[int, int], str]]:
    """Where the tensors of one kind are in SRC: (rank, stage) and key, in the order of ranks."""
    begin, _, end = kind.key.partition("{number}")
    return [
        (where, key)
        for where in sorted(case.tree)
        for key in case.tree[where]
        if key == kind.key or ("{number}" in kind.key and key.startswith(begin) and key.endswith(end))
    ]


def any_kind(case: Case, chance: Random) -> Kind:
    return chance.choice(case.model.kinds[chance.choice(case.first.layers)])


def all_kinds(case: Case) -> list[Kind]:
    """The tensors of the experts of all layers that a placement can name."""
    return [kind for kinds in case.model.kinds.values() for kind in kinds]


def all_weights(case: Case) -> list[Kind]:
    return [kind for kind in all_kinds(case) if kind.role == "weight"]


def layer_of(case: Case, kind: Kind) -> int:
    return next(layer for layer, kinds in case.model.kinds.items() if kind in kinds)


def weight_of(case: Case, kind: Kind) -> Kind:
    """The weight that a tensor belongs to."""
    beside = case.model.kinds[layer_of(case, kind)]
    return next(each for each in beside if (each.projection, each.role) == (kind.projection, "weight"))


def home_of(kind: Kind) -> str:
    """What is between a layer's number and its experts."""
    behind = re.split(r"\.\d+\.", kind.key, maxsplit=1)[1]
    return behind.partition("experts")[0]
