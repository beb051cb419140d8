"""The TensorRT double computes what the graph says, and refuses what TensorRT would refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from tests.doubles import graphs
from tests.doubles.graphs import FRAME

if TYPE_CHECKING:
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


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1", "11.4.0"])
def test_executing_computes_what_the_graph_says_and_leaves_nothing_behind(
    child: Child, version: str
) -> None:
    taken, answers, counts = child.run(ANSWER, version=version)
    session = onnxruntime.InferenceSession(graphs.small(), providers=["CPUExecutionProvider"])
    mask, confidence = session.run(["mask", "confidence"], {"frame": FRAME})
    assert taken is True
    assert answers == {"mask": mask.tolist(), "confidence": confidence.tolist()}
    assert answers["mask"] == (BRIGHTEST // 100).tolist()
    assert answers["confidence"] == (255 - BRIGHTEST).tolist()
    assert not any(counts[key] for key in counts if key.startswith(("live", "lost", "retains")))


def test_answers_are_not_there_before_something_waits(child: Child) -> None:
    told = child.run("""
rig = Rig(bytes(memoryview(build(onnx))))
rig.queue()
tell(rig.host["mask"].tolist())
""")
    assert np.array_equal(told, np.full((1, 4, 6), 0xA5))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("rig.execution.set_tensor_address('mask', rig.host['mask'].ctypes.data)", "are 0"),
        ("rig.device['mask'].free()", "are 0"),
        ("rig.execution.set_tensor_address('mask', int(rig.device['mask']) + 1)", "are 23"),
        ("rig.execution = rig.engine.create_execution_context()", "Address is not set"),
        ("cuda.Context.pop()", "no context is current"),
        ("rig.stream = type('Dead', (), {'handle': 0xDEAD})", "no live stream"),
    ],
)
def test_an_execution_on_wrong_ground_is_refused(child: Child, broken: str, said: str) -> None:
    told = child.run(f"""
rig = Rig(bytes(memoryview(build(onnx))))
{broken}
tell([rig.execution.execute_async_v3(stream_handle=rig.stream.handle), log.lines[-1]])
""")
    assert told[0] is False
    assert said in told[1]


def test_an_unknown_tensor_or_another_shape_is_refused(child: Child) -> None:
    told = child.run("""
run = Rig(bytes(memoryview(build(onnx)))).execution
tell([
    run.set_tensor_address("masks", 1),
    run.set_input_shape("mask", (1, 4, 6)),
    run.set_input_shape("frame", (1, 4, 7, 3)),
    run.set_input_shape("frame", (1, 4, 6, 3)),
])
""")
    assert told == [False, False, False, True]


def test_wrong_arguments_are_refused_as_the_real_binding_refuses_them(child: Child) -> None:
    told = child.run("""
builder, network, parser = parsed(onnx)
config = builder.create_builder_config()
rig = Rig(bytes(memoryview(build(onnx))))
pool, flags = trt.MemoryPoolType.WORKSPACE, trt.NetworkDefinitionCreationFlag
class Forgets(trt.IProgressMonitor):
    def __init__(self): pass
tell([error_of(*call) for call in (
    (trt.Runtime, 3),
    (builder.create_network, 1.0),
    (config.set_memory_pool_limit, pool, "1"),
    (config.set_memory_pool_limit, 0, 1),
    (lambda: config.set_memory_pool_limit(pool, size=1),),
    (config.set_timing_cache, None, True),
    (lambda: 1 << flags.STRONGLY_TYPED,),
    (rig.execution.set_tensor_address, "mask", rig.device["mask"].as_buffer),
    (rig.execution.execute_async_v3, rig.stream),
    (lambda: rig.engine.get_tensor_shape("mask") == rig.engine.get_tensor_shape("mask"),),
    (Forgets,),
    (setattr, config, "progress_monitor", 3),
)])
""")
    assert len(told) == 12
    assert all(error.startswith("TypeError") for error in told), told


def test_host_memory_offers_its_buffer_and_its_size_alone(child: Child) -> None:
    told = child.run("""
plan = build(onnx)
content = bytes(memoryview(plan))
refused = [error_of(len, plan), error_of(lambda: plan[0]), error_of(lambda: list(plan))]
tell([plan.nbytes == len(content), content[:4].decode(), list(content[24:28]), refused])
""")
    assert told[:3] == [True, "ftrt", [10, 3, 0, 26]]
    assert all("TypeError" in error for error in told[3])


def test_phases_are_told_from_the_callers_thread_and_from_another(child: Child) -> None:
    told = child.run(
        """
