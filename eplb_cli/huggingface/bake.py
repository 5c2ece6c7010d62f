"""`eplb bake`: a placement without replicas as the order of the experts in a plain Hugging Face checkpoint.

Slot p of the placement becomes expert p: its tensors get that number, and the router's row for it moves to
row p. What an engine does by default, linear, is then the placement, and the model computes what it did.

Tensors of single experts stay where they are in their files and get another name in the header. Stacked
tensors and routers have their rows moved. Where the file system can share blocks, whole files are shared::

    before   header | experts.0.up | experts.1.up | gate: row 0, row 1
    after    header | experts.1.up | experts.0.up | gate: row 1, row 0       same bytes, but for the gate
"""

from __future__ import annotations

import os
import time
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.manifest import MANIFEST_NAME
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.errors import CheckpointError
from eplb_cli.huggingface.engine import find_names
from eplb_cli.huggingface.engines import AS_THEY_ARE
from eplb_cli.huggingface.joined import Joined, find_parts, parts_of_shards
from eplb_cli.huggingface.listed import renumbered
from eplb_cli.huggingface.one_rank import OneRank, as_one_rank, layout_of_keys
from eplb_cli.huggingface.parts import begin_parts, left_nbytes, move_parts, placement_for, plan_moves
from eplb_cli.huggingface.record import Origin, open_sharded, unlike_origin
from eplb_cli.huggingface.reordered import Baked, with_routers
from eplb_cli.huggingface.routers import (
    check_placement,
    check_tensors,
    find_family,
    refuse_tables,
    unbakeable,
)
from eplb_cli.huggingface.source import config_of, open_huggingface, refuse_own_names
from eplb_cli.inputs.options import NO_OPTIONS, PlacementOptions
from eplb_cli.models.config import ModelConfig
from eplb_cli.models.families import Family
from eplb_cli.output.commit import check_carried
from eplb_cli.output.destination import check_destination
from eplb_cli.output.journal import Known
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.prove import Proof, prove
from eplb_cli.output.staging import Staging, staging
from eplb_cli.placements.findings import check_pair, raise_first
from eplb_cli.placements.placement import Placement
from eplb_cli.progress import ProgressBar, silent, telling
from eplb_cli.report.written import Written
from eplb_cli.transfer.reading import digest_places
from eplb_cli.transfer.resume import taken_over, try_destination
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.trees import source_tree


def bake(  # noqa: PLR0913 - all that the command line says
    source: str | PathLike[str],
    destination: str | PathLike[str],
    placement: str | PathLike[str],
    options: PlacementOptions = NO_OPTIONS,
    *,
    layout: str = "auto",
    durable: bool = True,
    resume: bool = False,
    keep: bool = True,
    dry_run: bool = False,
    progress: ProgressBar = silent,
) -> Written:
    """Write a Hugging Face checkpoint whose experts are in the order of a placement, and prove it.

    Args:
        source: the checkpoint; only read.
        destination: a new directory, or an empty one.
        placement: a file in any dialect, without replicas.
        options: what the placement leaves out.
        layout: how tensors are named: "auto" finds experts by the shape of names; or the name of a layout, or
            a TOML file that describes one.
        durable: wait until the disk has every byte.
        resume: go on with what a run that was ended has left.
        keep: leave what is done for `resume` where a run is interrupted, or ends with an error that may pass.
        dry_run: check and plan everything, and write nothing.
        progress: what shows the bytes done.

    Raises:
        CheckpointError: EP226, the model or the placement cannot be baked; or the checkpoint cannot be read.
        PlacementError: the placement cannot be read, or is of other experts or layers.
        OutputError: `destination` exists, or cannot be written.
        BytesError: what was written is not what was read; there is no output then.

    Examples:
        >>> eplb_cli.bake("hf", "baked", "order.json").rows_proved
        8
    """
    source, destination = Path(source), Path(destination)
    started = time.perf_counter()
    check_destination(source, destination)
    tree, config = open_huggingface(source), config_of(source)
    if (source / MANIFEST_NAME).exists():
        raise unbakeable(f"{source} has an eplb.json: it was baked already", "bake what it was made of")
    refuse_own_names(tree)
    checkpoint = as_one_rank(tree, config, layout_of_keys(layout))
    family = check_bakeable(checkpoint, config)
    parts = find_parts(checkpoint, find_names(AS_THEY_ARE, config.model_type, checkpoint))
    num_experts = parts.placement.num_logical_experts
    new, warnings = placement_for(checkpoint, num_experts, os.fspath(placement), options)
    rows = with_routers(parts, parts, family)
    baked = Baked(checkpoint, rows, order_of(new, parts.placement, family, config))
    lists = renumbered(tree.carried, baked.new_name)
    prepared = Prepared(rows, plan_moves(parts.placement, baked.placement), baked.output())
    said = [finding.message for finding in warnings]
    check_carried(tree.carried)
    if dry_run:
        try_destination(prepared, destination, resume=resume)
        return _written(destination, new, prepared, time.perf_counter() - started, said)
    with staging(destination, durable=durable, resume=resume, keep=keep) as stage:
        known = begin_parts(prepared, stage, progress, lambda: baked.share(prepared, stage))
        proof, _ = _move(prepared, stage, known, progress)
        baked.write_rest(stage, new, config, lists)
    written = _written(destination, new, prepared, time.perf_counter() - started, said)
    return written.proved(proof.rows_proved, proof.warnings, taken_over(prepared, stage, known))


