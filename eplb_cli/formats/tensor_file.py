"""Tensors in a `.pt` file, read without unpickling anything but tensors."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from eplb_cli.formats.document import MAX_FILE_NBYTES, NotReadableError

_MAX_ELEMENTS = 1 << 24
_MAX_DEPTH = 8


def parse_tensors(data: bytes) -> Any:  # noqa: ANN401 - what was saved
    """What `torch.save` wrote: tensors as arrays, in lists and objects.

    Raises:
        NotReadableError: it is no such file, is larger than it looks, or holds anything else.
    """
    _refuse_bombs(data)
    import torch

    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many words for a file it refuses
        problem = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotReadableError(f"not a file of tensors: {problem}") from error
    return _plain(value, 0)


def _refuse_bombs(data: bytes) -> None:
    """A file of torch is a zip archive of stored bytes; packed ones could become anything."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            nbytes = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise NotReadableError("not a file that torch.save wrote since version 1.6") from error
    if nbytes > MAX_FILE_NBYTES:
        raise NotReadableError(f"{nbytes:,} bytes unpacked; more than {MAX_FILE_NBYTES:,} are not read")


def _plain(value: Any, depth: int) -> Any:  # noqa: ANN401 - as parse_tensors
    """Tensors as arrays; a tensor whose elements share bytes may have more of them than the file."""
    import torch

    if depth > _MAX_DEPTH:
        raise NotReadableError("it nests too deeply")
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.numel() > _MAX_ELEMENTS or value.is_quantized:
            raise NotReadableError("a tensor is sparse, quantized or too large")
        wide = value.to(torch.float32) if value.dtype in {torch.bfloat16, torch.float16} else value
        try:
            return wide.detach().contiguous().numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise NotReadableError(f"a tensor is of {value.dtype}") from error
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value