threads = []
class Watching(Monitor):
    def step_complete(self, phase_name, step):
        threads.append((phase_name, threading.current_thread() is threading.main_thread()))
        return super().step_complete(phase_name, step)
monitor = Watching()
built = build(onnx, monitor) is not None
tell([built, monitor.told, threads])
""",
        "phases=2",
    )
    built, steps, threads = told
    assert built
    assert steps[0] == ["start", "Building Engine", None, 2]
    assert steps[1] == ["start", "Tactics 0", "Building Engine", 5]
    assert [step for step in steps if step[:2] == ["step", "Tactics 1"]][-1][2] == 4
    assert steps[-1] == ["finish", "Building Engine"]
    assert {tuple(one) for one in threads} == {
        ("Building Engine", True),
        ("Tactics 0", False),
        ("Tactics 1", False),
    }


def test_a_monitor_that_says_no_or_fails_ends_the_build(child: Child) -> None:
    told = child.run("""
class Failing(Monitor):
    def step_complete(self, phase_name, step):
        raise ValueError("mine")
stopped, failing = Monitor(stop_at="Tactics 1"), Failing()
plans = [build(onnx, stopped), build(onnx, failing)]
tell([plans, stopped.told[-3:]])
""")
    assert told == [
        [None, None],
        [["step", "Tactics 1", 0], ["finish", "Tactics 1"], ["finish", "Building Engine"]],
    ]


TIMINGS = """
builder, network, _ = parsed(onnx)
config = builder.create_builder_config()
path = pathlib.Path(sys.argv[1]).with_name("timings")
content = path.read_bytes() if path.exists() else b""
cache = config.create_timing_cache(content)
taken = cache and config.set_timing_cache(cache, ignore_mismatch=False)
built = builder.build_serialized_network(network, config)
after = bytes(memoryview(cache.serialize())) if cache else b""
taken and path.write_bytes(after)
tell([len(content), cache is not None, taken, len(after)])
"""


def test_timings_are_taken_back_by_the_same_release_and_device_alone(child: Child) -> None:
    first = child.run(TIMINGS)
    again = child.run(TIMINGS)
    assert first[:3] == [0, True, True]
    assert again == [first[3], True, True, first[3]]
    assert child.run(TIMINGS, version="10.7.0")[1:3] == [False, None]
    assert child.run(TIMINGS, capability="8.6")[1:3] == [True, False]
    child.onnx.with_name("timings").write_bytes(b"\x00no timings")
    assert child.run(TIMINGS)[1:3] == [False, None]


def test_a_network_must_be_strongly_typed_and_takes_no_precision_flag(child: Child) -> None:
    told = child.run("""
plans = []
for flags, fp16 in ((0, False), (None, True), (None, False)):
    builder, network, _ = parsed(onnx, flags=flags)
    config = builder.create_builder_config()
    fp16 and config.set_flag(trt.BuilderFlag.FP16)
    plans.append(builder.build_serialized_network(network, config) is not None)
tell(plans)
""")
    assert told == [False, False, True]


@pytest.mark.parametrize(
    ("content", "code", "name", "operator"),
    [
        (graphs.inner_uint8(), "UNSUPPORTED_NODE_DATATYPE", "Transpose of turned", "Transpose"),
        (graphs.integers_to_uint8(), "UNSUPPORTED_NODE_DATATYPE", "Cast of mask", "Cast"),
        (graphs.unknown_operator(), "UNSUPPORTED_NODE", "Thaw of mask", "Thaw"),
        (b"no graph", "MODEL_DESERIALIZE_FAILED", "", ""),
    ],
    ids=["inner uint8", "int to uint8", "unknown operator", "no graph"],
)
def test_the_parser_names_the_node_that_it_refuses(
    child: Child, content: bytes, code: str, name: str, operator: str
) -> None:
    child.onnx.write_bytes(content)
    told = child.run("""
_, network, parser = parsed(onnx)
error = parser.get_error(0)
tell([network.num_outputs, error.code().name, error.node_name(), error.node_operator()])
""")
    assert told == [0, code, name, operator]
