"""Float16 inside: what becomes so, what stays as it was, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.contract.bundle import Bundle, open_bundle
from edge.contract.errors import BundleError
from edge.engine import Answer, open_engine
from edge.engine.certify import COMPILED, replay_golden
from edge.engine.golden import GoldenAnswer, read_golden
from edge.engine.ort import OrtBackend
from export.float16 import (
    FLOAT16_BARS,
    LARGEST,
    boxes,
    convert,
    decisions,
    first_overflow,
    largest_values,
    overflowing,
    require_equal,
    to_float16,
    with_rounding,
)
from export.graph import EnsembleGraph
from export.maskrcnn import StaticMaskRcnn
from export.operators.refusals import refusals
from export.operators.tables import known_versions
from export.static_check import findings
from export.to_onnx import to_onnx
from tests.engine import surgery
from tests.engine.bundles import changed
from tests.export.small_runs import SIZE, one_thread, small_member, unseen_frames
from tests.train.classes import classes_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edge.contract.classes import ClassMap

    Bytes = NDArray[np.uint8]

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@pytest.fixture(scope="module")
def golden(demo: Bundle) -> list[tuple[Bytes, GoldenAnswer]]:
    return [read_golden(demo, case, demo.manifest.graphs[0]) for case in demo.manifest.golden]


@pytest.fixture(scope="module")
def whole(demo: Bundle) -> onnx.ModelProto:
    return onnx.load_from_string(demo.read("ensemble.onnx"))


@pytest.fixture(scope="module")
def half(whole: onnx.ModelProto, golden: list[tuple[Bytes, GoldenAnswer]]) -> onnx.ModelProto:
    return to_float16(whole, [frame for frame, _ in golden])


def kinds_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, by onnx's own inference."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    kinds = {one.name: one.type.tensor_type.elem_type for one in values}
    return kinds | {one.name: one.data_type for one in inferred.initializer}


def given(model: onnx.ModelProto, *operators: str) -> Counter[int]:
    """How many of these operators' first results are of which element type."""
    kinds = kinds_of(model)
    return Counter(kinds[node.output[0]] for node in model.graph.node if node.op_type in operators)


def round_trips(model: onnx.ModelProto) -> list[str]:
    """Casts from float32 to float16 of which another makes float32 again."""
    casts = {
        node.output[0]: (node.input[0], node.attribute[0].i)
        for node in model.graph.node
        if node.op_type == "Cast"
    }
    return [
        back
        for back, (there, to) in casts.items()
        if to == FLOAT and there in casts and casts[there][1] == FLOAT16
    ]


def test_the_demo_s_graph_answers_as_its_stored_float32_answers(
    half: onnx.ModelProto, golden: list[tuple[Bytes, GoldenAnswer]], class_map: ClassMap
) -> None:
    backend = OrtBackend(half.SerializeToString(), where="half")
    alike, fractions = [], []
    for frame, stored in golden:
        mask, true = backend.run(frame).mask, stored.answer.mask
        alike.append(np.mean(mask == true))
        ice = [(one == 2).sum() / (one != 0).sum() for one in (mask, true)]
        fractions.append(abs(ice[0] - ice[1]))
    assert np.mean(alike) >= 0.995
    assert max(fractions) <= 0.002
    frames, answers = zip(*golden, strict=True)
    verdict = require_equal(half, frames, answers, class_map, where="half")
    assert verdict.bars == FLOAT16_BARS
    assert verdict.mask_agreement == pytest.approx(np.mean(alike), abs=1e-3)
    assert verdict.coverage_difference == pytest.approx(max(fractions), abs=1e-3)


def test_it_is_half_as_large(whole: onnx.ModelProto, half: onnx.ModelProto) -> None:
    assert half.ByteSize() <= 0.52 * whole.ByteSize()
    weights = {one.name: one.data_type for one in half.graph.initializer}
    heads = [f"{head}.weight" for head in surgery.HEADS]
    assert [weights[name] for name in heads] == [FLOAT16, FLOAT16]


