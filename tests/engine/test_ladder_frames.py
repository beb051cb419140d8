"""A frame on which a rung fails is answered by the next one, and never with another's answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.frames import decode_image
from tests.engine.ladders import (
    FRAME,
    alike,
    expected,
    ladder,
    made,
)

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.contract.frames import Pixels
    from tests.doubles.inherited import InheritedDoubles

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(demo: Bundle) -> list[Pixels]:
    """Frames on which the demo's members see different things."""
    return [decode_image(demo.read(case.frame), where="") for case in demo.manifest.golden]


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
