"""`eplb shard`: a Hugging Face checkpoint in, the shards of an engine out, under any placement.

Every byte of the checkpoint is read once, hashed, and written to every rank that needs it; what all ranks
have alike is one file under many names. Then everything is read back, by the parts it came in and by the
tensors it is now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.checkpoint import with_layers
from eplb_cli.commit import carry_files, fill_unlinked, reopen, write_manifest
from eplb_cli.digests import DigestTable, ThreadBuffers
from eplb_cli.engine import Names, find_names
from eplb_cli.errors import BytesError, PlacementError
from eplb_cli.findings import Finding, check_pair, raise_first
from eplb_cli.huggingface import ORIGIN_NAME, HuggingFace, config_of, open_huggingface
from eplb_cli.inputs import PlacementOptions, read_new
from eplb_cli.joined import Joined, join, parts_of_output, tensor_places
from eplb_cli.journal import Known
from eplb_cli.machine import available_memory_nbytes, default_threads
from eplb_cli.manifest import file_entry
from eplb_cli.meter import Meter
from eplb_cli.model import Model
from eplb_cli.named_map import NAMED_MAPS
from eplb_cli.origin import origin_bytes
from eplb_cli.output import plan_output
from eplb_cli.pieces import Places
from eplb_cli.placement import EMPTY, Placement
from eplb_cli.plan import ReshardPlan, plan_reshard, verify_plan
from eplb_cli.prepare import Prepared, place_name
from eplb_cli.progress import ProgressBar, accumulate
from eplb_cli.prove import Proof, prove
from eplb_cli.rows import BLOCK_NBYTES, Tasks, Tree, cut_tasks, digest_places
from eplb_cli.serving import NO_ENGINE, serving_notes
from eplb_cli.shards import Staging, check_destination, check_space, create_files, publish, staging
from eplb_cli.transfer import TransferOptions, transfer

Digests = NDArray[np.uint8]


@dataclass(frozen=True)
class Written:
    """What was made: rows are experts in slots, `nbytes` what was written."""

    output: Path
    engine: str
    num_ranks: int
    num_layers: int
    num_logical_experts: int
    rows_proved: int
    nbytes: int
    seconds: float
    serving: list[str]
    warnings: list[str]


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that is known before a byte moves: the plan by parts, and the same by the engine's tensors."""

    tree: HuggingFace
    names: Names
    joined: Joined
    parts: Prepared
    tensors: Prepared
    tensor_places: NDArray[np.int64]
    warnings: list[Finding]


def shard(
    source: Path,
    destination: Path,
    placement: str,
    engine: str,
    options: PlacementOptions,
    *,
    durable: bool,
    progress: ProgressBar,
) -> Written:
    """Write a Hugging Face checkpoint as an engine's shards, and prove them.

    Raises:
        EplbError: whatever went wrong; there is no DST then.
    """
    started = time.perf_counter()
    check_destination(source, destination)
    plan = _plan(source, placement, engine, options)
    output, new = plan.tensors.output, plan.parts.plan.new
    with staging(destination) as stage:
        check_space(stage, output)
        unlinked = create_files(stage, output)
        carried = carry_files(plan.tree.carried, stage, durable=durable)
        nbytes = int(plan.parts.pieces.nbytes.sum() + plan.parts.new_places.nbytes.sum())
        constants = _write_constants(plan, stage)
        with progress(nbytes, "shard") as show:
            advance = accumulate(show)
            old_digests = move_parts(plan.parts, stage, advance, durable=durable, verify=False)[0]
            fill_unlinked(stage, output, unlinked, durable=durable)
            by_part, by_tensor = _read_back(plan, stage, advance)
        for place, digest in constants.items():
            if by_tensor[place].tobytes() != digest:
                raise BytesError("EP504", f"{place_name(plan.tensors, place)} is not what was written")
        proof = prove_parts(plan.parts, old_digests, by_part)
        record = origin_bytes(plan.tree, plan.names, old_digests)
        files.write_file(stage.path / ORIGIN_NAME, record, durable=durable)
        carried[ORIGIN_NAME] = file_entry(record)
        serving = _serving(new, plan.names)
        write_manifest(
            plan.tensors, stage, by_tensor, carried, verified=True, durable=durable, serving=serving
        )
        reopen(output, stage)
        publish(stage, durable=durable)
    return Written(
        destination,
        engine,
        new.num_ranks,
        new.num_layers,
        new.num_logical_experts,
        proof.rows_proved,
        output.own_nbytes,
        time.perf_counter() - started,
        serving,
        [*(finding.message for finding in plan.warnings), *proof.warnings],
    )


