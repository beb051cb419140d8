"""Engines: what goes in, what comes out, and whether it is what was answered in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge.contract.bundle import Bundle, open_bundle
from edge.contract.errors import BundleError, ConfigError, EngineError, IcecamError
from edge.contract.frames import decode_image
from edge.engine import least_confidence, open_engine, resize
from tests.engine.bundles import changed

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (8, 12)


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def channels_graph(*, height: int = SIZE[0], rename: str = "mask") -> bytes:
    """A graph whose answer is known: mask = blue, confidence = green, members = blue and red."""
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, height, SIZE[1], 3])
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["float"], ["b4", "g4", "r4"], axis=3, num_outputs=3),
        *(helper.make_node("Squeeze", [f"{c}4", "last"], [c]) for c in "bgr"),
        helper.make_node("Concat", ["b", "r"], ["both"], axis=0),
        helper.make_node("Cast", ["b"], [rename], to=TensorProto.UINT8),
        helper.make_node("Cast", ["g"], ["confidence"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["both"], ["member_masks"], to=TensorProto.UINT8),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, [count, height, SIZE[1]])
        for name, count in ((rename, 1), ("confidence", 1), ("member_masks", 2))
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [3])
    graph = helper.make_graph(nodes, "channels", [frame], outputs, [last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def channels(demo: Bundle, path: Path, graph: bytes, **fields: Any) -> Bundle:  # noqa: ANN401
    small = {"height": SIZE[0], "width": SIZE[1], "max_anisotropy": 1.2}
    return changed(demo, path, {"ensemble.onnx": graph}, **{"input": small, **fields})


def test_the_resize_is_opencv_s_area_averaging() -> None:
    frame = np.random.default_rng(4).integers(0, 256, (270, 480, 3), np.uint8)
    for height, width in ((224, 384), (135, 240), (540, 960)):
        expected = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        assert np.array_equal(resize(frame, (height, width)), expected)


def test_halving_is_the_mean_of_two_by_two_pixels_and_keeps_height_before_width() -> None:
    frame = np.random.default_rng(4).integers(0, 256, (40, 64, 3), np.uint8)
    found = resize(frame, (20, 32))
    blocks = frame.reshape(20, 2, 32, 2, 3).mean(axis=(1, 3))
    assert found.shape == (20, 32, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - blocks).max() <= 0.5


def test_a_frame_of_the_right_size_is_not_touched_and_lies_in_one_piece() -> None:
    frame = np.random.default_rng(4).integers(0, 256, (20, 32, 3), np.uint8)
    found = resize(frame[:, ::-1], (20, 32))
    assert np.array_equal(found, frame[:, ::-1])
    assert found.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("frame", "distortion"),
    [((480, 640), 1.29), ((1080, 1080), 1.71), ((224, 600), 1.56), ((600, 224), 4.59)],
)
def test_a_stretch_that_would_distort_too_much_is_refused_either_way(
    frame: tuple[int, int], distortion: float
) -> None:
    # Into 224 x 384: (224 / height) / (384 / width), or its inverse.
    with pytest.raises(ConfigError, match=rf"distorted {distortion} times; expected at most 1\.2"):
        resize(np.zeros((*frame, 3), np.uint8), (224, 384))


def test_a_stretch_within_the_bounds_or_allowed_by_name_is_made() -> None:
    assert resize(np.zeros((1080, 1920, 3), np.uint8), (224, 384)).shape == (224, 384, 3)
    square = np.zeros((480, 480, 3), np.uint8)
    assert resize(square, (224, 384), max_anisotropy=2).shape == (224, 384, 3)


def test_the_demo_bundle_is_what_its_readers_count_on(demo: Bundle, class_map: object) -> None:
    manifest = demo.manifest
    assert (manifest.input.height, manifest.input.width) == (224, 384)
    assert manifest.class_map.signature == class_map.signature  # type: ignore[attr-defined]
    assert len(manifest.members) >= 2


def test_the_demo_bundle_segments_a_frame_of_any_size_the_same_every_time(demo: Bundle) -> None:
    frame = np.random.default_rng(8).integers(0, 256, (540, 960, 3), np.uint8)
    with open_engine(demo) as engine:
        first, again = engine.segment(frame), engine.segment(frame)
        before = engine.segment(
            cv2.resize(frame, (384, 224), interpolation=cv2.INTER_AREA).astype(np.uint8)
        )
    members = len(demo.manifest.graphs[0].members)
    answer = first.answer
    assert answer.mask.shape == answer.confidence.shape == (224, 384)
    assert answer.member_masks.shape == (members, 224, 384)
    assert {answer.mask.dtype, answer.confidence.dtype, answer.member_masks.dtype} == {
        np.dtype(np.uint8)
    }
    assert answer.mask.max() < 3
    assert answer.member_masks.max() < 3
    assert answer.confidence.min() >= 85  # the best of three classes has at least a third
    assert (first.graph, first.engine) == (demo.manifest.graphs[0].name, "ort")
    assert first.latency_s > 0
    for other in (again, before):
        assert np.array_equal(other.answer.mask, answer.mask)
        assert np.array_equal(other.answer.confidence, answer.confidence)
        assert np.array_equal(other.answer.member_masks, answer.member_masks)


def test_the_demo_bundle_refuses_a_frame_of_another_shape(demo: Bundle) -> None:
    with open_engine(demo) as engine, pytest.raises(ConfigError, match="distorted"):
        engine.segment(np.zeros((1000, 500, 3), np.uint8))


def test_what_the_graph_answers_lands_under_its_name_with_blue_first(
    demo: Bundle, tmp_path: Path
) -> None:
    bundle = channels(demo, tmp_path / "channels.icecam", channels_graph())
    frame = np.random.default_rng(9).integers(0, 3, (*SIZE, 3), np.uint8)  # classes
    frame[:, :, 1] += 100  # of 255: a confidence
    with open_engine(bundle) as engine:
        answer = engine.segment(frame).answer
    assert np.array_equal(answer.mask, frame[:, :, 0])
    assert np.array_equal(answer.confidence, frame[:, :, 1])
    assert np.array_equal(answer.member_masks[0], frame[:, :, 0])
    assert np.array_equal(answer.member_masks[1], frame[:, :, 2])


def test_an_answer_outside_the_class_map_is_an_engine_error(demo: Bundle, tmp_path: Path) -> None:
    bundle = channels(demo, tmp_path / "b.icecam", channels_graph())
    with open_engine(bundle) as engine, pytest.raises(EngineError, match="answers class 3; "):
        engine.segment(np.full((*SIZE, 3), 3, np.uint8))


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 64])
def test_the_likeliest_class_has_at_least_its_share_of_255_but_for_rounding(classes: int) -> None:
    assert 1 <= 255 / classes - least_confidence(classes) < 3


def test_an_answer_that_no_probabilities_can_have_is_an_engine_error(
    demo: Bundle, tmp_path: Path
) -> None:
    """Of three classes the likeliest has at least a third: 85 of 255. NaN becomes 0 as a byte."""
    bundle = channels(demo, tmp_path / "b.icecam", channels_graph())
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[:, :, 1] = 85
    with open_engine(bundle) as engine:
        assert (engine.segment(frame).answer.confidence == 85).all()
        frame[2, 3:6, 1] = 0
        with pytest.raises(EngineError, match=r"answers 3 pixels with a confidence down to 0 of"):
            engine.segment(frame)
        assert engine.answer(frame).answer.confidence.min() == 0  # certification counts them


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ({"min_icecam": "99.0.0"}, "needs icecam 99.0.0; this is "),
        ({"tiles": {"rows": 2, "columns": 2, "overlap": 0.1}}, "asks for tiles"),
    ],
)
def test_a_bundle_that_asks_for_what_this_version_cannot_do_is_refused(
    demo: Bundle, tmp_path: Path, asks: dict[str, object], said: str
) -> None:
    bundle = channels(demo, tmp_path / "b.icecam", channels_graph(), **asks)
    with pytest.raises(BundleError, match=said):
        open_engine(bundle)


def test_an_answer_of_another_shape_than_the_manifest_promises_is_an_engine_error(
    demo: Bundle, tmp_path: Path
) -> None:
    full = demo.manifest.graphs[0]
    one = [{**full.model_dump(), "members": full.members[:1], "weights": full.weights[:1]}]
    bundle = channels(demo, tmp_path / "b.icecam", channels_graph(), graphs=one)
    with (
        open_engine(bundle) as engine,
        pytest.raises(EngineError, match=r"member_masks is uint8 \(2, 8, 12\); expected .*\(1, 8"),
    ):
        engine.segment(np.zeros((*SIZE, 3), np.uint8))


def test_a_graph_that_fails_on_a_frame_is_an_engine_error_not_a_stale_answer(
    demo: Bundle, tmp_path: Path
) -> None:
    bundle = channels(demo, tmp_path / "b.icecam", channels_graph(height=SIZE[0] + 1))
    with open_engine(bundle) as engine, pytest.raises(EngineError, match="failed on a frame"):
        engine.segment(np.zeros((*SIZE, 3), np.uint8))


def test_a_graph_with_other_outputs_is_refused_when_it_is_opened(
    demo: Bundle, tmp_path: Path
) -> None:
    bundle = channels(demo, tmp_path / "b.icecam", channels_graph(rename="labels"))
    with pytest.raises(EngineError, match=r"outputs are \('labels', .*expected \('mask', "):
        open_engine(bundle)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "text"])
def test_an_onnx_file_that_is_none_is_an_engine_error(
    demo: Bundle, tmp_path: Path, damage: str
) -> None:
    raw = demo.read("ensemble.onnx")
    broken = {
        "cut": raw[: len(raw) // 2],
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(5000),
        "text": b"<html>404</html>",
    }[damage]
    bundle = changed(demo, tmp_path / "b.icecam", {"ensemble.onnx": broken})
    with pytest.raises(EngineError, match=r"ensemble\.onnx: ") as caught:
        open_engine(bundle)
    assert "\n" not in str(caught.value)


def test_an_unknown_graph_lists_those_there_are(demo: Bundle) -> None:
    with pytest.raises(EngineError, match=r"no graph 'fallback'; expected one of full"):
        open_engine(demo, graph="fallback")
    with open_engine(demo, graph="full") as engine:
        assert engine.graph.name == "full"


def test_errors_of_an_engine_are_icecam_s_own() -> None:
    assert issubclass(EngineError, IcecamError)
    assert EngineError.exit_code == 1
    assert ConfigError.exit_code == 2


@pytest.mark.data
def test_real_frames_are_segmented(demo: Bundle, icecam_data: Path) -> None:
    path = min((icecam_data / "agulhas_floes" / "images").glob("*.jpg"))
    with open_engine(demo) as engine:
        found = engine.segment(decode_image(path.read_bytes(), where=path.name))
    assert found.answer.mask.shape == (224, 384)
