"""Live tensors as a caller gives them: which can be moved at all, and what their memory has in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
import torch

from eplb_cli.arrays import Int
from eplb_cli.errors import CheckpointError

Layers = Sequence[Sequence[torch.Tensor]]


def read_layers(given: Iterable[Iterable[torch.Tensor]], met: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The tensors of each layer, all of them with memory of their own on one device.

    Args:
        given: lists, or whatever yields tensors once.
        met: gets each tensor as it is read.

    Raises:
        CheckpointError: EP228, something is no such tensor.
    """
    return [
        [_checked(tensor, f"layer {layer}, tensor {number}", met) for number, tensor in enumerate(tensors)]
        for layer, tensors in enumerate(given)
    ]


def read_buffers(given: Iterable[torch.Tensor], met: list[torch.Tensor]) -> list[torch.Tensor]:
    """The buffers of one layer, as `read_layers` reads weights."""
    return [_checked(tensor, f"buffer {number}", met) for number, tensor in enumerate(given)]


def _checked(tensor: torch.Tensor, where: str, met: list[torch.Tensor]) -> torch.Tensor:
    if reason := why_not(tensor):
        _refuse(f"{where} {reason}")
    if met and tensor.device != met[0].device:
        _refuse(f"{where} is on {tensor.device}, and others of its rank on {met[0].device}")
    met.append(tensor)
    return tensor


def _refuse(message: str) -> NoReturn:
    raise CheckpointError("EP228", message)


def why_not(tensor: object) -> str:
    """Why something is not bytes at an address that can be copied, "" if it is."""
    if not isinstance(tensor, torch.Tensor):
        return f"is of type {type(tensor).__name__}, which is no tensor"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"is of type {type(tensor).__name__}, whose elements are not in its own memory"
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return "is sparse, nested, packed or quantised"
    if not (tensor.is_cpu or tensor.is_cuda):
        return f"is on the device {tensor.device}"
    if tensor.is_conj() or tensor.is_neg():
        return "is conjugated or negated lazily: its memory does not hold its elements"
    return "" if _is_in_memory(tensor) else "has no memory, or less than its shape needs"


def _is_in_memory(tensor: torch.Tensor) -> bool:
    """Whether all elements lie in the tensor's storage, and that somewhere."""
    if tensor.numel() == 0:
        return True
    try:
        address, nbytes = tensor.data_ptr(), tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # what a transform of functions, as vmap, puts in place
        return False
    end = tensor.storage_offset() + _extent(tensor)
    return address != 0 and end * tensor.element_size() <= nbytes


def _extent(tensor: torch.Tensor) -> int:
    """Elements of the storage from the first of a tensor to its last."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def check_rows(layers: Layers, num_rows: int, what: str = "tensor") -> None:
    """Refuse what is not (num_rows, ...) rows, each of them contiguous and none over another.

    Raises:
        CheckpointError: EP208, another number of rows; EP221, rows that overlap or are in pieces.
    """
    for layer, tensors in enumerate(layers):
        for number, tensor in enumerate(tensors):
            if tensor.dim() == 0 or tensor.shape[0] != num_rows:
                raise CheckpointError(
                    "EP208",
                    f"layer {layer}, {what} {number} {list(tensor.shape)}: "
                    f"dim 0 is not the {num_rows} rows of its rank",
                    "pass expert tensors only",
                )
            if tensor.numel() and not _has_rows(tensor):
                raise CheckpointError(
                    "EP221",
                    f"layer {layer}, {what} {number} {list(tensor.shape)} with strides "
                    f"{list(tensor.stride())}: its rows overlap or are not contiguous",
                    "pass a contiguous tensor; a scale that all experts share is no expert tensor",
                )


def _has_rows(tensor: torch.Tensor) -> bool:
    """Whether each row is contiguous, and the next one begins after its end."""
    if tensor.is_contiguous():
        return True
    numel = 1
    for size, stride in zip(tensor.shape[:0:-1], tensor.stride()[:0:-1], strict=True):
        if size != 1 and stride != numel:
            return False
        numel *= size
    return tensor.shape[0] == 1 or tensor.stride(0) >= numel


def check_buffers(weights: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor]) -> None:
    """Refuse buffers that are not shaped like the weights of one layer, the first like the first, and so on.

    Raises:
        CheckpointError: EP222, another shape or dtype, or too few; EP208 and EP221 as `check_rows`.
    """
    for number, (weight, buffer) in enumerate(zip(weights, buffers, strict=False)):
        if buffer.shape != weight.shape or buffer.dtype != weight.dtype:
            raise CheckpointError(
                "EP222",
                f"buffer {number} is {buffer.dtype} {list(buffer.shape)}, "
                f"and its weight {weight.dtype} {list(weight.shape)}",
            )
    if len(buffers) < len(weights):
        raise CheckpointError("EP222", f"{len(buffers)} buffers for {len(weights)} weights")
    check_rows([buffers], weights[0].shape[0] if weights else 0, "buffer")


def check_apart(layers: Layers, buffers: Sequence[torch.Tensor] = ()) -> None:
    """Refuse tensors that share memory with each other; their rows are known to be contiguous.

    Rows of one may lie in the gaps between the rows of another: only then each row is looked at.

    Raises:
        CheckpointError: EP221.
    """
    tensors = [tensor for of_layer in (*layers, buffers) for tensor in of_layer if tensor.numel()]
    begin = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
    num_rows = np.array([tensor.shape[0] for tensor in tensors], np.int64)
    stride = np.array([tensor.stride()[0] * tensor.element_size() for tensor in tensors], np.int64)
    row = np.array([_nbytes_of_row(tensor) for tensor in tensors], np.int64)
    if _overlap(begin, begin + (num_rows - 1) * stride + row) is None:
        return
    owner = np.repeat(np.arange(len(tensors)), num_rows)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    start = begin[owner] + number * stride[owner]
    pair = _overlap(start, start + row[owner])
    if pair is not None:
        names = _names(layers, buffers)
        one, other = (names[owner[index]] for index in sorted(pair))
        raise CheckpointError("EP221", f"{one} and {other} share memory")


def _overlap(begin: Int, end: Int) -> tuple[int, int] | None:
    """Two of the ranges that have bytes in common, or None."""
    order = np.argsort(begin, kind="stable")
    over = np.flatnonzero(begin[order[1:]] < end[order[:-1]])
    return (int(order[over[0]]), int(order[over[0] + 1])) if len(over) else None


def _names(layers: Layers, buffers: Sequence[torch.Tensor]) -> list[str]:
    """What the tensors with elements are called, in their order."""
    weights = [
        f"layer {layer}, tensor {number}"
        for layer, tensors in enumerate(layers)
        for number, tensor in enumerate(tensors)
        if tensor.numel()
    ]
    return weights + [f"buffer {number}" for number, buffer in enumerate(buffers) if buffer.numel()]


def row_nbytes(layers: Layers) -> Int:
    """(L, K) bytes of a row of each tensor; 0 where a layer has fewer tensors than another."""
    sizes = [[_nbytes_of_row(tensor) for tensor in tensors] for tensors in layers]
    width = max((len(row) for row in sizes), default=0)
    return np.array([row + [0] * (width - len(row)) for row in sizes], np.int64).reshape(len(sizes), width)


def _nbytes_of_row(tensor: torch.Tensor) -> int:
    return tensor.numel() // max(tensor.shape[0], 1) * tensor.element_size()
