"""Building: a configuration, its timing cache, its progress monitor, and the builder."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from tensorrt_double import cuda
from tensorrt_double.binding import BUFFER, MustInitialise, available, bound, present
from tensorrt_double.enums import BuilderFlag, MemoryPoolType, ProfilingVerbosity, Severity
from tensorrt_double.parser import INetworkDefinition
from tensorrt_double.plan import Plan
from tensorrt_double.settings import VERSION, fault, value
from tensorrt_double.values import IHostMemory, ILogger, complain

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS = 5
_TIMINGS = b"timings of a double\n"


class IProgressMonitor(metaclass=MustInitialise):
    """Told how far a build is, from several threads."""

    def __init__(self) -> None:
        self._initialised = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class ITimingCache:
    """What a build measured, for the next one on the same device with the same release."""

    def __init__(self, device: str, timings: bytes) -> None:
        self._device = device
        self._timings = timings

    def serialize(self) -> IHostMemory:
        head = f"{_release()}|{self._device}|".encode()
        return IHostMemory(head + self._timings)

    def reset(self) -> bool:
        self._timings = b""
        return True


def _release() -> str:
    return ".".join(map(str, VERSION))


def _device() -> str:
    return ".".join(map(str, cuda.capability()))


@present
class IBuilderConfig:
    """How to build."""

    builder_optimization_level: int
    profiling_verbosity: Any

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._limits: dict[Any, int] = {}
        self._flags: set[Any] = set()
        self._cache: ITimingCache | None = None
        self._monitor: IProgressMonitor | None = None
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    @bound(pool=MemoryPoolType, pool_size=int)
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:  # noqa: ANN401 - an enum
        self._limits[pool] = int(pool_size)

    @bound(pool=MemoryPoolType)
    def get_memory_pool_limit(self, pool: Any) -> int:  # noqa: ANN401 - an enum
        return self._limits.get(pool, sys.maxsize)

    @bound(flag=BuilderFlag)
    def set_flag(self, flag: Any) -> None:  # noqa: ANN401 - an enum
        self._flags.add(flag)

    @bound(flag=BuilderFlag)
    def clear_flag(self, flag: Any) -> None:  # noqa: ANN401 - an enum
        self._flags.discard(flag)

    @bound(flag=BuilderFlag)
    def get_flag(self, flag: Any) -> bool:  # noqa: ANN401 - an enum
        return flag in self._flags

    @bound(serialized_timing_cache=BUFFER)
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        content = bytes(memoryview(serialized_timing_cache))
        if not content:
            return ITimingCache(_device(), b"")
        release, _, rest = content.partition(b"|")
        device, found, timings = rest.partition(b"|")
        if not found or release.decode(errors="replace") != _release():
            self._logger.log(Severity.WARNING, "The timing cache is of another version: ignored")
            return None
        return ITimingCache(device.decode(), timings)

    @bound(cache=ITimingCache, ignore_mismatch=bool)
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:  # noqa: FBT001 - the real signature
        if cache._device != _device() and not ignore_mismatch:
            complain(self._logger, "The timing cache is of another device")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def _get_monitor(self) -> IProgressMonitor | None:
        return self._monitor

    @bound(monitor=(IProgressMonitor, type(None)))
    def _set_monitor(self, monitor: IProgressMonitor | None) -> None:
        self._monitor = monitor

    progress_monitor = available(since=(10,))(property(_get_monitor, _set_monitor))


@present
class Builder:
    """Compiles networks. Needs a device, but no context."""

    logger: ILogger

    @bound(logger=ILogger)
    def __init__(self, logger: ILogger) -> None:
        require_device(logger)
        self.logger = logger

    @bound(flags=int)
    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(int(flags))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.logger)

    @bound(network=INetworkDefinition, config=IBuilderConfig)
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        problem = _problem(network, config)
        if problem:
            complain(self.logger, f"IBuilder::buildSerializedNetwork: {problem}")
            return None
        limit = config.get_memory_pool_limit(MemoryPoolType.WORKSPACE)
        built = _Build(config._monitor if VERSION >= (10,) else None, limit).run()
        if not built:
            message = "IBuilder::buildSerializedNetwork: the build was cancelled"
            complain(self.logger, message)
            return None
        if config._cache is not None:
            config._cache._timings = _TIMINGS
        return IHostMemory(Plan(onnx=network._onnx, capability=cuda.capability()).pack())

    @available(until=(11,))
    @property
    def platform_has_fast_fp16(self) -> bool:
        return True


def require_device(logger: ILogger) -> None:
    """Refuse to make a builder or runtime without a GPU, in the binding's strange words."""
    try:
        cuda.init()
    except cuda.CudaError as error:
        complain(logger, f"CUDA initialization failure with error: {error.code}")
        raise TypeError("pybind11::init(): factory function returned nullptr") from None


def _problem(network: INetworkDefinition, config: IBuilderConfig) -> str:
    """What stops a build before it begins."""
    if not network._onnx:
        return "Error Code 4: API Usage Error (Network must have at least one output)"
    if not network._is_strongly_typed():
        return "this double builds strongly typed networks only: TensorRT would build float32"
    if any(flag.name in {"FP16", "INT8"} for flag in config._flags):
        return "Error Code 3: API Usage Error (precision flags beside a strongly typed network)"
    if fault("build-none"):
        return "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)"
    return ""


class _Build:
    """The phases of a build: the outer one from the caller's thread, inner ones from another."""

    def __init__(self, monitor: IProgressMonitor | None, workspace_bytes: int) -> None:
        self._monitor = monitor
        self._workspace_bytes = workspace_bytes
        self._phases = int(value("phases", 3))
        self._pause_s = value("slow-build", 0) / max(1, self._phases * _STEPS)

    def run(self) -> bool:
        """Build; whether nobody cancelled."""
        outer = "Building Engine"
        self._tell("phase_start", outer, None, self._phases)
        going = self._continue(outer)
        self._tell("phase_finish", outer)
        return going

    def _continue(self, outer: str) -> bool:
        for index in range(self._phases):
            self._die_if_asked()
            if not _elsewhere(lambda index=index: self._inner(f"Tactics {index}", outer)):  # type: ignore[misc]
                return False
            if not self._tell("step_complete", outer, index):
                return False
        return True

    def _inner(self, name: str, outer: str) -> bool:
        self._tell("phase_start", name, outer, _STEPS)
        going = True
        for step in range(_STEPS):
            time.sleep(self._pause_s)
            going = self._tell("step_complete", name, step)
            if not going:
                break
        self._tell("phase_finish", name)
        return going

    def _die_if_asked(self) -> None:
        above = fault("build-killed-above")
        if fault("build-killed") or (
            above and self._workspace_bytes > value("build-killed-above", 0)
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("build-crash"):
            os.kill(os.getpid(), signal.SIGSEGV)

    def _tell(self, what: str, *arguments: object) -> bool:
        """Call the monitor; an exception in it is printed and cancels, as C++ must not see it."""
        if self._monitor is None:
            return True
        try:
            answer = getattr(self._monitor, what)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever the monitor raises
            print(f"[ERROR] Exception caught in {what}(): {error}", file=sys.stderr)
            return False
        return answer is None or bool(answer)


def _elsewhere(work: Callable[[], bool]) -> bool:
    """Run in another thread. Until it ends this one is deaf to signals, as one inside C++ is."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    thread.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return answers == [True]
