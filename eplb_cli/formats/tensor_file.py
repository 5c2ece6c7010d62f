"""Tensors in a `.pt` file, read without unpickling anything but tensors."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from eplb_cli.formats.budget import (
    LIST_NBYTES,
    MAX_DEPTH,
    MAX_FILE_NBYTES,
    OBJECT_NBYTES,
    WORD_NBYTES,
    Allowance,
    NotReadableError,
)
from eplb_cli.machine import needed

_MAX_PICKLE_NBYTES = 1 << 21
"""What says how tensors lie in lists and objects; each of its bytes may become a list."""


def parse_tensors(data: bytes) -> Any:  # noqa: ANN401 - what was saved
    """What `torch.save` wrote: tensors as arrays, in lists and objects.

    Raises:
        NotReadableError: it is no such file, is larger than it looks, or holds anything else.
        UsageError: EP002, torch is not installed.
    """
    _refuse_bombs(data)
    with needed("torch", "a .pt file", "save it as .npy or JSON where torch is"):
        import torch

    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many words for a file it refuses
        problem = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotReadableError(f"not a file of tensors: {problem}") from error
    return _plain(value, Allowance.of(len(data)), MAX_DEPTH)


def _refuse_bombs(data: bytes) -> None:
    """A file of torch is a zip archive of stored bytes; packed ones could become anything."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise NotReadableError("not a file that torch.save wrote since version 1.6") from error
    nbytes = sum(entry.file_size for entry in entries)
    if nbytes > MAX_FILE_NBYTES:
        raise NotReadableError(f"{nbytes:,} bytes unpacked; more than {MAX_FILE_NBYTES:,} are not read")
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if pickled > _MAX_PICKLE_NBYTES:
        raise NotReadableError(f"{pickled:,} bytes beside its tensors are more than are read")


def _plain(value: Any, allowance: Allowance, depth: int) -> Any:  # noqa: ANN401 - as parse_tensors
    """Tensors as arrays, beside what JSON has; what is there twice, or shares bytes, is counted twice."""
    import torch

    allowance.take_values(1)
    if not depth:
        raise NotReadableError("it nests too deeply")
    if isinstance(value, torch.Tensor):
        return _array(value, allowance)
    if isinstance(value, dict):
        allowance.take_memory(OBJECT_NBYTES)
        return {str(key): _plain(item, allowance, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        allowance.take_memory(LIST_NBYTES)
        return [_plain(item, allowance, depth - 1) for item in value]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise NotReadableError(f"it holds a {type(value).__name__}")
    allowance.take_memory(WORD_NBYTES)
    return value


def _array(tensor: Any, allowance: Allowance) -> Any:  # noqa: ANN401 - an array of any kind
    """A tensor's numbers; halves, which numpy lacks or counts badly with, as float32."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise NotReadableError("a tensor is sparse or quantized")
    is_half = tensor.dtype in {torch.bfloat16, torch.float16}
    allowance.take_memory(tensor.numel() * (4 if is_half else tensor.element_size()))
    wide = tensor.to(torch.float32) if is_half else tensor
    try:
        return wide.detach().contiguous().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise NotReadableError(f"a tensor is of {tensor.dtype}") from error