def test_it_is_certified_as_what_is_compiled(
    demo: Bundle, half: onnx.ModelProto, tmp_path: Path
) -> None:
    full = {**demo.manifest.graphs[0].model_dump(), "precision": "float16"}
    files = {"ensemble.onnx": half.SerializeToString()}
    bundle = changed(demo, tmp_path / "b.icecam", files, graphs=[full])
    with open_engine(bundle) as engine:
        verdict = replay_golden(bundle, engine)
        engine.segment(np.zeros((224, 384, 3), np.uint8))
    assert verdict.bars == COMPILED
    assert verdict.passed


def test_layers_are_float16_and_decisions_float32(
    whole: onnx.ModelProto, half: onnx.ModelProto
) -> None:
    assert given(whole, "Conv", "MatMul") == {FLOAT: 74}
    assert given(half, "Conv", "MatMul") == {FLOAT16: 74}
    assert given(half, "Relu") == {FLOAT16: 51}
    assert given(half, "Resize") == {FLOAT16: 9, FLOAT: 1}  # the last one enlarges logits
    assert given(half, "Softmax") == {FLOAT: 2}
    assert given(half, "ReduceMax", "Round", "Clip") == {FLOAT: 7}
    kinds = kinds_of(half)
    decided = [node.input[0] for node in half.graph.node if node.op_type == "ArgMax"]
    assert [kinds[name] for name in decided] == [FLOAT] * 3
    products = [node for node in half.graph.node if node.op_type == "Mul"]
    assert {kinds[node.output[0]] for node in products} == {FLOAT}


def test_no_tensor_goes_to_float16_and_straight_back(half: onnx.ModelProto) -> None:
    assert round_trips(half) == []
    used = {name for node in half.graph.node for name in node.input}
    used |= {one.name for one in half.graph.output}
    assert all(used.intersection(node.output) for node in half.graph.node)


def test_it_is_valid_keeps_its_uint8_rim_and_every_tensorrt_takes_it(
    half: onnx.ModelProto,
) -> None:
    onnx.checker.check_model(half, full_check=True)
    assert findings(half) == []
    rim = [*half.graph.input, *half.graph.output]
    assert {one.type.tensor_type.elem_type for one in rim} == {TensorProto.UINT8}
    versions = known_versions()
    assert len(versions) >= 4
    for version in versions:
        assert refusals(half, version.name) == [], version


def test_the_graph_it_is_made_from_stays_as_it_was(whole: onnx.ModelProto) -> None:
    before = whole.SerializeToString()
    convert(whole, decisions(whole))
    assert whole.SerializeToString() == before


