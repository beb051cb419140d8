"""Certification: real graphs with real mistakes fail, and the verdict says by what."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import onnx
import pytest
import torch

from edge.contract.bundle import Bundle, open_bundle
from edge.contract.errors import EngineError
from edge.contract.frames import decode_image
from edge.engine import open_engine
from edge.engine.certify import COMPILED, SAME_ARITHMETIC, bars_for, replay_golden
from edge.engine.golden import pack_answer, read_golden
from export.graph import EnsembleGraph
from export.to_onnx import to_onnx
from tests.engine import surgery
from tests.engine.bundles import answer_file, arrays_of, changed
from tests.train.classes import classes_of
from train.models.architectures import build_member
from train.synth.scene import make_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge.engine.certify import Verdict
    from tests.engine.surgery import Change

SIZE = (224, 384)
OTHER, WATER, ICE = range(3)
RARE_ICE_SEED = 257
"""A drawn scene of open water: ice is 0.3 % of the pixels."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def model_of(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load_from_string(bundle.read("ensemble.onnx"))


Precision = Literal["float32", "float16"]


def replayed(bundle: Bundle) -> Verdict:
    with open_engine(bundle) as engine:
        return replay_golden(bundle, engine)


def with_graph(demo: Bundle, path: Path, graph: bytes, precision: Precision) -> Bundle:
    """The demo's golden answers beside another graph, which calls itself float32 or float16."""
    full = {**demo.manifest.graphs[0].model_dump(), "precision": precision}
    return changed(demo, path, {"ensemble.onnx": graph}, graphs=[full])


def test_the_demo_bundle_answers_here_as_it_did_in_training(demo: Bundle) -> None:
    verdict = replayed(demo)
    assert verdict.bars == SAME_ARITHMETIC
    assert verdict.frames == len(demo.manifest.golden) >= 1
    assert verdict.mask_agreement >= 0.999
    assert verdict.clear_disagreements == verdict.not_numbers == 0
    assert verdict.passed
    assert verdict.slowest_s >= verdict.median_s > 0


def test_the_same_graph_as_float16_is_held_to_the_bars_of_what_is_compiled(
    demo: Bundle, tmp_path: Path
) -> None:
    bundle = with_graph(demo, tmp_path / "b.icecam", demo.read("ensemble.onnx"), "float16")
    with open_engine(bundle) as engine:
        assert bars_for(engine) == COMPILED
        engine.name = "trt"
        assert bars_for(engine) == COMPILED
    with open_engine(demo) as engine:
        assert bars_for(engine) == SAME_ARITHMETIC
        engine.name = "trt"
        assert bars_for(engine) == COMPILED
    assert replayed(bundle).passed


