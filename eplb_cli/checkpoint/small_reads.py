"""What planning may read of a shard besides its header: a few bytes, which follow from the header alone.

Hosts that do not have the file get them from one that has it: numbers of ranks (`rank_numbers`) and maps of
experts (`expert_maps`), under whatever layout.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from eplb_cli import files
from eplb_cli.formats.safetensors_header import Header, TensorEntry
from eplb_cli.models.names import split_expert_key

MAP_DTYPES = {"I32": "<i4", "I64": "<i8"}
MAX_MAP_NBYTES = 1 << 23


class Extent(NamedTuple):
    """Bytes of a file, and where they are among those of all small extents of it."""

    offset: int
    nbytes: int
    begin: int


def small_extents(header: Header) -> list[Extent]:
    """Where in its file the small tensors are, in order; those that follow each other are one extent."""
    found: list[Extent] = []
    total = 0
    for key, entry in header.tensors.items():
        if not entry.nbytes or not (entry.shape in ((), (1,)) or _may_be_map(key, entry)):
            continue
        offset = header.data_start + entry.begin
        if found and found[-1].offset + found[-1].nbytes == offset:
            found[-1] = found[-1]._replace(nbytes=found[-1].nbytes + entry.nbytes)
        else:
            found.append(Extent(offset, entry.nbytes, total))
        total += entry.nbytes
    return found


def _may_be_map(key: str, entry: TensorEntry) -> bool:
    """Whether a layout may call it a map: one list of integers of a layer's experts."""
    if entry.dtype not in MAP_DTYPES or len(entry.shape) != 1 or entry.nbytes > MAX_MAP_NBYTES:
        return False
    name = split_expert_key(key)
    return name is not None and name.number is None


def total_nbytes(extents: Sequence[Extent]) -> int:
    """Bytes of all of them."""
    return extents[-1].begin + extents[-1].nbytes if extents else 0


def read_small(descriptor: int, extents: Sequence[Extent], path: object) -> bytes:
    """The bytes of all small extents of an open file. Raises EP201 or EP220."""
    content = memoryview(bytearray(total_nbytes(extents)))
    for offset, nbytes, begin in extents:
        files.read_into(descriptor, content[begin : begin + nbytes], offset, path)
    return bytes(content)


class SmallReads(NamedTuple):
    """What is known of a file that is not here."""

    extents: Sequence[Extent]
    content: bytes

    def read(self, offset: int, nbytes: int) -> bytes | None:
        """A range of the file; None where it is in no extent."""
        number = bisect_right(self.extents, offset, key=lambda extent: extent.offset) - 1
        if number < 0:
            return None
        extent = self.extents[number]
        if offset + nbytes > extent.offset + extent.nbytes:
            return None
        first = extent.begin + offset - extent.offset
        return self.content[first : first + nbytes]