def bake_shards(
    source: Path,
    destination: Path,
    *,
    durable: bool = True,
    resume: bool = False,
    keep: bool = True,
    dry_run: bool = False,
    progress: ProgressBar = silent,
) -> Written:
    """Write the Hugging Face checkpoint that shards were made of, in the order they have its experts in.

    Raises:
        CheckpointError: EP226, the model or the placement cannot be baked; EP225, they cannot be merged.
        EplbError: whatever else went wrong; there is no output then.
    """
    started = time.perf_counter()
    check_destination(source, destination)
    origin, engine, joined = open_sharded(source)
    config, new = _config_of(engine.shards), engine.placement
    family = check_bakeable(joined.checkpoint, config)
    rows = with_routers(joined.parts, joined.parts, family)
    baked = Baked(joined.checkpoint, rows, order_of(new, joined.parts.placement, family, config))
    lists = renumbered(origin.tree.carried, baked.new_name)
    by_part = parts_of_shards(joined, engine)
    parts = with_routers(by_part, joined.parts, family)
    prepared = Prepared(parts, plan_moves(new, baked.placement), baked.output(parts))
    check_carried(origin.tree.carried)
    if dry_run:
        try_destination(prepared, destination, resume=resume)
        return _written(destination, new, prepared, time.perf_counter() - started, [])
    with staging(destination, durable=durable, resume=resume, keep=keep) as stage:
        known = begin_parts(prepared, stage, progress)
        proof, new_digests = _move(prepared, stage, known, progress)
        _compare(baked, joined, origin, prepared, new_digests)
        _compare_routers(by_part, parts, origin)
        baked.write_rest(stage, new, config, lists)
    written = _written(destination, new, prepared, time.perf_counter() - started, [])
    return written.proved(proof.rows_proved, proof.warnings, taken_over(prepared, stage, known))


def _written(
    destination: Path, new: Placement, prepared: Prepared, seconds: float, warnings: list[str]
) -> Written:
    """What is made, before anything of it is proved."""
    return Written(
        destination,
        AS_THEY_ARE,
        new.num_ranks,
        new.num_layers,
        new.num_logical_experts,
        None,
        prepared.output.nbytes,
        seconds,
        [f"any engine, with {new.num_ranks} expert-parallel ranks and its default linear placement"],
        warnings,
    )


