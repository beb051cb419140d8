"""The same on a real GPU with a real TensorRT: no doubles. Skipped where one of them is missing."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.errors import EngineError
from edge.engine import graph_of
from edge.engine.certify import COMPILED
from edge.engine.golden import read_golden
from edge.engine.ort import OrtBackend
from edge.engine.trt.cache import EngineCache
from edge.engine.trt.certified import Maker, origin_of
from tests.engine.trt.scene import DEVICE, FALLBACK, FULL, Workshop

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.engine.trt.device import Device

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

FRAMES = 100


def real_env(*_: str, **__: str | int) -> dict[str, str]:
    """The environment as it is: faults and settings are the doubles' alone."""
    return dict(os.environ)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """What is here, or the reason to skip."""
    folder = tmp_path_factory.mktemp("nothing") / "engines"
    try:
        found = Maker(cache=EngineCache(folder)).device()
    except EngineError as problem:
        pytest.skip(f"NO GPU WITH TENSORRT: {problem}")
    if found.name == DEVICE.name:
        pytest.skip("NO GPU WITH TENSORRT: these are the doubles")
    return found


@pytest.fixture(scope="module")
def real(device: Device, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Both engines, built here with nested phases told, and certified."""
    workshop = Workshop(real_env, tmp_path_factory.mktemp("real") / "engines", bundle)
    for graph in (FULL, FALLBACK):
        made = workshop.make(graph=graph, device=device)
        assert made.found == "built"
        assert made.certification.passed
        assert any(step.parent for step in workshop.steps)
        assert any(step.over and not step.parent for step in workshop.steps)
        print(graph, made.sidecar.build_s, made.certification)
    return workshop


def test_the_header_of_a_real_plan_names_the_version(real: Workshop, device: Device) -> None:
    plan = real.maker.cache.plan(origin_of(real.bundle, graph_of(real.bundle, FULL), device))
    head = plan.read_bytes()[:28]
    assert head[:4] == b"ftrt"
    assert ".".join(map(str, head[24:27])) == ".".join(device.tensorrt.split(".")[:3])


def test_a_real_engine_is_kept_and_not_built_again(real: Workshop, device: Device) -> None:
    before = real.kept()
    assert real.make(device=device).found == "kept"
    assert real.kept() == before


@pytest.mark.parametrize("graph", [FULL, FALLBACK])
def test_real_answers_are_onnx_runtime_s_within_the_bars_of_compiled_engines(
    real: Workshop, bundle: Bundle, tmp_path: Path, graph: str
) -> None:
    answers = tmp_path / "answers.npz"
    code = f"""
with opened() as engine:
    np.savez({str(answers)!r}, *[engine.answer(frame).answer.mask for frame in frames])
tell(engine.name)
"""
    assert real.told(code, graph=graph) == "trt"
    chosen = graph_of(bundle, graph)
    runtime = OrtBackend(bundle.read(chosen.file), where=chosen.file)
    with np.load(answers) as found:
        for number, case in enumerate(bundle.manifest.golden):
            expected = runtime.run(read_golden(bundle, case, chosen)[0]).mask
            assert (found[f"arr_{number}"] == expected).mean() >= COMPILED.mask


def test_a_real_engine_answers_several_threads_and_is_closed_from_another(real: Workshop) -> None:
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
engine = opened()
alone = [engine.answer(frame).answer.mask for frame in frames]
with ThreadPoolExecutor(4) as threads:
    found = list(threads.map(lambda n: engine.answer(frames[n % 2]).answer.mask, range(32)))
right = [bool((mask == alone[n % 2]).all()) for n, mask in enumerate(found)]
closer = threading.Thread(target=engine._backend.close)
closer.start()
closer.join()
engine._backend.close()
tell([all(right), error_of(engine.answer, frames[0])])
"""
    right, closed = real.told(code)
    assert right
    assert closed.endswith("this engine was closed")


def test_real_gpu_memory_does_not_grow_with_frames_and_comes_back_at_the_end(
    real: Workshop,
) -> None:
    code = f"""
from edge.engine.trt.device import load_cuda
cuda = load_cuda()
context = cuda.Device(0).retain_primary_context()
def free():
    context.push()
    try:
        return cuda.mem_get_info()[0]
    finally:
        cuda.Context.pop()
engine = opened()
engine.answer(frames[0])
engine._backend.close()
before = free()
engine = opened()
for _ in range(5):
    engine.answer(frames[0])
open_ = free()
for n in range({FRAMES}):
    engine.answer(frames[n % 2])
after = free()
engine._backend.close()
closed = free()
context.detach()
tell([before - open_, open_ - after, before - closed])
"""
    taken, grown, left = real.told(code)
    print("bytes on the GPU:", taken, "grown:", grown, "left:", left)
    assert taken >= 0
    assert grown <= 0
    assert left <= 0


def test_bytes_that_are_no_real_plan_are_refused_in_tensorrt_s_words(
    real: Workshop, device: Device
) -> None:
    code = """
from edge.engine.trt.run import TrtBackend
tell([error_of(lambda: TrtBackend(b, where="it")) for b in (b"x" * 4096, b"ftrt" + bytes(4096))])
"""
    nothing, zeros = real.told(code)
    assert f"TensorRT {device.tensorrt} does not load 4096 bytes that are no plan (" in nothing
    assert "does not load a plan of TensorRT 0.0.0.0 (" in zeros


def test_a_real_build_is_broken_off_by_its_progress_monitor(real: Workshop) -> None:
    code = """
from edge.engine.trt.build import build_plan
graph = bundle.read(graph_of(bundle, name).file)
tell(error_of(lambda: build_plan(
    graph, where="it", workspace_bytes=1 << 30, timings=b"", tell=lambda step: False
)))
"""
    assert real.told(code) == "it: the build was broken off. Nothing was changed."


def test_a_real_engine_whose_record_says_another_version_is_rebuilt(
    real: Workshop, device: Device
) -> None:
    origin = origin_of(real.bundle, graph_of(real.bundle, FALLBACK), device)
    path = real.folder / f"{origin.onnx_sha256[:32]}.json"
    record = json.loads(path.read_text())
    record["origin"]["tensorrt"] = "10.3.0.0"
    path.write_text(json.dumps(record))
    assert "no engine for this machine" in real.told("tell(error_of(opened))", graph=FALLBACK)
    made = real.make(graph=FALLBACK, device=device)
    assert (made.found, made.certification.passed) == ("built", True)
    assert f"tensorrt 10.3.0.0 → {device.tensorrt}" in real.said[0]
