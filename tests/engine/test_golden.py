"""Golden frames and answers: read as they lie in the bundle, or named as damaged."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from PIL import Image

from edge.contract.bundle import Bundle, open_bundle
from edge.contract.errors import BundleError
from edge.engine import Answer, open_engine
from edge.engine.certify import replay_golden
from edge.engine.golden import GoldenAnswer, pack_answer, read_golden
from tests.engine.bundles import answer_file, arrays_of, changed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def test_a_golden_frame_is_read_as_it_lies_in_the_bundle(demo: Bundle) -> None:
    for case in demo.manifest.golden:
        frame, stored = read_golden(demo, case, demo.manifest.graphs[0])
        data = np.frombuffer(demo.read(case.frame), np.uint8)
        assert np.array_equal(frame, cv2.imdecode(data, cv2.IMREAD_COLOR))  # type: ignore[arg-type]
        arrays = arrays_of(demo.read(case.answer))
        assert np.array_equal(stored.answer.mask, arrays["mask"])
        assert np.array_equal(stored.answer.confidence, arrays["confidence"])
        assert np.array_equal(stored.answer.member_masks, arrays["member_masks"])
        assert np.array_equal(stored.margin, arrays["margin"])


def test_an_answer_that_is_packed_is_an_npz_of_what_it_holds() -> None:
    random = np.random.default_rng(2)
    mask, confidence = random.integers(0, 3, (2, 5, 7), np.uint8)
    members = random.integers(0, 3, (4, 5, 7), np.uint8)
    margin = random.random((5, 7)).astype(np.float16)
    packed = pack_answer(
        GoldenAnswer(
            answer=Answer(mask=mask, confidence=confidence, member_masks=members), margin=margin
        )
    )
    arrays = arrays_of(packed)
    assert set(arrays) == {"mask", "confidence", "member_masks", "margin"}
    assert np.array_equal(arrays["mask"], mask)
    assert np.array_equal(arrays["confidence"], confidence)
    assert np.array_equal(arrays["member_masks"], members)
    assert np.array_equal(arrays["margin"], margin)


def with_fallback(demo: Bundle, path: Path, answers: dict[str, bytes]) -> Bundle:
    """The demo's, with a second graph of its first member whose golden answers are these."""
    full = demo.manifest.graphs[0].model_dump()
    fallback = {**full, "name": "fallback", "members": full["members"][:1], "weights": [1.0]}
    golden: list[dict[str, Any]] = [
        {**case.model_dump(), "answers": {"fallback": name}}
        for case, name in zip(demo.manifest.golden, answers, strict=True)
    ]
    return changed(demo, path, answers, graphs=[full, fallback], golden=golden)


def alone(demo: Bundle) -> dict[str, bytes]:
    """Answers as of an ensemble of the first member alone."""
    found = {}
    for number, case in enumerate(demo.manifest.golden):
        arrays = arrays_of(demo.read(case.answer))
        arrays["mask"] = arrays["member_masks"][0]
        arrays["member_masks"] = arrays["member_masks"][:1]
        found[f"golden/{number}-fallback.npz"] = answer_file(**arrays)
    return found


def test_a_graph_of_other_members_has_golden_answers_of_its_own(
    demo: Bundle, tmp_path: Path
) -> None:
    bundle = with_fallback(demo, tmp_path / "b.icecam", alone(demo))
    full, fallback = bundle.manifest.graphs
    for case in bundle.manifest.golden:
        _, of_all = read_golden(bundle, case, full)
        _, of_one = read_golden(bundle, case, fallback)
        assert of_all.answer.member_masks.shape == (2, 224, 384)
        assert of_one.answer.member_masks.shape == (1, 224, 384)
        assert np.array_equal(of_one.answer.mask, of_all.answer.member_masks[0])
        assert not np.array_equal(of_one.answer.mask, of_all.answer.mask)


def test_answers_of_other_members_than_the_graph_s_are_a_bundle_error(
    demo: Bundle, tmp_path: Path
) -> None:
    whole = {
        f"golden/{number}-fallback.npz": demo.read(case.answer)
        for number, case in enumerate(demo.manifest.golden)
    }
    bundle = with_fallback(demo, tmp_path / "b.icecam", whole)
    with pytest.raises(BundleError, match=r"0-fallback\.npz is not .* 1 members of graph 'fallb"):
        read_golden(bundle, bundle.manifest.golden[0], bundle.manifest.graphs[1])


def picture(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    ["frame", "frame size", "zip", "no zip", "array", "pickle", "missing", "shape", "class"],
)
def test_a_golden_case_that_cannot_be_read_is_a_bundle_error(
    demo: Bundle, tmp_path: Path, damage: str
) -> None:
    case = demo.manifest.golden[0]
    raw = demo.read(case.answer)
    arrays = arrays_of(raw)
    single = io.BytesIO()
    np.save(single, arrays["mask"])
    pickled = io.BytesIO()
    np.savez(pickled, **{**arrays, "mask": np.array([{"a": 1}], dtype=object)})
    files = {
        "frame": {case.frame: b"no picture"},
        "frame size": {case.frame: picture(224, 383)},
        "zip": {case.answer: raw[: len(raw) // 2]},
        "no zip": {case.answer: b"no answer"},
        "array": {case.answer: single.getvalue()},
        "pickle": {case.answer: pickled.getvalue()},
        "missing": {case.answer: answer_file(mask=arrays["mask"])},
        "shape": {case.answer: answer_file(**{**arrays, "mask": arrays["mask"][:-1]})},
        "class": {case.answer: answer_file(**{**arrays, "mask": arrays["mask"] + 1})},
    }[damage]
    bundle = changed(demo, tmp_path / "b.icecam", files)
    with pytest.raises(BundleError, match=r"golden/"):
        read_golden(bundle, case, bundle.manifest.graphs[0])
    with open_engine(bundle) as engine, pytest.raises(BundleError, match=r"golden/"):
        replay_golden(bundle, engine)
