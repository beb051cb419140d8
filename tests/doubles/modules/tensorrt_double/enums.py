"""The enums, with the values of the release that is asked for."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tensorrt_double.binding import BoundEnum, bound_enum
from tensorrt_double.settings import VERSION

_STRONGLY_TYPED = None if VERSION < (10,) else 1 if VERSION < (11,) else 0
_OLD = VERSION < (11,)

DataType: Final = bound_enum(
    "DataType",
    {
        "FLOAT": 0,
        "HALF": 1,
        "INT8": 2,
        "INT32": 3,
        "BOOL": 4,
        "UINT8": 5,
        "INT64": 8 if VERSION >= (10,) else None,
    },
)
TensorIOMode: Final = bound_enum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
TensorLocation: Final = bound_enum("TensorLocation", {"DEVICE": 0, "HOST": 1})
MemoryPoolType: Final = bound_enum("MemoryPoolType", {"WORKSPACE": 0, "TACTIC_DRAM": 4})
ProfilingVerbosity: Final = bound_enum(
    "ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2}
)
HardwareCompatibilityLevel: Final = bound_enum("HardwareCompatibilityLevel", {"NONE": 0})
ExecutionContextAllocationStrategy: Final = bound_enum(
    "ExecutionContextAllocationStrategy", {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2}
)
NetworkDefinitionCreationFlag: Final = bound_enum(
    "NetworkDefinitionCreationFlag",
    {"EXPLICIT_BATCH": 0 if _OLD else None, "STRONGLY_TYPED": _STRONGLY_TYPED},
)
BuilderFlag: Final = bound_enum(
    "BuilderFlag",
    {
        "FP16": 0 if _OLD else None,
        "INT8": 1 if _OLD else None,
        "OBEY_PRECISION_CONSTRAINTS": 9 if _OLD else None,
        "TF32": 6,
    },
)
ErrorCode: Final = bound_enum(
    "ErrorCode",
    {
        "SUCCESS": 0,
        "INTERNAL_ERROR": 1,
        "MEM_ALLOC_FAILED": 2,
        "MODEL_DESERIALIZE_FAILED": 3,
        "INVALID_VALUE": 4,
        "INVALID_GRAPH": 5,
        "INVALID_NODE": 6,
        "UNSUPPORTED_GRAPH": 7,
        "UNSUPPORTED_NODE": 8,
        "UNSUPPORTED_NODE_DATATYPE": 11 if VERSION >= (10,) else None,
    },
)


class Severity(BoundEnum):
    """How bad a log line is; the lower, the worse."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4

    def __le__(self, other: Severity) -> bool:
        return int(self) <= int(other)

    def __lt__(self, other: Severity) -> bool:
        return int(self) < int(other)


_NUMPY: Final[dict[str, Any]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT64": np.int64,
}


def nptype(trt_type: Any) -> Any:  # noqa: ANN401 - an enum made above, a numpy type
    """Return the numpy type of a DataType."""
    return _NUMPY[trt_type.name]


def data_type(numpy_type: Any) -> Any:  # noqa: ANN401 - the other way round
    """Return the DataType of a numpy type."""
    (name,) = (name for name, known in _NUMPY.items() if np.dtype(known) == np.dtype(numpy_type))
    return DataType[name]
