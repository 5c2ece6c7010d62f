"""Shards whose tensors are not what the placement and the layout ask for, each in one way."""

from __future__ import annotations

from random import Random

import numpy as np

from tests.support.oracle.cases import Case, changing
from tests.support.oracle.refusals import (
    Due,
    all_kinds,
    all_weights,
    any_kind,
    has_mtp,
    home_of,
    keys_of,
    layer_of,
    said_of,
    say,
    way,
    weight_of,
)
from tests.support.oracle.truth import Kind, Map, Shard, Tensor, Tree, number_tensor, random_rows, tree_under


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
    if any(known.dtype == dtypes[kind.dtype] for known in all_kinds(case)):  # whose like have something else
        return None
    case.tree[where][key] = tensor._replace(dtype=dtypes[kind.dtype])
    say(case)
    return 3, "EP209"


@way
def lost_tensor(case: Case, chance: Random) -> Due:
    """A tensor of one rank is not there, or a row of it."""
    kind = any_kind(case, chance)
    found = keys_of(case, kind)
    where, key = chance.choice(found)
    rank = where[0]
    alone = sum(at == where for at, _ in found) == 1
    if kind.role == "input" or len(found) < 2 or not case.first.slots[rank]:
        return None
    del case.tree[where][key]
    say(case)
    if case.naming.style == "stacked" or alone:
        return 3, _lost(kind)
    return 3, "EP217" if case.naming.style == "expert" else "EP208"


def _lost(kind: Kind, whole: str = "EP209") -> str:
    """What it is called that a scale or a zero point is not there, or anything else."""
    return "EP210" if "scale" in kind.name or "zero" in kind.name else whole


def _drop(case: Case, kinds: list[Kind]) -> None:
    for kind in kinds:
        for where, key in keys_of(case, kind):
            del case.tree[where][key]


def _of_projection(case: Case, chance: Random) -> list[Kind]:
    """All tensors of a projection of a layer."""
    kinds = case.model.kinds[chance.choice(case.first.layers)]
    projection = chance.choice([kind.projection for kind in kinds if kind.projection])
    return [kind for kind in kinds if kind.projection == projection]


def _like(case: Case, kind: Kind, weights: list[Kind]) -> list[Kind]:
    """Those of some weights, of the same family as they are, that may not differ from a tensor's own."""
    own = weight_of(case, kind)
    return [weight for weight in weights if weight != own and weight.dtype == own.dtype]


@way
def scale_alone(case: Case, chance: Random) -> Due:
    """A layer has the scale of a weight, and not the weight."""
    kinds = _of_projection(case, chance)
    if not any(kind.role == "scale" for kind in kinds):
        return None
    _drop(case, [kind for kind in kinds if kind.role in ("weight", "extra")])
    say(case)
    return 3, "EP210"


@way
def extra_alone(case: Case, chance: Random) -> Due:
    """A layer has the bias of a projection, and not the projection."""
    kinds = _of_projection(case, chance)
    if not any(kind.role == "extra" for kind in kinds):
        return None
    _drop(case, [kind for kind in kinds if kind.role != "extra"])
    say(case)
    return 3, "EP230"


@way
def no_projection(case: Case, chance: Random) -> Due:
    """A layer has a projection, and not the one that comes before or after it, or that other layers have."""
    kinds = _of_projection(case, chance)
    others = [kind for kind in all_kinds(case) if kind.projection == kinds[0].projection]
    has_like = any(home_of(kind) == home_of(kinds[0]) and kind not in kinds for kind in others)
    if case.naming.toml or (kinds[0].projection in ("gate_proj", "w3") and not has_like):
        return None
    _drop(case, kinds)
    say(case)
    return 3, "EP230"


@way
def no_extra(case: Case, chance: Random) -> Due:
    """A projection has no bias in one layer, and in another it has."""
    kind = any_kind(case, chance)
    if kind.role != "extra":
        return None
    if not any(like.projection == kind.projection for like in _like(case, kind, all_weights(case))):
        return None
    _drop(case, [kind])
    say(case)
    return 3, "EP230"


