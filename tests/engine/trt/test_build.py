"""Compiling: in a process that may die, within a workspace, with timings, telling how far it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.errors import EngineError
from edge.engine.trt import certified
from edge.engine.trt.build import CancelledError, OutOfMemoryError
from edge.engine.trt.orders import Build
from tests.doubles.graphs import integers_to_uint8, small, unknown_operator
from tests.engine.bundles import arrays_of, changed
from tests.engine.trt.scene import FALLBACK, FULL, Workshop

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.engine.trt.orders import Order

MIB = 1 << 20

BUILD = """
from edge.engine.trt.build import build_plan
steps, timings = [], b""
def build(wanted=lambda step: True, **named):
    def told(step):
        steps.append([step.phase, step.parent, step.step, step.steps, step.over])
        return wanted(step)
    graph = bundle.read(graph_of(bundle, name).file)
    given = {"where": "a graph", "workspace_bytes": 1 << 30, "timings": timings, "tell": told}
    return build_plan(graph, **{**given, **named})
"""


def with_graph(bundle: Bundle, path: Path, graph: bytes) -> Bundle:
    return changed(bundle, path, {"ensemble.fp16.onnx": graph})


def timings(workshop: Workshop) -> Path:
    (found,) = workshop.folder.glob("timings-*.bin")
    return found


def test_a_plan_is_made_of_the_graph_that_is_asked_for(stocked: Workshop, bundle: Bundle) -> None:
    half, single = (bundle.read(f"{name}.onnx") for name in ("ensemble.fp16", "fallback"))
    # The double's plans hold the ONNX that they were made of, behind the header.
    plans = {content for name, (content, _) in stocked.kept().items() if name.endswith(".plan")}
    assert {plan.endswith(half) for plan in plans} == {True, False}
    assert {plan.endswith(single) for plan in plans} == {True, False}
    records = [json.loads(text) for n, (text, _) in stocked.kept().items() if n.endswith(".json")]
    assert {record["origin"]["precision"] for record in records} == {"float16", "float32"}
    assert {record["workspace_bytes"] for record in records} == {1024 * MIB}


def test_a_build_tells_of_nested_phases_each_begun_and_ended_in_order(workshop: Workshop) -> None:
    workshop.make("phases=2", "slow-build=2", graph=FALLBACK)
    told = workshop.steps
    assert [(one.phase, one.parent) for one in told if not one.step and not one.over] == [
        ("Building Engine", ""),
        ("Tactics 0", "Building Engine"),
        ("Tactics 1", "Building Engine"),
    ]
    ends = ["Tactics 0", "Tactics 1", "Building Engine"]
    assert [one.phase for one in told if one.over] == ends
    assert (told[0].phase, told[-1].phase, told[-1].over) == ("Building Engine", ends[-1], True)
    inner = [one.step for one in told if one.phase == "Tactics 0"]
    assert inner == sorted(inner)
    assert {one.steps for one in told if one.phase == "Tactics 0"} == {5}
    assert len(inner) > 3  # a step took 0.2 s: more is told than begin and end


def test_who_wants_no_engine_any_more_has_the_build_broken_off(stocked: Workshop) -> None:
    code = f"""
{BUILD}
from edge.engine.trt.build import CancelledError
try:
    build(lambda step: step.phase != "Tactics 0")
except CancelledError as problem:
    tell([str(problem), steps[-1]])
