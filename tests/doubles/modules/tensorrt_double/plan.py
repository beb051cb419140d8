"""The double's plans: a header as in real ones, the device they were built for, and the ONNX."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tensorrt_double.settings import VERSION

MAGIC = b"ftrt"
_HEADER = struct.Struct("<4sI16x4B2BxxQ")
"""Magic, serialization version, release at bytes 24–27, compute capability, size of the ONNX."""

_BUILD = 26
"""The fourth number of a release."""


class PlanError(Exception):
    """Why a plan is refused, in TensorRT's words: one line of its log each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was compiled, and for what."""

    onnx: bytes
    capability: tuple[int, int]

    def pack(self) -> bytes:
        """Serialise."""
        serialization = _serialization(VERSION)
        head = (MAGIC, serialization, *VERSION, _BUILD, *self.capability, len(self.onnx))
        return _HEADER.pack(*head) + self.onnx


def unpack(data: bytes, capability: tuple[int, int]) -> Plan:
    """Read a plan for a device. Raises PlanError."""
    if data[:4] != MAGIC:
        raise PlanError(
            "Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match"
        )
    if len(data) < _HEADER.size:
        raise PlanError("Serialization assertion size <= mSize failed.Plan is truncated")
    _, serialization, major, minor, patch, build, *device, size = _HEADER.unpack_from(data)
    _require_release((major, minor, patch), build, serialization)
    if tuple(device) != capability:
        raise PlanError(
            "The engine plan file is generated on an incompatible device, expecting compute "
            f"{_dotted(*capability)} got compute {_dotted(*device)}, please rebuild."
        )
    if len(data) != _HEADER.size + size:
        raise PlanError("Serialization assertion size <= mSize failed.Plan is truncated")
    return Plan(onnx=data[_HEADER.size :], capability=capability)


def _require_release(release: tuple[int, int, int], build: int, serialization: int) -> None:
    if release == VERSION:
        return
    current = _serialization(VERSION)
    tag = (
        "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does "
        f"not match. Note: Current Version: {current}, Serialized Engine Version: {serialization}\n"
    )
    raise PlanError(
        f"{tag if serialization != current else ''}"
        "The engine plan file is not compatible with this version of TensorRT, expecting library "
        f"version {_dotted(*VERSION, _BUILD)} got {_dotted(*release, build)}, please rebuild."
    )


def _serialization(release: tuple[int, int, int]) -> int:
    return 10 * release[0] + release[1] + 136


def _dotted(*numbers: int) -> str:
    return ".".join(map(str, numbers))
