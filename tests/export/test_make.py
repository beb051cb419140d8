"""From runs to a bundle: what is in it, and what is never written."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from edge.contract.bundle import Bundle, open_bundle
from edge.contract.errors import BundleError
from edge.engine import Answer, open_engine
from edge.engine.certify import replay_golden
from edge.engine.ort import OrtBackend
from export.__main__ import app
from export.make import FALLBACK, FULL, Made, make
from export.static_check import findings
from tests.export.conftest import SERIAL
from tests.export.small_runs import SIZE, one_thread
from train.ensembles import Weighing, write_ensemble
from train.predict import open_predictor
from train.runs import load_member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edge.contract.classes import ClassMap
    from train.runs import Run

    Bytes = NDArray[np.uint8]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.data
def test_the_exported_graph_passes_the_static_check_and_onnx_s_own(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.read("ensemble.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert findings(model) == []
    assert [opset.domain for opset in model.opset_import] == [""]


@pytest.mark.data
def test_the_manifest_says_what_is_in_the_bundle(
    bundle: Bundle, runs: list[Run], class_map: ClassMap
) -> None:
    manifest = bundle.manifest
    assert (manifest.id, manifest.serial) == ("test-ice", SERIAL)
    assert manifest.class_map == class_map
    assert (manifest.input.height, manifest.input.width) == SIZE
    assert [(graph.name, graph.file, graph.precision) for graph in manifest.graphs] == [
        ("full", "ensemble.onnx", "float32")
    ]
    assert manifest.graphs[0].members == ("unet", "pspnet")
    assert manifest.graphs[0].weights == (0.5, 0.5)
    for run, member in zip(runs, manifest.members, strict=True):
        assert (member.name, member.architecture) == (run.name, run.architecture)
        assert member.parameters == sum(p.numel() for p in load_member(run).parameters())
        assert member.training["dataset"] == "none"
    assert manifest.metrics is None


@pytest.mark.data
def test_the_bundle_that_was_made_certifies_here(bundle: Bundle) -> None:
    with open_engine(bundle) as engine:
        verdict = replay_golden(bundle, engine)
    assert verdict.passed
    assert verdict.frames == 4


@pytest.mark.data
def test_what_no_golden_frame_shows_is_told(made: tuple[Made, Bundle], bundle: Bundle) -> None:
    shown: set[int] = set()
    for case in bundle.manifest.golden:
        with np.load(io.BytesIO(bundle.read(case.answer))) as stored:
            shown |= set(np.unique(stored["mask"]).tolist())
    assert made[0].unseen == tuple(
        name for index, name in enumerate(("other", "water", "ice")) if index not in shown
    )


WEIGHING = Weighing(
    weights=(0.2, 0.6), temperatures=(0.4, 2.5), how_weighed="fitted", how_calibrated="fitted"
)


@pytest.fixture(scope="module")
def weighed(
    runs: list[Run], frames: list[Bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A bundle of two weighed runs, made by the command line, and what that said."""
    folder = tmp_path_factory.mktemp("weighed")
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / "frames" / f"{number}.png"), frame)
    write_ensemble(folder / "two.toml", runs, WEIGHING)
    out = folder / "weighed.icecam"
    arguments = ["make", str(folder / "two.toml"), "--frames", str(folder / "frames")]
    arguments += ["--without", "unet", "--float32-only"]
    ended = CliRunner().invoke(app, [*arguments, "-o", str(out)])
    assert ended.exit_code == 0, ended.output
    return out, ended.output


@pytest.mark.data
def test_an_ensemble_s_weights_and_temperatures_are_in_the_bundle(
    weighed: tuple[Path, str],
) -> None:
    """0.2 and 0.6 make 1/4 and 3/4."""
    manifest = open_bundle(weighed[0]).manifest
    assert [member.name for member in manifest.members] == ["unet", "pspnet"]
    assert [member.weight for member in manifest.members] == pytest.approx([0.25, 0.75])
    assert [member.temperature for member in manifest.members] == [0.4, 2.5]
    assert manifest.graphs[0].weights == pytest.approx((0.25, 0.75))
    assert "serial" in weighed[1]