"""
    said, last = stocked.told(code)
    assert said == "a graph: the build was broken off. Nothing was changed."
    assert last == ["Building Engine", "", 3, 3, True]
    assert issubclass(CancelledError, EngineError)


def test_a_graph_that_is_refused_names_its_nodes_and_leaves_nothing(
    workshop: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    other = with_graph(bundle, tmp_path / "b.icecam", unknown_operator())
    with pytest.raises(EngineError) as refused:
        workshop.make(bundle=other)
    assert str(refused.value) == (
        f"{other.path}: ensemble.fp16.onnx: TensorRT 10.3.0 refuses the graph:\n"
        "  node 'Thaw of mask' (Thaw): No importer registered for op: Thaw.. "
        "No engine was built of it."
    )
    assert workshop.kept() == {}
    assert workshop.left("unfinished") == workshop.left("quarantine") == []
    assert workshop.make(bundle=other, graph=FALLBACK).found == "built"


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (integers_to_uint8(), r"node 'Cast of mask' \(Cast\): Found unsupported datatype"),
        (small(), r"takes and gives frame DataType\.UINT8.*expected uint8 frame, mask, confidence"),
        (b"\x08\x0aruined", "Failed to parse the ONNX model"),
    ],
    ids=["integers to uint8", "two outputs", "no ONNX"],
)
def test_other_graphs_that_cannot_be_built_are_named_too(
    stocked: Workshop, bundle: Bundle, tmp_path: Path, graph: bytes, said: str
) -> None:
    before = stocked.kept()
    with pytest.raises(EngineError, match=said):
        stocked.make(bundle=with_graph(bundle, tmp_path / "b.icecam", graph))
    assert stocked.kept() == before


def test_of_many_refused_nodes_the_first_ten_are_named(stocked: Workshop) -> None:
    code = f"""
{BUILD}
import onnx
model = onnx.load_from_string(bundle.read(graph_of(bundle, name).file))
for number, node in enumerate([one for one in model.graph.node if one.op_type == "Relu"][:12]):
    node.op_type = f"Thaw{{number}}"
try:
    build_plan(model.SerializeToString(), where="g", workspace_bytes=1 << 30, timings=b"",
               tell=lambda step: True)
except EngineError as problem:
    tell(str(problem))
"""
    lines = stocked.told(code, graph=FALLBACK).splitlines()
    assert [f"(Thaw{number})" in line for number, line in enumerate(lines[1:11])] == [True] * 10
    assert lines[11].strip().startswith("and 2 more")


def test_a_build_that_is_killed_is_tried_again_with_half_the_workspace(workshop: Workshop) -> None:
    # 1024 and 512 MiB are killed; 256 MiB are 268 million bytes.
    made = workshop.make("build-killed-above=300000000", graph=FALLBACK)
    assert made.sidecar.workspace_bytes == 256 * MIB
    assert [line.partition("; ")[2] for line in workshop.said if "SIGKILL" in line] == [
        "trying again with 512 MiB",
        "trying again with 256 MiB",
    ]
    assert "with a workspace of 1024 MiB" in workshop.said[1]
    assert made.certification.passed


def test_a_build_for_which_tensorrt_finds_no_memory_is_tried_again_too(workshop: Workshop) -> None:
    workshop.maker.workspace_bytes = 128 * MIB
    with pytest.raises(OutOfMemoryError, match=r"with a workspace of 64 MiB \(.*OutOfMemory"):
        workshop.make("build-none", graph=FALLBACK)
    (told,) = [line for line in workshop.said if "trying again" in line]
    assert told.endswith("; trying again with 64 MiB")
    assert "out of memory with a workspace of 128 MiB" in told
    assert workshop.kept() == {}


def test_a_build_that_is_killed_down_to_the_least_workspace_is_a_named_error(
    stocked: Workshop,
) -> None:
    before = stocked.kept()
    stocked.maker.workspace_bytes = 256 * MIB
    with pytest.raises(OutOfMemoryError, match=r"workspace of 64 MiB.*SIGKILL.*want of memory"):
        stocked.make("build-killed", rebuild=True)
    assert [line.rpartition(" with ")[2] for line in stocked.said if "again" in line] == [
        "128 MiB",
        "64 MiB",
    ]
    assert stocked.kept() == before
    assert stocked.left("unfinished") == stocked.left("quarantine") == []


def test_a_build_that_crashes_is_named_and_not_tried_again(stocked: Workshop) -> None:
    before = stocked.kept()
    with pytest.raises(EngineError, match="was ended by SIGSEGV"):
        stocked.make("build-crash", rebuild=True)
    assert stocked.builds == 1
    assert stocked.kept() == before
    assert stocked.make().found == "kept"


def test_a_build_that_hangs_is_killed_at_its_deadline(
    stocked: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stocked.kept()
    monkeypatch.setattr(certified, "_BUILD_S", 2.0)
    with pytest.raises(EngineError, match=r"no answer within 2\.0 s and was killed"):
        stocked.make("slow-build=600", rebuild=True)
    assert stocked.kept() == before


def test_timings_are_kept_and_given_to_the_next_build(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, given = certified.Maker._ask, []

    def noted(maker: certified.Maker, order: Order, deadline_s: float) -> object:
        if isinstance(order, Build):
            given.append(order.timings)
        return ask(maker, order, deadline_s)

    monkeypatch.setattr(certified.Maker, "_ask", noted)
    workshop.make(graph=FALLBACK)
    assert timings(workshop).read_bytes().startswith(b"10.3.0|8.7|timings")
    marked = b"10.3.0|8.7|of an earlier build"
    timings(workshop).write_bytes(marked)
    workshop.make(graph=FALLBACK, rebuild=True)
    assert given == [b"", marked]
    assert timings(workshop).read_bytes().startswith(b"10.3.0|8.7|timings")


def test_timings_reach_tensorrt_as_they_were_kept(stocked: Workshop) -> None:
    code = f"""
{BUILD}
import tensorrt
seen = []
given = tensorrt.IBuilderConfig.set_timing_cache
def noted(self, cache, ignore_mismatch):
    seen.append(bytes(memoryview(cache.serialize())).decode())
    return given(self, cache, ignore_mismatch=ignore_mismatch)
