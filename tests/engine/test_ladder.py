"""The ladder: the best engine that is ready serves, the next where it fails; TensorRT a double."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from edge.contract.bundle import open_bundle
from edge.engine.ladder import Rung, rungs, to_compile
from tests.doubles.graphs import unknown_operator
from tests.engine.bundles import arrays_of
from tests.engine.fallbacks import listing, with_fallback
from tests.engine.ladders import (
    FRAME,
    alike,
    expected,
    ladder,
    made,
)
from tests.engine.surgery import HEADS, swap_classes
from tests.stations import children, make_engines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from tests.doubles.inherited import InheritedDoubles

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("names", "compiles"),
    [
        (["full"], ["full"]),
        (["full", "full-fp16"], ["full-fp16"]),
        (["full", "full-fp16", "fallback-fp16"], ["full-fp16", "fallback-fp16"]),
        (["full", "fallback"], ["full", "fallback"]),
        (["full", "full-fp16", "fallback", "fallback-fp16"], ["full-fp16", "fallback-fp16"]),
        (["full", "fallback", "fallback-fp16", "full-fp16"], ["full-fp16", "fallback-fp16"]),
    ],
)
def test_of_each_ensemble_the_float16_graph_is_compiled_the_full_one_first(
    demo: Bundle, names: list[str], compiles: list[str], double: InheritedDoubles
) -> None:
    del double  # TensorRT is there
    manifest = listing(demo, *names)
    assert [graph.name for graph in to_compile(manifest)] == compiles
    words = ["none", "fallback"][: len(compiles)]
    for wanted in ("auto", "trt"):
        assert rungs(manifest, wanted) == (
            *(
                Rung(backend="trt", graph=graph, degraded=word)
                for graph, word in zip(compiles, words, strict=True)
            ),
            Rung(backend="ort", graph="full", degraded="onnxruntime"),
        )
    assert rungs(manifest, "ort") == (Rung(backend="ort", graph="full", degraded="none"),)


def test_without_tensorrt_auto_is_onnx_runtime_and_that_is_not_degraded(
    demo: Bundle, tmp_path: Path
) -> None:
    threads = threading.active_count()
    with ladder(demo, tmp_path / "engines") as one:
        assert threading.active_count() == threads
        found = one.segment(FRAME)
        assert (found.engine, found.graph, found.degraded) == ("ort", "full", "none")
        assert (one.degraded, one.certifications) == ("none", ())
        assert alike(found.answer, expected(demo, FRAME))
    assert not (tmp_path / "engines").exists()


def test_a_jetson_without_tensorrt_is_degraded_and_says_what_to_install(
    demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.engine.ladder.l4t", lambda: "36.4.3")
    assert rungs(demo.manifest, "auto") == rungs(demo.manifest, "trt")
    assert [rung.backend for rung in rungs(demo.manifest, "ort")] == ["ort"]
    with ladder(demo, tmp_path / "engines") as one:
        assert one.why_degraded is None  # nothing was tried yet, or it is being tried
        made(one)
        found = one.segment(FRAME)
        assert (found.engine, found.degraded) == ("ort", "onnxruntime")
        assert one.why_degraded is not None
        assert one.why_degraded.startswith("no TensorRT engine: no TensorRT for this Python")


def test_trt_where_there_is_none_leaves_onnx_runtime_serving_and_says_so(
    demo: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ladder(demo, tmp_path / "engines", "trt") as one:
        made(one)
        found = one.segment(FRAME)
        assert (found.engine, found.degraded, one.degraded) == ("ort", "onnxruntime", "onnxruntime")
    assert "no TensorRT for this Python" in caplog.text
    assert "ONNX Runtime serves" in caplog.text
    assert not (tmp_path / "engines").exists()


def test_onnx_runtime_serves_while_a_slow_build_goes_on_and_tensorrt_after_it(
    demo: Bundle, tmp_path: Path, double: InheritedDoubles
) -> None:
    double.ask("slow-build=6")
    with ladder(demo, tmp_path / "engines") as one:
        assert one._making is not None
        before = one.segment(FRAME)
        assert one._making.is_alive(), "the build was to go on still"
        assert (before.engine, before.degraded, one.degraded) == (
            "ort",
            "onnxruntime",
            "onnxruntime",
        )
        assert (one.certifications, one.why_degraded) == ((), None)
        made(one)
        after = one.segment(FRAME)
        assert (after.engine, after.degraded, one.degraded) == ("trt", "none", "none")
        assert alike(before.answer, expected(demo, FRAME))
        assert alike(after.answer, before.answer)  # the double computes with ONNX Runtime
        (verdict,) = one.certifications
        assert (verdict.engine, verdict.graph, verdict.passed) == ("trt", "full", True)
        assert verdict.bundle_sha256 == demo.sha256
        assert (verdict.mask_agreement, verdict.frames) == (1.0, 4)
        assert one.restarts == 0
    assert children(os.getpid()) == []


def test_where_certification_fails_onnx_runtime_serves_and_the_verdict_says_by_how_much(
    demo: Bundle, tmp_path: Path, double: InheritedDoubles, caplog: pytest.LogCaptureFixture
) -> None:
    double.ask("lose-class=2")
    with ladder(demo, tmp_path / "engines") as one:
        made(one)
        found = one.segment(FRAME)
        assert (found.engine, found.degraded, one.degraded) == ("ort", "onnxruntime", "onnxruntime")
        assert alike(found.answer, expected(demo, FRAME))
        (verdict,) = one.certifications
        why = one.why_degraded
    assert not verdict.passed
    assert why is not None
    assert why.startswith("no engine of graph full: the engine of graph 'full' does not answer as")
    assert len(why) <= 300
    assert (verdict.least_class, verdict.least_class_iou) == ("ice", 0.0)
    ice = np.mean([arrays_of(demo.read(c.answer))["mask"] == 2 for c in demo.manifest.golden])
    assert verdict.mask_agreement == pytest.approx(1 - ice, abs=1e-9)
    assert any(text.startswith("IoU of ice 0.000") for text in verdict.shortfalls)
    assert "does not answer as the bundle's golden frames say" in caplog.text
    # Once more: the verdict is kept, nothing is built again, and it is published all the same.
    double.ask("build-killed")
    with ladder(demo, tmp_path / "engines") as again:
        (kept,) = made(again).certifications
    assert kept.encode() == verdict.encode()


@pytest.mark.parametrize("wrong", ["answers", "operator"])
def test_a_full_graph_that_tensorrt_gets_wrong_or_refuses_leaves_the_fallback_serving(
    demo: Bundle, tmp_path: Path, double: InheritedDoubles, wrong: str
) -> None:
    del double
    model = onnx.load_from_string(demo.read("ensemble.onnx"))
    swap_classes(model, 1, 2, heads=HEADS)
    graph = model.SerializeToString() if wrong == "answers" else unknown_operator()
    bundle = with_fallback(demo, tmp_path / "b.icecam", graph)
    with ladder(bundle, tmp_path / "engines") as one:
        assert one.degraded == "onnxruntime"
        made(one)
        found = one.segment(FRAME)
        assert (found.engine, found.graph) == ("trt", "fallback-fp16")
        assert (found.degraded, one.degraded) == ("fallback", "fallback")
        unet = expected(demo, FRAME).member_masks[:1]
        assert np.array_equal(found.answer.member_masks, unet)
        assert np.array_equal(found.answer.mask, unet[0])
        verdicts = [(verdict.graph, verdict.passed) for verdict in one.certifications]
    assert verdicts[-1] == ("fallback-fp16", True)
    assert verdicts[:-1] == ([("full-fp16", False)] if wrong == "answers" else [])


def test_what_lies_here_serves_at_once_while_the_full_engine_is_built(
    whole: Bundle, tmp_path: Path, double: InheritedDoubles
) -> None:
    make_engines(whole, tmp_path)
    for path in (tmp_path / "engines").glob("*.json"):
        if "full-fp16" in path.read_text(encoding="utf-8"):
            path.unlink()
    double.ask("slow-build=600")
    with ladder(whole, tmp_path / "engines") as one:
        until = time.monotonic() + 30
        while one.degraded != "fallback":
            assert time.monotonic() < until
            time.sleep(0.05)
        found = one.segment(FRAME)
        assert (found.engine, found.graph, found.degraded) == ("trt", "fallback-fp16", "fallback")
        assert one._making is not None
        assert one._making.is_alive()
        assert [verdict.graph for verdict in one.certifications] == ["fallback-fp16"]
        assert one.why_degraded is None


@pytest.mark.parametrize("after_s", [0, 0.1, 0.4, 1, 2, 4])
def test_closing_while_an_engine_is_made_ends_child_and_thread_within_seconds(
    demo: Bundle,
    tmp_path: Path,
    double: InheritedDoubles,
    after_s: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    double.ask("slow-build=600")
    with ladder(demo, tmp_path / "engines") as one:
        time.sleep(after_s)
        began = time.monotonic()
        one.close()
        assert time.monotonic() - began < 5
        assert one._making is not None
        assert not one._making.is_alive()
        assert children(os.getpid()) == []
    assert caplog.text == ""  # nothing went wrong
    assert not list((tmp_path / "engines").glob("*.plan"))


def only_plan(engines: Path) -> Path:
    (plan,) = engines.glob("*.plan")
    return plan


def test_after_an_update_of_jetpack_the_engine_is_built_anew_by_itself(
    demo: Bundle, engines: Path, double: InheritedDoubles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = only_plan(engines).read_bytes()
    double.ask(version="10.7.0")
    with ladder(demo, engines) as one:
        assert made(one).segment(FRAME).engine == "trt"
        (verdict,) = one.certifications
    assert "tensorrt 10.3.0 → 10.7.0" in caplog.text
    second = only_plan(engines).read_bytes()
    assert second != first
    double.ask("build-killed", version="10.7.0")  # a second build would not end well
    with ladder(demo, engines) as again:
        assert made(again).segment(FRAME).engine == "trt"
        (kept,) = again.certifications
    assert kept.encode() == verdict.encode()
    assert only_plan(engines).read_bytes() == second


def spoil_folder(engines: Path, _: Path) -> None:
    engines.chmod(0o755)


def spoil_bundle(_: Path, bundle: Path) -> None:
    bundle.unlink()


def spoil_disk(engines: Path, _: Path) -> None:
    shutil.rmtree(engines)
    engines.write_text("in the way", encoding="utf-8")


@pytest.mark.parametrize("spoil", [spoil_folder, spoil_bundle, spoil_disk])
def test_what_keeps_an_engine_from_being_made_leaves_onnx_runtime_serving(
    demo_bundle: Path,
    engines: Path,
    tmp_path: Path,
    double: InheritedDoubles,
    spoil: Callable[[Path, Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    double.ask(version="10.7.0")  # so that it is to be built
    copy = tmp_path / "b.icecam"
    shutil.copy(demo_bundle, copy)
    bundle = open_bundle(copy)
    with ladder(bundle, engines, start=False) as one:
        spoil(engines, copy)
        one.start()
        made(one)
        assert one.degraded == "onnxruntime"
        if not copy.exists():
            shutil.copy(demo_bundle, copy)
        assert one.segment(FRAME).engine == "ort"
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(engines) in said.getMessage() or str(copy) in said.getMessage()
