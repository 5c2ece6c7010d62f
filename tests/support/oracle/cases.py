"""Cases, each drawn from a seed and a number: a checkpoint, and placements for it to go through."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.oracle.namings import NAMINGS, Names, Naming, row_shape
from tests.support.oracle.truth import (
    BITS,
    FLOATS,
    Kind,
    Map,
    Model,
    Shard,
    Tensor,
    Tree,
    number_of,
    number_tensor,
    random_rows,
    tree_under,
    write_tree,
)

Damage = Callable[[Path, Path, Path], object]
"""What is done to the directory, SRC and DST before the last step."""


@dataclass
class Step:
    """One `eplb reshard` of a case: NEW, how both placements are said, and the other options.

    `recorded`: what eplb.json says in the end, which may not name all layers that NEW has here.
    `verify`: `eplb verify DST --against SRC` comes after it. `settled`: numbers of a rank of which all ranks
    have the same from then on.
    """

    new: Map
    recorded: Map
    old_said: object
    new_said: object
    options: list[object] = field(default_factory=list)
    verify: bool = False
    settled: Shard = field(default_factory=dict)


@dataclass
class Case:
    """A checkpoint under `first`, and the steps to take; `refusal` is what the last one has to end with.

    `saved_plan`: the first step is planned by `eplb plan --out`, and then done by `--plan`.
    `numbers`: by key of a number that each rank has, its layer; the tensors are among the model's others.
    """

    naming: Naming
    model: Model
    first: Map
    chance: Random
    tree: Tree = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    traits: list[str] = field(default_factory=list)
    carried: dict[str, bytes] = field(default_factory=dict)
    damage: Damage | None = None
    saved_plan: bool = False
    numbers: dict[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """SRC, and a layout file where the naming has one."""
        path.mkdir()
        write_tree(path, self.tree, self.model.file, self.first.num_ranks, self.chance)
        for name, content in self.carried.items():
            (path / name).write_bytes(content)


@dataclass
class Shape:
    """What all placements of a case have in common: layers, E, and the experts that each layer has.

    `once`: no rank has an expert twice. `follows`: a layer that NEW does not name, of which all experts are
    there, and which is laid out in order when ranks or slots change.
    """

    layers: list[int]
    experts: int
    present: list[list[int]]
    once: bool
    follows: int | None = None

    def draw(self, chance: Random, num_ranks: int | None = None, slots: list[int] | None = None) -> Map:
        """A placement of every present expert, with replicas and empty slots."""
        least = max(map(len, self.present))
        slots = slots or draw_slots(chance, least, num_ranks)
        while self.follows is not None and self.once and max(slots) > self.experts:
            slots = draw_slots(chance, least, num_ranks)
        ranks = [rank for rank, count in enumerate(slots) for _ in range(count)]
        table = np.full((len(self.layers), len(ranks)), -1, np.int64)
        for row, present in zip(table, self.present, strict=True):
            free = chance.sample(range(len(ranks)), len(ranks))
            for expert in present:
                row[free.pop()] = expert
            for slot in free:
                held = {int(e) for e, rank in zip(row, ranks, strict=True) if rank == ranks[slot]}
                row[slot] = chance.choice([-1, *(e for e in present if not self.once or e not in held)])
        return Map(table, slots, self.layers, self.experts)

    def named(self, name: str, num_ranks: int, redundant: int) -> Map | None:
        """`linear` or `round_robin`, where it has what this shape asks for."""
        total = self.experts + redundant
        if redundant and (name != "linear" or total % num_ranks):
            return None
        owners = np.arange(total) % num_ranks
        row = np.arange(total) % self.experts if name == "linear" else np.argsort(owners, kind="stable")
        slots = np.bincount(owners, minlength=num_ranks).tolist()
        found = Map(np.tile(row, (len(self.layers), 1)), slots, self.layers, self.experts)
        twice = any(len(np.unique(found.of_rank(r)[0])) < s for r, s in enumerate(found.slots))
        complete = all(len(present) == self.experts for present in self.present)
        return found if complete and not (self.once and twice) else None

    def with_follower(self, placement: Map, row: NDArray[np.int64] | None = None) -> Map:
        """The same with the layer that follows, in order and from 0 on again if nothing says more."""
        if self.follows is None:
            return placement
        if row is None:
            row = np.arange(placement.table.shape[1]) % self.experts
        return replace(
            placement, table=np.vstack([placement.table, row]), layers=[*self.layers, self.follows]
        )

    def without_follower(self, placement: Map) -> Map:
        """The layers that placements name."""
        return replace(placement, table=placement.table[: len(self.layers)], layers=self.layers)


def draw_slots(chance: Random, least: int, num_ranks: int | None) -> list[int]:
    """Slots of each rank, alike, uneven or none, `least` of them at least in all."""
    total = least + chance.choice([0, 0, 1, 2, 3, 5])
    ranks = num_ranks or chance.choice([1, 2, 2, 3, 3, 4, 5])
    if chance.random() < 0.4:
        return [-(-total // ranks)] * ranks
    slots = [0] * ranks
    for _ in range(total):
        slots[chance.randrange(ranks)] += 1
    return slots


def draw_case(seed: object, number: int) -> Case:
    """The case of this seed and number: a legal one."""
    chance = Random(f"{seed} {number}")
    naming = chance.choice(NAMINGS)
    layers = chance.sample([0, 1, 2, 3, 9, 10, 11, 60, 61], chance.choice([1, 1, 2, 3]))
    layers = sorted(layers) if chance.random() < 0.8 else layers
    experts = chance.choice([1, 2, 3, 4, 6, 8])
    least = 1 if chance.random() < 0.15 else experts
    present = [sorted(chance.sample(range(experts), chance.randint(least, experts))) for _ in layers]
    shape = Shape(layers, experts, present, once=naming.style == "expert")
    with_mtp, same_ranks = chance.random() < 0.15, chance.random() < 0.3
    if least == experts and not with_mtp and chance.random() < 0.15:
        shape.follows = max(layers) + chance.choice([1, 1, 2])
    case = Case(naming, Model(naming.style, {}, {}, {}, naming.file), shape.draw(chance), chance)
    names = [_first(case, shape, with_mtp=with_mtp)]
    _fill(case, shape, names, with_mtp=with_mtp, same_ranks=same_ranks)
    for _ in range(chance.choice([1, 1, 1, 1, 2, 3])):
        _append(case, shape, names, with_mtp=with_mtp, same_ranks=same_ranks)
    if len(case.steps) > 1:
        _append(case, shape, names, back=True, with_mtp=with_mtp, same_ranks=same_ranks)
        case.traits.append(f"chain of {len(case.steps)}")
    if chance.random() < 0.1 and case.steps[0].old_said is not None:
        case.saved_plan = True
        case.traits.append("saved plan")
    return case


def _first(case: Case, shape: Shape, *, with_mtp: bool) -> str | None:
    """The name of OLD, where it is a named map."""
    chance = case.chance
    name = chance.choice(["linear", "round_robin"])
    redundant = chance.choice([0, 0, 1, 2, 4])
    found = shape.named(name, case.first.num_ranks, redundant)
    if found is None or with_mtp or chance.random() < 0.6 or shape.layers != sorted(shape.layers):
        return None
    case.first = found
    case.traits.append(f"OLD {name}")
    return name


def _fill(case: Case, shape: Shape, names: list[str | None], *, with_mtp: bool, same_ranks: bool) -> None:
    """Experts and other tensors, and the tree that they are under OLD."""
    chance, model, naming = case.chance, case.model, case.naming
    dtypes = chance.sample(sorted(BITS), chance.randint(1, 5))
    modules: dict[int, tuple[int, str | None]] = {layer: (layer, None) for layer in shape.layers}
    if chance.random() < 0.3:
        case.carried = {"config.json": b'{"model_type": "fuzz"}', "tokenizer.model": b"\0\1"}
    if shape.follows is not None:
        case.traits.append("layer that follows")
        modules[shape.follows] = _follower(case, shape.layers, shape.follows)
        case.first = shape.with_follower(case.first, case.first.table[0] if names[0] else None)
    stages = chance.choice([1, 2, 3]) if "{stage}" in naming.file else 1
    spelled, rng = Names(naming, chance), np.random.default_rng(chance.randrange(1 << 32))
    for layer, (number, module) in modules.items():
        model.kinds[layer] = spelled.kinds(number, dtypes, chance.randrange(stages), module)
        for kind in model.kinds[layer]:
            model.rows[layer, kind.name] = random_rows(rng, kind, shape.experts)
    ranks = range(case.first.num_ranks)
    model.others = {(rank, stage): {} for rank in ranks for stage in range(stages)}
    for key in _other_keys(case, spelled):
        stage, own = chance.randrange(stages), same_ranks and chance.random() < 0.5
        said = _other(chance, dtypes, rng)
        for rank in ranks:
            if own and chance.random() < 0.2:
                continue
            model.others[rank, stage][key] = _other(chance, dtypes, rng) if own else said
    if with_mtp:
        case.traits.append("MTP")
        _add_mtp(case, shape, spelled, dtypes, stages)
    _add_extras(case, shape)
    case.tree = tree_under(model, case.first, list(ranks), rubbish=chance.choice([0, 255, 7]))
    if len(ranks) > 1 and any(0 in s for s in [case.first.slots]):
        case.traits.append("rank without slots")


def _other_keys(case: Case, spelled: Names) -> list[str]:
    chance, layer = case.chance, case.first.layers[0]
    inside = spelled.naming.experts[0].replace("{layer}", str(layer))
    keys = [
        "embed_tokens.weight",
        "norm.weight",
        f"layers.{layer}.self_attn.q_proj.weight",
        "step",
        "lm_head",
    ]
    keys += [inside.replace("{tensor}", name) for name in spelled.naming.others]
    return [spelled.prefix + key for key in keys if chance.random() < 0.4]


def _other(chance: Random, dtypes: list[str], rng: np.random.Generator) -> Tensor:
    """Any tensor; one in a hundred is so large that ranks share a file for it."""
    dtype = chance.choice(dtypes)
    shape = (1 << 20, 8) if chance.random() < 0.01 else row_shape(dtype, chance)
    return Tensor(dtype, shape, rng.bytes(int(np.prod(shape)) * BITS[dtype] // 8))


def _add_mtp(case: Case, shape: Shape, spelled: Names, dtypes: list[str], stages: int) -> None:
    """A MoE layer that no placement names: of each rank its own, and other tensors to eplb."""
    chance, model = case.chance, case.model
    layer, module = chance.choice([(max(shape.layers) + 1, None), (0, "mtp.")])
    rng = np.random.default_rng(chance.randrange(1 << 32))
    kinds = spelled.kinds(layer, dtypes, chance.randrange(stages), module)
    rows = {(layer, kind.name): random_rows(rng, kind, shape.experts) for kind in kinds}
    alone = Shape([layer], shape.experts, [list(range(shape.experts))[:1]], shape.once)
    placement = alone.draw(chance, slots=case.first.slots)
    mtp = Model(model.style, {layer: kinds}, rows, {}, model.file)
    for where, tensors in tree_under(mtp, placement, list(range(placement.num_ranks)), rubbish=9).items():
        model.others.setdefault(where, Shard()).update(tensors)


def _add_extras(case: Case, shape: Shape) -> None:
    """What vLLM has beside the experts of a layer: a map, and numbers of a rank."""
    if not case.naming.maps:
        return
    if all(len(present) == shape.experts for present in shape.present) and case.chance.random() < 0.4:
        case.traits.append("maps")
        _add_maps(case)
    if case.chance.random() < 0.2:
        case.traits.append("numbers of a rank")
        _add_numbers(case, case.chance.choice(shape.layers))


def _follower(case: Case, layers: list[int], layer: int) -> tuple[int, str | None]:
    """Where the layer of this number is: beyond the model's hidden layers, or the first of another module."""
    chance = case.chance
    if layer == max(layers) + 1 and chance.random() < 0.3:
        return 0, "mtp."
    said = {"model_type": "fuzz", "num_hidden_layers": layer}
    case.carried["config.json"] = json.dumps(said).encode()
    return chance.choice([(layer, None), (0, "mtp.")])


