"""What one host says to the others: a JSON index and parts of bytes behind it, compressed, sizes first.

::

    8 bytes             length of all that follows once it is unpacked
    zlib of
        8 bytes         length of the JSON
        JSON            [index, [length of each part]]
        parts           one after the other

It comes from another machine, so no number in it is believed before it is compared with what there is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from eplb_cli.formats.budget import Fault
from eplb_cli.formats.reading import json_value

MAX_NBYTES = 1 << 30
"""Of what one host says at a time, unpacked."""

MAX_INDEX_NBYTES = 1 << 26
_LENGTH_NBYTES = 8
_LEVEL = 1


def pack(index: object, parts: Sequence[bytes], fault: Fault) -> bytes:
    """An index that JSON can hold, and parts. Raises `fault` where they are more than `unpack` takes."""
    text = json.dumps([index, [len(part) for part in parts]], separators=(",", ":")).encode()
    nbytes = _LENGTH_NBYTES + len(text) + sum(map(len, parts))
    if len(text) > MAX_INDEX_NBYTES or nbytes > MAX_NBYTES:
        raise fault(
            f"it has {nbytes:,} bytes, and {MAX_NBYTES:,} are the most, {MAX_INDEX_NBYTES:,} of them names"
        )
    packer = zlib.compressobj(_LEVEL)
    packed = [_length(nbytes), packer.compress(_length(len(text))), packer.compress(text)]
    packed += [packer.compress(part) for part in parts]
    return b"".join([*packed, packer.flush()])


def unpack(content: bytes, fault: Fault) -> tuple[Any, list[bytes]]:
    """The index and the parts that `pack` was given. Raises `fault` for whatever it did not write."""
    nbytes = int.from_bytes(content[:_LENGTH_NBYTES], "little")
    if not _LENGTH_NBYTES <= nbytes <= MAX_NBYTES:
        raise fault(f"it says that it has {nbytes:,} bytes")
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(content[_LENGTH_NBYTES:], nbytes)
    except zlib.error as error:
        raise fault(f"it cannot be unpacked: {error}") from error
    end = _LENGTH_NBYTES + int.from_bytes(raw[:_LENGTH_NBYTES], "little")
    if len(raw) != nbytes or not unpacker.eof or unpacker.unused_data or end > nbytes:
        raise fault("it has not the length that it says")
    said = json_value(raw[_LENGTH_NBYTES:end], MAX_INDEX_NBYTES, fault)
    if not isinstance(said, list) or len(said) != 2 or not _are_sizes(said[1]):  # noqa: PLR2004 - index, sizes
        raise fault("it is no index with parts")
    ends = list(accumulate(said[1], initial=end))
    if ends[-1] != nbytes:
        raise fault("its parts have not the length that it says")
    return said[0], [raw[begin : begin + size] for begin, size in zip(ends, said[1], strict=False)]


def _length(nbytes: int) -> bytes:
    return nbytes.to_bytes(_LENGTH_NBYTES, "little")


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
