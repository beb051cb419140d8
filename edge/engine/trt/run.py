"""A compiled engine at work: one thread, one context, one stream, the same buffers for every frame.

Not yet run on a GPU. It is written against the bindings of TensorRT 10.3 to 11 and run here with
real pycuda on doubles of libcuda and TensorRT.
"""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.contract.errors import EngineError
from edge.engine import INPUT, OUTPUTS, Answer
from edge.engine.trt.device import (
    because,
    checked,
    listening_logger,
    load_cuda,
    load_tensorrt,
    out_of_memory,
    require_plugins,
)
from edge.engine.trt.orders import PlanRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    import numpy.typing as npt

    from edge.contract.frames import Pixels

_MAGIC = b"ftrt"
_VERSION_AT = slice(24, 28)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """A tensor of the graph: uint8 host memory that the GPU reaches, and where on the device.

    shared: whether both are the same memory, so that nothing is copied.
    """

    name: str
    host: npt.NDArray[np.uint8]
    device: int
    shared: bool


class TrtBackend:
    """One graph in a TensorRT engine. Any thread may call; one thread of its own owns the GPU.

    Everything on the GPU is made once and freed by ``close``, in the thread that made it. The CUDA
    context is current there only while something is done: a thread that ends with a context still
    current takes the process down.
    """

    def __init__(self, plan: bytes, *, where: str) -> None:
        """Load a serialised engine. Raises EngineError; all that was allocated is freed then."""
        self._where = where
        self._held = ExitStack()
        self._tensors: dict[str, _Tensor] = {}
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "tensorrt")
        try:
            self._thread.submit(self._open, plan).result()
        except BaseException as problem:
            _let_go(problem)
            self.close()
            raise

    def run(self, frame: Pixels) -> Answer:
        """Answer one uint8 ``(height, width, 3)`` BGR frame. Raises EngineError."""
        thread = self._thread
        if thread is None:
            raise self._closed()
        try:
            running = thread.submit(self._run, frame)
        except RuntimeError:  # closed meanwhile, by another thread
            raise self._closed() from None
        return running.result()

    def close(self) -> None:
        """Free all, also after an error. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.submit(self._free).result()
            finally:
                thread.shutdown()

    def _open(self, plan: bytes) -> None:
        trt = load_tensorrt()
        self._cuda = load_cuda()
        device = self._cuda.Device(0)
        with self._named_errors("cannot be opened"):
            self._context = device.retain_primary_context()
            with self._current():
                self._load(trt, plan)
                zero_copy = device.get_attribute(self._cuda.device_attribute.INTEGRATED)
                self._allocate(trt, shared=bool(zero_copy))

    def _load(self, trt: ModuleType, plan: bytes) -> None:
        """Deserialise: running native code out of the plan, so only what this machine made."""
        self._logger = logger = listening_logger(trt)
        require_plugins(trt, logger)
        self._runtime = trt.Runtime(logger)
        self._held.callback(self.__dict__.pop, "_runtime")
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._held.callback(self.__dict__.pop, "_engine")
        if self._engine is None:
            raise self._not_loaded(f"TensorRT {trt.__version__} does not load {_kind(plan)}")
        self._execution = self._engine.create_execution_context()
        self._held.callback(self.__dict__.pop, "_execution")
        if self._execution is None:
            raise EngineError(
                f"{self._where}: no room for what it computes with{because(logger)}",
                expected=f"{self._engine.device_memory_size_v2 >> 20} MiB of GPU memory",
            )

    def _not_loaded(self, what: str) -> EngineError:
        found = f"{self._where}: {what}{because(self._logger)}"
        if out_of_memory(self._logger):  # the plan may be as good as ever
            return EngineError(found, then="End what else uses the GPU, or use a smaller bundle.")
        return PlanRefusedError(
            found, then="It is built anew by python -m export.trt, or when the station starts next."
        )

    def _allocate(self, trt: ModuleType, *, shared: bool) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if sorted(names) != sorted([INPUT, *OUTPUTS]):
            raise EngineError(f"{self._where}: tensors {names}", expected=f"{[INPUT, *OUTPUTS]}")
        for name in names:
            way = trt.TensorIOMode.INPUT if name == INPUT else trt.TensorIOMode.OUTPUT
            kind = engine.get_tensor_dtype(name)
            if kind != trt.DataType.UINT8 or engine.get_tensor_mode(name) != way:
                raise EngineError(f"{self._where}: {name} is {kind}", expected=f"uint8, {way}")
            self._tensors[name] = self._tensor(name, tuple(engine.get_tensor_shape(name)), shared)
        self._held.callback(self._tensors.clear)
        frame = self._tensors[INPUT]
        checked(self._execution.set_input_shape, INPUT, frame.host.shape)
        for tensor in self._tensors.values():
            checked(self._execution.set_tensor_address, tensor.name, tensor.device)
        self._stream = self._cuda.Stream()
        self._held.callback(self.__dict__.pop, "_stream")

    def _tensor(self, name: str, shape: tuple[int, ...], shared: bool) -> _Tensor:  # noqa: FBT001
        if any(side <= 0 for side in shape):
            raise EngineError(f"{self._where}: {name} is {shape}", expected="a static shape")
        flags = self._cuda.host_alloc_flags.DEVICEMAP if shared else 0
        host = self._cuda.pagelocked_empty(shape, np.uint8, mem_flags=flags)
        self._held.callback(host.base.free)
        if shared:
            return _Tensor(
                name=name, host=host, device=int(host.base.get_device_pointer()), shared=True
            )
        memory = self._cuda.mem_alloc(host.nbytes)
        self._held.callback(memory.free)
        return _Tensor(name=name, host=host, device=int(memory), shared=False)

    def _run(self, frame: Pixels) -> Answer:
        if not self._tensors:
            raise self._closed()
        tensor = self._tensors[INPUT]
        if frame[np.newaxis].shape != tensor.host.shape or frame.dtype != np.uint8:
            raise EngineError(
                f"{self._where}: a frame of {frame.dtype} {frame.shape}",
                expected=f"uint8 {tensor.host.shape[1:]}",
            )
        with self._named_errors("failed on a frame"), self._current():
            tensor.host[0] = frame
            self._execute()
            mask, confidence, members = (self._tensors[name].host.copy() for name in OUTPUTS)
        return Answer(mask=mask[0], confidence=confidence[0], member_masks=members)

    def _execute(self) -> None:
        """Frame to the device, compute, answers back. Nothing is allocated."""
        for tensor in self._tensors.values():
            if tensor.name == INPUT and not tensor.shared:
                self._cuda.memcpy_htod_async(tensor.device, tensor.host, self._stream)
        if not self._execution.execute_async_v3(stream_handle=self._stream.handle):
            raise EngineError(
                f"{self._where}: TensorRT did not compute{because(self._logger)}",
                then="What its buffers hold is of the frame before, and was not used.",
            )
        for tensor in self._tensors.values():
            if tensor.name != INPUT and not tensor.shared:
                self._cuda.memcpy_dtoh_async(tensor.host, tensor.device, self._stream)
        self._stream.synchronize()

    def _closed(self) -> EngineError:
        return EngineError(f"{self._where}: this engine was closed")

    def _free(self) -> None:
        """Undo, last first, whatever of ``_open`` was done."""
        context = self.__dict__.pop("_context", None)
        if context is None:
            return
        context.push()
        try:
            self._held.close()
        finally:
            self._cuda.Context.pop()
            context.detach()

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    @contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        cuda: Any = self._cuda
        try:
            yield
        except cuda.MemoryError as problem:
            raise EngineError(
                f"{self._where}: the GPU's memory is full ({problem})",
                then="End what else uses the GPU, or use a smaller bundle.",
            ) from None
        except cuda.Error as problem:
            raise EngineError(f"{self._where}: {what} ({problem})") from None


def _let_go(problem: BaseException | None) -> None:
    """Empty the frames that an error remembers: nothing there may outlive the CUDA context."""
    while problem is not None:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__context__


def _kind(plan: bytes) -> str:
    """Say what a plan's header tells: the magic, and at byte 24 the version that wrote it."""
    if not plan.startswith(_MAGIC) or len(plan) < _VERSION_AT.stop:
        return f"{len(plan)} bytes that are no plan"
    return f"a plan of TensorRT {'.'.join(map(str, plan[_VERSION_AT]))}"