def _add_maps(case: Case) -> None:
    """Each layer says where its experts are."""
    name, dtype = case.chance.choice(case.naming.maps), case.chance.choice(["I32", "I64"])
    for layer, kinds in case.model.kinds.items():
        first = kinds[0]
        case.model.maps[layer] = Kind(first.key.removesuffix(first.name) + name, name, dtype, (), first.stage)


def _add_numbers(case: Case, layer: int) -> None:
    """A layer has a number that each rank computed from its own experts; all of them may be the same."""
    chance, kinds = case.chance, case.model.kinds[layer]
    for projection in ("w13", "w2"):
        name = f"{projection}_input_scale"
        if any(kind.name == name for kind in kinds):
            continue
        dtype = chance.choice(sorted(FLOATS))
        values = [chance.random() * 100 if chance.random() < 0.7 else 1.0 for _ in case.first.slots]
        if chance.random() < 0.4:
            values = [7.5] * len(values)
        key = kinds[0].key.removesuffix(kinds[0].name) + name
        case.numbers[key] = layer
        for rank, value in enumerate(values):
            case.model.others[rank, kinds[0].stage][key] = number_tensor(dtype, value)


def _append(
    case: Case,
    shape: Shape,
    names: list[str | None],
    *,
    back: bool = False,
    with_mtp: bool,
    same_ranks: bool,
) -> None:
    """One more step: to a placement that is drawn, a named one, or back to the first."""
    chance = case.chance
    before, name = (case.steps[-1].new if case.steps else case.first), None
    old = case.steps[-1].recorded if case.steps else shape.without_follower(case.first)
    new = shape.without_follower(case.first)
    if not back:
        ranks = case.first.num_ranks if same_ranks else None
        new = shape.draw(chance, ranks, case.first.slots if with_mtp else None)
        wanted, redundant = chance.choice(["linear", "round_robin"]), chance.choice([0, 0, 1, 2, 4])
        found = None if with_mtp else shape.named(wanted, new.num_ranks, redundant)
        if found is not None and chance.random() < 0.4:
            new, name = found, wanted
            case.traits.append(f"NEW {name}")
    step = Step(new, new, None, name or _said(new, chance, new=True))
    if not case.steps and names[0]:
        old = case.first
    if not case.steps and not names[0] and _is_said_by_maps(case) and chance.random() < 0.5:
        old = case.first
    elif not case.steps:
        step.old_said = names[0] or _said(old, chance, may_lack_layers=not with_mtp)
    elif chance.random() < 0.3:
        step.old_said = _said(old, chance)
    _say_numbers(step, old, names[0] if not case.steps else None, name, chance)
    is_named = old.layers != shape.layers
    row = new.table[0] if name and is_named else before.table[-1] if old.slots == new.slots else None
    step.new = shape.with_follower(new, row)
    if is_named or old.slots != new.slots:
        step.recorded = step.new
    step.options += _options(chance)
    _settle(case, step, before)
    if case.naming.toml and not case.steps:
        step.options += ["--layout", "own.toml"]
    elif not case.steps and chance.random() < 0.3:
        step.options += ["--layout", case.naming.name.split(",")[0]]
    step.verify = chance.random() < 0.1
    case.steps.append(step)