tensorrt.IBuilderConfig.set_timing_cache = noted
build(timings=b"10.3.0|8.7|of an earlier build")
build(timings=b"")
build(timings=b"10.3.0|8.6|of another GPU")
build(timings=b"10.7.0|8.7|of another version")
build(timings=bytes(range(256)))
tell(seen)
"""
    empty = "10.3.0|8.7|"
    assert stocked.told(code, graph=FALLBACK) == [
        "10.3.0|8.7|of an earlier build",
        empty,
        "10.3.0|8.6|of another GPU",
        empty,
        empty,
        empty,
    ]


@pytest.mark.parametrize("content", [b"", b"garbage", b"10.7.0|8.7|old", b"10.3.0|5.3|other"])
def test_timings_that_tensorrt_does_not_take_are_dropped_and_the_build_goes_on(
    stocked: Workshop, content: bytes
) -> None:
    timings(stocked).write_bytes(content)
    assert stocked.make(graph=FALLBACK, rebuild=True).found == "built"
    assert timings(stocked).read_bytes().startswith(b"10.3.0|8.7|timings")


def test_timings_that_cannot_be_kept_cost_no_engine(stocked: Workshop) -> None:
    path = timings(stocked)
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    assert stocked.make(graph=FALLBACK, rebuild=True).found == "built"
    (line,) = [line for line in stocked.said if "timings" in line]
    assert line.startswith("the build's timings cannot be kept (Is a directory): ")
    assert stocked.make(graph=FALLBACK).found == "kept"


def test_a_build_that_finds_no_gpu_any_more_says_so(stocked: Workshop) -> None:
    before = stocked.kept()
    with pytest.raises(EngineError, match=r"driver does not start .*no CUDA-capable device"):
        stocked.make(rebuild=True, devices=0)
    assert stocked.kept() == before


def test_a_bundle_that_changed_since_it_was_opened_is_not_built_of(
    workshop: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    copy = changed(bundle, tmp_path / "ice.icecam", {})
    changed(bundle, tmp_path / "ice.icecam", {}, serial=99)
    with pytest.raises(EngineError, match=r"ice\.icecam changed meanwhile; expected manifest "):
        workshop.make(bundle=copy)
    assert workshop.kept() == {}


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1", "11.4.0"])
def test_the_same_code_builds_and_runs_with_each_supported_version(
    workshop: Workshop, version: str
) -> None:
    code = f"""
{BUILD}
from edge.engine.trt.run import TrtBackend
from contextlib import closing
with closing(TrtBackend(build().plan, where="engine")) as backend:
    tell(np.bincount(backend.run(frames[0]).mask.ravel()).tolist())
"""
    found = workshop.told(code, graph=FALLBACK, version=version)
    stored = workshop.bundle.manifest.golden[0].answer_of(FALLBACK)
    expected = np.bincount(arrays_of(workshop.bundle.read(stored))["mask"].ravel())
    assert np.abs(found - expected).max() < 0.01 * expected.sum()


def test_the_graph_of_the_full_ensemble_is_float16_inside(bundle: Bundle) -> None:
    import onnx
    from onnx import TensorProto

    graph = onnx.load_from_string(bundle.read("ensemble.fp16.onnx")).graph
    kinds = {one.data_type for one in graph.initializer if one.name.endswith("conv1.0.weight")}
    assert kinds == {TensorProto.FLOAT16}
    (chosen,) = (one for one in bundle.manifest.graphs if one.name == FULL)
    assert chosen.precision == "float16"
