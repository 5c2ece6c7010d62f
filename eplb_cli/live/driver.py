"""The few calls of the CUDA driver that torch has none for.

Memory that other processes map, many copies by the copy engines in one call, and words that a stream writes
or waits for. The driver is the one that torch has loaded; its symbols keep their signature (cuda.h has newer
ones under the same names, with a suffix).
"""

from __future__ import annotations

import ctypes
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

HANDLE_NBYTES = 64
"""Of an allocation, as another process gets it (CU_IPC_HANDLE_SIZE)."""

_PEER_ACCESS = 1
_PORTABLE_AND_MAPPED = 3
_IN_STREAM_ORDER = 1
_AT_LEAST = 0


class DriverError(Exception):
    """The driver refused a call."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_NBYTES),)


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes: how the source is read, two hints about places, and flags."""

    _fields_ = (("order", ctypes.c_int), ("hints", ctypes.c_int * 4), ("flags", ctypes.c_uint))


class Driver:
    """Calls for the current device of the calling thread.

    Raises:
        DriverError: there is no driver, it lacks a call, or it refuses one.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DriverError(str(error)) from error
        for name in ("cuStreamWriteValue32_v2", "cuStreamWaitValue32_v2", "cuIpcOpenMemHandle_v2"):
            if not hasattr(self._library, name):
                raise DriverError(f"the driver has no {name}")

    def allocate(self, nbytes: int) -> int:
        """The address of memory on the device that belongs to no allocator."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def export(self, address: int) -> bytes:
        """A handle of an allocation for other processes of this host."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle)

    def map(self, handle: bytes) -> int:
        """Where memory of another process is in this one."""
        address = ctypes.c_uint64()
        whole = _Handle.from_buffer_copy(handle)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), whole, ctypes.c_uint(_PEER_ACCESS))
        return address.value

    def close(self, address: int) -> None:
        """Give up what `map` gave."""
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def register(self, address: int, nbytes: int) -> int:
        """Where host memory, pinned from now on, is for the device."""
        seen = ctypes.c_uint64()
        self._call(
            "cuMemHostRegister_v2",
            ctypes.c_void_p(address),
            ctypes.c_size_t(nbytes),
            ctypes.c_uint(_PORTABLE_AND_MAPPED),
        )
        self._call(
            "cuMemHostGetDevicePointer_v2", ctypes.byref(seen), ctypes.c_void_p(address), ctypes.c_uint(0)
        )
        return seen.value

    def unregister(self, address: int) -> None:
        """Take back `register`."""
        self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    def write_word(self, stream: int, address: int, value: int) -> None:
        """Write 32 bits once all that is on a stream has been done, and all it wrote can be seen."""
        self._call(
            "cuStreamWriteValue32_v2",
            ctypes.c_void_p(stream),
            ctypes.c_uint64(address),
            ctypes.c_uint32(value),
            ctypes.c_uint(0),
        )

    def wait_word(self, stream: int, address: int, value: int) -> None:
        """Hold a stream until 32 bits, counted modulo 2**32, have reached a value."""
        self._call(
            "cuStreamWaitValue32_v2",
            ctypes.c_void_p(stream),
            ctypes.c_uint64(address),
            ctypes.c_uint32(value),
            ctypes.c_uint(_AT_LEAST),
        )

    def copy(
        self,
        stream: int,
        destination: NDArray[np.int64],
        source: NDArray[np.int64],
        nbytes: NDArray[np.int64],
    ) -> None:
        """Copy from address to address, in any order, with the copy engines; columns are contiguous."""
        count = len(nbytes)
        if not count:
            return
        if self._copies_batches:
            columns = [ctypes.c_void_p(column.ctypes.data) for column in (destination, source, nbytes)]
            attributes, first, failed = (
                _Attributes(order=_IN_STREAM_ORDER),
                ctypes.c_size_t(0),
                ctypes.c_size_t(),
            )
            self._call(
                "cuMemcpyBatchAsync",
                *columns,
                ctypes.c_size_t(count),
                ctypes.byref(attributes),
                ctypes.byref(first),
                ctypes.c_size_t(1),
                ctypes.byref(failed),
                ctypes.c_void_p(stream),
            )
            return
        for goal, origin, size in zip(destination.tolist(), source.tolist(), nbytes.tolist(), strict=True):
            self._call(
                "cuMemcpyDtoDAsync_v2",
                ctypes.c_uint64(goal),
                ctypes.c_uint64(origin),
                ctypes.c_size_t(size),
                ctypes.c_void_p(stream),
            )

    @cached_property
    def _copies_batches(self) -> bool:
        """Whether the driver has the call for many copies: from 12.8 on."""
        return hasattr(self._library, "cuMemcpyBatchAsync")

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            words = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(words))
            raise DriverError(f"{name}: {(words.value or b'unknown').decode()}")
