"""The header of a safetensors file: read with suspicion, built with alignment.

A file is 8 bytes of little-endian header length, a JSON header, and the tensors back to back. A
header comes from elsewhere, so everything it says is checked before anything is allocated by it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eplb_cli import files
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.json_text import shown
from eplb_cli.formats.reading import json_value
from eplb_cli.values import dataclass

DATA_ALIGNMENT = 4096
"""Data starts on a page, so that rows of page-multiple size can be shared by the file system."""

MAX_HEADER_NBYTES = 100_000_000
MAX_NAME_LENGTH = 4096
MAX_DIMENSIONS = 32
_MAX_REASON = 300
_MAX_BITS = 1 << 63

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


class TensorEntry(NamedTuple):
    """One tensor of a file; `begin` and `end` are bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself.

    Attributes:
        tensors: name to entry, in the order of their bytes.
        metadata: the free `__metadata__`.
        data_start: bytes from the start of the file to the data.
        digest: hexadecimal sha256 of those bytes.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int
    digest: str


def read_header(path: Path) -> tuple[Header, os.stat_result]:
    """Read and check the header of a shard.

    Raises:
        CheckpointError: EP203 naming what is wrong, EP201 and EP204 where it cannot be read at all.
    """
    text, status = read_header_text(path)
    return parse_header(text, status.st_size - 8 - len(text), path), status


def read_header_text(path: Path) -> tuple[bytes, os.stat_result]:
    """The JSON of a shard's header, not yet looked at. Raises as `read_header`."""
    with files.opened_source(path) as descriptor:
        status = os.fstat(descriptor)
        if status.st_size < 8:  # noqa: PLR2004 - the length field
            raise _malformed(path, f"{status.st_size} bytes are too few for a header")
        length = int.from_bytes(_read(descriptor, 8, 0, path), "little")
        if length > min(MAX_HEADER_NBYTES, status.st_size - 8):
            raise _malformed(path, f"it claims a header of {length} bytes in a file of {status.st_size}")
        return _read(descriptor, length, 8, path), status


def _read(descriptor: int, nbytes: int, offset: int, path: Path) -> bytes:
    buffer = bytearray(nbytes)
    files.read_into(descriptor, memoryview(buffer), offset, path)
    return bytes(buffer)


def parse_header(text: bytes, data_nbytes: int | None, path: object) -> Header:
    """Check the JSON of a header.

    Args:
        data_nbytes: bytes of the data, None where the file is not there to say it.

    Raises:
        CheckpointError: EP203.
    """
    raw = header_json(text, path)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "__metadata__ is not a map of strings")
    entries = {name: _entry(name, value, path) for name, value in raw.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = 0
    for name, entry in tensors.items():
        if entry.begin != position:
            wrong = "overlaps what is before it" if entry.begin < position else "leaves a hole before it"
            raise _malformed(path, f"{name!r} starts at {entry.begin} where {position} is due: it {wrong}")
        position = entry.end
    if data_nbytes not in (None, position):
        raise _malformed(path, f"the tensors end at {position} and the data at {data_nbytes}")
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text).hexdigest()
    return Header(tensors, metadata, 8 + len(text), digest)


def header_json(text: bytes, path: object) -> dict[str, Any]:
    """The object that a header is, read as every program reads it. Raises EP203."""

    def fault(reason: str) -> CheckpointError:
        return _malformed(path, f"its header cannot be parsed: {reason}")

    raw = json_value(text, MAX_HEADER_NBYTES, fault, strict=True)
    if b"\\ud" in text.lower():  # half of a surrogate pair is no character, and no name
        try:
            json.dumps(raw, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise fault(str(error)) from error
    if not isinstance(raw, dict):
        raise _malformed(path, "its header is not an object")
    return raw


def _entry(name: str, value: object, path: object) -> TensorEntry:
    if len(name) > MAX_NAME_LENGTH:
        raise _malformed(path, f"a name has {len(name):,} characters: {name[:40]!r}...")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"{name!r} is not a tensor of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _malformed(path, f"{name!r} has the unknown dtype {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _malformed(path, f"{name!r} has no shape of at most {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004
        raise _malformed(path, f"{name!r} has no data_offsets [begin, end]")
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    if math.prod(shape) * DTYPE_BITS[dtype] != entry.nbytes * 8:
        raise _malformed(path, f"{name!r}: {dtype} {list(shape)} does not take {entry.nbytes} bytes")
    if not entry.nbytes and math.prod(filter(None, shape)) * DTYPE_BITS[dtype] >= _MAX_BITS:
        raise _malformed(path, f"{name!r}: {list(shape)} is too much to count, although it takes no bytes")
    return entry


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _malformed(path: object, reason: str) -> CheckpointError:
    return CheckpointError("EP203", f"{path} is not a valid safetensors file: {reason[:_MAX_REASON]}")


def row_nbytes_of(name: str, dtype: str, row_shape: Sequence[int]) -> int:
    """Bytes of one row of a tensor, the only way in which bytes are divided into rows.

    Args:
        name: of the tensor, for the message. row_shape: its shape without dim 0.

    Raises:
        CheckpointError: EP209, they are no whole number, so that rows share bytes.
    """
    bits = DTYPE_BITS[dtype] * math.prod(row_shape)
    if bits % 8:
        raise CheckpointError(
            "EP209",
            f"{name!r}: a row of {bits} bits is no number of whole bytes",
            "eplb moves whole bytes: such a tensor cannot be cut into rows",
        )
    return bits // 8


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """A header whose data starts on a page.

    Args:
        tensors: name, dtype, shape and bytes of each tensor, in the order of their data.
        metadata: strings for `__metadata__`.

    Returns:
        The first bytes of the file, and the offset in the file of each tensor.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    position = 0
    for name, dtype, shape, nbytes in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        begins[name] = position
        position += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    data_start = math.ceil((8 + len(text)) / DATA_ALIGNMENT) * DATA_ALIGNMENT
    padded = text.ljust(data_start - 8)
    content = len(padded).to_bytes(8, "little") + padded
    return content, {name: data_start + begin for name, begin in begins.items()}
