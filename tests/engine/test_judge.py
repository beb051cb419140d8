"""The verdict's figures: as scikit-learn and counting give them, over all golden frames."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from edge.contract.bundle import Bundle, open_bundle
from edge.engine import Answer
from edge.engine.certify import COMPILED, SAME_ARITHMETIC, judge
from edge.engine.golden import GoldenAnswer, read_golden

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.classes import ClassMap

SIZE = (224, 384)
OTHER, WATER, ICE = range(3)


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def disturbed(stored: GoldenAnswer, share: float, *, close: bool) -> Answer:
    """Another class at a share of all pixels, such as were close calls or were not."""
    random = np.random.default_rng(5)
    among = np.flatnonzero((stored.margin.ravel() <= COMPILED.close_call) == close)
    chosen = random.choice(among, round(share * stored.margin.size), replace=False)
    mask = stored.answer.mask.copy()
    mask.flat[chosen] = (mask.flat[chosen] + random.integers(1, 3, len(chosen))) % 3
    return replace(stored.answer, mask=mask)


@pytest.mark.parametrize(
    ("share", "close", "passes"),
    [(0.003, True, True), (0.012, True, False), (0.02, False, False)],
)
def test_rounding_at_boundaries_passes_as_compiled_and_more_than_that_does_not(
    demo: Bundle, class_map: ClassMap, *, share: float, close: bool, passes: bool
) -> None:
    graph = demo.manifest.graphs[0]
    cases = (demo.manifest.golden[index] for index in (0, 1, 3))  # with enough close calls
    stored = [read_golden(demo, case, graph)[1] for case in cases]
    pairs = [(disturbed(one, share, close=close), one, 0.0) for one in stored]
    compiled = judge(pairs, class_map, COMPILED)
    assert compiled.passed == passes, compiled.shortfalls
    assert compiled.mask_agreement == pytest.approx(1 - share, abs=1e-4)
    assert not judge(pairs, class_map, SAME_ARITHMETIC).passed


def test_every_figure_is_what_scikit_learn_and_counting_give(
    demo: Bundle, class_map: ClassMap
) -> None:
    """Over all frames together, IoU where the decision was no close call."""
    graph = demo.manifest.graphs[0]
    random = np.random.default_rng(6)
    stored = [read_golden(demo, case, graph)[1] for case in demo.manifest.golden]
    found = []
    for number, one in enumerate(stored):
        members = np.where(
            random.random((2, *SIZE)) < [[[0.01 * number]], [[0.04]]],
            (one.answer.member_masks + 1) % 3,
            one.answer.member_masks,
        ).astype(np.uint8)
        mask = np.where(random.random(SIZE) < 0.02 * number, ICE, one.answer.mask)
        levels = one.answer.confidence.astype(int) - random.integers(0, 4, SIZE)
        confidence = np.maximum(levels, 85).astype(np.uint8)
        confidence.flat[:number] = 0
        found.append(
            Answer(mask=mask.astype(np.uint8), confidence=confidence, member_masks=members)
        )
    took = [0.4, 0.1, 0.3, 0.2]
    verdict = judge(zip(found, stored, took, strict=True), class_map, COMPILED)

    true = np.stack([one.answer.mask for one in stored])
    told = np.stack([one.mask for one in found])
    sure = np.stack([one.margin for one in stored]) > 0.05
    assert verdict.mask_agreement == pytest.approx(accuracy_score(true.ravel(), told.ravel()))
    assert verdict.clear_disagreements == int(((true != told) & sure).sum())
    iou = jaccard_score(true[sure], told[sure], average=None)
    assert list(verdict.class_iou.values()) == pytest.approx(list(iou))
    assert verdict.least_class == (class_map.names[np.argmin(iou)], pytest.approx(min(iou)))
    members = [
        accuracy_score(
            np.stack([one.answer.member_masks[member] for one in stored]).ravel(),
            np.stack([one.member_masks[member] for one in found]).ravel(),
        )
        for member in (0, 1)
    ]
    assert verdict.member_agreement == pytest.approx(min(members))
    near = [
        np.abs(a.confidence.astype(int) - b.answer.confidence) <= 2
        for a, b in zip(found, stored, strict=True)
    ]
    assert verdict.confidence_agreement == pytest.approx(np.mean(near))
    fractions = [
        abs((a == ICE).sum() / (a != OTHER).sum() - (b == ICE).sum() / (b != OTHER).sum())
        for a, b in zip(told, true, strict=True)
    ]
    assert verdict.coverage_difference == pytest.approx(max(fractions))
    assert verdict.not_numbers == 0 + 1 + 2 + 3
    assert (verdict.median_s, verdict.slowest_s, verdict.frames) == (0.25, 0.4, 4)


def test_an_ice_fraction_that_only_one_of_two_knows_differs_by_all_there_is(
    demo: Bundle, class_map: ClassMap
) -> None:
    _, stored = read_golden(demo, demo.manifest.golden[0], demo.manifest.graphs[0])
    found = replace(stored.answer, mask=np.full(SIZE, OTHER, np.uint8))
    verdict = judge([(found, stored, 0.0)], class_map, COMPILED)
    assert verdict.coverage_difference == 1
    assert verdict.class_iou["water"] == verdict.class_iou["ice"] == 0
    assert not verdict.passed


def test_a_class_that_neither_saw_has_no_iou_and_needs_none(class_map: ClassMap) -> None:
    mask = np.full((4, 6), WATER, np.uint8)
    confidence = np.full((4, 6), 200, np.uint8)
    answer = Answer(mask=mask, confidence=confidence, member_masks=mask[np.newaxis])
    stored = GoldenAnswer(answer=answer, margin=np.ones((4, 6), np.float16))
    verdict = judge([(answer, stored, 0.1)], class_map, SAME_ARITHMETIC)
    assert verdict.class_iou == {"other": None, "water": 1, "ice": None}
    assert verdict.coverage_difference == 0
    assert verdict.passed
    every_call_close = replace(stored, margin=np.zeros((4, 6), np.float16))
    verdict = judge([(answer, every_call_close, 0.1)], class_map, SAME_ARITHMETIC)
    assert verdict.least_class is None
    assert "no class seen" in verdict.describe()


def test_nothing_to_compare_is_no_certificate(class_map: ClassMap) -> None:
    with pytest.raises(ValueError, match="no frames to judge by"):
        judge([], class_map, COMPILED)
