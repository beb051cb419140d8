"""TensorRT's plugins: registered once per process, before anything needs them."""

from __future__ import annotations

from tensorrt_double.binding import bound
from tensorrt_double.values import ILogger

_registered = False


@bound(logger=(ILogger, type(None)), namespace=str)
def init_libnvinfer_plugins(logger: ILogger | None, namespace: str) -> bool:  # noqa: ARG001 - the real signature
    """Register."""
    global _registered  # noqa: PLW0603 - the real registry is the process's too
    _registered = True
    return True


def registered() -> bool:
    """Whether that was done."""
    return _registered
