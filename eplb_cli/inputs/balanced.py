"""A load and perhaps OLD in, NEW and what it comes to out: what `eplb balance` does before it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.balance.balance import balance
from eplb_cli.balance.curve import Point, curve, within
from eplb_cli.balance.fit import counted, fitted
from eplb_cli.balance.shape import Shape
from eplb_cli.balance.way import Way
from eplb_cli.errors import UsageError
from eplb_cli.inputs.load import GivenLoad, given_load
from eplb_cli.inputs.old_and_new import read_old
from eplb_cli.inputs.options import PlacementOptions, expert_size
from eplb_cli.models.counted import Counts
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.placement import MAX_ENTRIES, Placement
from eplb_cli.placements.read import read_placement
from eplb_cli.plan.moves import REMOTE
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.report.rebalance import Rebalance
from eplb_cli.report.report import LayerTraffic
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Wanted:
    """What is asked of NEW.

    Attributes:
        num_ranks: R; None for that of OLD.
        num_redundant_experts: N; None for that of OLD, or for none.
        ranks_per_node: G, None for one node.
        num_groups: groups of experts; None for those of the model.
        max_moved_bytes: the most that may come from other ranks; None for any amount.
        with_curve: whether balance is looked at against what moves, whatever the limit.
    """

    num_ranks: int | None
    num_redundant_experts: int | None = None
    ranks_per_node: int | None = None
    num_groups: int | None = None
    max_moved_bytes: int | None = None
    with_curve: bool = False


@dataclass(frozen=True, eq=False)
class _Old:
    """OLD.

    Attributes:
        whole: as it is given.
        counted: without layers, as of MTP, that the load does not count.
        nbytes: (L,) bytes of an expert in each layer that is counted; None where nothing says them.
        warnings: what is odd about it.
    """

    whole: Placement
    counted: Placement
    nbytes: Int | None
    warnings: tuple[str, ...]


def balanced(
    name: str,
    wanted: Wanted,
    options: PlacementOptions,
    *,
    old: str | None = None,
    checkpoint: Path | None = None,
    expert_nbytes: int | None = None,
) -> tuple[Placement, Rebalance]:
    """A placement for the load in a dump, and what is shown of it; its output is not known here.

    Args:
        name: the dump, in any form that is read.
        wanted: what NEW is to be.
        options: what OLD may leave out, and the model.
        old: OLD; None for that of `checkpoint`, or for none.
        checkpoint: shards under OLD, for sizes.
        expert_nbytes: bytes of an expert, without shards.

    Raises:
        PlacementError: the load or OLD cannot be read, or are of different models.
        CheckpointError: the shards cannot be used.
        UsageError: EP001, the arguments contradict each other, or ask for what cannot be.
    """
    given = given_load(name, options.model, checkpoint)
    if old in NAMED_MAPS:  # its experts are those of the load, and without shards its ranks those of NEW
        ranks = options.old_num_ranks or (wanted.num_ranks if checkpoint is None else None)
        options = replace(options, old_num_ranks=ranks, num_logical_experts=given.load.counts.shape[2])
    found = _read_old(given, options, old, checkpoint, expert_nbytes)
    load = given.load.total if found is None else fitted(given.load, found.counted, name, "OLD")
    shape = _shape(given, wanted, options, found)
    if found is None:
        new = balance(load, shape, layer_ids=given.load.layer_ids)
        return new, Rebalance("", shape, given.together(given.judge("NEW", new)))
    new, points = _towards(load, shape, found, wanted)
    judged = given.together(given.judge("OLD", found.counted), given.judge("NEW", new))
    layers = _traffic(found, new)
    whole, warnings = _with_uncounted(found, new)
    warnings += _too_little(wanted.max_moved_bytes, found.nbytes)
    return whole, Rebalance("", shape, judged, layers, wanted.max_moved_bytes, points, warnings)


def _too_little(limit: int | None, nbytes: Int | None) -> tuple[str, ...]:
    """What is said of a limit that no expert fits in: a unit is forgotten easily."""
    if limit is None or nbytes is None or limit >= nbytes.min():
        return ()
    return (f"--max-moved-bytes is {limit:,} bytes, and an expert has {nbytes.min():,}: none can come",)


def _towards(load: Counts, shape: Shape, old: _Old, wanted: Wanted) -> tuple[Placement, list[Point]]:
    """NEW, on the way from OLD to the best balance, and the curve where it is wanted."""
    way = Way(load, shape, old.counted)
    sizes = np.ones(len(load), np.int64) if old.nbytes is None else old.nbytes
    step = way.best
    if wanted.max_moved_bytes is not None:
        if old.nbytes is None:
            hint = "add --checkpoint, --model or --expert-bytes"
            raise UsageError("EP001", "--max-moved-bytes needs the size of an expert", hint)
        step = within(way, old.nbytes, wanted.max_moved_bytes)
    is_looked_at = wanted.with_curve or wanted.max_moved_bytes is None
    return way.at(step), curve(way, sizes, load.sum(axis=1) / shape.num_ranks) if is_looked_at else []


def _shape(given: GivenLoad, wanted: Wanted, options: PlacementOptions, old: _Old | None) -> Shape:
    """The shape of NEW, where it is not said that of OLD. Raises EP001."""
    num_experts = given.load.counts.shape[2]
    num_ranks, num_redundant = wanted.num_ranks, wanted.num_redundant_experts
    if num_ranks is None:
        if old is None:
            raise UsageError("EP001", "nothing says how many ranks NEW has", "add --num-ranks, or --old")
        num_ranks = old.whole.num_ranks
    if num_redundant is None:
        num_redundant = 0 if old is None else old.whole.num_slots - num_experts
    groups = wanted.num_groups or (None if options.model is None else options.model.num_groups)
    shape = Shape(num_experts, num_redundant, num_ranks, wanted.ranks_per_node, groups or 1)
    if given.load.counts.shape[1] * shape.num_slots > MAX_ENTRIES:
        raise UsageError("EP001", f"{shape.num_slots:,} slots in each layer are too many", "ask for fewer")
    return shape


def _read_old(
    given: GivenLoad,
    options: PlacementOptions,
    old: str | None,
    checkpoint: Path | None,
    expert_nbytes: int | None,
) -> _Old | None:
    """OLD, from a file, a named map or what shards say. Raises as `balanced`."""
    load = given.load
    if checkpoint is not None:
        if expert_nbytes is not None:
            raise UsageError("EP001", "--checkpoint and --expert-bytes both say sizes", "leave one out")
        return _old_of_shards(given, options, old, checkpoint)
    size = expert_size(expert_nbytes, options.model)
    if old is None:
        return None
    hints = replace(options.hints, num_ranks=options.old_num_ranks, dialect=options.old_dialect)
    if old in NAMED_MAPS:
        hints = replace(hints, num_layers=load.counts.shape[1], layer_ids=load.layer_ids)
    whole, findings = read_placement(old, hints)
    main = counted(load, whole, given.mtp_layers)
    nbytes = None if size is None else np.full(main.num_layers, size, np.int64)
    odd = [
        finding.message for finding in findings if finding.code != "EP111"
    ]  # the load says how many experts
    return _Old(whole, main, nbytes, tuple(odd))


def _old_of_shards(given: GivenLoad, options: PlacementOptions, old: str | None, source: Path) -> _Old:
    """OLD and sizes, of shards under it."""
    from eplb_cli.checkpoint.sharded import bind
    from eplb_cli.checkpoint.shards import open_shards

    shards = open_shards(source)
    whole, findings = read_old(shards, old, [], options.beside(shards))
    bound = bind(shards, whole)
    whole = bound.placement
    main = counted(given.load, whole, {*given.mtp_layers, *shards.layers.beside})
    nbytes = bound.expert_nbytes[_is_in(whole, main)]
    return _Old(whole, main, nbytes, tuple(finding.message for finding in findings))


def _is_in(whole: Placement, part: Placement) -> NDArray[np.bool_]:
    """(L,) which layers of a placement are in a part of it."""
    if whole.layer_ids is None or part.layer_ids is None:
        return np.ones(whole.num_layers, bool)
    return np.isin(whole.layer_ids, part.layer_ids)


def _traffic(old: _Old, new: Placement) -> list[LayerTraffic]:
    """What comes from another rank in each layer, as a plan has it."""
    plan = plan_reshard(old.counted, new, "vllm")  # who sends makes no difference
    rows = np.bincount(plan.moves.layer[plan.moves.kind == REMOTE], minlength=new.num_layers).tolist()
    sizes = [None] * len(rows) if old.nbytes is None else old.nbytes.tolist()
    return [
        LayerTraffic(new.layer_number(layer), None if size is None else count * size, count)
        for layer, (count, size) in enumerate(zip(rows, sizes, strict=True))
    ]


def _with_uncounted(old: _Old, new: Placement) -> tuple[Placement, tuple[str, ...]]:
    """NEW with the layers of OLD that the load does not count, as OLD has them, where it has its slots."""
    is_counted = _is_in(old.whole, new)
    if is_counted.all():
        return new, old.warnings
    if not np.array_equal(old.whole.first_slot, new.first_slot):
        numbers = ", ".join(str(old.whole.layer_number(int(layer))) for layer in np.flatnonzero(~is_counted))
        return new, (*old.warnings, f"left out: layer {numbers}, of which the load counts no expert")
    table = old.whole.physical_to_logical.copy()
    table[is_counted] = new.physical_to_logical
    return replace(old.whole, physical_to_logical=table), old.warnings
