"""The tensors of one rank, each read once, in the order of the files, and compared with what eplb wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import xxhash

from eplb_cli import files
from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.manifest import read_digests
from eplb_cli.engines.vllm.admit import Wanted
from eplb_cli.engines.vllm.tree import Tree
from eplb_cli.errors import BytesError, CheckpointError

_DAMAGED = "DST was changed or damaged after it was written: `eplb verify DST` names all that differs"


def read_tensors(
    tree: Tree, wanted: Sequence[Wanted], known: KnownDigests | None
) -> Iterator[tuple[Wanted, bytearray]]:
    """Each tensor and its bytes, in memory of its own.

    Args:
        wanted: in the order of their files.
        known: what to compare them with; None compares nothing.

    Raises:
        BytesError: EP501 or EP504, something is not what was written.
        CheckpointError: EP201, EP204 or EP220, a file cannot be read, or was changed meanwhile.
    """
    with ExitStack() as stack:
        opened, descriptor = -1, -1
        for each in wanted:
            file = tree.shards.files[each.at.file]
            if each.at.file != opened:
                stack.close()
                descriptor = stack.enter_context(files.opened_source(file.path, file.stamp))
                opened = each.at.file
            content = bytearray(each.at.entry.nbytes)
            files.read_into(descriptor, memoryview(content), each.at.offset, file.path)
            if known is not None:
                known.require(each, content)
            yield each, content


class KnownDigests:
    """What the tensors of a rank were when eplb wrote them.

    Args:
        rank: whose tensors they are.

    Raises:
        CheckpointError: EP214, there are no digests, or they cannot be used.
        BytesError: EP506, they are not those that the manifest names.
    """

    def __init__(self, tree: Tree, rank: int) -> None:
        shards, placement, tensors = tree.shards, tree.placement, tree.checkpoint.expert_tensors
        shape = (placement.num_layers, len(tensors), int(placement.slots_per_rank[rank]))
        rows = None
        if shards.manifest is not None and shards.manifest.digests:
            rows = read_digests(shards.path, rank, shape, shards.manifest)
        if rows is None:
            hint = "leave out EPLB_VERIFY, or write DST again with digests"
            raise CheckpointError("EP214", f"{shards.path} was written without digests", hint)
        self._shards = shards
        self._rows = rows
        self._layers = {placement.layer_number(index): index for index in range(placement.num_layers)}
        self._tensors = {each.template: number for number, each in enumerate(tensors)}

    def require(self, wanted: Wanted, content: bytearray) -> None:
        """EP501 or EP504 where a tensor is not what was written."""
        shards = self._shards
        file = shards.files[wanted.at.file].path
        expert = shards.expert_keys.get(wanted.key)
        if expert is not None and expert.layer in self._layers and expert.template in self._tensors:
            rows = self._rows[self._layers[expert.layer], self._tensors[expert.template]]
            self._require_rows(f"{file}: {wanted.key!r}", rows, content)
            return
        of_file = {} if shards.manifest is None else shards.manifest.files.get(file.name, {})
        digest = of_file.get("others", {}).get(wanted.key, "")
        if digest and xxhash.xxh3_128_hexdigest(content) != digest:
            raise BytesError("EP504", f"{file}: {wanted.key!r} is not what was written", _DAMAGED)

    @staticmethod
    def _require_rows(where: str, rows: Digests, content: bytearray) -> None:
        nbytes = len(content) // max(1, len(rows))
        for number, digest in enumerate(rows):
            row = memoryview(content)[number * nbytes : (number + 1) * nbytes]
            if xxhash.xxh3_128_digest(row) != digest.tobytes():
                raise BytesError("EP501", f"{where}, row {number}, is not what was written", _DAMAGED)
