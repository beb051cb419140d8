"""A compiled engine at work: threads, memory, and what is left when it is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.trt.scene import DEVICE, FALLBACK, FULL, Workshop

if TYPE_CHECKING:
    from tests.engine.trt.conftest import CudaReport

COUNTS = """
import ctypes
def counts():
    text = ctypes.create_string_buffer(1024)
    ctypes.CDLL("libcuda.so.1").cuda_double_report(text, len(text))
    return json.loads(text.value)

import hashlib
def digest(found):
    answer = found.answer
    return hashlib.sha256(answer.mask.tobytes() + answer.member_masks.tobytes()).hexdigest()
"""

COPIES = """
import edge.engine.trt.run as run
copied = []
def counted(name):
    real = getattr(run.load_cuda(), name)
    def call(*arguments):
        copied.append(name)
        return real(*arguments)
    setattr(run.load_cuda(), name, call)
counted("memcpy_htod_async")
counted("memcpy_dtoh_async")
"""


def require_nothing_left(cuda_report: CudaReport) -> dict[str, Any]:
    """The one child that ended by itself freed everything it had."""
    (report,) = cuda_report()
    left = {
        name: count
        for name, count in report.items()
        if name.startswith("live_") or name in {"retains", "lost_with_context", "device_bytes"}
    }
    assert len(left) >= 7
    assert set(left.values()) == {0}, left
    assert report["calls_without_context"] == 0
    assert report["peak_device_bytes"] > 0
    return report


def test_every_thread_gets_the_answer_to_its_own_frame_and_all_is_freed(
    stocked: Workshop, cuda_report: CudaReport
) -> None:
    code = f"""
{COUNTS}
from concurrent.futures import ThreadPoolExecutor
engine = opened()
alone = [digest(engine.answer(frame)) for frame in frames]
with ThreadPoolExecutor(4) as threads:
    order = [n % 2 for n in range(16)]
    found = list(threads.map(lambda n: digest(engine.answer(frames[n])), order))
import threading
closer = threading.Thread(target=engine._backend.close)
closer.start()
closer.join()
tell([alone[0] != alone[1], found == [alone[n] for n in order]])
"""
    assert stocked.told(code) == [True, True]
    require_nothing_left(cuda_report)


def test_an_engine_that_is_closed_while_others_ask_answers_them_or_says_it_was_closed(
    stocked: Workshop, cuda_report: CudaReport
) -> None:
    code = f"""
{COUNTS}
import threading, time
engine = opened()
right = digest(engine.answer(frames[0]))
ends = []
def ask():
    while True:
        try:
            found = digest(engine.answer(frames[0]))
        except BaseException as problem:
            ends.append(f"{{type(problem).__name__}}: {{problem}}")
            return
        if found != right:
            ends.append("a wrong answer")
threads = [threading.Thread(target=ask) for _ in range(6)]
for thread in threads:
    thread.start()
time.sleep(0.3)
engine._backend.close()
for thread in threads:
    thread.join()
tell(ends)
"""
    closed = f"EngineError: engine of graph '{FALLBACK}': this engine was closed"
    assert stocked.told(code, graph=FALLBACK) == [closed] * 6
    require_nothing_left(cuda_report)


def test_a_frame_that_comes_just_behind_the_close_is_told_so_too(
    stocked: Workshop, cuda_report: CudaReport
) -> None:
    code = """
backend = opened()._backend
thread, late = backend._thread, []
shut = thread.shutdown
def shutdown():
    late.append(thread.submit(backend._run, frames[0]))
    shut()
thread.shutdown = shutdown
backend.close()
tell(error_of(late[0].result))
"""
    assert stocked.told(code, graph=FALLBACK).endswith("this engine was closed")
    require_nothing_left(cuda_report)


def test_a_closed_engine_can_be_closed_again_and_says_that_it_is_closed(
    stocked: Workshop, cuda_report: CudaReport
) -> None:
    code = """
engine = opened()
engine.answer(frames[0])
engine._backend.close()
engine._backend.close()
tell(error_of(engine.answer, frames[0]))
"""
    assert stocked.told(code, graph=FALLBACK).endswith("this engine was closed")
    require_nothing_left(cuda_report)


def test_several_engines_at_once_do_not_free_each_other_s(
    stocked: Workshop, cuda_report: CudaReport
) -> None:
    code = f"""
{COUNTS}
first, second = opened(), opened()
right = digest(first.answer(frames[0]))
first._backend.close()
between = digest(second.answer(frames[0]))
third = opened()
second._backend.close()
tell([right == between, right == digest(third.answer(frames[0]))])
third._backend.close()
"""
    assert stocked.told(code, graph=FALLBACK) == [True, True]
    require_nothing_left(cuda_report)


def test_a_failing_execution_is_an_error_never_the_answer_to_the_frame_before(
    stocked: Workshop,
) -> None:
    code = f"""
{COUNTS}
from tensorrt_double import runtime
engine = opened()
before = digest(engine.answer(frames[0]))
real, failing = runtime.fault, []
runtime.fault = lambda name: name in failing or real(name)
failing.append("execute-false")
said = error_of(engine.answer, frames[1])
failing.clear()
after = digest(engine.answer(frames[1]))
engine._backend.close()
with opened() as another:
    tell([said, before == after, after == digest(another.answer(frames[1]))])
"""
    said, same, right = stocked.told(code)
    assert "TensorRT did not compute (IExecutionContext::enqueueV3: Error Code 1: Myelin" in said
    assert "is of the frame before, and was not used" in said
    assert (same, right) == (False, True)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("execute-false", "TensorRT did not compute"),
        ("lost", "failed on a frame (cuStreamSynchronize failed"),
    ],
)
def test_an_engine_is_closed_after_an_error_as_after_none(
    stocked: Workshop, cuda_report: CudaReport, fault: str, said: str
) -> None:
    code = """
