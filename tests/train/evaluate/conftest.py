"""Evaluations made of counts, without an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.classes import Classes
from train.evaluate.calibration import reliability_of
from train.evaluate.evaluation import Evaluation
from train.evaluate.measure import BoundaryCounts, IceFractions, ImageResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAP = Classes.model_validate(
    [
        {"index": 0, "name": "water", "role": "water", "colour": (0, 0, 128)},
        {"index": 1, "name": "ice", "role": "ice", "colour": (255, 255, 255)},
    ]
)


def make_image(stem: str, confusion: Sequence[Sequence[int]], *, group: str = "day") -> ImageResult:
    """Boundary: a third of the counts. Confidence: 0.9 for hits, 0.6 else; area errors: doubled."""
    counts = np.array(confusion, np.int64)
    hits = np.diag(counts)
    true, predicted = (float(counts.sum(axis)[1] / counts.sum()) for axis in (1, 0))
    right = np.repeat([True, False], [hits.sum(), counts.sum() - hits.sum()])
    return ImageResult(
        stem=stem,
        group=group,
        confusion=counts,
        boundary=BoundaryCounts(
            intersections=hits // 3, unions=(counts.sum(0) + counts.sum(1) - hits) // 3
        ),
        ice=IceFractions(true=true, predicted=predicted),
        ice_area=IceFractions(true=0.5, predicted=0.5 + 2 * (predicted - true)),
        reliability=reliability_of(np.where(right, 0.9, 0.6), right),
    )


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    """An evaluation of two classes, from each image's confusion by its stem."""

    def make(
        confusions: dict[str, Sequence[Sequence[int]]], *, predictor: str = "net", **said: str
    ) -> Evaluation:
        return Evaluation(
            predictor=predictor,
            dataset=said.get("dataset", "made"),
            split="test",
            class_map=MAP,
            images=tuple(
                make_image(stem, counts, group=said.get("group", "day"))
                for stem, counts in confusions.items()
            ),
        )

    return make
