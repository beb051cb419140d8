"""The TensorRT double under TensorRT's name: for the PYTHONPATH of child processes of tests."""

from tensorrt_double.builder import Builder, IBuilderConfig, IProgressMonitor, ITimingCache
from tensorrt_double.enums import (
    BuilderFlag,
    DataType,
    ErrorCode,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    TensorIOMode,
    TensorLocation,
    nptype,
)
from tensorrt_double.parser import INetworkDefinition, OnnxParser, ParserError
from tensorrt_double.plugins import init_libnvinfer_plugins
from tensorrt_double.runtime import ICudaEngine, IExecutionContext, Runtime
from tensorrt_double.settings import VERSION
from tensorrt_double.values import Dims, IHostMemory, ILogger, ITensor, Logger, volume

__version__ = ".".join(map(str, VERSION))

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
    "init_libnvinfer_plugins",
    "nptype",
    "volume",
]

if VERSION < (10,):  # what that release does not have
    del IProgressMonitor
