"""OLD and NEW of a command: where each comes from, and what it may leave out.

Every command completes them in the same way::

    OLD  a file       from the options, then from the shards
         a named map  from the options and the shards; without shards from a NEW that is a file
    NEW               from the options, then from OLD
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from eplb_cli.errors import CheckpointError, PlacementError, UsageError
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.draft import Draft
from eplb_cli.placements.findings import Finding, check_pair, raise_first
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.own_format import usable
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_draft, read_placement
from eplb_cli.progress import tell

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards


def read_pair(old: str, new: str, options: PlacementOptions) -> tuple[Placement, Placement, list[Finding]]:
    """OLD and NEW without a checkpoint.

    Raises:
        PlacementError: one of them, or the pair, cannot be used.
        UsageError: EP001, an option is about what neither of them is.
    """
    options.require_used(old, [new])
    known, old_warnings = read_alone(old, options)
    first, draft = draft_beside(known, old, new, options)
    second = usable(draft)
    first = cast("Placement", first)  # where it hangs on NEW, that can be used
    raise_first(check_pair(first, second))
    return first, second, [*old_warnings, *draft.findings]


def read_alone(old: str, options: PlacementOptions) -> tuple[Placement | None, list[Finding]]:
    """OLD without a checkpoint, and warnings; None for a named map, which lacks what NEW says.

    Raises:
        PlacementError: it cannot be read.
    """
    return (None, []) if old in NAMED_MAPS else read_placement(old, _alone_hints(old, options))


def draft_beside(
    known: Placement | None,
    old: str,
    new: str,
    options: PlacementOptions,
    read: Callable[[str, Hints], Draft] = read_draft,
) -> tuple[Placement | None, Draft]:
    """OLD, and NEW as far as it is understood, each with what the other one says.

    Args:
        known: OLD, None where `old` names a map that has to be made for NEW.
        read: how `new` is read.

    Returns:
        OLD, None where it hangs on a NEW that cannot be used; NEW.

    Raises:
        PlacementError: OLD cannot be made, or NEW cannot be read.
    """
    if known is None and new not in NAMED_MAPS:
        draft = read(new, _new_hints(new, options))
        like = draft.placement or draft.rankless
        hints = _alone_hints(old, options)
        return None if like is None else read_placement(old, _named_like(hints, like))[0], draft
    first = known or read_placement(old, _alone_hints(old, options))[0]
    return first, read(new, _new_hints(new, options, first))


def _alone_hints(old: str, options: PlacementOptions) -> Hints:
    """For OLD without shards; a named one has the ranks of NEW where nothing else is said."""
    num_ranks = options.old_num_ranks or (options.num_ranks if old in NAMED_MAPS else None)
    return replace(options.hints, num_ranks=num_ranks, dialect=options.old_dialect)


def read_new(new: str, old: Placement, options: PlacementOptions) -> tuple[Placement, list[Finding]]:
    """NEW, which may leave out what OLD says. Raises PlacementError."""
    return read_placement(new, _new_hints(new, options, old))


def _new_hints(new: str, options: PlacementOptions, old: Placement | None = None) -> Hints:
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    if old is None:
        return hints
    if options.num_ranks is None and new in NAMED_MAPS:
        hints = replace(hints, num_ranks=old.num_ranks)
    return hints.after(old)


def _named_like(hints: Hints, other: Placement) -> Hints:
    """Hints for a named map beside a file: experts, layers and, where not said, ranks of the file."""
    num_ranks = other.num_ranks if hints.num_ranks is None else hints.num_ranks
    return replace(hints, num_ranks=num_ranks).after(other)


def read_old(
    shards: Shards, old: str | None, new: Sequence[str], options: PlacementOptions
) -> tuple[Placement, list[Finding]]:
    """OLD, from `--old`, from the manifest of SRC or from maps in its shards.

    Args:
        new: NEW, or all that OLD is compared with; only their names.
        options: beside the shards.

    Raises:
        UsageError: EP001, --num-redundant-experts may be meant of OLD, of NEW or of both.
        CheckpointError: EP202, a rank is missing; EP216, nothing says OLD; EP215, two say different things.
        PlacementError: it cannot be read, or does not fit the shards.
    """
    from eplb_cli.checkpoint.sharded import with_layers

    experts = options.hints.num_logical_experts
    manifest = shards.manifest
    recorded = None if manifest is None else manifest.read_placement(shards.path)
    if old is None:
        given, warnings = _said_inside(shards, recorded, experts)
        tell("old", f"{shards.path} itself says it")
    elif old in NAMED_MAPS:
        given, warnings = _named_old(shards, old, new, options)
    else:
        given, warnings = read_placement(old, _file_hints(shards, options))
        given = with_layers(given, shards)
    require_experts(given, experts)
    if recorded is None:
        return given, warnings
    if given.digest != recorded.digest:
        raise CheckpointError("EP215", f"{old} is not the placement in {shards.path / 'eplb.json'}")
    return given, [warning for warning in warnings if warning.code != "EP111"]  # it says how many experts


def require_experts(old: Placement, experts: int | None) -> None:
    """EP109 where OLD has another number of experts than options or config.json say; None where none does."""
    if experts not in (None, old.num_logical_experts):
        problem = (
            f"OLD has {old.num_logical_experts:,} experts, and the command line or config.json {experts:,}"
        )
        hint = "if the engine counts shared experts as experts, take config.json away from beside the shards"
        raise PlacementError("EP109", problem, hint)


def _said_inside(
    shards: Shards, recorded: Placement | None, experts: int | None
) -> tuple[Placement, list[Finding]]:
    """What the manifest says of SRC, or else the maps in its shards. Raises EP202, EP215, EP216."""
    from eplb_cli.checkpoint.expert_maps import guessed_inside, placement_inside
    from eplb_cli.checkpoint.ranks import require_all_ranks

    if recorded is not None:
        return recorded, []
    inside = placement_inside(shards, experts)
    if inside is None:
        raise CheckpointError("EP216", f"{shards.path} has no eplb.json, so nothing says what its rows are")
    require_all_ranks(shards, inside.num_logical_experts)
    return inside, guessed_inside(shards, inside) if experts is None else []


def _file_hints(shards: Shards, options: PlacementOptions) -> Hints:
    return Hints(
        num_ranks=options.old_num_ranks,
        spare_slots=shards.slots_per_rank,
        num_logical_experts=options.hints.num_logical_experts,
        dialect=options.old_dialect,
        model=options.model,
    )


def _named_old(
    shards: Shards, old: str, new: Sequence[str], options: PlacementOptions
) -> tuple[Placement, list[Finding]]:
    """A named map in the ranks, slots and layers of the shards, with EP111 where its experts are a guess.

    Raises:
        UsageError: EP001, --num-redundant-experts may be meant of OLD, of NEW or of both.
        CheckpointError: EP202, a rank is missing; EP232, every rank has a slice of each expert.
        PlacementError: EP109, the slots are not those of so many experts.
    """
    from eplb_cli.checkpoint.ranks import one_in_each_slot
    from eplb_cli.checkpoint.slices import require_no_slices

    experts, redundant = options.num_logical_experts, options.num_redundant_experts
    is_of_old = not {*new} & {*NAMED_MAPS}
    if experts is None and redundant and not is_of_old:
        raise UsageError(
            "EP001",
            "--num-redundant-experts with a named map as OLD and as NEW leaves open which of them has those",
            "add --num-logical-experts E: the slots in SRC beyond E are the redundant ones of OLD",
        )
    given = read_placement(old, named_hints(shards, old, options))[0]
    slots = f"{given.num_slots:,} slots a layer"
    if experts is not None:
        if is_of_old and redundant not in (None, given.num_slots - experts):
            problem = f"{experts:,} experts and {redundant:,} redundant ones are not {slots} of {shards.path}"
            raise PlacementError("EP109", problem, "one of the two numbers is enough")
        return given, []
    require_no_slices(shards)
    said = options.hints.num_logical_experts
    if said not in (None, given.num_logical_experts):
        raise PlacementError(
            "EP109",
            f"OLD is {old} with {given.num_logical_experts:,} experts in {slots}, "
            f"and {shards.path / 'config.json'} says {said:,} experts",
            f"add --num-logical-experts {said}: slots beyond that hold replicas",
        )
    return given, [] if said or redundant else [one_in_each_slot(shards, "OLD is")]


def named_hints(shards: Shards, name: str, options: PlacementOptions) -> Hints:
    """For a named map that the shards are under: they say ranks, slots and layers. Raises EP109, EP202."""
    from eplb_cli.checkpoint.ranks import require_all_ranks

    require_all_ranks(shards, options.hints.num_logical_experts)
    num_slots = int(shards.slots_per_rank.sum())
    experts = options.num_logical_experts
    if experts is None:
        experts = num_slots - (options.num_redundant_experts or 0)
    if not 1 <= experts <= num_slots:
        raise PlacementError(
            "EP109",
            f"OLD is {name}, and {shards.path} has only {num_slots:,} slots a layer",
            "check --num-logical-experts and --num-redundant-experts",
        )
    return Hints(
        num_ranks=shards.num_ranks,
        num_logical_experts=experts,
        layer_ids=np.array(shards.moe_layers, np.int64),
        num_redundant_experts=num_slots - experts,
    )


def refuse_guess(warnings: Sequence[Finding]) -> None:
    """EP111 where a number of experts was only guessed, and bytes would be moved for it."""
    raise_first(replace(finding, severity="error") for finding in warnings if finding.code == "EP111")
