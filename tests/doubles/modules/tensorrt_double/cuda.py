"""The libcuda double, through which this double sees contexts, streams and memory."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

OUT_OF_MEMORY: Final = 2
LAUNCH_FAILED: Final = 719

_cuda: Final = ctypes.CDLL("libcuda.so.1")
_cuda.cuda_double_bytes_from.restype = ctypes.c_size_t


class CudaError(Exception):
    """A call of the driver's that failed. ``code``: its CUresult."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed with error {code}")
        self.code = code


def _call(name: str, *arguments: object) -> None:
    code = getattr(_cuda, name)(*arguments)
    if code:
        raise CudaError(name, code)


def init() -> None:
    """Start the driver. Raises CudaError where there is no device."""
    _call("cuInit", 0)


def capability() -> tuple[int, int]:
    """Return the device's compute capability."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("cuDeviceComputeCapability", ctypes.byref(major), ctypes.byref(minor), 0)
    return major.value, minor.value


def has_context() -> bool:
    """Whether a context is current in the calling thread."""
    return bool(_cuda.cuda_double_has_context())


def is_live_stream(handle: int) -> bool:
    """Whether a stream with this handle exists; 0 is the default one."""
    return bool(_cuda.cuda_double_stream_is_live(ctypes.c_void_p(handle)))


def bytes_from(address: int) -> int:
    """Return how many bytes of a live allocation of the device's lie from an address on."""
    return int(_cuda.cuda_double_bytes_from(ctypes.c_uint64(address)))


def synchronize(stream: int) -> None:
    """Wait for what is queued on a stream."""
    _call("cuStreamSynchronize", ctypes.c_void_p(stream))


def read(address: int, size: int) -> bytes:
    """Copy what lies at an address of the device's."""
    return ctypes.string_at(address, size)


def queue_write(stream: int, address: int, content: bytes) -> None:
    """Queue a copy of ``content`` to an address: there once something waits for the stream."""
    _call(
        "cuMemcpyHtoDAsync_v2",
        ctypes.c_uint64(address),
        ctypes.c_char_p(content),
        ctypes.c_size_t(len(content)),
        ctypes.c_void_p(stream),
    )


def queue_failure(stream: int) -> None:
    """Queue work that fails on the device; the context is lost with it."""
    _call("cuda_double_fail", ctypes.c_void_p(stream), LAUNCH_FAILED)


class Memory:
    """A piece of device memory, freed with the object as TensorRT frees its own.

    Raises CudaError where there is too little, or no context. Freed without a context, it leaks.
    """

    def __init__(self, size: int) -> None:
        self._address = ctypes.c_uint64()
        _call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(size))

    def __del__(self) -> None:
        if self._address.value:
            with contextlib.suppress(CudaError):
                _call("cuMemFree_v2", self._address)
