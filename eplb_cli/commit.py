"""The last steps in staging: carried files, digests, `eplb.json`, and a look with an engine's eyes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from eplb_cli import __version__, files
from eplb_cli.checkpoint import Shards
from eplb_cli.errors import BytesError
from eplb_cli.manifest import MANIFEST_NAME, Manifest, digest_file, file_entry, npy_bytes
from eplb_cli.move import Moved
from eplb_cli.output import OutputTree
from eplb_cli.placement_file import placement_to_json
from eplb_cli.prove import row_view
from eplb_cli.request import Planned
from eplb_cli.serving import serving_notes
from eplb_cli.shards import Staging


def carry_files(shards: Shards, stage: Staging, *, durable: bool) -> dict[str, dict[str, object]]:
    """Copy the files that are no shards; their sizes and digests."""
    carried: dict[str, dict[str, object]] = {}
    for name in shards.carried:
        source = files.open_source(shards.path / name)
        try:
            status = os.fstat(source)
            nbytes = status.st_size
            destination = files.create(stage.path / name, nbytes)
            try:
                state = xxhash.xxh3_128()
                for begin, view in _blocks(source, nbytes, shards.path / name):
                    files.write_from(destination, view, begin, stage.path / name)
                    state.update(view)
                files.refuse_changed(source, status, shards.path / name)
                if durable:
                    files.sync(destination, stage.path / name)
            finally:
                os.close(destination)
        finally:
            os.close(source)
        carried[name] = {"nbytes": nbytes, "digest": state.hexdigest()}
    return carried


def _blocks(descriptor: int, nbytes: int, path: Path) -> Iterator[tuple[int, memoryview]]:
    """The content of a file, in blocks that are valid until the next: where each begins, and its bytes."""
    block = memoryview(bytearray(min(nbytes, files.COPY_BLOCK_NBYTES)))
    for begin in range(0, nbytes, files.COPY_BLOCK_NBYTES):
        view = block[: min(len(block), nbytes - begin)]
        files.read_into(descriptor, view, begin, path)
        yield begin, view


def fill_unlinked(stage: Staging, output: OutputTree, unlinked: Sequence[int], *, durable: bool) -> None:
    """Copy the files that are the same as another and could not be linked to it, and compare them with it.

    Raises:
        BytesError: EP504, a copy differs.
    """
    for number in unlinked:
        file = output.files[number]
        first = stage.path / output.files[file.same_as or 0].name
        source, copy = files.open_source(first), files.open_output(stage.path / file.name)
        try:
            digest = xxhash.xxh3_128()
            for begin, view in _blocks(source, file.nbytes, first):
                files.write_from(copy, view, begin, stage.path / file.name)
                digest.update(view)
            if durable:
                files.sync(copy, stage.path / file.name)
            read_back = xxhash.xxh3_128()
            for _, view in _blocks(copy, file.nbytes, stage.path / file.name):
                read_back.update(view)
        finally:
            os.close(source)
            os.close(copy)
        if digest.digest() != read_back.digest():
            raise BytesError("EP504", f"{file.name} differs from {first.name}, of which it is a copy")


def write_manifest(
    planned: Planned, stage: Staging, moved: Moved, carried: Mapping[str, Mapping[str, object]]
) -> None:
    """Row digests beside the shards, and `eplb.json` last."""
    request, prepared = planned.request, planned.prepared
    new, checkpoint, outputs = prepared.plan.new, prepared.checkpoint, prepared.output.files
    destination_digests = np.zeros_like(moved.new_digests)
    destination_digests[prepared.pieces.destination] = moved.old_digests[prepared.pieces.source]
    digests: dict[str, dict[str, object]] = {}
    if request.digests:
        rows = row_view(destination_digests, checkpoint.row_nbytes.shape, new.num_slots)
        for rank in range(new.num_ranks):
            content = npy_bytes(rows[:, :, new.first_slot[rank] : new.first_slot[rank + 1]])
            files.write_file(stage.path / digest_file(rank), content, durable=request.durable)
            digests[digest_file(rank)] = file_entry(content)
    num_rows = checkpoint.row_nbytes.size * new.num_slots
    others: dict[int, dict[str, str]] = {}
    for number, copy in enumerate(prepared.output.others):
        digest = destination_digests[num_rows + number].tobytes().hex()
        others.setdefault(copy.dst_file, {})[copy.key] = digest if request.digests else ""
    number_of = [number if file.same_as is None else file.same_as for number, file in enumerate(outputs)]
    manifest = Manifest(
        tool=f"eplb {__version__}",
        placement=placement_to_json(new),
        source_placement=placement_to_json(prepared.plan.old),
        senders=request.senders,
        ranks_per_node=request.ranks_per_node,
        layout=checkpoint.shards.layout.as_json(),
        plan_digest=prepared.plan.digest,
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
        options={
            "digests": request.digests,
            "verified": request.verify and request.digests,
            "fsync": request.durable,
        },
        serving=serving_notes(new, checkpoint.shards.layout.name),
    )
    files.write_file(stage.path / MANIFEST_NAME, manifest.to_bytes(), durable=request.durable)


def reopen(planned: Planned, stage: Staging) -> None:
    """Open every file with the safetensors library, as an engine will."""
    from safetensors import SafetensorError, safe_open

    for file in planned.prepared.output.files:
        try:
            with safe_open(stage.path / file.name, framework="numpy") as opened:
                keys = set(opened.keys())
        except SafetensorError as error:
            raise BytesError("EP505", f"{file.name} cannot be opened: {error}") from error
        if not keys >= file.others.keys():
            raise BytesError("EP505", f"{file.name} lacks a tensor that was written to it")