def _is_said_by_maps(case: Case) -> bool:
    """Whether maps say where experts are, and not where slots are; maps in order may be either."""
    first = case.first
    return (
        bool(case.model.maps)
        and first.layers == sorted(first.layers)
        and first.table.shape[1] == first.experts
        and bool((first.table != np.arange(first.experts)).any())
    )


def changing(old: Map, new: Map) -> set[int]:
    """The layers of which a rank gets an expert that it had not; all where there are more ranks, or fewer."""
    if old.num_ranks != new.num_ranks:
        return set(old.layers)
    sides = [[of.of_rank(rank).tolist() for rank in range(of.num_ranks)] for of in (old, new)]
    return {
        layer
        for at, layer in enumerate(old.layers)
        for had, has in zip(*sides, strict=True)
        if {*has[at]} - {*had[at], -1}
    }


def _settle(case: Case, step: Step, old: Map) -> None:
    """Give all ranks the largest of the numbers that would stay behind, if any would."""
    settled = {key for earlier in case.steps for key in earlier.settled}
    layers = changing(old, step.new)
    for key, layer in case.numbers.items():
        found = {others[key] for others in case.model.others.values() if key in others}
        if len(found) > 1 and layer in layers and key not in settled:
            step.settled[key] = max(found, key=number_of)
    if step.settled or (case.numbers and case.chance.random() < 0.3):
        step.options += ["--rank-scalars", "max"]


