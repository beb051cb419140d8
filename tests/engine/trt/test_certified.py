"""From a graph to an engine that may serve: certified, kept, or laid aside."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.errors import EngineError
from edge.engine import graph_of
from edge.engine.golden import read_golden
from edge.engine.ort import OrtBackend
from edge.engine.trt import certified
from edge.engine.trt.cache import Sidecar
from edge.engine.trt.certified import NotEqualError
from edge.engine.trt.orders import Certify, PlanRefusedError
from tests.engine.bundles import answer_file, arrays_of, changed
from tests.engine.trt.scene import DEVICE, FALLBACK, FULL, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.engine.trt.orders import Order


def swapped(bundle: Bundle, path: Path) -> Bundle:
    """The same bundle, whose full ensemble is said to answer 0 for 1 and 1 for 0."""
    files = {}
    for case in bundle.manifest.golden:
        arrays = arrays_of(bundle.read(case.answer))
        for name in ("mask", "member_masks"):
            arrays[name] = np.array([1, 0, 2], np.uint8)[arrays[name]]
        files[case.answer] = answer_file(**arrays)
    return changed(bundle, path, files)


def quarantined(workshop: Workshop) -> Sidecar:
    (record,) = (workshop.folder / "quarantine").glob("*.json")
    return Sidecar.model_validate_json(record.read_bytes())


@pytest.mark.parametrize("graph", [FULL, FALLBACK])
def test_an_engine_answers_what_onnx_runtime_answers_with_the_same_graph(
    stocked: Workshop, bundle: Bundle, graph: str
) -> None:
    code = """
with opened() as engine:
    answers = [engine.answer(frame).answer for frame in frames]
