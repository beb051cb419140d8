"""ONNX → a TensorRT plan, compiled for this machine's GPU: float16 as the graph says.

Not yet run on a GPU. The precision is the graph's own (a strongly typed network): TensorRT 11 has
no flag for it any more, and the versions before refuse the flag beside strong typing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge.contract.errors import EngineError
from edge.engine import INPUT, OUTPUTS
from edge.engine.trt.device import (
    because,
    checked,
    listening_logger,
    load_cuda,
    load_tensorrt,
    out_of_memory,
    require_plugins,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

MIB = 1 << 20
_SHOWN_ERRORS = 10
_BETWEEN_STEPS_S = 0.1
_LITTLE_WORKSPACE = (
    "insufficient workspace",
    "workspace size",
    "could not find any implementation",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a phase of the build is. parent: the phase that it is a part of, or nothing.

    over: whether the phase ended; steps are counted from 0 to ``steps``.
    """

    phase: str
    parent: str
    step: int
    steps: int
    over: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A serialised engine, and the timings that make the next build of its kind quicker."""

    plan: bytes
    timings: bytes


class OutOfMemoryError(EngineError):
    """The build wanted more memory than there is; a smaller workspace may do."""


class CancelledError(EngineError):
    """Somebody wanted no engine any more."""


def build_plan(
    onnx: bytes,
    *,
    where: str,
    workspace_bytes: int,
    timings: bytes,
    tell: Callable[[Progress], bool],
) -> Built:
    """Compile a graph. ``tell`` is given each step, from several threads; False breaks off.

    timings: of an earlier build on this machine with this TensorRT, or nothing; what TensorRT does
    not take is dropped. Raises EngineError with the nodes that are refused or where no GPU is
    left, OutOfMemoryError, CancelledError.
    """
    trt = load_tensorrt()
    load_cuda()
    logger = listening_logger(trt)
    require_plugins(trt, logger)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        raise EngineError(
            f"{where}: TensorRT {trt.__version__} refuses the graph:\n  "
            + "\n  ".join(_parser_errors(parser)),
            then="No engine was built of it.",
        )
    _require_contract(trt, network, where)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    kept = _give_timings(config, timings)
    phases = _Phases(tell)
    monitor = _monitor(trt, phases)  # held here: TensorRT calls it from threads of its own
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(where, workspace_bytes, logger, cancelled=phases.cancelled.is_set())
    return Built(plan=bytes(memoryview(plan)), timings=bytes(memoryview(kept.serialize())))


def _strongly_typed(trt: ModuleType) -> int:
    """Return the flags of a network: the flag's own value is 1 in TensorRT 10 and 0 in 11."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parser_errors(parser: Any) -> Iterable[str]:  # noqa: ANN401 - TensorRT's own
    for index in range(min(parser.num_errors, _SHOWN_ERRORS)):
        error = parser.get_error(index)
        yield f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"
    if parser.num_errors > _SHOWN_ERRORS:
        yield f"and {parser.num_errors - _SHOWN_ERRORS} more"


def _require_contract(trt: ModuleType, network: Any, where: str) -> None:  # noqa: ANN401 - the same
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    found = [tensor.name for tensor in tensors]
    if found != [INPUT, *OUTPUTS] or any(one.dtype != trt.DataType.UINT8 for one in tensors):
        kinds = ", ".join(f"{one.name} {one.dtype}" for one in tensors)
        raise EngineError(
            f"{where}: takes and gives {kinds}", expected=f"uint8 {INPUT}, {', '.join(OUTPUTS)}"
        )


def _give_timings(config: Any, timings: bytes) -> Any:  # noqa: ANN401 - the same
    """Begin with an earlier build's timings, or with none where TensorRT does not take them."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        checked(config.set_timing_cache, cache, ignore_mismatch=False)
    return cache


def _failure(
    where: str,
    workspace_bytes: int,
    logger: Any,  # noqa: ANN401 - the same
    *,
    cancelled: bool,
) -> EngineError:
    if cancelled:
        return CancelledError(f"{where}: the build was broken off", then="Nothing was changed.")
    if out_of_memory(logger):
        return OutOfMemoryError(
            f"{where}: out of memory with a workspace of {workspace_bytes // MIB} MiB"
            f"{because(logger)}"
        )
    said = " ".join(logger.said).lower()
    hint = "a larger workspace" if any(words in said for words in _LITTLE_WORKSPACE) else ""
    return EngineError(f"{where}: TensorRT built no engine{because(logger)}", expected=hint)


class _Phases:
    """The phases that a build is in. Each is told as it begins and ends.

    Steps between are told some ten times a second at most. Called from several threads.
    """

    def __init__(self, tell: Callable[[Progress], bool]) -> None:
        self.cancelled = threading.Event()
        self._wanted = tell
        self._begun: dict[str, Progress] = {}
        self._told_s = 0.0

    def begin(self, phase: str, parent: str, steps: int) -> None:
        self._begun[phase] = Progress(phase=phase, parent=parent, step=0, steps=steps)
        self._tell(self._begun[phase])

    def step(self, phase: str, step: int) -> bool:
        """Note that a step, counted from 0, was done; say whether to go on."""
        begun, now_s = self._begun.get(phase), time.monotonic()
        if begun is not None and now_s - self._told_s >= _BETWEEN_STEPS_S:
            self._told_s = now_s
            self._tell(replace(begun, step=step + 1))
        return not self.cancelled.is_set()

    def end(self, phase: str) -> None:
        begun = self._begun.pop(phase, None)
        if begun is not None:
            self._tell(replace(begun, step=begun.steps, over=True))

    def _tell(self, progress: Progress) -> None:
        if not self._wanted(progress):
            self.cancelled.set()


def _monitor(trt: ModuleType, phases: _Phases) -> Any:  # noqa: ANN401 - the same
    """Return a progress monitor of TensorRT's own kind."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Hands on what it is told. The parameters are called what TensorRT calls them."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Begin a phase."""
            phases.begin(phase_name, parent_phase or "", num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Say whether to go on."""
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            """End a phase."""
            phases.end(phase_name)

    return Monitor()
