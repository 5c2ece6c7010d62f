"""What is in staging beside the rows: carried files, copies of shards, digests and `eplb.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import __version__, files
from eplb_cli.checkpoint.beside import FileBeside, file_entry, read_entry
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest, digest_file, npy_bytes
from eplb_cli.errors import BytesError
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.prove import row_view
from eplb_cli.output.serving import Served
from eplb_cli.output.staging import Staging
from eplb_cli.placements.own_format import placement_to_json


def carry_files(carried: Mapping[str, FileBeside], stage: Staging) -> dict[str, dict[str, object]]:
    """Copy the files that are no shards, by name; their sizes and digests.

    Raises:
        BytesError: EP506, one is not what the manifest of SRC says.
        CheckpointError: EP220, one changes meanwhile.
    """
    return {name: _carry(file, name, stage) for name, file in carried.items()}


def _carry(file: FileBeside, name: str, stage: Staging) -> dict[str, object]:
    """Copy a file; its size and digest."""
    goal = stage.path / name
    with file.opened() as (nbytes, blocks), files.closing(files.create(goal, nbytes)) as copy:

        def copied() -> Iterator[tuple[int, memoryview]]:
            for begin, view in blocks:
                files.write_from(copy, view, begin, goal)
                yield begin, view

        entry = read_entry(copied())
        if stage.durable:
            files.sync(copy, goal)
    file.require(entry)
    return entry


def check_carried(carried: Mapping[str, FileBeside]) -> None:
    """Whether the files that are no shards can be carried along, before anything is written.

    Raises:
        BytesError: EP506, one is not what the manifest of SRC says.
        CheckpointError: EP201, EP204 or EP220, one cannot be read.
    """
    for file in carried.values():
        with file.opened() as (_, blocks):
            entry = None if file.recorded is None else read_entry(blocks)
        if entry is not None:
            file.require(entry)


def fill_unlinked(stage: Staging) -> None:
    """Copy the shards that are the same as another and could not be linked to it, and compare them with it.

    Raises:
        BytesError: EP504, a copy differs.
    """
    outputs = () if stage.prepared is None else stage.prepared.output.files
    for number in stage.unlinked:
        file = outputs[number]
        first, path = stage.path / outputs[file.same_as or 0].name, stage.path / file.name
        written, read_back = xxhash.xxh3_128(), xxhash.xxh3_128()
        with (
            files.opened_output(first) as source,
            files.opened_output(path) as copy,
        ):
            for begin, view in files.read_blocks(source, file.nbytes, first):
                files.write_from(copy, view, begin, path)
                written.update(view)
            if stage.durable:
                files.sync(copy, path)
            for _, view in files.read_blocks(copy, file.nbytes, path):
                read_back.update(view)
        if written.digest() != read_back.digest():
            raise BytesError("EP504", f"{file.name} differs from {first.name}, of which it is a copy")


def destination_digests(prepared: Prepared, old_digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(X, 16) of new places, as those of their sources say; zero for what is empty."""
    digests = np.zeros((len(prepared.new_places.rank), old_digests.shape[1]), np.uint8)
    digests[prepared.pieces.destination] = old_digests[prepared.pieces.source]
    return digests


def write_manifest(
    prepared: Prepared,
    stage: Staging,
    new_digests: NDArray[np.uint8] | None,
    carried: Mapping[str, Mapping[str, object]],
    *,
    verified: bool,
    served: Served,
    decisions: Mapping[str, object] | None = None,
) -> None:
    """Row digests beside the shards, and `eplb.json` last.

    Args:
        new_digests: (X, 16) of new places; None where none were taken.
        served: what an engine gets.
        decisions: what was decided besides what `prepared` says.
    """
    plan, checkpoint, outputs = prepared.plan, prepared.checkpoint, prepared.output.files
    new = plan.new
    digests: dict[str, dict[str, object]] = {}
    if new_digests is not None:
        rows = row_view(new_digests, checkpoint.row_nbytes.shape, new.num_slots)
        for rank in range(new.num_ranks):
            content = npy_bytes(rows[:, :, new.first_slot[rank] : new.first_slot[rank + 1]])
            stage.write(digest_file(rank), content)
            digests[digest_file(rank)] = file_entry(content)
    num_rows = checkpoint.row_nbytes.size * new.num_slots
    others: dict[int, dict[str, str]] = {}
    for number, copy in enumerate(prepared.output.others):
        digest = "" if new_digests is None else new_digests[num_rows + number].tobytes().hex()
        others.setdefault(copy.dst_file, {})[copy.key] = digest
    for made in prepared.output.made:
        digest = "" if new_digests is None else xxhash.xxh3_128_hexdigest(made.content)
        others.setdefault(made.dst_file, {})[made.key] = digest
    number_of = [number if file.same_as is None else file.same_as for number, file in enumerate(outputs)]
    manifest = Manifest(
        tool=f"eplb {__version__}",
        placement=placement_to_json(new),
        source_placement=placement_to_json(plan.old),
        senders=plan.senders,
        ranks_per_node=plan.ranks_per_node,
        layout=checkpoint.shards.layout.as_json(),
        plan_digest=plan.digest,
        expert_tensors=[tensor.template for tensor in checkpoint.expert_tensors],
        files={
            file.name: {
                "nbytes": file.nbytes,
                "header_digest": file.header_digest,
                "others": others.get(number, {}),
            }
            for number, file in zip(number_of, outputs, strict=True)
        },
        carried=carried,
        digests=digests,
        options={"digests": new_digests is not None, "verified": verified, "fsync": stage.durable},
        serving=[*served.serving.notes, *served.serving.misread],
        decisions={**prepared.decisions, **(decisions or {})},
        engine=served.engine,
    )
    stage.write(MANIFEST_NAME, manifest.to_bytes())
