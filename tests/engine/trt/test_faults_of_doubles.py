"""The TensorRT double fails as it is asked to; what prepares the doubles fails whole."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.doubles import places, prepare
from tests.doubles.graphs import FRAME

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from tests.doubles.child import Child

BRIGHTEST = FRAME.max(axis=3)

ANSWER = """
rig = Rig(bytes(memoryview(build(onnx))))
taken = rig.queue()
rig.stream.synchronize()
answers = {name: array.tolist() for name, array in rig.host.items() if name != "frame"}
rig.close()
tell([taken, answers, report()])
"""


REFUSED = """
path = pathlib.Path(sys.argv[1]).with_name("plan")
if not path.exists():
    path.write_bytes(memoryview(build(onnx)))
cuda.init()
context = cuda.Device(0).retain_primary_context()
context.push()
tell([load(path.read_bytes()) is None, log.lines])
cuda.Context.pop()
context.detach()
"""


def test_a_plan_of_another_release_or_device_is_refused_in_tensorrts_words(child: Child) -> None:
    assert child.run(REFUSED) == [False, []]
    refused, (tag, release) = child.run(REFUSED, version="10.7.0")
    assert refused
    assert "Version tag does not match. Note: Current Version: 243" in tag
    assert "expecting library version 10.7.0.26 got 10.3.0.26, please rebuild." in release
    refused, (device,) = child.run(REFUSED, capability="8.6")
    assert refused
    assert "incompatible device, expecting compute 8.6 got compute 8.7, please rebuild" in device
    plan = child.onnx.with_name("plan")
    whole = plan.read_bytes()
    for broken, said in ((whole[:-1], "truncated"), (whole[:9], "truncated"), (b"x", "Magic tag")):
        plan.write_bytes(broken)
        refused, (line,) = child.run(REFUSED)
        assert refused
        assert said in line


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("parse-error", [1, True]),
        ("build-none", [0, True]),
        ("build-killed-above=268435455", -signal.SIGKILL),
        ("build-killed-above=268435456", [0, False]),
        ("build-killed", -signal.SIGKILL),
        ("build-crash", -signal.SIGSEGV),
    ],
)
def test_a_build_fails_as_it_was_asked_to(child: Child, fault: str, told: object) -> None:
    ended = child.end("tell([parsed(onnx)[2].num_errors, build(onnx) is None])", fault)
    found = json.loads(ended.stdout) if ended.returncode == 0 else ended.returncode
    assert found == told


RUN = """
rig = Rig(bytes(memoryview(build(onnx))))
taken = rig.execution.execute_async_v3(rig.stream.handle)
tell([taken, error_of(rig.stream.synchronize).rpartition(": ")[2]])
os._exit(0)
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("deserialize-none", "AttributeError"),  # there is no engine to ask
        ("context-none", "AttributeError"),
        ("execute-false", [False, ""]),
        ("lost", [True, "unspecified launch failure"]),
        ("crash", -signal.SIGSEGV),
    ],
)
def test_a_run_fails_as_it_was_asked_to(child: Child, fault: str, told: object) -> None:
    ended = child.end(RUN, fault)
    if isinstance(told, str):
        assert told in ended.stderr
    else:
        found = json.loads(ended.stdout) if ended.returncode == 0 else ended.returncode
        assert found == told


@pytest.mark.parametrize(
    ("fault", "mask", "confidence"),
    [
        ("swap-classes", np.choose(BRIGHTEST // 100, [1, 0, 2]), 255 - BRIGHTEST),
        ("lose-class=1", np.choose(BRIGHTEST // 100, [0, 0, 2]), 255 - BRIGHTEST),
        ("zeros", np.zeros_like(BRIGHTEST), np.zeros_like(BRIGHTEST)),
        ("nan", np.zeros_like(BRIGHTEST), np.zeros_like(BRIGHTEST)),
    ],
)
def test_answers_are_wrong_as_they_were_asked_to_be(
    child: Child, fault: str, mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.uint8]
) -> None:
    _, answers, _ = child.run(ANSWER, fault)
    assert set(np.unique(BRIGHTEST // 100)) == {0, 1, 2}
    assert answers == {"mask": mask.tolist(), "confidence": confidence.tolist()}


def test_garbage_is_neither_right_nor_constant(child: Child) -> None:
    _, answers, _ = child.run(ANSWER, "garbage")
    assert len(np.unique(answers["mask"])) > 10


def test_slow_is_slow_and_hanging_never_ends(child: Child) -> None:
    began = time.monotonic()
    child.run(ANSWER, "slow=2", "slow-build=2")
    assert time.monotonic() - began > 4
    code = ANSWER.replace("rig.queue()", "(tell('begun'), rig.queue())")
    with pytest.raises(subprocess.TimeoutExpired) as hung:
        child.end(code, "hang", timeout=6)
    assert "begun" in str(hung.value.output)


def test_a_builder_hears_no_signal_before_it_is_done(child: Child) -> None:
    told = child.run(
        """
import signal, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(time.monotonic()))
began = time.monotonic()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
build(onnx)
tell(min(heard) - began)
""",
        "slow-build=2",
        "phases=1",
    )
    assert told > 1.9


def test_without_a_device_the_factories_answer_as_the_binding_does(child: Child) -> None:
    told = child.run("tell([error_of(trt.Builder, log), error_of(trt.Runtime, log)])", devices=0)
    assert told == ["TypeError: pybind11::init(): factory function returned nullptr"] * 2


def test_an_unknown_fault_is_named(child: Child) -> None:
    ended = child.end("", "deserialise-none")
    assert ended.returncode == 1
    assert "no fault 'deserialise-none'" in ended.stderr


OFFERED = """
import json, tensorrt as trt
flags = trt.NetworkDefinitionCreationFlag
typed = getattr(flags, "STRONGLY_TYPED", None)
print(json.dumps([trt.__version__, None if typed is None else int(typed), [
    hasattr(trt, "IProgressMonitor"),
    hasattr(trt.ICudaEngine, "device_memory_size_v2"),
    hasattr(flags, "EXPLICIT_BATCH"),
    hasattr(trt.BuilderFlag, "FP16"),
]]))
"""


@pytest.mark.parametrize(
    ("version", "strongly_typed", "has"),
    [
        ("8.6.1", None, [False, False, True, True]),
        ("10.0.1", 1, [True, False, True, True]),
        ("10.3.0", 1, [True, True, True, True]),
        ("11.4.0", 0, [True, True, False, False]),
    ],
)
def test_a_release_has_what_it_has(
    child: Child, version: str, strongly_typed: int | None, has: list[bool]
) -> None:
    told = child.end(OFFERED, head="", version=version)
    assert json.loads(told.stdout) == [version, strongly_typed, has]


def test_a_preparation_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "REPOSITORY", tmp_path)

    def fails(to: Path) -> None:
        (to / "half").write_text("made")
        prepare._run("false", then="Do this.")

    with pytest.raises(prepare.PreparationError, match=r"status 1 of: false\n\nDo this\."):
        prepare._make(tmp_path / "thing", "a thing", fails)
    assert list(tmp_path.iterdir()) == []
    prepare._make(tmp_path / "thing", "a thing", lambda to: (to / "whole").touch())
    assert [path.name for path in tmp_path.rglob("*")] == ["thing", "whole"]
    prepare._make(tmp_path / "thing", "a thing", fails)  # there: not made again