engine = opened()
told = [error_of(engine.answer, frame) for frame in frames]
engine._backend.close()
told.append(error_of(engine.answer, frames[0]))
tell(told)
"""
    first, second, closed = stocked.told(code, fault, graph=FALLBACK)
    assert said in first
    assert second  # a lost context fails each frame, not the first alone
    assert closed.endswith("this engine was closed")
    (report,) = cuda_report()
    assert report["retains"] == 0
    if fault == "execute-false":
        require_nothing_left(cuda_report)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("deserialize-none", "does not load a plan of TensorRT 10.3.0"),
        ("context-none", "no room for what it computes with"),
    ],
)
def test_an_engine_that_cannot_be_opened_frees_what_it_had(
    stocked: Workshop, cuda_report: CudaReport, fault: str, said: str
) -> None:
    assert said in stocked.told("tell(error_of(opened))", fault)
    (report,) = cuda_report()
    assert {report[name] for name in ("live_allocations", "live_streams", "live_pinned")} == {0}
    assert report["retains"] == report["lost_with_context"] == 0


@pytest.mark.parametrize("room", [0.3, 0.7, 0.95])
def test_where_the_gpu_has_too_little_memory_it_is_said_and_what_was_taken_is_freed(
    stocked: Workshop, cuda_report: CudaReport, room: float
) -> None:
    code = "engine = opened(); engine.answer(frames[0]); engine._backend.close(); tell(0)"
    stocked.told(code)
    needed = require_nothing_left(cuda_report)["peak_device_bytes"]
    said = stocked.told("tell(error_of(opened))", memory=int(room * needed))
    assert "memory is full" in said or "no room" in said or "OutOfMemory" in said
    *_, report = cuda_report()
    assert report["peak_device_bytes"] <= room * needed
    assert report["live_allocations"] == report["live_pinned"] == report["live_streams"] == 0
    assert report["retains"] == report["lost_with_context"] == 0


@pytest.mark.parametrize("integrated", [0, 1])
def test_nothing_is_allocated_per_frame_and_copied_only_where_gpu_and_cpu_share_no_memory(
    stocked: Workshop, cuda_report: CudaReport, integrated: int
) -> None:
    code = f"""
{COUNTS}
{COPIES}
engine = opened()
engine.answer(frames[0])
del copied[:]
begin = counts()
right = [digest(engine.answer(frame)) for frame in frames]
found = [digest(engine.answer(frames[n % 2])) == right[n % 2] for n in range(48)]
after = counts()
tell([begin == after, all(found), begin["live_allocations"], begin["live_pinned"], len(copied)])
engine._backend.close()
"""
    same, right, allocated, pinned, copied = stocked.told(
        code, graph=FALLBACK, integrated=integrated
    )
    assert (same, right) == (True, True)
    assert pinned == 4  # frame, mask, confidence, member_masks
    # The plan's parameters and scratch besides, and on the device the same four again.
    assert (allocated, copied) == ((2, 0) if integrated else (6, 50 * 4))
    report = require_nothing_left(cuda_report)
    assert report["threads_ended_with_context"] == 0


def test_both_kinds_of_memory_give_the_same_answers(stocked: Workshop) -> None:
    code = f"""
{COUNTS}
engine = opened()
tell([digest(engine.answer(frame)) for frame in frames])
engine._backend.close()
"""
    assert stocked.told(code) == stocked.told(code, integrated=1)


def test_a_frame_of_another_shape_or_type_is_refused_and_the_next_is_answered(
    stocked: Workshop,
) -> None:
    code = """
engine = opened()
ask = engine._backend.run
frame = frames[0]
said = [error_of(ask, wrong) for wrong in (frame[1:], frame[:, :, :1], frame.astype(np.float32))]
tell([*said, int(ask(frame[:, ::-1]).mask.shape[0])])
engine._backend.close()
"""
    *said, rows = stocked.told(code, graph=FALLBACK)
    found = ["uint8 (223, 384, 3)", "uint8 (224, 384, 1)", "float32 (224, 384, 3)"]
    for one, kind in zip(said, found, strict=True):
        assert f"a frame of {kind}; expected uint8 (224, 384, 3)" in one
    assert rows == 224


def test_a_plan_with_other_tensors_than_the_contract_s_is_refused(
    stocked: Workshop, cuda_report: CudaReport
) -> None:
    code = """
import tensorrt
from edge.engine.trt.build import build_plan
from edge.engine.trt.run import TrtBackend
from tests.doubles.graphs import small
from tests.doubles.rehearsal import build
plan = bytes(memoryview(build(small())))
tell([error_of(lambda: TrtBackend(plan, where="engine")),
      error_of(lambda: TrtBackend(b"", where="engine")),
      error_of(lambda: TrtBackend(b"ftrt" + bytes(500), where="engine"))])
"""
    other, empty, zeros = stocked.told(code)
    assert "tensors ['frame', 'mask', 'confidence']" in other
    assert "does not load 0 bytes that are no plan" in empty
    assert "a plan of TensorRT 0.0.0.0" in zeros
    require_nothing_left(cuda_report)


def test_the_double_is_what_the_other_tests_take_it_for(stocked: Workshop) -> None:
    code = """
from dataclasses import asdict
from edge.engine.trt.device import find_device
tell(asdict(find_device()))
"""
    found = stocked.told(code, graph=FULL)
    assert {**found, "memory_bytes": 0} == {
        "tensorrt": DEVICE.tensorrt,
        "name": DEVICE.name,
        "compute_capability": DEVICE.compute_capability,
        "l4t": DEVICE.l4t,
        "integrated": DEVICE.integrated,
        "memory_bytes": 0,
    }