@way
def no_scale(case: Case, chance: Random) -> Due:
    """A weight has no scale, and another one of its dtype has."""
    kind = any_kind(case, chance)
    if kind.role != "scale":
        return None
    like = _like(case, kind, all_weights(case))
    layer = layer_of(case, kind)
    scales = [of for of in case.model.kinds[layer] if (of.projection, of.role) == (kind.projection, "scale")]
    is_last = len(scales) == 1 or bool(case.naming.toml)
    if not any(is_last or weight.projection == kind.projection for weight in like):
        return None
    _drop(case, [kind])
    say(case)
    return 3, "EP210"


@way
def unknown_tensor(case: Case, chance: Random) -> Due:
    """A tensor beside those of the experts that is no row of them, and is not known."""
    kind = any_kind(case, chance)
    if not case.naming.toml and case.naming.style != "stacked":
        return None
    name = kind.name.split(".")[0] + "_mystery"
    for at, slots in enumerate(case.first.slots):
        shard = case.tree.setdefault((at, kind.stage), Shard())
        key = kind.key.replace(kind.name, name).replace("{number}", "0")
        shard[key] = Tensor("F32", (slots + 2,), b"\1" * 4 * (slots + 2))
    say(case)
    return 3, "EP207"


@way
def homeless(case: Case, chance: Random) -> Due:
    """A tensor of experts is in no layer, or what engines call one is in no module of experts."""
    if case.naming.toml:
        return None
    where = chance.choice(sorted(case.tree))
    case.tree[where][chance.choice(["experts.w13_weight", "model.w2_weight"])] = Tensor("U8", (2, 1), b"12")
    say(case)
    return 3, "EP207"


