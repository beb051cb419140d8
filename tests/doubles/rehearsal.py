"""A small, right use of TensorRT and pycuda, for child processes that test the doubles.

Not the station's code: what one test breaks on purpose is easier to see here.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
from typing import TYPE_CHECKING, Any

import pycuda.driver as cuda  # noqa: TID251 - runs on the libcuda double only
import tensorrt as trt  # noqa: TID251 - the double

from tests.doubles.graphs import FRAME

if TYPE_CHECKING:
    from collections.abc import Callable

WORKSPACE_BYTES = 1 << 28


class Log(trt.ILogger):
    """Keeps errors and warnings."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401, ARG002 - TensorRT's own
        self.lines.append(msg)


class Monitor(trt.IProgressMonitor):
    """Keeps what it is told; ``stop_at`` names a phase whose first step ends the build."""

    def __init__(self, stop_at: str = "") -> None:
        trt.IProgressMonitor.__init__(self)
        self.told: list[tuple[Any, ...]] = []
        self._stop_at = stop_at

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self.told.append(("start", phase_name, parent_phase, num_steps))

    def step_complete(self, phase_name: str, step: int) -> bool:
        self.told.append(("step", phase_name, step))
        return phase_name != self._stop_at

    def phase_finish(self, phase_name: str) -> None:
        self.told.append(("finish", phase_name))


log = Log()


@atexit.register
def _leave() -> None:
    """Pop what a test left current: pycuda would abort the process over it."""
    with contextlib.suppress(cuda.LogicError):
        while True:
            cuda.Context.pop()


def parsed(onnx: bytes, *, flags: int | None = None) -> tuple[Any, Any, Any]:
    """Return builder, network and parser; the parser has tried."""
    trt.init_libnvinfer_plugins(log, "")
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed if flags is None else flags)
    parser = trt.OnnxParser(network, log)
    parser.parse(onnx)
    return builder, network, parser


def build(onnx: bytes, monitor: Monitor | None = None) -> Any:  # noqa: ANN401 - TensorRT's own
    """Return the plan's host memory, or None."""
    builder, network, _ = parsed(onnx)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if monitor is not None:
        config.progress_monitor = monitor
    return builder.build_serialized_network(network, config)


def load(plan: bytes) -> Any:  # noqa: ANN401 - TensorRT's own
    """Return the engine, or None."""
    trt.init_libnvinfer_plugins(log, "")
    return trt.Runtime(log).deserialize_cuda_engine(plan)


class Rig:
    """A context, a stream, an execution context and a buffer for each tensor."""

    def __init__(self, plan: bytes) -> None:
        cuda.init()
        self.cuda_context = cuda.Device(0).retain_primary_context()
        self.cuda_context.push()
        self.engine = load(plan)
        self.execution = self.engine.create_execution_context()
        self.stream = cuda.Stream()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.host = {name: self._pinned(name) for name in names}
        self.device = {name: cuda.mem_alloc(self.host[name].nbytes) for name in names}
        for name in names:
            self.execution.set_tensor_address(name, int(self.device[name]))

    def _pinned(self, name: str) -> Any:  # noqa: ANN401 - an array
        kind = trt.nptype(self.engine.get_tensor_dtype(name))
        return cuda.pagelocked_empty(tuple(self.engine.get_tensor_shape(name)), kind)

    def queue(self) -> bool:
        """Queue everything for FRAME; whether the execution was taken."""
        self.host["frame"][...] = FRAME
        cuda.memcpy_htod_async(self.device["frame"], self.host["frame"], self.stream)
        taken = self.execution.execute_async_v3(stream_handle=self.stream.handle)
        for name, memory in self.device.items():
            if name != "frame":
                cuda.memcpy_dtoh_async(self.host[name], memory, self.stream)
        return bool(taken)

    def close(self) -> None:
        """Free everything, while the context is current."""
        del self.execution, self.engine, self.stream
        for memory in self.device.values():
            memory.free()
        for array in self.host.values():
            array.base.free()
        cuda.Context.pop()
        self.cuda_context.detach()


def report() -> dict[str, Any]:
    """Return the libcuda double's counts, now."""
    text = ctypes.create_string_buffer(1024)
    ctypes.CDLL("libcuda.so.1").cuda_double_report(text, len(text))
    counts: dict[str, Any] = json.loads(text.value)
    return counts


def error_of(call: Callable[..., object], *arguments: object, **named: object) -> str:
    """Return the type and text of what a call raises; nothing where it raises nothing."""
    try:
        call(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - whatever it raises
        return f"{type(error).__name__}: {error}"
    return ""