np.savez(cache / "answers.npz", **{
    f"{key} {n}": getattr(answer, key)
    for n, answer in enumerate(answers) for key in ("mask", "confidence", "member_masks")
})
tell(engine.name)
"""
    assert stocked.told(code, graph=graph) == "trt"
    chosen = graph_of(bundle, graph)
    runtime = OrtBackend(bundle.read(chosen.file), where=chosen.file)
    with np.load(stocked.folder / "answers.npz") as found:
        for number, case in enumerate(bundle.manifest.golden):
            expected = runtime.run(read_golden(bundle, case, chosen)[0])
            assert np.array_equal(found[f"mask {number}"], expected.mask)
            assert np.array_equal(found[f"confidence {number}"], expected.confidence)
            assert np.array_equal(found[f"member_masks {number}"], expected.member_masks)
            assert set(np.unique(expected.mask)) == {0, 1, 2}


def test_the_first_time_it_is_built_and_certified_and_the_next_it_is_kept(
    workshop: Workshop, bundle: Bundle
) -> None:
    made = workshop.make()
    assert (made.found, workshop.builds) == ("built", 1)
    verdict = made.certification
    assert verdict.passed
    assert (verdict.engine, verdict.graph, verdict.frames) == ("trt", FULL, 2)
    assert verdict.bundle_sha256 == bundle.sha256
    assert 0.99 <= verdict.mask_agreement <= 1
    assert 0 < verdict.median_s <= verdict.slowest_s
    assert workshop.said == [
        f"building an engine for graph '{FULL}' (none was built yet)",
        "running 2 golden frames through it",
    ]
    before = workshop.kept()
    again = workshop.make()
    assert (again.found, workshop.steps, workshop.said) == ("kept", [], [])
    assert again.sidecar.model_dump_json() == made.sidecar.model_dump_json()
    assert workshop.kept() == before
    assert workshop.left("unfinished") == []


def test_another_bundle_with_the_same_graph_is_certified_without_a_build(
    stocked: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    newer = changed(bundle, tmp_path / "newer.icecam", {}, serial=bundle.manifest.serial + 1)
    plan = stocked.maker.cache.plan(certified.origin_of(bundle, graph_of(bundle, FULL), DEVICE))
    before = plan.stat()
    made = stocked.make(bundle=newer)
    assert (made.found, stocked.steps) == ("certified anew", [])
    assert made.certification.bundle_sha256 == newer.sha256 != bundle.sha256
    assert (plan.stat().st_ino, plan.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert stocked.make(bundle=newer).found == "kept"


def test_an_engine_that_was_certified_with_another_bundle_is_not_loaded(
    stocked: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    stocked.bundle = changed(bundle, tmp_path / "newer.icecam", {}, serial=9)
    assert "was not certified with" in stocked.told("tell(error_of(opened))")


@pytest.mark.parametrize(
    ("fault", "figures"),
    [
        # Both golden frames show water (class 1) on 0.27 and 0.31 of all pixels or so.
        ("lose-class=1", r"IoU of water 0\.000, at least 0\.97 wanted"),
        ("swap-classes", r"IoU of other 0\.000.*IoU of water 0\.000"),
        ("nan", r"172032 pixels are not numbers \(NaN\)"),  # 2 frames of 224 x 384
        ("zeros", r"172032 pixels are not numbers \(NaN\)"),
        ("garbage", "answers class 255"),
    ],
)
def test_an_engine_that_answers_otherwise_is_laid_aside_and_never_loaded(
    workshop: Workshop, fault: str, figures: str
) -> None:
    with pytest.raises(NotEqualError, match=figures) as failed:
        workshop.make(fault)
    assert workshop.builds == 1
    assert workshop.kept() == {}
    said = workshop.told("tell(error_of(opened))")
    assert said == str(failed.value).replace("; the engine of before stays.", ".")
    assert "It was laid aside; the engine of before stays." in str(failed.value)
    record = quarantined(workshop).certification
    assert record.model_dump_json() == failed.value.certification.model_dump_json()
    assert not record.passed
    assert "; ".join(record.shortfalls) in str(failed.value)


def test_what_failed_is_not_built_again_by_itself_but_when_asked_or_for_another_bundle(
    workshop: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(NotEqualError):
        workshop.make("swap-classes")
    with pytest.raises(NotEqualError, match="It failed before and is not built again by itself"):
        workshop.make()
    assert workshop.steps == []
    newer = changed(bundle, tmp_path / "newer.icecam", {}, serial=9)
    with pytest.raises(NotEqualError):
        workshop.make("swap-classes", bundle=newer)
    assert workshop.builds == 1
    assert workshop.make(bundle=newer, rebuild=True).found == "built"
    assert workshop.left("quarantine") == []


def test_the_engine_of_before_serves_on_after_a_rebuild_that_failed(stocked: Workshop) -> None:
    before = stocked.kept()
    with pytest.raises(NotEqualError, match="the engine of before stays"):
        stocked.make("swap-classes", rebuild=True)
    assert stocked.kept() == before
    assert [name[-5:] for name in stocked.left("quarantine")] == [".json"]
    made = stocked.make()
    assert (made.found, made.certification.passed) == ("kept", True)
    assert stocked.told("tell(opened().answer(frames[0]).engine)") == "trt"


def test_an_engine_that_is_not_equal_to_a_new_bundle_is_laid_aside_and_its_fallback_is_not(
    stocked: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    other = swapped(bundle, tmp_path / "swapped.icecam")
    with pytest.raises(NotEqualError, match=r"IoU of other 0\.000.* It was laid aside\.$"):
        stocked.make(bundle=other)
    assert stocked.steps == []
    assert quarantined(stocked).certification.bundle_sha256 == other.sha256
    assert len(stocked.kept()) == 2  # the fallback's plan and record
    assert stocked.make(bundle=other, graph=FALLBACK).found == "certified anew"
    with pytest.raises(NotEqualError, match="It failed before"):
        stocked.make(bundle=other)


def test_an_engine_that_hangs_is_killed_at_the_deadline_and_laid_aside(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certified, "_CERTIFY_S", 3.0)
    with pytest.raises(NotEqualError, match=r"gave no answer within 3\.0 s and was killed"):
        workshop.make("hang")
    record = quarantined(workshop).certification
    assert (record.passed, record.mask_agreement) == (False, 0)
    assert record.shortfalls == (
        "edge.engine.trt.worker gave no answer within 3.0 s and was killed",
    )
    assert workshop.kept() == {}


def test_an_engine_that_crashes_its_process_is_laid_aside(workshop: Workshop) -> None:
    with pytest.raises(NotEqualError, match="was ended by SIGSEGV"):
        workshop.make("crash")
    assert [name[-5:] for name in workshop.left("quarantine")] == [".json"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("deserialize-none", (r"TensorRT 10\.3\.0 does not load a plan of TensorRT 10\.3\.0\.26 "
         r"\(.*Magic tag does not match.*\), though it was built just now")),
        ("context-none", r"no room for what it computes with \(.*OutOfMemory"),
        ("execute-false", r"did not compute \(.*Myelin .*of the frame before, and was not used"),
        ("lost", r"failed on a frame \(.*launch fail"),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_be_asked_is_no_verdict_and_leaves_what_was_there(
    stocked: Workshop, fault: str, said: str
) -> None:
    before = stocked.kept()
    with pytest.raises(EngineError, match=said) as failed:
        stocked.make(fault, rebuild=True)
    assert not isinstance(failed.value, NotEqualError)
    assert stocked.kept() == before
    assert stocked.left("quarantine") == []
    assert stocked.make().found == "kept"
    assert stocked.left("unfinished") == []


def test_a_certification_that_is_killed_from_outside_is_no_verdict_either(
    stocked: Workshop,
) -> None:
    before = stocked.kept()

    def kill() -> None:
        while not stocked.said or not stocked.said[-1].startswith("running"):
            time.sleep(0.01)
        while stocked.maker._child is None:
            time.sleep(0.01)
        os.kill(stocked.maker._child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EngineError, match="ended by SIGKILL, most likely for want of mem") as hit:
        stocked.make("hang", rebuild=True)
    killer.join()
    assert "The engine of before stays." in str(hit.value)
    assert stocked.kept() == before
    assert stocked.left("quarantine") == []


def damaged(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")


def linked(plan: Path) -> None:
    plan.rename(plan.parent.parent / "elsewhere")
    plan.symlink_to(plan.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, "the engine is another than was written"),
        (linked, r"the engine cannot be read \(Too many levels of symbolic links\)"),
    ],
)
def test_a_plan_that_is_not_what_was_built_is_not_run_for_certification(
    stocked: Workshop,
    spoil: Callable[[Path], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, ask = stocked.kept(), certified.Maker._ask

    def spoilt(maker: certified.Maker, order: Order, deadline_s: float) -> object:
        if isinstance(order, Certify):
            spoil(order.plan)
        return ask(maker, order, deadline_s)

    monkeypatch.setattr(certified.Maker, "_ask", spoilt)
    with pytest.raises(EngineError, match=said):
        stocked.make(rebuild=True)
    assert stocked.kept() == before


def refuse(workshop: Workshop) -> None:
    """Make the fallback's plan one of 10.3.1, whole by its record, which still says 10.3.0."""
    (path,) = (one for one in workshop.folder.glob("*.json") if FALLBACK in one.read_text())
    record = json.loads(path.read_text())
    old = path.with_name(f"{path.stem}-{record['plan_sha256'][:16]}.plan")
    content = bytearray(old.read_bytes())
    assert tuple(content[24:28]) == (10, 3, 0, 26)
    content[26] = 1
    record["plan_sha256"] = hashlib.sha256(content).hexdigest()
    old.with_name(f"{path.stem}-{record['plan_sha256'][:16]}.plan").write_bytes(content)
    old.unlink()
    path.write_text(json.dumps(record))


