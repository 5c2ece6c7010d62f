"""Shards whose tensors are not what the placement and the layout ask for, each in one way."""

from __future__ import annotations

from random import Random

from tests.support.oracle.cases import Case
from tests.support.oracle.refusals import Due, any_kind, has_mtp, keys_of, say, way
from tests.support.oracle.truth import Shard, Tensor


@way
def sharded(case: Case, chance: Random) -> Due:
    """Another tensor is not the same on all ranks, and R changes."""
    if case.steps[0].new.num_ranks == case.first.num_ranks or case.first.num_ranks == 1 or has_mtp(case):
        return None
    rank = chance.randrange(case.first.num_ranks)
    for at in range(case.first.num_ranks):
        shard = case.tree.setdefault((at, 0), Shard())
        shard["lm_head.weight"] = Tensor("U16", (2, 3), b"\0" * 12)
        if at == rank:
            changed = Tensor("U16", (2, 3), b"\0" * 11 + b"\1"), Tensor("U16", (3, 2), b"\0" * 12), None
            if (tensor := chance.choice(changed)) is None:
                del shard["lm_head.weight"]
            else:
                shard["lm_head.weight"] = tensor
    say(case)
    return 3, "EP213"


@way
def other_experts(case: Case, chance: Random) -> Due:
    """A key names an expert that OLD has elsewhere, or not at all."""
    kind = any_kind(case, chance)
    if case.naming.style != "expert":
        return None
    where, key = chance.choice(keys_of(case, kind))
    shard, number = case.tree[where], case.first.experts + 5
    shard[kind.key.replace("{number}", str(number))] = shard.pop(key)
    say(case)
    return 3, "EP217"


@way
def other_dtype(case: Case, chance: Random) -> Due:
    """One tensor of an expert has another dtype on one rank, or in one row, than elsewhere."""
    kind = any_kind(case, chance)
    found = keys_of(case, kind)
    if len(found) < 2:
        return None
    where, key = found[-1]
    tensor = case.tree[where][key]
    dtypes = {"U8": "I8", "BF16": "F16", "F32": "I32", "I64": "F64", "F8_E4M3": "F8_E5M2"}
    if kind.dtype not in dtypes or (case.naming.style == "stacked" and not tensor.shape[0]):
        return None
    case.tree[where][key] = tensor._replace(dtype=dtypes[kind.dtype])
    say(case)
    return 3, "EP209"


@way
def lost_tensor(case: Case, chance: Random) -> Due:
    """A weight of one rank is not there, or a row of it."""
    kind = any_kind(case, chance)
    found = keys_of(case, kind)
    where, key = chance.choice(found)
    rank = where[0]
    alone = sum(at == where for at, _ in found) == 1
    if "scale" in kind.name or len(found) < 2 or not case.first.slots[rank]:
        return None
    del case.tree[where][key]
    say(case)
    if case.naming.style == "stacked" or alone:
        return 3, "EP209"
    return 3, "EP217" if case.naming.style == "expert" else "EP208"


@way
def scale_alone(case: Case, chance: Random) -> Due:
    """A layer has the scale of a weight, and not the weight."""
    layer = chance.choice(case.first.layers)
    scales = [
        kind for kind in case.model.kinds[layer] if kind.name.endswith(("_scale", "_scale_inv", ".scale"))
    ]
    scales = [kind for kind in scales if "act" not in kind.name and "input" not in kind.name]
    if not scales:
        return None
    scale = chance.choice(scales)
    stem = scale.name.removesuffix("_inv").removesuffix("_scale").removesuffix(".scale")
    stem = stem.removesuffix("_weight").removesuffix(".weight")
    weights = [
        kind for kind in case.model.kinds[layer] if kind.name.startswith(stem) and "scale" not in kind.name
    ]
    for kind in weights:
        for where, key in keys_of(case, kind):
            del case.tree[where][key]
    say(case)
    return 3, "EP210"


@way
def unknown_tensor(case: Case, chance: Random) -> Due:
    """A tensor beside those of the experts that the layout does not name."""
    kind = any_kind(case, chance)
    where, key = chance.choice(keys_of(case, kind))
    name = kind.name.split(".")[0] + "_mystery"
    case.tree[where][key.replace(kind.name, name)] = Tensor("F32", (2,), b"\1" * 8)
    say(case)
    return 3, "EP207"


@way
def half_bytes(case: Case, chance: Random) -> Due:
    """Rows of a stacked tensor are no whole bytes."""
    if case.naming.style != "stacked" or any(slots % 2 for slots in case.first.slots):
        return None
    kind = any_kind(case, chance)
    if "scale" in kind.name or any("scale" in other.name for other in case.model.kinds[case.first.layers[0]]):
        return None
    for where, key in keys_of(case, kind):
        slots = case.tree[where][key].shape[0]
        case.tree[where][key] = Tensor("F4", (slots, 3), b"\1" * (slots * 3 // 2))
    say(case)
    return 3, "EP209"


@way
def odd_input_scale(case: Case, chance: Random) -> Due:
    """An input scale has neither one value nor one per row."""
    if case.naming.style != "stacked" or not case.naming.input_scales:
        return None
    layer = chance.choice(case.first.layers)
    kind = case.model.kinds[layer][0]
    key = kind.key.replace(kind.name, case.naming.input_scales[0])
    rank = chance.randrange(case.first.num_ranks)
    for at, slots in enumerate(case.first.slots):
        rows = slots + 1 if at == rank else slots
        case.tree.setdefault((at, kind.stage), Shard())[key] = Tensor("F32", (rows,), b"\1" * 4 * rows)
    say(case)
    return 3, "EP211"
