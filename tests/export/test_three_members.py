"""U-Net, PSPNet and Mask R-CNN in one graph: as torch and torchvision's own detector say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from edge.contract.bundle import Bundle, open_bundle
from edge.engine import open_engine
from edge.engine.certify import replay_golden
from export.make import Made, make
from export.operators.refusals import refusals
from export.operators.tables import known_versions
from export.static_check import findings
from tests.export.small_runs import SIZE, one_thread, unseen_frames
from train.predict import EnsemblePredictor, run_predictor
from train.runs import load_member

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from train.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ICE = 2
Three = tuple[Made, Bundle, list[str]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def in_torch(runs: Sequence[Run], weights: Sequence[float]) -> EnsemblePredictor:
    return EnsemblePredictor(runs, name="torch", weights=weights, temperatures=[1.0] * len(runs))


def test_the_manifest_lists_the_full_ensemble_then_the_one_without_floes(three: Three) -> None:
    manifest = three[1].manifest
    assert [(g.name, g.file, g.precision, g.members) for g in manifest.graphs] == [
        ("full", "ensemble.onnx", "float32", ("unet", "pspnet", "maskrcnn")),
        ("full-fp16", "ensemble.fp16.onnx", "float16", ("unet", "pspnet", "maskrcnn")),
        ("fallback-fp16", "fallback.fp16.onnx", "float16", ("unet", "pspnet")),
    ]
    assert [graph.weights for graph in manifest.graphs] == [
        pytest.approx((1 / 3, 1 / 3, 1 / 3)),
        pytest.approx((1 / 3, 1 / 3, 1 / 3)),
        pytest.approx((0.5, 0.5)),
    ]
    for case in manifest.golden:
        assert case.answer_of("full") == case.answer_of("full-fp16") == case.answer
        assert case.answer_of("fallback-fp16") != case.answer


def test_the_members_see_floes_so_that_the_comparison_says_something(trained: list[Run]) -> None:
    floes = load_member(trained[2])
    assert floes.options.detections == 400  # type: ignore[attr-defined]
    alone = [run_predictor(trained[2]).segment(frame).mask for frame in unseen_frames()]
    assert np.mean(np.stack(alone) == ICE) > 0.05
    without = in_torch(trained[:2], [1, 1])
    whole = in_torch(trained, [1, 1, 1])
    moved = [
        np.mean(without.segment(frame).mask != whole.segment(frame).mask)
        for frame in unseen_frames()
    ]
    assert max(moved) > 0.02


def test_the_full_graph_answers_as_the_ensemble_with_torchvision_s_detector(
    three: Three, trained: list[Run]
) -> None:
    expected = in_torch(trained, [1, 1, 1])
    members = [run_predictor(run) for run in trained]
    alike, levels, alone = [], [], []
    with open_engine(three[1]) as engine:
        for frame in unseen_frames():
            found = engine.segment(frame).answer
            told = expected.segment(frame)
            alike.append(np.mean(found.mask == told.mask))
            assert told.confidence is not None
            levels.append(np.abs(found.confidence / 255 - told.confidence).max())
            each = zip(found.member_masks, members, strict=True)
            alone.append([np.mean(mask == one.segment(frame).mask) for mask, one in each])
    assert np.mean(alike) >= 0.999
    assert max(levels) <= 2 / 255
    assert np.mean(alone, axis=0).min() >= 0.999


def test_the_fallback_answers_as_the_ensemble_without_the_detector(
    three: Three, trained: list[Run]
) -> None:
    """In float16, so that a boundary may move."""
    expected = in_torch(trained[:2], [1, 1])
    alike = []
    with open_engine(three[1], graph="fallback-fp16") as engine:
        for frame in unseen_frames():
            found = engine.segment(frame).answer
            alike.append(np.mean(found.mask == expected.segment(frame).mask))
            assert found.member_masks.shape == (2, *SIZE)
    assert np.mean(alike) >= 0.995


def test_every_graph_certifies_on_its_own_golden_answers(three: Three) -> None:
    bundle = three[1]
    for graph in bundle.manifest.graphs:
        with open_engine(bundle, graph=graph.name) as engine:
            verdict = replay_golden(bundle, engine)
        assert verdict.passed, (graph.name, verdict.shortfalls)


def test_every_graph_is_static_valid_and_taken_by_every_tensorrt(three: Three) -> None:
    for graph in three[1].manifest.graphs:
        model = onnx.load_from_string(three[1].read(graph.file))
        onnx.checker.check_model(model, full_check=True)
        assert findings(model) == []
        for version in known_versions():
            assert refusals(model, version.name) == [], (graph.name, version)


def test_what_was_made_says_how_well_and_what_was_left_unresolved(three: Three) -> None:
    made, bundle, said = three
    assert made.agreement >= 0.999
    assert set(made.float16) == {"full", "fallback"}
    assert all(verdict.passed for verdict in made.float16.values())
    assert made.frames == len(unseen_frames())
    assert made.unresolved == {"maskrcnn": 0}
    assert [member.unresolved for member in bundle.manifest.members] == [None, None, 0]
    assert "building one graph of 3 members at 96x160 (full)" in said
    assert "building one graph of 2 members at 96x160 (fallback)" in said


def test_a_member_that_sees_floes_stands_alone_too(trained: list[Run], tmp_path: Path) -> None:
    """There is nothing to fall back on then: all that is not ice is water."""
    out = tmp_path / "floes.icecam"
    made = make(trained[2:], out, frames=unseen_frames(), float16=False)
    assert made.agreement >= 0.999
    assert made.unseen == ("other",)
    bundle = open_bundle(out)
    assert [graph.name for graph in bundle.manifest.graphs] == ["full"]
    alone = run_predictor(trained[2])
    with open_engine(bundle) as engine:
        for frame in unseen_frames():
            found = engine.segment(frame).answer
            assert np.mean(found.mask == alone.segment(frame).mask) >= 0.999
            assert np.array_equal(found.mask, found.member_masks[0])