def test_a_plan_that_tensorrt_does_not_load_is_not_kept_but_built_anew(
    stocked: Workshop, bundle: Bundle
) -> None:
    refuse(stocked)
    made = stocked.make(graph=FALLBACK)
    assert (made.found, stocked.builds) == ("built", 1)
    assert stocked.said[0].startswith(
        f"building an engine for graph '{FALLBACK}' (engine of graph '{FALLBACK}': "
        "TensorRT 10.3.0 does not load a plan of TensorRT 10.3.1.26 ("
    )
    origin = certified.origin_of(bundle, graph_of(bundle, FALLBACK), DEVICE)
    plans = stocked.folder.glob(f"{origin.onnx_sha256[:32]}*.plan")
    assert list(plans) == [stocked.maker.cache.plan(origin)]
    assert stocked.make(graph=FALLBACK).found == "kept"
    assert stocked.make(graph=FULL).found == "kept"


def test_what_is_asked_for_another_bundle_and_not_loaded_is_built_anew_too(
    stocked: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    refuse(stocked)
    newer = changed(bundle, tmp_path / "newer.icecam", {}, serial=bundle.manifest.serial + 1)
    made = stocked.make(graph=FALLBACK, bundle=newer)
    assert (made.found, made.certification.bundle_sha256) == ("built", newer.sha256)
    assert "does not load a plan of TensorRT 10.3.1.26" in stocked.said[1]


def test_a_plan_over_which_its_process_hangs_is_built_anew(
    stocked: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certified, "_LOAD_S", 0.001)
    assert stocked.make(graph=FALLBACK).found == "built"
    assert "gave no answer within 0.0 s and was killed as it loaded" in stocked.said[0]


@pytest.mark.parametrize(
    ("faults", "settings"), [(["context-none"], {}), ([], {"memory": 1_000_000})]
)
def test_a_plan_for_which_the_gpu_has_no_memory_now_is_not_kept_and_not_forgotten(
    stocked: Workshop, faults: list[str], settings: dict[str, int]
) -> None:
    before = stocked.kept()
    with pytest.raises(EngineError, match="OutOfMemory") as failed:
        stocked.make(*faults, **settings)
    assert not isinstance(failed.value, PlanRefusedError)
    assert (stocked.steps, stocked.kept()) == ([], before)
    assert stocked.make().found == "kept"


def test_a_make_is_broken_off_from_another_thread(stocked: Workshop) -> None:
    before = stocked.kept()

    def stop() -> None:
        while not stocked.steps:
            time.sleep(0.01)
        stocked.maker.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    began = time.monotonic()
    with pytest.raises(EngineError):
        stocked.make("slow-build=60", rebuild=True)
    assert time.monotonic() - began < 30
    stopper.join()
    assert stocked.kept() == before
    with pytest.raises(EngineError, match="broken off"):
        stocked.make(rebuild=True)
