"""The ladder: the best engine that is ready serves, the next where it fails; TensorRT a double."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from edge.contract.bundle import Bundle, open_bundle
from edge.contract.frames import decode_image
from edge.engine import open_engine
from edge.engine.ladder import Ladder, Rung, Wanted, rungs, to_compile
from tests.doubles.graphs import unknown_operator
from tests.doubles.inherited import InheritedDoubles
from tests.engine.bundles import arrays_of
from tests.engine.fallbacks import listing, with_fallback
from tests.engine.surgery import HEADS, swap_classes
from tests.stations import children, make_engines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.contract.frames import Pixels
    from edge.engine import Answer

pytestmark = pytest.mark.slow

FRAME = np.random.default_rng(5).integers(0, 256, (540, 960, 3), np.uint8)
WORKSPACE_BYTES = 1 << 28


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@pytest.fixture(scope="module")
def scenes(demo: Bundle) -> list[Pixels]:
    """Frames on which the demo's members see different things."""
    return [decode_image(demo.read(case.frame), where="") for case in demo.manifest.golden]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> InheritedDoubles:
    return InheritedDoubles(monkeypatch)


@contextlib.contextmanager
def ladder(
    bundle: Bundle, cache: Path, wanted: Wanted = "auto", *, start: bool = True
) -> Iterator[Ladder]:
    with contextlib.closing(
        Ladder(bundle, wanted, cache=cache, workspace_bytes=WORKSPACE_BYTES)
    ) as made:
        if start:
            made.start()
        yield made


def made(ladder: Ladder) -> Ladder:
    """Wait until no engine is being made any more."""
    assert ladder._making is not None
    ladder._making.join(60)
    assert not ladder._making.is_alive()
    return ladder


@pytest.fixture(scope="module")
def compiled(demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's certified engine, made once."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        InheritedDoubles(patch)
        make_engines(demo, folder)
    return folder / "engines"


@pytest.fixture
def engines(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(compiled, tmp_path / "engines"))


def expected(bundle: Bundle, frame: Pixels, graph: str = "") -> Answer:
    """What ONNX Runtime answers, in this process."""
    with open_engine(bundle, graph=graph) as engine:
        return engine.segment(frame).answer


def alike(found: Answer, wanted: Answer) -> bool:
    return all(
        np.array_equal(getattr(found, name), getattr(wanted, name))
        for name in ("mask", "confidence", "member_masks")
    )


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


@pytest.fixture
def whole(demo: Bundle, tmp_path: Path) -> Bundle:
    """A bundle whose full ensemble and fallback TensorRT both gets right."""
    return with_fallback(demo, tmp_path / "whole.icecam", demo.read("ensemble.onnx"))


def test_the_fallback_is_made_too_and_answers_the_frame_on_which_the_full_engine_failed(
    whole: Bundle, tmp_path: Path, double: InheritedDoubles
) -> None:
    del double
    with ladder(whole, tmp_path / "engines") as one:
        made(one)
        verdicts = [(verdict.graph, verdict.passed) for verdict in one.certifications]
        assert verdicts == [("full-fp16", True), ("fallback-fp16", True)]
        assert (one.segment(FRAME).graph, one.degraded) == ("full-fp16", "none")
        assert one._worker is not None
        assert one._worker.pid is not None
        os.kill(one._worker.pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, os.kill, [one._worker.pid, signal.SIGKILL])
        killer.start()
        found = one.segment(FRAME)
        killer.join()
        assert (found.engine, found.graph, found.degraded) == ("trt", "fallback-fp16", "fallback")
        assert str(one.why_degraded).startswith("full-fp16 failed: ")
        unet = expected(whole, FRAME).member_masks[:1]
        assert np.array_equal(found.answer.member_masks, unet)


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


@pytest.mark.parametrize("fault", ["execute-false", "lost", "crash", "nan", "deserialize-none"])
def test_an_engine_that_fails_on_a_frame_gives_way_and_the_same_frame_is_answered(
    demo: Bundle,
    engines: Path,
    double: InheritedDoubles,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ladder(demo, engines) as one:
        assert made(one).degraded == "none"
        assert one.why_degraded is None
        double.ask(fault)
        found = one.segment(FRAME)
        assert (found.engine, found.degraded, one.degraded) == ("ort", "onnxruntime", "onnxruntime")
        assert str(one.why_degraded).startswith("full failed: ")
        assert alike(found.answer, expected(demo, FRAME))
        double.ask()
        assert one.segment(FRAME).engine == "ort"  # until the next start
    assert "the next rung serves" in caplog.text
    with ladder(demo, engines) as again:
        assert made(again).segment(FRAME).engine == "trt"


def test_an_engine_that_hangs_is_killed_at_its_deadline_and_the_same_frame_is_answered(
    demo: Bundle, engines: Path, double: InheritedDoubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ladder(demo, engines) as one:
        made(one)
        double.ask("hang")
        monkeypatch.setattr("edge.engine.worker.SEGMENT_DEADLINE_S", 3)
        began = time.monotonic()
        found = one.segment(FRAME)
        assert time.monotonic() - began < 30
        assert (found.engine, found.degraded) == ("ort", "onnxruntime")


def test_a_frame_is_never_answered_with_the_answer_to_another(
    demo: Bundle, engines: Path, double: InheritedDoubles, scenes: list[Pixels]
) -> None:
    with ladder(demo, engines) as one:
        made(one)
        answers = [one.segment(scene) for scene in scenes]
        assert {found.engine for found in answers} == {"trt"}
        assert one._worker is not None
        assert one._worker.pid is not None
        os.kill(one._worker.pid, signal.SIGKILL)  # the next one that starts fails
        double.ask("execute-false")
        after = one.segment(scenes[0])
        assert after.engine == "ort"
    wanted = [expected(demo, scene) for scene in scenes]
    assert not any(alike(wanted[0], other) for other in wanted[1:])
    for found, right in zip([*answers, after], [*wanted, wanted[0]], strict=True):
        assert alike(found.answer, right)


def test_a_worker_that_died_between_frames_is_started_again_on_its_rung_and_counted(
    demo: Bundle, engines: Path, double: InheritedDoubles
) -> None:
    del double
    with ladder(demo, engines) as one:
        made(one)
        one.segment(FRAME)
        assert one._worker is not None
        pid = one._worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert one.segment(FRAME).engine == "trt"
        assert (one.restarts, one.degraded) == (1, "none")


def test_a_worker_that_is_killed_on_a_frame_gives_way_and_the_same_frame_is_answered(
    demo: Bundle, engines: Path, double: InheritedDoubles, scenes: list[Pixels]
) -> None:
    del double
    with ladder(demo, engines) as one:
        made(one)
        one.segment(scenes[0])
        assert one._worker is not None
        assert one._worker.pid is not None
        pid = one._worker.pid
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, os.kill, [pid, signal.SIGKILL])
        killer.start()
        found = one.segment(scenes[1])
        killer.join()
        assert (found.engine, found.degraded) == ("ort", "onnxruntime")
        assert alike(found.answer, expected(demo, scenes[1]))


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