def _compare(
    baked: Baked, joined: Joined, origin: Origin, prepared: Prepared, new_digests: NDArray[np.uint8]
) -> None:
    """EP506 where an expert, or an other tensor but a router, is not what `shard` had read."""
    shape = joined.parts.extents.file.shape
    size = joined.parts.extents.file.size
    before = origin.digests[:size].reshape(*shape, -1)
    index = np.broadcast_to(baked.order[:, None, :, None], before.shape)
    rows = new_digests[: prepared.checkpoint.row_nbytes.size * shape[2]]
    after = rows.reshape(shape[0], -1, shape[2], rows.shape[1])[:, : shape[1]]
    keys = sorted(joined.parts.others[0])
    others = {key: origin.digests[size + number] for number, key in enumerate(keys)}
    wrong = [
        copy.key
        for copy, digest in zip(prepared.output.others, new_digests[len(rows) :], strict=True)
        if (others[copy.key] != digest).any()
    ]
    if wrong or not np.array_equal(np.take_along_axis(before, index, axis=2), after):
        raise unlike_origin(repr(wrong[0]) if wrong else "a row of an expert")


def _compare_routers(by_part: ShardedCheckpoint, parts: ShardedCheckpoint, origin: Origin) -> None:
    """EP506 where a router, whose rows have no digests of their own, is not what `shard` had read.

    Args:
        by_part: the shards with their routers among the other tensors. parts: with the rows of those.
    """
    places, base = by_part.places, by_part.extents.file.size
    routers = [
        (base + number, key)
        for (_, key), number in other_numbers(by_part.others).items()
        if key not in parts.others[0]
    ]
    wanted = np.array([place for place, _ in routers], np.int64)
    with source_tree(by_part.shards.files) as tree, Threads(1) as pool:
        digests = digest_places(places, wanted, tree, pool, lambda _: None)
    for place, key in routers:
        if (digests[place] != origin.digests[place]).any():
            raise unlike_origin(repr(key))


def _config_of(shards: Shards) -> ModelConfig:
    """What the config.json beside shards says. Raises EP225 where there is none, EP506."""
    if shards.config is None:
        raise CheckpointError("EP225", f"{shards.path / 'config.json'} cannot be read")
    return shards.config


def check_bakeable(checkpoint: OneRank, config: ModelConfig) -> Family:
    """The family of a checkpoint, where everything that names experts is known. Raises EP226."""
    refuse_tables(checkpoint)
    family = find_family(config)
    check_tensors(family, checkpoint)
    return family


def order_of(new: Placement, all_layers: Placement, family: Family, config: ModelConfig) -> NDArray[np.int64]:
    """(L, E) the expert that becomes expert p, in every MoE layer; unchanged in those NEW does not name.

    Raises:
        CheckpointError: EP226, NEW cannot be baked; EP212, it names a layer without experts.
        PlacementError: it is of other experts.
    """
    check_placement(new, family, config)
    order = np.array(all_layers.physical_to_logical)
    layers = [] if all_layers.layer_ids is None else all_layers.layer_ids.tolist()
    named = [] if new.layer_ids is None else new.layer_ids.tolist()
    if missing := sorted(set(named) - set(layers)):
        raise CheckpointError(
            "EP212",
            f"layer {missing[0]} of the placement has no experts in the checkpoint",
            f"the layers that have some are {layers}",
        )
    places = [layers.index(layer) for layer in named]
    old = Placement(order[places], all_layers.first_slot, all_layers.num_logical_experts, new.layer_ids)
    raise_first(check_pair(old, new))
    order[places] = new.physical_to_logical
    return order


def _move(
    prepared: Prepared, stage: Staging, known: Known, progress: ProgressBar
) -> tuple[Proof, NDArray[np.uint8]]:
    """Move what was not shared, and prove all of it; the digests of new places too."""
    with progress(2 * left_nbytes(prepared, known), "bake") as show, telling(show) as advance:
        old_digests, new_digests = move_parts(prepared, stage, known, advance, verify=True)
    return prove(prepared, old_digests, new_digests), new_digests