def _plan(source: Path, placement: str, engine: str, options: PlacementOptions) -> _Plan:
    tree = open_huggingface(source)
    config = config_of(source)
    names = find_names(engine, str(config.get("model_type")), tree.tensors)
    joined = join(tree, names)
    old = joined.engine.placement
    new, warnings = placement_for(source, config, placement, old, options)
    new = in_layer_order(with_layers(new, joined.engine.shards))
    raise_first(check_pair(old, new))
    plan = plan_moves(old, new)
    in_tensors = plan_output(joined.engine, new, frozenset(joined.engine.others[0]))
    in_parts, other_tensors = parts_of_output(joined, in_tensors)
    tensors = Prepared(joined.engine, plan, in_tensors)
    num_rows = joined.engine.row_nbytes.size * new.num_slots
    places = tensor_places(joined, new.num_slots, num_rows, other_tensors)
    return _Plan(tree, names, joined, Prepared(joined.parts, plan, in_parts), tensors, places, warnings)


def placement_for(
    source: Path, config: Mapping[str, Any], name: str, old: Placement, options: PlacementOptions
) -> tuple[Placement, list[Finding]]:
    """A placement for a checkpoint that has the layers and experts of `old`; and its warnings.

    Raises:
        PlacementError: it cannot be read, or is of another model.
    """
    if name in NAMED_MAPS and options.num_ranks is None:
        raise PlacementError("EP114", f"the map {name} needs --num-ranks", "say it with --num-ranks R")
    hidden = config.get("num_hidden_layers")
    hidden = hidden if type(hidden) is int else None
    layers = [] if old.layer_ids is None else old.layer_ids.tolist()
    counted = tuple(layer for layer in layers if hidden is None or layer < hidden)
    model = Model(str(source), hidden, counted, tuple(layers[len(counted) :]), old.num_logical_experts)
    return read_new(name, old, replace(options, model=model))


def in_layer_order(placement: Placement) -> Placement:
    """A placement with its rows in the order of the model's layers, as both forms have them."""
    if placement.layer_ids is None:
        return placement
    order = np.argsort(placement.layer_ids)
    table, layer_ids = placement.physical_to_logical[order], placement.layer_ids[order]
    return Placement(table, placement.first_slot, placement.num_logical_experts, layer_ids)


def plan_moves(old: Placement, new: Placement) -> ReshardPlan:
    """The table of moves, verified."""
    plan = plan_reshard(old, new)
    verify_plan(plan)
    return plan


def move_parts(
    prepared: Prepared,
    stage: Staging,
    advance: Callable[[int], None],
    *,
    durable: bool,
    verify: bool,
    known: Known | None = None,
) -> tuple[Digests, Digests]:
    """Move all bytes in this process; digests of old places, and of new ones if they are to be verified."""
    shards, output = prepared.checkpoint.shards, prepared.output
    files.allow_open_files(len(shards.files) + len(output.files))
    nbytes = shards.nbytes + output.own_nbytes
    options = TransferOptions(
        1,
        0,
        default_threads(1),
        verify=verify,
        durable=durable,
        keep_cache=nbytes < available_memory_nbytes() // 2,
    )
    result = transfer(prepared, stage.path, options, 0, None, advance, known)
    return result.old_digests, result.new_digests


