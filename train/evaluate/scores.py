"""Scores of a segmentation, from its confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Fractions 0..1, pooled over all valid pixels.

    iou: intersection / union of each class, None for a class neither drawn nor predicted;
    miou: their mean over the classes that have one; pixel_accuracy: share of pixels that agree.
    """

    iou: tuple[float | None, ...]
    miou: float
    pixel_accuracy: float


def score(confusion: npt.NDArray[np.integer]) -> Scores:
    """Return the scores of a confusion matrix ``(C, C)``: rows truth, columns prediction.

    Raises ConfigError where it counts no pixel at all.
    """
    if not confusion.sum():
        raise ConfigError("no pixel of these masks is valid", expected="some that are not 255")
    hits = np.diag(confusion)
    unions = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = tuple(
        float(hit / union) if union else None for hit, union in zip(hits, unions, strict=True)
    )
    known = [value for value in iou if value is not None]
    return Scores(
        iou=iou,
        miou=sum(known) / len(known),
        pixel_accuracy=float(hits.sum() / confusion.sum()),
    )
