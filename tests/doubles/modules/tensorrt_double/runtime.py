"""Running: plans are loaded, and executed by ONNX Runtime on the memory whose addresses are set."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import onnxruntime

from tensorrt_double import answers, cuda, plugins
from tensorrt_double.binding import BUFFER, available, bound, present
from tensorrt_double.builder import require_device
from tensorrt_double.enums import (
    ExecutionContextAllocationStrategy,
    TensorIOMode,
    TensorLocation,
    data_type,
    nptype,
)
from tensorrt_double.plan import PlanError, unpack
from tensorrt_double.settings import fault, value
from tensorrt_double.values import Dims, IHostMemory, ILogger, complain, volume

_STATIC = ExecutionContextAllocationStrategy.STATIC
_SCRATCH_BYTES = 1 << 20
_TYPES = {"float": np.float32, "float16": np.float16}


class Runtime:
    """Loads plans. Needs a device; loading needs a current context."""

    logger: ILogger

    @bound(logger=ILogger)
    def __init__(self, logger: ILogger) -> None:
        require_device(logger)
        self.logger = logger

    @bound(serialized_engine=BUFFER)
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        content = bytes(memoryview(serialized_engine))
        try:
            self._require_ready()
            onnx = unpack(content, cuda.capability()).onnx
            return ICudaEngine(self.logger, content, onnx, cuda.Memory(len(onnx)))
        except PlanError as refusal:
            for line in str(refusal).split("\n"):
                complain(self.logger, f"IRuntime::deserializeCudaEngine: {line}")
        except cuda.CudaError as error:
            complain(self.logger, f"IRuntime::deserializeCudaEngine: {_memory(error)}")
        return None

    def _require_ready(self) -> None:
        if fault("deserialize-none"):
            raise PlanError("Error Code 1: Serialization (Magic tag does not match)")
        if not plugins.registered():
            raise PlanError("IPluginRegistry::getCreator: Error Code 4: Cannot find plugin")
        if not cuda.has_context():
            raise PlanError("double: no context is current; TensorRT would choose one by itself")


def _memory(error: cuda.CudaError) -> str:
    if error.code == cuda.OUT_OF_MEMORY:
        return "Error Code 2: OutOfMemory (no further information)"
    return f"Error Code 1: Cuda Runtime ({error})"


@present
class ICudaEngine:
    """A loaded plan."""

    name: str

    def __init__(self, logger: ILogger, plan: bytes, onnx: bytes, weights: cuda.Memory) -> None:
        self._logger = logger
        self._plan = plan
        self._weights = weights
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(onnx, options, providers=providers)
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._tensors = {**self._inputs, **{one.name: one for one in self._session.get_outputs()}}
        self.name = "Unnamed Network 0"

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @bound(index=int)
    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    @bound(name=str)
    def get_tensor_mode(self, name: str) -> Any:  # noqa: ANN401 - an enum
        if not self._knows(name):
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    @bound(name=str)
    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(tuple(self._tensors[name].shape)) if self._knows(name) else Dims()

    @bound(name=str)
    def get_tensor_dtype(self, name: str) -> Any:  # noqa: ANN401 - an enum
        kind = self._tensors[name].type.removeprefix("tensor(").removesuffix(")")
        return data_type(_TYPES.get(kind, kind))

    @bound(name=str)
    def get_tensor_location(self, name: str) -> Any:  # noqa: ANN401 - an enum
        self._knows(name)
        return TensorLocation.DEVICE

    @property
    def num_layers(self) -> int:
        return 1

    @available(since=(10, 3))
    @property
    def device_memory_size_v2(self) -> int:
        return _SCRATCH_BYTES

    @available(until=(11,))
    @property
    def device_memory_size(self) -> int:
        return _SCRATCH_BYTES

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._plan)

    @bound(strategy=ExecutionContextAllocationStrategy)
    def create_execution_context(self, strategy: Any = _STATIC) -> IExecutionContext | None:  # noqa: ANN401, ARG002 - an enum
        try:
            if fault("context-none"):
                raise cuda.CudaError("cuMemAlloc", cuda.OUT_OF_MEMORY)  # noqa: TRY301 - as the real one
            return IExecutionContext(self, cuda.Memory(_SCRATCH_BYTES))
        except cuda.CudaError as error:
            complain(self._logger, f"ICudaEngine::createExecutionContext: {_memory(error)}")
            return None

    def _knows(self, name: str) -> bool:
        if name not in self._tensors:
            complain(self._logger, f"Error Code 3: no tensor {name!r} in the engine")
        return name in self._tensors

    def _bytes(self, name: str) -> int:
        size = np.dtype(nptype(self.get_tensor_dtype(name))).itemsize
        return volume(self.get_tensor_shape(name)) * size


class IExecutionContext:
    """An engine at work, with addresses of its own. One thread at a time."""

    engine: ICudaEngine

    def __init__(self, engine: ICudaEngine, scratch: cuda.Memory) -> None:
        self.engine = engine
        self._scratch = scratch
        self._addresses: dict[str, int] = {}
        self._at_work = threading.Lock()

    @bound(name=str, shape=(tuple, list, Dims))
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine._inputs:
            return self._fails(f"setInputShape: no input {name!r}")
        expected = self.engine.get_tensor_shape(name)
        if tuple(shape) != tuple(expected):
            return self._fails(f"setInputShape: {name} is static {expected}, not {tuple(shape)}")
        return True

    @bound(name=str, memory=int)
    def set_tensor_address(self, name: str, memory: int) -> bool:
        if not self.engine._knows(name):
            return False
        self._addresses[name] = int(memory)
        return True

    @bound(name=str)
    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    @bound(name=str)
    def get_tensor_shape(self, name: str) -> Dims:
        return self.engine.get_tensor_shape(name)

    def infer_shapes(self) -> list[str]:
        return []

    @bound(stream_handle=int)
    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._at_work.acquire(blocking=False):
            return self._fails("enqueueV3: the context is in use by another thread")
        try:
            problem = self._problem(stream_handle)
            return self._fails(f"enqueueV3: {problem}") if problem else self._execute(stream_handle)
        except cuda.CudaError as error:
            return self._fails(f"enqueueV3: Error Code 1: Cuda Runtime ({error})")
        finally:
            self._at_work.release()

    def _fails(self, what: str) -> bool:
        complain(self.engine._logger, f"IExecutionContext::{what}")
        return False

    def _problem(self, stream: int) -> str:
        if fault("execute-false"):
            return "Error Code 1: Myelin (No results returned from a node.)"
        if not cuda.has_context():
            return "double: no context is current in this thread"
        if not cuda.is_live_stream(stream):
            return f"double: {stream:#x} is no live stream"
        return "; ".join(filter(None, map(self._address_problem, self.engine._tensors)))

    def _address_problem(self, name: str) -> str:
        if name not in self._addresses:
            return f"Error Code 3: Address is not set for tensor {name}"
        needed, there = self.engine._bytes(name), cuda.bytes_from(self._addresses[name])
        if there < needed:
            return f"double: {name} needs {needed} bytes on the device, at its address are {there}"
        return ""

    def _execute(self, stream: int) -> bool:
        """Compute now, from what is queued before; the answers are there after a wait."""
        if fault("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        while fault("hang"):
            time.sleep(1)
        time.sleep(value("slow", 0))
        cuda.synchronize(stream)
        names = [name for name in self.engine._tensors if name not in self.engine._inputs]
        given = {name: self._read(name) for name in self.engine._inputs}
        computed = dict(zip(names, self.engine._session.run(names, given), strict=True))
        for name, array in answers.tampered(computed).items():
            content = np.ascontiguousarray(array).tobytes()
            cuda.queue_write(stream, self._addresses[name], content)
        if fault("lost"):
            cuda.queue_failure(stream)
        return True

    def _read(self, name: str) -> Any:  # noqa: ANN401 - an array of any type
        content = cuda.read(self._addresses[name], self.engine._bytes(name))
        kind = nptype(self.engine.get_tensor_dtype(name))
        return np.frombuffer(content, kind).reshape(tuple(self.engine.get_tensor_shape(name)))