WRONG: dict[str, tuple[Change, str]] = {
    "water for ice": (
        partial(surgery.swap_classes, first=WATER, second=ICE, heads=surgery.HEADS),
        "IoU of ice 0.000",
    ),
    "other for water": (
        partial(surgery.swap_classes, first=OTHER, second=WATER, heads=surgery.HEADS),
        "IoU of water 0.000",
    ),
    "water for ice in one member": (
        partial(surgery.swap_classes, first=WATER, second=ICE, heads=surgery.HEADS[1:]),
        "least member agreement",
    ),
    "red for blue": (surgery.swap_colours, "mask agreement"),
    "normalised for 0..1": (
        partial(surgery.normalise, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        "mask agreement",
    ),
    "divided by 255 alone": (
        partial(surgery.normalise, mean=(0, 0, 0), std=(255, 255, 255)),
        "mask agreement",
    ),
    "mean as if blue came first": (
        partial(surgery.normalise, mean=(103.53, 116.28, 123.675), std=(58.395, 57.12, 57.375)),
        "IoU of",
    ),
    "NaN in the first layer": (
        partial(surgery.not_a_number, name="members.0.network.encoder.model.conv_stem.weight"),
        "pixels are not numbers (NaN)",
    ),
    "NaN in the last layer": (
        partial(surgery.not_a_number, name=f"{surgery.HEADS[0]}.weight"),
        "pixels are not numbers (NaN)",
    ),
    "NaN in the other member": (
        partial(surgery.not_a_number, name=f"{surgery.HEADS[1]}.bias"),
        "pixels are not numbers (NaN)",
    ),
    "ice lost": (partial(surgery.lose_class, index=ICE), "IoU of ice 0.000"),
}


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_graph_with_a_mistake_fails_and_the_verdict_says_by_what(
    demo: Bundle, tmp_path: Path, mistake: str, precision: Precision
) -> None:
    change, said = WRONG[mistake]
    model = model_of(demo)
    change(model)
    bundle = with_graph(demo, tmp_path / "b.icecam", model.SerializeToString(), precision)
    verdict = replayed(bundle)
    assert not verdict.passed
    assert any(said in one for one in verdict.shortfalls), verdict.shortfalls


@pytest.fixture(scope="module")
def stranger() -> bytes:
    """A graph of the same architectures, size and classes with other parameters."""
    torch.manual_seed(11)
    members = [build_member(name, class_map=classes_of(3)) for name in ("unet", "pspnet")]
    graph = EnsembleGraph(
        members, [0.5, 0.5], [1.0, 1.0], kinds=["surfaces"] * 2, class_map=classes_of(3)
    )
    return to_onnx(graph.eval(), SIZE).SerializeToString()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_engine_of_another_bundle_fails(
    demo: Bundle, tmp_path: Path, stranger: bytes, precision: Precision
) -> None:
    verdict = replayed(with_graph(demo, tmp_path / "b.icecam", stranger, precision))
    assert not verdict.passed
    assert verdict.mask_agreement < 0.9


@pytest.fixture(scope="module")
def rare(demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo with one golden frame, on which there is hardly any ice; as float16."""
    scene = make_scene(RARE_ICE_SEED, SIZE)
    stored = surgery.golden_of(model_of(demo), scene.image)
    assert 0.001 < np.mean(stored.answer.mask == ICE) < 0.0033  # choose another scene otherwise
    done, png = cv2.imencode(".png", scene.image)
    assert done
    full = {**demo.manifest.graphs[0].model_dump(), "precision": "float16"}
    case = demo.manifest.golden[0].model_dump()
    return changed(
        demo,
        tmp_path_factory.mktemp("rare") / "b.icecam",
        {case["frame"]: png.tobytes(), case["answer"]: pack_answer(stored)},
        golden=[case],
        graphs=[full],
    )


def test_a_rare_class_that_is_lost_fails_by_its_own_iou_where_all_shares_are_within_bars(
    rare: Bundle, tmp_path: Path
) -> None:
    model = model_of(rare)
    surgery.lose_class(model, ICE)
    files = {"ensemble.onnx": model.SerializeToString()}
    assert replayed(rare).passed
    verdict = replayed(changed(rare, tmp_path / "lost.icecam", files))
    assert verdict.shortfalls == ("IoU of ice 0.000, at least 0.97 wanted",)
    assert verdict.mask_agreement > 0.99
    assert verdict.least_class == ("ice", 0.0)


def test_swapped_golden_answers_fail(demo: Bundle, tmp_path: Path) -> None:
    first, second = (case.answer for case in demo.manifest.golden[:2])
    swapped = {first: demo.read(second), second: demo.read(first)}
    verdict = replayed(changed(demo, tmp_path / "swapped.icecam", swapped))
    assert not verdict.passed
    assert verdict.mask_agreement < 0.999


@pytest.mark.parametrize(
    ("damaged", "said"), [("member_masks", "least member"), ("confidence", "confidence")]
)
def test_members_swapped_or_another_confidence_fail_where_arithmetic_is_the_same(
    demo: Bundle, tmp_path: Path, damaged: str, said: str
) -> None:
    path = demo.manifest.golden[0].answer
    arrays = arrays_of(demo.read(path))
    arrays[damaged] = arrays[damaged][::-1].copy()  # the members' order, or the rows
    verdict = replayed(changed(demo, tmp_path / "b.icecam", {path: answer_file(**arrays)}))
    assert verdict.mask_agreement == 1
    assert [one.partition(" agreement")[0] for one in verdict.shortfalls] == [said]


def test_agreement_and_clear_disagreements_are_counted_by_hand(
    demo: Bundle, tmp_path: Path
) -> None:
    golden = demo.manifest.golden
    path = golden[0].answer
    arrays = arrays_of(demo.read(path))
    with open_engine(demo) as engine:
        frame, _ = read_golden(demo, golden[0], engine.graph)
        arrays["mask"] = engine.segment(frame).answer.mask.copy()
    margin = np.full(arrays["mask"].shape, 0.5, np.float16)
    margin[0, :4] = 0.0
    arrays["mask"][0, :7] = (arrays["mask"][0, :7] + 1) % 3  # 7 wrong: 4 close calls, 3 clear
    bundle = changed(
        demo,
        tmp_path / "b.icecam",
        {path: answer_file(**{**arrays, "margin": margin})},
        golden=[golden[0].model_dump()],
    )
    verdict = replayed(bundle)
    assert verdict.clear_disagreements == 3
    assert verdict.mask_agreement == pytest.approx(1 - 7 / (224 * 384))
    assert verdict.shortfalls == ("3 clear disagreements, none wanted",)


def test_disagreement_that_is_never_clear_still_fails_when_there_is_too_much_of_it(
    demo: Bundle, tmp_path: Path
) -> None:
    golden = demo.manifest.golden
    arrays = arrays_of(demo.read(golden[0].answer))
    arrays["mask"] = (arrays["mask"] + (np.arange(384) == 0)).astype(np.uint8) % 3
    arrays["margin"] = np.zeros_like(arrays["margin"])
    bundle = changed(
        demo,
        tmp_path / "b.icecam",
        {golden[0].answer: answer_file(**arrays)},
        golden=[golden[0].model_dump()],
    )
    verdict = replayed(bundle)
    assert verdict.clear_disagreements == 0
    assert verdict.mask_agreement <= 1 - 200 / (224 * 384)
    assert not verdict.passed


def test_what_is_kept_and_published_carries_the_verdict_s_figures(
    demo: Bundle, tmp_path: Path
) -> None:
    model = model_of(demo)
    surgery.swap_colours(model)
    bundle = with_graph(demo, tmp_path / "b.icecam", model.SerializeToString(), "float16")
    with open_engine(bundle) as engine:
        verdict = replay_golden(bundle, engine)
        kept = verdict.certification(engine, bundle)
    assert (kept.engine, kept.graph, kept.bundle_sha256) == ("ort", "full", bundle.sha256)
    assert kept.at.utcoffset() is not None
    assert not kept.passed
    assert kept.shortfalls == verdict.shortfalls != ()
    assert kept.frames == verdict.frames == 4
    assert kept.mask_agreement == verdict.mask_agreement
    assert kept.member_agreement == verdict.member_agreement
    assert (kept.least_class, kept.least_class_iou) == verdict.least_class
    assert kept.coverage_difference == verdict.coverage_difference
    assert kept.not_numbers == verdict.not_numbers
    assert (kept.median_s, kept.slowest_s) == (verdict.median_s, verdict.slowest_s)
    assert f"{kept.mask_agreement:.3%}" in verdict.describe()


def test_an_engine_that_answers_no_numbers_never_serves(demo: Bundle, tmp_path: Path) -> None:
    model = model_of(demo)
    surgery.not_a_number(model, f"{surgery.HEADS[0]}.bias")
    bundle = with_graph(demo, tmp_path / "b.icecam", model.SerializeToString(), "float16")
    case = demo.manifest.golden[0]
    frame = decode_image(demo.read(case.frame), where=case.frame)
    with open_engine(bundle) as engine:
        with pytest.raises(EngineError, match=r"answers 86016 pixels with a confidence .*\(NaN\)"):
            engine.segment(frame)
        verdict = replay_golden(bundle, engine)
    assert verdict.not_numbers == 4 * 224 * 384
    assert verdict.shortfalls[0] == f"{4 * 224 * 384} pixels are not numbers (NaN)"
