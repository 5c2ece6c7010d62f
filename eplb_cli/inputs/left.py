"""What a plan is made from where ranks are lost: shards that are left, and what was lost with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eplb_cli.checkpoint.left import open_left
from eplb_cli.checkpoint.manifest import read_manifest
from eplb_cli.checkpoint.sharded import with_layers
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.errors import CheckpointError, UsageError
from eplb_cli.inputs.given import Given
from eplb_cli.inputs.old_and_new import read_new, refuse_guess, require_experts
from eplb_cli.inputs.options import PlacementOptions, model_of
from eplb_cli.placements.beside import with_linear_layers
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.placements.read import read_placement
from eplb_cli.placements.survivors import Survivors, without_ranks
from eplb_cli.plan.choice import Senders


def read_left(
    source: Path,
    layout: str,
    names: tuple[str | None, str],
    options: PlacementOptions,
    lost: Sequence[int],
    missing_from: Path | None,
    choice: tuple[Senders, int | None],
) -> Given:
    """What a command line says of shards of which ranks are lost; OLD is that of the ranks that are left.

    Args:
        names: of OLD as it was, None where the manifest of SRC says it, and of NEW.
        lost: the numbers of the ranks that are lost.
        missing_from: what `shard --only` wrote: the last rank of OLD; None where no expert was lost.
        choice: the senders, and the ranks of a node.

    Raises:
        CheckpointError, PlacementError, UsageError: the shards, OLD or NEW cannot be used; EP202, an expert
            was lost, and nothing has it.
        BytesError: EP506, the shards are not those of their manifest.
    """
    options.require_used(names[0], [names[1]])
    shards = open_left(source, layout, lost, missing_from)
    options = replace(options, model=options.model or model_of(shards))
    old, old_warnings = _read_old(shards, names[0], options)
    new, new_warnings = read_new(names[1], without_ranks(old, lost).placement, options)
    unnamed = sorted({*shards.moe_layers} - {*_numbers(old)})
    survivors = without_ranks(with_linear_layers(old, unnamed), lost)
    left = _with_missing(survivors, shards)
    new = with_linear_layers(with_layers(new, shards), _numbers(left))
    said = _said(survivors, shards, unnamed)
    return Given(shards, left, new, *choice, (*old_warnings, *said, *new_warnings))


def _read_old(shards: Shards, name: str | None, options: PlacementOptions) -> tuple[Placement, list[Finding]]:
    """OLD with all its ranks, from a file or the manifest. Raises EP215, EP216 and what reading raises."""
    manifest, experts = shards.manifest, options.hints.num_logical_experts
    recorded = None if manifest is None else manifest.read_placement(shards.path)
    if name is None:
        if recorded is None:
            raise CheckpointError("EP216", f"{shards.path} has no eplb.json, so nothing says what OLD is")
        return recorded, []
    num_ranks = shards.num_ranks - (shards.missing_from is not None) + len(shards.lost)
    if options.old_num_ranks not in (None, num_ranks):
        problem = f"--old-num-ranks is {options.old_num_ranks:,}, and with those that are lost there are"
        raise UsageError("EP001", f"{problem} {num_ranks:,}", "leave it out")
    layers = np.array(shards.moe_layers, np.int64)
    hints = Hints(
        num_ranks=num_ranks,
        num_logical_experts=experts,
        layer_ids=layers if name in NAMED_MAPS else None,
        num_redundant_experts=options.num_redundant_experts,
        dialect=options.old_dialect,
        model=options.model,
    )
    old, warnings = read_placement(name, hints)
    refuse_guess(warnings)
    require_experts(old, experts)
    old = with_layers(old, shards)
    if recorded is not None and old.digest != recorded.digest:
        raise CheckpointError("EP215", f"{name} is not the placement in {shards.path / 'eplb.json'}")
    return old, warnings


def _with_missing(survivors: Survivors, shards: Shards) -> Placement:
    """What the shards that are opened are under. Raises EP202 or EP215."""
    if shards.missing_from is None:
        if survivors.num_lost:
            raise _nothing_has(survivors, shards.lost)
        return survivors.placement
    manifest = read_manifest(shards.missing_from)
    patch = survivors.lost if manifest is None else manifest.read_placement(shards.missing_from)
    rows = dict(zip(_numbers(patch), patch.physical_to_logical, strict=True))
    empty = np.full(patch.num_slots, EMPTY)
    table = np.stack([rows.pop(layer, empty) for layer in _numbers(survivors.old)])
    has = [np.setdiff1d(row, [EMPTY]).tolist() for row in table]
    if has != [found.tolist() for found in survivors.lost_experts] or any(
        (row != EMPTY).any() for row in rows.values()
    ):
        problem = f"{shards.missing_from} has other experts than were lost with ranks {_listed(shards.lost)}"
        raise CheckpointError("EP215", problem, "was it written for this OLD, and for these ranks?")
    left = survivors.placement
    first_slot = np.append(left.first_slot, left.num_slots + patch.num_slots)
    whole = np.hstack([left.physical_to_logical, table])
    return replace(left, physical_to_logical=whole, first_slot=first_slot)


def _nothing_has(survivors: Survivors, lost: Sequence[int]) -> CheckpointError:
    """EP202 for experts that were lost, with the command that fetches them."""
    layer, experts = next((at, found) for at, found in enumerate(survivors.lost_experts) if len(found))
    first = f"layer {survivors.old.layer_number(layer)}, expert {experts[0]}"
    what = "1 expert" if survivors.num_lost == 1 else f"{survivors.num_lost:,} experts"
    command = f"eplb shard HF_DIR PATCH --placement OLD --engine ENGINE --only {','.join(map(str, lost))}"
    return CheckpointError(
        "EP202",
        f"{what} had no replica but on ranks {_listed(lost)}, which are lost; the first is {first}",
        f"`{command}` makes what --missing-from PATCH reads",
    )


def _said(survivors: Survivors, shards: Shards, unnamed: Sequence[int]) -> list[Finding]:
    """What is not in OLD, and yet so."""
    moved = [f"{old} is {new}" for new, old in enumerate(survivors.old_rank.tolist()) if old != new]
    said = [f"ranks close up: of OLD, rank {', '.join(moved)}"] if moved else []
    if shards.missing_from is not None:
        rank, count = len(survivors.old_rank), survivors.num_lost
        said.append(f"rank {rank} of OLD is {shards.missing_from}: what only lost ranks had, {count:,} rows")
        if shards.manifest is None or not shards.manifest.engine:
            said.append(
                f"nothing says that {shards.path} has experts as `eplb shard` writes them, and not repacked: "
                "`eplb inspect SRC --identify HF_DIR` does"
            )
    said += [f"layer {shards.layers.name(layer)}: taken to have its experts in order" for layer in unnamed]
    return [Finding("EP202", "warning", message) for message in said]


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _numbers(placement: Placement) -> list[int]:
    return [] if placement.layer_ids is None else placement.layer_ids.tolist()
