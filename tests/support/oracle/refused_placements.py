"""Placements that a checkpoint cannot go from or to, each wrong in one way."""

from __future__ import annotations

from random import Random

import numpy as np

from tests.support.oracle.cases import Case
from tests.support.oracle.refusals import Due, all_kinds, has_mtp, said_of, say, way


@way
def dropped(case: Case, chance: Random) -> Due:
    """An expert of OLD is in no slot of NEW."""
    new = case.steps[0].new
    table = new.table.copy()
    row = chance.randrange(len(table))
    expert = chance.choice(sorted({int(e) for e in table[row]} - {-1}))
    table[row, table[row] == expert] = chance.choice([-1, *(int(e) for e in table[row] if e != expert)])
    say(case, new=said_of(new, physical_to_logical_map=table.tolist()))
    return 3, "EP107"


@way
def sourceless(case: Case, chance: Random) -> Due:
    """An expert of NEW is in no slot of OLD."""
    if case.model.maps:  # where OLD has an expert more than they know
        return None
    new, experts = case.steps[0].new, case.first.experts + 1
    table = new.table.copy()
    table[chance.randrange(len(table)), chance.randrange(table.shape[1])] = experts - 1
    changed = said_of(new, physical_to_logical_map=table.tolist(), num_logical_experts=experts)
    say(case, said_of(case.first, num_logical_experts=experts), changed)
    return 3, "EP106"


@way
def out_of_range(case: Case, chance: Random) -> Due:
    """An id that no expert has."""
    new = case.steps[0].new
    table = new.table.copy()
    table[chance.randrange(len(table)), chance.randrange(table.shape[1])] = chance.choice([new.experts, -2])
    say(case, new=said_of(new, physical_to_logical_map=table.tolist()))
    return 3, "EP105"


@way
def other_counts(case: Case, chance: Random) -> Due:
    """OLD and NEW have another number of experts, or of layers."""
    new = case.steps[0].new
    if chance.random() < 0.5 or len(new.layers) == 1:
        say(case, new=said_of(new, num_logical_experts=new.experts + 1))
    else:
        say(case, new=said_of(new, physical_to_logical_map=new.table[1:].tolist(), layer_ids=new.layers[1:]))
    return 3, "EP109"


@way
def no_such_layer(case: Case, chance: Random) -> Due:
    """The placements name a layer that the checkpoint has not."""
    layers = [*case.first.layers[:-1], 77]
    say(case, said_of(case.first, layer_ids=layers), said_of(case.steps[0].new, layer_ids=layers))
    return 3, "EP212"


@way
def uneven_sum(case: Case, chance: Random) -> Due:
    """The slots of the ranks are not those of the map."""
    new = case.steps[0].new
    say(case, new=said_of(new, slots_per_rank=[*new.slots[:-1], new.slots[-1] + 1]))
    return 3, "EP108"


@way
def ragged(case: Case, chance: Random) -> Due:
    """Layers of NEW have different numbers of slots, or something else than numbers."""
    rows = case.steps[0].new.table.tolist()
    rows[chance.randrange(len(rows))] = chance.choice([[], "01", [0.5] * len(rows[0])])
    say(case, new=said_of(case.steps[0].new, physical_to_logical_map=rows))
    return 3, "EP104"


@way
def said_twice(case: Case, chance: Random) -> Due:
    """One rank of NEW has an expert twice, where keys name experts."""
    new = case.steps[0].new
    held = [(row, slot) for row, slot in np.argwhere(new.table >= 0).tolist()]
    if case.naming.style != "expert" or has_mtp(case):
        return None
    row, slot = chance.choice(held)
    table = np.insert(new.table, slot, -1, axis=1)
    table[row, slot] = new.table[row, slot]
    rank = int(np.searchsorted(np.cumsum(new.slots), slot, side="right"))
    slots = [count + (at == rank) for at, count in enumerate(new.slots)]
    say(case, new=said_of(new, physical_to_logical_map=table.tolist(), slots_per_rank=slots))
    return 3, "EP218"


@way
def unnamed_layer(case: Case, chance: Random) -> Due:
    """MoE layers that no placement names, and other slots."""
    if case.steps[0].new.slots == case.first.slots or len(case.first.layers) == 1:
        return None
    old, new = case.first, case.steps[0].new
    say(
        case,
        said_of(old, physical_to_logical_map=old.table[1:].tolist(), layer_ids=old.layers[1:]),
        said_of(new, physical_to_logical_map=new.table[1:].tolist(), layer_ids=new.layers[1:]),
    )
    return 3, "EP219"


@way
def other_slots(case: Case, chance: Random) -> Due:
    """OLD has a slot more than a rank of the checkpoint has rows."""
    old = case.first
    has_inputs = any(kind.role == "input" for kind in all_kinds(case))
    if (
        case.naming.style == "expert" or has_inputs
    ):  # these are looked at before, and have a code of their own
        return None
    table = np.pad(old.table, ((0, 0), (0, 1)), constant_values=-1)
    slots = [*old.slots[:-1], old.slots[-1] + 1]
    if chance.random() < 0.5 or old.slots[-1] == 0:
        table, slots = np.roll(table, 1, axis=1), [old.slots[0] + 1, *old.slots[1:]]
    if 1 in slots and 0 in old.slots:  # from no rows to one: the rank lacks the tensor
        return None
    say(case, said_of(old, physical_to_logical_map=table.tolist(), slots_per_rank=slots))
    return 3, "EP208"


@way
def other_ranks(case: Case, chance: Random) -> Due:
    """OLD has a rank more than there are files of."""
    old = case.first
    table = np.pad(old.table, ((0, 0), (0, 1)), constant_values=-1)
    say(case, said_of(old, physical_to_logical_map=table.tolist(), slots_per_rank=[*old.slots, 1]))
    return 3, "EP202"


@way
def nothing_says_old(case: Case, chance: Random) -> Due:
    """There is neither --old nor an eplb.json."""
    if case.model.maps:
        return None
    say(case)
    case.steps[0].old_said = None
    return 3, "EP216"


@way
def workers_for_file(case: Case, chance: Random) -> Due:
    """A number that is none, of workers or of bytes."""
    say(case)
    case.steps[0].options += ["--buffer-size", "0"]
    return 2, "EP001"


@way
def no_new(case: Case, chance: Random) -> Due:
    """NEW is no file, or no JSON."""
    say(case)
    case.steps[0].new_said = "nowhere.json"
    return 3, "EP101"


@way
def redundant_rest(case: Case, chance: Random) -> Due:
    """Redundant experts of a named map do not divide over the ranks."""
    ranks = case.steps[0].new.num_ranks
    if ranks == 1 or case.first.experts % ranks == ranks - 1:
        return None
    say(case)
    case.steps[0].new_said = "linear"
    case.steps[0].options += ["--num-ranks", ranks, "--num-redundant-experts", 1]
    return 3, "EP108"