@pytest.mark.data
def test_the_fallback_does_without_the_member_that_was_named(weighed: tuple[Path, str]) -> None:
    """It has a file, weights and golden answers of its own, and certifies."""
    bundle = open_bundle(weighed[0])
    full, fallback = bundle.manifest.graphs
    assert (full.name, full.members) == (FULL, ("unet", "pspnet"))
    assert (fallback.name, fallback.members) == (FALLBACK, ("pspnet",))
    assert (fallback.file, fallback.precision) == ("fallback.onnx", "float32")
    assert fallback.weights == (1.0,)
    for case in bundle.manifest.golden:
        assert set(case.answers) == {FALLBACK}
        assert case.answer_of(FALLBACK) != case.answer_of(FULL) == case.answer
    for graph in (FULL, FALLBACK):
        with open_engine(bundle, graph=graph) as engine:
            assert replay_golden(bundle, engine).passed


@pytest.mark.data
def test_the_fallback_answers_as_its_member_alone_does_in_torch(
    weighed: tuple[Path, str], runs: list[Run], small: list[Bytes]
) -> None:
    with (
        open_engine(open_bundle(weighed[0]), graph=FALLBACK) as engine,
        open_predictor(runs[1].folder) as alone,
    ):
        for frame in small:
            found = engine.segment(frame).answer
            expected = alone.segment(frame).mask
            assert (found.mask == expected).mean() >= 0.999
            assert (found.member_masks[0] == expected).mean() >= 0.999


@pytest.mark.data
def test_a_weighed_bundle_answers_as_the_ensemble_in_torch(
    weighed: tuple[Path, str], runs: list[Run], frames: list[Bytes], tmp_path: Path
) -> None:
    write_ensemble(tmp_path / "two.toml", runs, WEIGHING)
    alike = total = moved = 0
    with (
        open_predictor(weighed[0]) as bundle,
        open_predictor(tmp_path / "two.toml") as ensemble,
        open_predictor(runs[1].folder) as heaviest,
    ):
        for frame in frames:
            found, expected = bundle.segment(frame), ensemble.segment(frame)
            alike += int((found.mask == expected.mask).sum())
            moved += int((heaviest.segment(frame).mask != expected.mask).sum())
            total += found.mask.size
            assert found.confidence is not None
            assert expected.confidence is not None
            assert np.abs(found.confidence - expected.confidence).max() <= 1.5 / 255
    assert alike / total >= 0.999
    assert moved > 0  # else one member alone would have decided


@pytest.mark.data
def test_a_temperature_of_one_costs_no_step_in_the_graph(
    weighed: tuple[Path, str], bundle: Bundle
) -> None:
    assert not {"Div", "Mul"} & set(before_softmax(bundle))
    assert all(kind in {"Div", "Mul"} for kind in before_softmax(open_bundle(weighed[0])))


def before_softmax(bundle: Bundle) -> list[str]:
    """The kind of node that each member's logits come from."""
    graph = onnx.load_from_string(bundle.read("ensemble.onnx")).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    found = [makers[node.input[0]] for node in graph.node if node.op_type == "Softmax"]
    assert len(found) == 2
    return found


@pytest.mark.data
def test_a_graph_that_answers_otherwise_than_torch_is_not_written(
    bundle: Bundle,
    runs: list[Run],
    frames: list[Bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = onnx.load_from_string(bundle.read("ensemble.onnx"))
    run = OrtBackend.run

    def disagreeing(self: OrtBackend, frame: Bytes) -> Answer:
        answer = run(self, frame)
        mask = answer.mask.copy()
        surest = answer.confidence.argmax()  # one clear pixel is too much
        mask.flat[surest] = (mask.flat[surest] + 1) % 3
        return Answer(mask=mask, confidence=answer.confidence, member_masks=answer.member_masks)

    monkeypatch.setattr("export.make.to_onnx", lambda *_: model)
    monkeypatch.setattr(OrtBackend, "run", disagreeing)
    out = tmp_path / "out.icecam"
    with pytest.raises(
        BundleError, match=r"differ on graph 'full': 2 clear dis.*Nothing was written"
    ):
        make(runs, out, frames=frames[:2], float16=False)
    assert list(tmp_path.iterdir()) == []
