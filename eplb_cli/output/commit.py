"""The last steps in staging: carried files, digests, `eplb.json`, and a look with an engine's eyes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import __version__, files
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest, digest_file, file_entry, npy_bytes
from eplb_cli.errors import BytesError
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.prove import row_view
from eplb_cli.output.staging import Staging
from eplb_cli.output.tree import OutputTree
from eplb_cli.placements.own_format import placement_to_json


def carry_files(
    carried_paths: Mapping[str, Path], stage: Staging, *, durable: bool
) -> dict[str, dict[str, object]]:
    """Copy the files that are no shards, by name; their sizes and digests."""
    carried: dict[str, dict[str, object]] = {}
    for name, path in carried_paths.items():
        source = files.open_source(path)
        try:
            status = os.fstat(source)
            nbytes = status.st_size
            destination = files.create(stage.path / name, nbytes)
            try:
                state = xxhash.xxh3_128()
                for begin, view in _blocks(source, nbytes, path):
                    files.write_from(destination, view, begin, stage.path / name)
                    state.update(view)
                files.refuse_changed(source, status, path)
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
    durable: bool,
    serving: Sequence[str],
) -> None:
    """Row digests beside the shards, and `eplb.json` last.

    Args:
        new_digests: (X, 16) of new places; None where none were taken.
    """
    plan, checkpoint, outputs = prepared.plan, prepared.checkpoint, prepared.output.files
    new = plan.new
    digests: dict[str, dict[str, object]] = {}
    if new_digests is not None:
        rows = row_view(new_digests, checkpoint.row_nbytes.shape, new.num_slots)
        for rank in range(new.num_ranks):
            content = npy_bytes(rows[:, :, new.first_slot[rank] : new.first_slot[rank + 1]])
            files.write_file(stage.path / digest_file(rank), content, durable=durable)
            digests[digest_file(rank)] = file_entry(content)
    num_rows = checkpoint.row_nbytes.size * new.num_slots
    others: dict[int, dict[str, str]] = {}
    for number, copy in enumerate(prepared.output.others):
        digest = "" if new_digests is None else new_digests[num_rows + number].tobytes().hex()
        others.setdefault(copy.dst_file, {})[copy.key] = digest
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
        options={"digests": new_digests is not None, "verified": verified, "fsync": durable},
        serving=list(serving),
    )
    files.write_file(stage.path / MANIFEST_NAME, manifest.to_bytes(), durable=durable)


def reopen(output: OutputTree, stage: Staging) -> None:
    """Open every file with the safetensors library, as an engine will."""
    from safetensors import SafetensorError, safe_open

    for file in output.files:
        try:
            with safe_open(stage.path / file.name, framework="numpy") as opened:
                keys = set(opened.keys())
        except SafetensorError as error:
            raise BytesError("EP505", f"{file.name} cannot be opened: {error}") from error
        if not keys >= file.others.keys():
            raise BytesError("EP505", f"{file.name} lacks a tensor that was written to it")