def _said(
    placement: Map, chance: Random, *, new: bool = False, may_lack_layers: bool = False
) -> dict[str, Any]:
    """The JSON of a placement, which may leave out what others say."""
    said: dict[str, Any] = {"format": "eplb-placement/1"}
    slots = placement.slots
    alike = len(set(slots)) == 1
    if alike and chance.random() < 0.6:
        said["num_ranks"] = len(slots)
    elif alike and chance.random() < 0.5:
        said["slots_per_rank"] = slots[0]
    else:
        said["slots_per_rank"] = slots
    if not new or chance.random() < 0.7:
        said["num_logical_experts"] = placement.experts
    in_order = placement.layers == sorted(placement.layers)
    if not (new or (may_lack_layers and in_order)) or chance.random() < 0.7:
        said["layer_ids"] = placement.layers
    rows = placement.table.tolist()
    if new and "layer_ids" in said and chance.random() < 0.15:  # its rows follow the numbers of its layers
        order = chance.sample(range(len(rows)), len(rows))
        said["layer_ids"], rows = [placement.layers[at] for at in order], [rows[at] for at in order]
    return {**said, "physical_to_logical_map": rows}


def _say_numbers(step: Step, old: Map, old_name: str | None, new_name: str | None, chance: Random) -> None:
    """Numbers that a named map needs, and some that it does not."""
    redundant = step.new.table.shape[1] - step.new.experts if new_name else 0
    old_redundant = old.table.shape[1] - old.experts if old_name else 0
    if redundant:
        step.options += ["--num-redundant-experts", redundant]
    if redundant or old_redundant or chance.random() < 0.3:
        step.options += ["--num-logical-experts", old.experts]
    if new_name and (step.new.num_ranks != old.num_ranks or chance.random() < 0.3):
        step.options += ["--num-ranks", step.new.num_ranks]


def _options(chance: Random) -> list[object]:
    found: list[object] = ["--format", "text" if chance.random() < 0.05 else "json"]
    for option, values in (
        ("--senders", ["balanced", "vllm"]),
        ("--buffer-size", [1, 64, "1KiB", "1MiB"]),
        ("--ranks-per-node", [1, 2, 3]),
        ("--threads", [1, 2, 3]),
    ):
        if chance.random() < 0.4:
            found += [option, chance.choice(values)]
    return found + [flag for flag in ("--no-digest", "--no-verify") if chance.random() < 0.06]
