"""Scores of a segmentation, from its confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError, EngineError
from edge.contract.masks import stray_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from edge.contract.masks import Mask


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
    iou = ratios(hits, unions)
    known = [value for value in iou if value is not None]
    return Scores(
        iou=iou,
        miou=sum(known) / len(known),
        pixel_accuracy=float(hits.sum() / confusion.sum()),
    )


def ratios(
    intersections: npt.NDArray[np.integer], unions: npt.NDArray[np.integer]
) -> tuple[float | None, ...]:
    """Return intersection / union of each class, both ``(C,)``; None where the union is empty."""
    return tuple(
        float(part / whole) if whole else None
        for part, whole in zip(intersections, unions, strict=True)
    )


def mean_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def confusion_of(truth: Mask, prediction: Mask, classes: int) -> npt.NDArray[np.int64]:
    """Count pixels by (truth, prediction), ``(classes, classes)``, where the truth is not 255.

    Both uint8 of one shape. Raises EngineError where the prediction is not a class there; that is
    checked here, because torchmetrics' own check takes eight times as long as its counting.
    """
    import torch  # noqa: PLC0415 - slow to load
    from torchmetrics.functional.classification import (  # noqa: PLC0415 - slow to load
        multiclass_confusion_matrix,
    )

    valid = truth != NOT_VALID
    said = prediction[valid]
    strays = stray_values(said, classes)
    if strays or (said == NOT_VALID).any():
        raise EngineError(
            f"a predicted mask holds {strays or [NOT_VALID]}", expected=f"classes below {classes}"
        )
    drawn = truth[valid]
    counts: npt.NDArray[np.int64] = multiclass_confusion_matrix(
        torch.from_numpy(said.astype(np.int64)),
        torch.from_numpy(drawn.astype(np.int64)),
        num_classes=classes,
        validate_args=False,
    ).numpy()
    return counts