def scaled_graph(
    *, weight: float = 400.0, back: float = 1e-4, middle: float | None = None
) -> onnx.ModelProto:
    """A graph 8x12: byte times weight in one Conv (to 255 * 400), times ``back`` in another.

    Of two classes the second is likelier where that is above ``middle``: blue above 127.5. White
    gives 102000 between them, and float16 ends at 65504.
    """
    height, width = 8, 12
    blue = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    second = np.zeros((2, 2, 1, 1), np.float32)
    second[1, 1] = back
    middle = 127.5 * weight * back if middle is None else middle
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], name="cast", to=FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], name="planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "blue"], ["blues"], name="first"),
        helper.make_node("Conv", ["blues", "weight"], ["large"], name="grow"),
        helper.make_node("Relu", ["large"], ["still"], name="still"),
        helper.make_node("Conv", ["still", "second", "bias"], ["logits"], name="shrink"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
        helper.make_node("ReduceMax", ["probabilities", "axis"], ["best"], name="best", keepdims=0),
        helper.make_node("ArgMax", ["probabilities"], ["index"], name="index", axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["class"], name="class", to=FLOAT),
        helper.make_node("Mul", ["best", "bytes"], ["share"], name="share"),
        helper.make_node("Round", ["share"], ["rounded"], name="rounded"),
        helper.make_node("Cast", ["class"], ["mask"], name="mask", to=TensorProto.UINT8),
        helper.make_node("Cast", ["rounded"], ["confidence"], name="sure", to=TensorProto.UINT8),
        helper.make_node("Cast", ["class"], ["member_masks"], name="alone", to=TensorProto.UINT8),
    ]
    parameters = {
        "blue": blue,
        "weight": np.array([0, weight], np.float32).reshape(2, 1, 1, 1),
        "second": second,
        "bias": np.array([0, -middle], np.float32),
        "bytes": np.array(255, np.float32),
        "axis": np.array([1], np.int64),
    }
    uint8 = TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("frame", uint8, [1, height, width, 3])],
        [
            helper.make_tensor_value_info(name, uint8, [1, height, width])
            for name in ("mask", "confidence", "member_masks")
        ],
        [numpy_helper.from_array(values, name) for name, values in parameters.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def bright() -> Bytes:
    frame = np.random.default_rng(4).integers(0, 256, (8, 12, 3), np.uint8)
    frame[0, 0] = 255
    return frame


def stored_answer(frame: Bytes) -> GoldenAnswer:
    """What ``scaled_graph`` means, by arithmetic alone."""
    mask = (frame[:, :, 0] > 127.5).astype(np.uint8)
    second = 1 / (1 + np.exp(-400 * 1e-4 * (frame[:, :, 0] - 127.5)))
    best = np.maximum(second, 1 - second)
    return GoldenAnswer(
        answer=Answer(
            mask=mask,
            confidence=np.rint(255 * best).astype(np.uint8),
            member_masks=mask[np.newaxis],
        ),
        margin=(2 * best - 1).astype(np.float16),
    )


def test_what_grows_too_large_stays_float32_and_the_rest_does_not(bright: Bytes) -> None:
    model = scaled_graph()
    values = largest_values(model, [bright], {"grow", "still", "shrink"})
    assert values["grow"] == values["still"] == pytest.approx(255 * 400)
    assert values["shrink"] == pytest.approx(127.5 * 0.04, rel=1e-4)
    half = to_float16(model, [bright])
    kinds = kinds_of(half)
    given_by = {node.name: kinds[node.output[0]] for node in half.graph.node}
    assert given_by["first"] == FLOAT16
    assert given_by["grow"] == given_by["still"] == given_by["shrink"] == FLOAT
    found = OrtBackend(half.SerializeToString(), where="half").run(bright)
    stored = stored_answer(bright)
    assert np.array_equal(found.mask, stored.answer.mask)
    assert np.abs(found.confidence.astype(int) - stored.answer.confidence).max() <= 1
    require_equal(half, [bright], [stored], classes_of(2), where="half")


def test_what_overflowed_is_named_where_it_was_not_kept(bright: Bytes) -> None:
    half = convert(scaled_graph(), kept=())
    with pytest.raises(BundleError) as caught:
        require_equal(half, [bright], [stored_answer(bright)], classes_of(2), where="e.fp16.onnx")
    said = str(caught.value)
    assert said.startswith("e.fp16.onnx: float16 does not answer as float32: ")
    assert "; Conv 'grow' overflowed float16 (largest 65504)" in said
    assert "Nothing was written" in said


def test_the_gate_rounds_each_result_as_an_engine_does() -> None:
    """ONNX Runtime alone computes a float16 graph in float32: nothing is rounded between nodes.

    255 * 100 = 25500; float16's steps are 16 there: it becomes 25504, on the other side of 25502.
    """
    half = convert(scaled_graph(weight=100, back=1, middle=25502), kept={"shrink"})
    rounded = with_rounding(half)
    onnx.checker.check_model(rounded)
    white = np.full((8, 12, 3), 255, np.uint8)
    backend = OrtBackend(rounded.SerializeToString(), where="half", as_written=True)
    assert (backend.run(white).mask == 1).all()
    assert float(np.float16(25500)) == 25504


def test_where_nothing_overflowed_that_is_said(bright: Bytes) -> None:
    half = to_float16(scaled_graph(), [bright])
    assert first_overflow(half, [bright]) == "no operator overflowed"
    wrong = stored_answer(bright[::-1])
    with pytest.raises(BundleError, match="no operator overflowed"):
        require_equal(half, [bright], [wrong], classes_of(2), where="half")


@pytest.mark.parametrize("weight", [70_000.0, 9_000.0])
def test_weights_that_float16_may_not_hold_keep_their_node_float32(
    weight: float, bright: Bytes
) -> None:
    """On a dark frame: the results are small, the weight is not."""
    model = scaled_graph(weight=weight, back=0.04 / weight)
    dark = np.zeros_like(bright)
    assert overflowing(model, [dark], among={"grow", "still", "shrink"}) == {"grow"}
    half = to_float16(model, [dark])
    (kept,) = (one for one in half.graph.initializer if one.name == "weight")
    assert kept.data_type == FLOAT
    assert numpy_helper.to_array(kept).max() == weight


def test_a_value_eight_times_below_the_end_of_float16_is_left_room(bright: Bytes) -> None:
    limit = LARGEST / 8 / 255
    between = {"grow", "still", "shrink"}
    for weight, kept in ((limit * 1.01, between), (limit * 0.99, set())):
        model = scaled_graph(weight=weight, back=0.04 / weight)
        assert overflowing(model, [bright], among={*between, "planes"}) == kept


@pytest.fixture(scope="module")
def floes(class_map: ClassMap) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A small Mask R-CNN with random parameters beside a U-Net, whole and halved."""
    detector = small_member("maskrcnn", class_map).eval()
    members = [small_member("unet", class_map).eval(), StaticMaskRcnn(detector, SIZE)]  # type: ignore[arg-type]
    graph = EnsembleGraph(
        members, [0.5, 0.5], [1.0, 1.0], kinds=["surfaces", "floes"], class_map=class_map
    )
    whole = to_onnx(graph.eval(), SIZE)
    return whole, to_float16(whole, unseen_frames()[:2])


@pytest.mark.slow
def test_mask_rcnn_s_layers_become_float16_and_its_boxes_stay_float32(
    floes: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    whole, half = floes
    layers = ("Conv", "ConvTranspose", "Gemm")
    assert given(half, *layers) == {FLOAT16: given(whole, *layers)[FLOAT]}
    assert given(whole, "Gemm")[FLOAT] >= 4  # the box head's
    geometry = ("TopK", "RoiAlign", "Exp", "Sqrt", "Sigmoid", "Softmax", "Greater")
    kinds = kinds_of(half)
    for node in half.graph.node:
        if node.op_type in geometry:
            assert kinds[node.input[0]] == FLOAT, (node.op_type, node.name)
    products = [n for n in half.graph.node if n.op_type == "MatMul"]
    assert len(products) > 24  # suppression and pasting
    assert {kinds[node.output[0]] for node in products} == {FLOAT}
    made_by = {name: node.op_type for node in half.graph.node for name in node.output}
    for node in half.graph.node:  # areas, limits and suppression are none of the layers'
        if node.op_type in {"Clip", "Relu"} and kinds[node.output[0]] == FLOAT16:
            assert made_by[node.input[0]] in {*layers, "Add"}, node.name
    assert boxes(whole) & {node.name for node in whole.graph.node if node.op_type == "TopK"}


@pytest.mark.slow
def test_a_halved_mask_rcnn_is_valid_static_and_taken_by_every_tensorrt(
    floes: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    _, half = floes
    onnx.checker.check_model(half, full_check=True)
    assert findings(half) == []
    assert round_trips(half) == []
    for version in known_versions():
        assert refusals(half, version.name) == [], version
    session = onnxruntime.InferenceSession(
        half.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for frame in unseen_frames()[2:4]:
        mask, confidence, _ = session.run(None, {"frame": frame[np.newaxis]})
        assert mask.max() <= 2
        assert confidence.min() >= 83
