"""Loggers, dimensions, tensors and host memory."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from tensorrt_double.binding import MustInitialise, bound
from tensorrt_double.enums import DataType, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable


class ILogger(metaclass=MustInitialise):
    """What TensorRT tells its lines to."""

    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: Severity, msg: str) -> None:  # noqa: ARG002 - for those that override it
        raise RuntimeError('Tried to call pure virtual function "nvinfer1::ILogger::log"')


class Logger(ILogger):
    """Prints lines that are bad enough."""

    min_severity: Severity

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    @bound(severity=Severity, msg=str)
    def log(self, severity: Severity, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] [{severity.name[0]}] {msg}", file=sys.stderr)


def complain(logger: ILogger, message: str) -> None:
    """Log an error."""
    logger.log(Severity.ERROR, message)


class Dims:
    """A shape."""

    @bound(shape=(tuple, list))
    def __init__(self, shape: Iterable[int] = ()) -> None:
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - an int or a slice
        return self._shape[index]

    @bound(other=(tuple, list))
    def __eq__(self, other: object) -> bool:
        return self._shape == tuple(other)  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._shape)


def volume(iterable: Iterable[int]) -> int:
    """Return how many elements a shape has."""
    return math.prod(iterable)


class ITensor:
    """An input or output of a network."""

    name: str
    shape: Dims
    dtype: Any

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:  # noqa: ANN401 - an enum
        self.name = name
        self.shape = Dims(shape)
        self.dtype = dtype


def _refuse(what: str) -> Any:  # noqa: ANN401 - a method
    def method(self: object, *_: object) -> NoReturn:
        raise TypeError(f"'{type(self).__name__}' object {what}")

    return method


class IHostMemory(bytes):
    """Bytes that offer their buffer and their size, and nothing else that bytes can do."""

    __slots__ = ()

    __len__ = _refuse("has no len()")
    __getitem__ = _refuse("is not subscriptable")
    __iter__ = _refuse("is not iterable")
    __add__ = _refuse("cannot be concatenated")
    __contains__ = _refuse("is not a container")

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    @property
    def dtype(self) -> Any:  # noqa: ANN401 - an enum
        return DataType.INT8
