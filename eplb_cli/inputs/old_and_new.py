"""OLD and NEW of a command: where each comes from, and what it may leave out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import CheckpointError, PlacementError, UsageError
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.findings import Finding, check_pair, raise_first
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_placement

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards


def read_pair(old: str, new: str, options: PlacementOptions) -> tuple[Placement, Placement, list[Finding]]:
    """OLD and NEW without a checkpoint.

    Raises:
        PlacementError: one of them, or the pair, cannot be used.
    """
    hints = replace(
        options.hints,
        num_ranks=options.old_num_ranks or (options.num_ranks if old in NAMED_MAPS else None),
        dialect=options.old_dialect,
    )
    if old in NAMED_MAPS and new not in NAMED_MAPS:
        second, new_warnings = read_placement(new, _new_hints(options))
        first, old_warnings = read_placement(old, _named_like(hints, second))
    else:
        first, old_warnings = read_placement(old, hints)
        second, new_warnings = read_placement(new, _named_new(new, options, first))
    raise_first(check_pair(first, second))
    return first, second, [*old_warnings, *new_warnings]


def read_new(new: str, old: Placement, options: PlacementOptions) -> tuple[Placement, list[Finding]]:
    """NEW, which may leave out what OLD says. Raises PlacementError."""
    return read_placement(new, _named_new(new, options, old))


def _named_new(new: str, options: PlacementOptions, old: Placement) -> Hints:
    num_ranks = options.num_ranks
    if num_ranks is None and new in NAMED_MAPS:
        num_ranks = old.num_ranks
    return replace(options.hints, num_ranks=num_ranks, dialect=options.dialect).after(old)


def _new_hints(options: PlacementOptions) -> Hints:
    return replace(
        options.hints, num_ranks=options.num_ranks, num_redundant_experts=None, dialect=options.dialect
    )


def _named_like(hints: Hints, other: Placement) -> Hints:
    """Hints for a named map beside a file: experts, layers and, where not said, ranks of the file."""
    num_ranks = other.num_ranks if hints.num_ranks is None else hints.num_ranks
    return replace(hints, num_ranks=num_ranks).after(other)


def read_old(
    shards: Shards, old: str | None, new: str, options: PlacementOptions
) -> tuple[Placement, list[Finding]]:
    """OLD, from `--old` or from the manifest of SRC; `new` is only the name of NEW.

    Raises:
        UsageError: EP001, --num-redundant-experts may be meant of OLD, of NEW or of both.
        CheckpointError: EP216, neither says it; EP215, they differ.
        PlacementError: it cannot be read, or does not fit the shards.
    """
    from eplb_cli.checkpoint.sharded import with_layers

    if old in NAMED_MAPS and new in NAMED_MAPS and options.num_logical_experts is None:
        _refuse_unclear(options)
    manifest = shards.manifest
    known = None if manifest is None else manifest.read_placement(shards.path)
    if old is None:
        return _require(known or _placement_inside(shards, options), shards), []
    hints = _old_hints(old, shards, options)
    given, warnings = read_placement(old, hints)
    given = with_layers(given, shards)
    if old in NAMED_MAPS and options.num_logical_experts is None:
        warnings = [*warnings, *_guessed(old, given, shards, options)]
    if known is not None and given.digest != known.digest:
        raise CheckpointError(
            "EP215",
            f"{old} is not the placement in {shards.path / 'eplb.json'}",
        )
    return given, warnings


def _placement_inside(shards: Shards, options: PlacementOptions) -> Placement | None:
    """What maps inside shards say; None without any. Raises EP215 where they contradict the shards."""
    from eplb_cli.checkpoint.expert_maps import placement_inside

    experts = options.num_logical_experts
    if experts is None and shards.config is not None:
        experts = shards.config.num_logical_experts
    return placement_inside(shards, experts)


def _refuse_unclear(options: PlacementOptions) -> None:
    """EP001 for redundant experts that OLD may have or not, while nothing says how many experts there are."""
    if options.num_redundant_experts:
        raise UsageError(
            "EP001",
            "--num-redundant-experts with a named map as OLD and as NEW leaves open which of them has those",
            "add --num-logical-experts E: the slots in SRC beyond E are the redundant ones of OLD",
        )


def _guessed(old: str, given: Placement, shards: Shards, options: PlacementOptions) -> list[Finding]:
    """EP111 where only the slots of the shards say how many experts a named OLD has.

    Raises:
        CheckpointError: EP232, every rank has a slice of each expert.
        PlacementError: EP109, the config.json beside the shards says another number.
    """
    experts = given.num_logical_experts
    from eplb_cli.checkpoint.slices import require_no_slices

    require_no_slices(shards)
    config = shards.config
    said = None if config is None else config.num_logical_experts
    if said not in (None, experts):
        raise PlacementError(
            "EP109",
            f"OLD is {old} with {experts:,} experts in {given.num_slots:,} slots a layer, "
            f"and {shards.path / 'config.json'} says {said:,} experts",
            f"add --num-logical-experts {said}: slots beyond that hold replicas",
        )
    if said or options.num_redundant_experts:
        return []
    message = f"OLD is taken to have {experts:,} experts, one in each slot of a layer"
    return [Finding("EP111", "warning", message, "say it: --num-logical-experts E")]


def _require(placement: Placement | None, shards: Shards) -> Placement:
    if placement is None:
        raise CheckpointError("EP216", f"{shards.path} has no eplb.json, so nothing says what its rows are")
    return placement


def _old_hints(old: str, shards: Shards, options: PlacementOptions) -> Hints:
    """For a named map the shards themselves say ranks, slots and layers; a file has to say them."""
    if old not in NAMED_MAPS:
        return Hints(
            num_ranks=options.old_num_ranks,
            num_logical_experts=options.num_logical_experts,
            dialect=options.old_dialect,
            model=options.model,
        )
    num_slots = int(shards.slots_per_rank.sum())
    experts = options.num_logical_experts
    if experts is None:
        experts = num_slots - (options.num_redundant_experts or 0)
    if not 1 <= experts <= num_slots:
        raise PlacementError(
            "EP109",
            f"OLD is {old}, and {shards.path} has only {num_slots:,} slots a layer",
            "check --num-logical-experts and --num-redundant-experts",
        )
    return Hints(
        num_ranks=shards.num_ranks,
        num_logical_experts=experts,
        layer_ids=np.array(shards.moe_layers, np.int64),
        num_redundant_experts=num_slots - experts,
    )