def _write_constants(plan: _Plan, stage: Staging) -> dict[int, bytes]:
    """Write what only the engine has; the digest of each, by its new place."""
    output = plan.tensors.output
    num_rows = output.extents.file.size
    digests = {}
    for number, copy in enumerate(output.others):
        content = plan.joined.constants.get(copy.key)
        if content is None:
            continue
        path = stage.path / output.files[copy.dst_file].name
        descriptor = files.open_output(path)
        try:
            files.write_from(descriptor, memoryview(content), copy.dst_offset, path)
        finally:
            os.close(descriptor)
        digests[num_rows + number] = xxhash.xxh3_128_digest(content)
    return digests


def prove_parts(prepared: Prepared, old_digests: Digests, new_digests: Digests) -> Proof:
    """The proof that every part is where it belongs. Raises BytesError."""
    return prove(
        prepared.checkpoint,
        prepared.plan.new,
        prepared.pieces,
        prepared.new_places,
        old_digests,
        new_digests,
        lambda place: place_name(prepared, place),
    )


def _read_back(plan: _Plan, stage: Staging, advance: Callable[[int], None]) -> tuple[Digests, Digests]:
    """Digests of what was written, by part and by tensor; zero for tensors of empty slots."""
    output = plan.tensors.output
    tree = Tree([stage.path / file.name for file in output.files], files.open_output, Meter())
    try:
        whole = plan.tensors.new_places
        by_part, by_tensor = digest_both(
            plan.parts.new_places, plan.tensor_places, len(whole.rank), tree, advance
        )
        constants = np.setdiff1d(np.flatnonzero(whole.nbytes), plan.tensor_places)
        with ThreadPoolExecutor(1) as pool:
            by_tensor |= digest_places(whole, constants, tree, pool, advance)
    finally:
        tree.close()
    table = plan.parts.plan.new.physical_to_logical
    empty = np.broadcast_to(table[:, None, :] == EMPTY, output.extents.file.shape)
    by_tensor[: empty.size][empty.ravel()] = 0
    return by_part, by_tensor


def digest_both(
    parts: Places, whole: NDArray[np.int64], num_wholes: int, tree: Tree, advance: Callable[[int], None]
) -> tuple[Digests, Digests]:
    """Read places once and hash each of them, and the places that they are parts of.

    Args:
        whole: (X,) the number of the whole that a part is in; its parts lie one behind the other.
    """
    by_part = DigestTable.empty(len(parts.rank), tree.meter)
    by_whole = DigestTable.empty(num_wholes, tree.meter)
    wanted = np.flatnonzero(parts.nbytes)
    wanted = wanted[np.lexsort((parts.offset[wanted], parts.file[wanted]))]
    begins = np.diff(whole[wanted], prepend=-1) != 0
    ends = np.r_[begins[1:], True]
    buffers = ThreadBuffers(BLOCK_NBYTES)

    def digest(task: slice) -> None:
        places = wanted[task]
        columns = (places, whole[places], parts.file[places], parts.offset[places], parts.nbytes[places])
        for place, number, file, offset, nbytes, is_first, is_last in zip(
            *(column.tolist() for column in (*columns, begins[task], ends[task])), strict=True
        ):
            for begin in range(0, nbytes, BLOCK_NBYTES):
                view = buffers.view[: min(BLOCK_NBYTES, nbytes - begin)]
                tree.read(file, view, offset + begin)
                first, last = begin == 0, begin + len(view) == nbytes
                by_part.feed(place, view, first=first, last=last)
                by_whole.feed(number, view, first=first and is_first, last=last and is_last)
            advance(nbytes)

    with ThreadPoolExecutor(default_threads(1)) as pool:
        Tasks([pool.submit(digest, task) for task in cut_tasks(parts.nbytes[wanted], begins)]).wait()
    return by_part.values, by_whole.values


def _serving(new: Placement, names: Names) -> list[str]:
    """How the engine loads the shards: they are for no other."""
    if not names.serving:
        return ["shards with Hugging Face names: load them with a program that reads those"]
    notes = [note for note in serving_notes(new, names.layout) if note.lower().startswith(names.engine)]
    notes = [note for note in notes if NO_ENGINE not in note]
    return [names.serving] if notes else [f"{names.engine}: no stock engine loads this placement from shards"]