@way
def half_bytes(case: Case, chance: Random) -> Due:
    """Rows of a stacked tensor are no whole bytes."""
    if case.naming.style != "stacked" or any(slots % 2 for slots in case.first.slots):
        return None
    kind = any_kind(case, chance)
    if any(known.dtype == "F4" for known in all_kinds(case)):  # whose like have something else
        return None
    for where, key in keys_of(case, kind):
        slots = case.tree[where][key].shape[0]
        case.tree[where][key] = Tensor("F4", (slots, 3), b"\1" * (slots * 3 // 2))
    say(case)
    return 3, "EP209"


@way
def odd_input_scale(case: Case, chance: Random) -> Due:
    """An input scale has neither one value nor one per row."""
    family = case.naming.families[0]
    names = [*case.naming.loose_inputs, *(family.projections[0] + end for end in family.inputs)]
    if case.naming.style != "stacked" or not names:
        return None
    kind = any_kind(case, chance)
    key = kind.key.replace(kind.name, names[0])
    rank = chance.choice([at for at, slots in enumerate(case.first.slots) if slots])
    for at, slots in enumerate(case.first.slots):
        rows = slots + 1 if at == rank else slots
        case.tree.setdefault((at, kind.stage), Shard())[key] = Tensor("F32", (rows,), b"\1" * 4 * rows)
    say(case)
    return 3, "EP211"


def _number(case: Case, layer: int, name: str, values: list[float]) -> None:
    """Give each rank a number beside the experts of a layer."""
    kind = case.model.kinds[layer][0]
    for rank, value in enumerate(values):
        shard = case.tree.setdefault((rank, kind.stage), Shard())
        shard[kind.key.removesuffix(kind.name) + name] = number_tensor("F32", value)


def _changing_layer(case: Case, chance: Random) -> int | None:
    """A layer of which an expert changes rank, of a case whose ranks may have numbers that differ."""
    layers = sorted(changing(case.first, case.steps[0].new))
    known = {kind.role for kind in all_kinds(case)} | set(case.numbers)
    is_fit = case.naming.maps and case.first.num_ranks > 1 and known <= {"weight", "scale", "extra"}
    return chance.choice(layers) if is_fit and layers else None


@way
def number_stays(case: Case, chance: Random) -> Due:
    """A number of a rank differs, and experts of its layer change rank."""
    if (layer := _changing_layer(case, chance)) is None:
        return None
    _number(case, layer, "w2_input_scale", [float(rank) for rank in range(case.first.num_ranks)])
    say(case)
    return 3, "EP231"


@way
def number_is_no_maximum(case: Case, chance: Random) -> Due:
    """So does one that is no maximum, or from which another was computed, and the largest is asked for."""
    if (layer := _changing_layer(case, chance)) is None:
        return None
    values = [float(rank) for rank in range(case.first.num_ranks)]
    if chance.random() < 0.5:
        _number(case, layer, "w2_alpha", values)
    else:
        _number(case, layer, "w2_input_scale", values)
        _number(case, layer, "w2_input_scale_quant", [2.0] * len(values))
    say(case)
    case.steps[0].options += ["--rank-scalars", "max"]
    return 3, "EP231"


@way
def slices(case: Case, chance: Random) -> Due:
    """Each rank has all experts, and they are not the same on any two."""
    old = case.first
    complete = all({*row.tolist()} >= set(range(old.experts)) for row in old.table)
    sizes = [kind.row_nbytes for kind in case.model.kinds[old.layers[0]]]
    if not complete or old.experts == 1 or old.num_ranks == 1 or max(sizes) < 8 or has_mtp(case):
        return None
    if case.model.maps:
        return None
    rng = np.random.default_rng(chance.randrange(1 << 32))
    ranks, experts = old.num_ranks, range(old.experts)
    table = np.array([[*experts] * ranks] * len(old.layers))
    case.first = Map(table, [old.experts] * ranks, old.layers, old.experts)
    tree: Tree = {}
    for rank in range(ranks):
        for layer, kinds in case.model.kinds.items():
            for kind in kinds:
                case.model.rows[layer, kind.name] = random_rows(rng, kind, old.experts)
        for where, shard in tree_under(case.model, case.first, list(range(ranks))).items():
            if where[0] == rank:
                tree[where] = shard
    case.tree = tree
    say(case)
    return 3, "EP232"


@way
def two_towers(case: Case, chance: Random) -> Due:
    """Two modules have experts in as many layers."""
    if has_mtp(case):
        return None
    copied = [(where, key) for kind in all_kinds(case) for where, key in keys_of(case, kind)]
    for where, key in copied:
        case.tree[where]["tower." + key] = case.tree[where][key]
    say(case)
    return 3, "EP212"


@way
def other_map(case: Case, chance: Random) -> Due:
    """A map inside the shards says that a slot holds another expert than OLD."""
    old = case.first
    if not case.model.maps or old.table.shape[1] != old.experts or old.experts == 1:
        return None
    table = old.table.copy()
    row = chance.randrange(len(table))
    one, other = chance.sample(range(old.experts), 2)
    table[row, [one, other]] = table[row, [other, one]]
    say(case, said_of(old, physical_to_logical_map=table.tolist()))
    return 3, "EP215"


def _second_module(case: Case, rows: dict[str, int]) -> None:
    """Give each rank tensors of a second module, by name so many more rows than the rank has slots."""
    for rank, slots in enumerate(case.first.slots):
        shard = case.tree.setdefault((rank, 0), Shard())
        for name, more in rows.items():
            shard[f"mtpx.layers.0.mlp.experts.{name}"] = Tensor(
                "BOOL", (slots + more,), b"\1" * (slots + more)
            )


@way
def nothing_but_a_scale(case: Case, chance: Random) -> Due:
    """A second module has something under its experts, and no weight."""
    if not case.naming.maps:
        return None
    _second_module(case, {"mystery": 0})
    say(case)
    return 3, "EP207"


@way
def layer_of_other_rows(case: Case, chance: Random) -> Due:
    """A layer of a second module has other rows than OLD has slots, and those change."""
    is_new = all(kind.dtype != "BOOL" for kind in all_kinds(case))
    if not case.naming.maps or case.steps[0].new.slots == case.first.slots or not is_new or has_mtp(case):
        return None
    _second_module(case, {"w13_weight": 1, "w2_weight": 1})
    say(case)
    return 3, "EP219"
