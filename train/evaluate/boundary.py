"""Boundary IoU: how well the outlines agree, whatever the size of what they surround."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge.contract.classes import NOT_VALID

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.contract.masks import Mask

DILATION_RATIO = 0.02
"""How deep a boundary is, as a share of the image's diagonal: the paper's choice."""

_SQUARE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoundaryCounts:
    """Pixels of each class that lie in both boundaries, and in either: int64 ``(C,)``."""

    intersections: npt.NDArray[np.int64]
    unions: npt.NDArray[np.int64]


def boundary_counts(truth: Mask, prediction: Mask, classes: int) -> BoundaryCounts:
    """Count the boundaries of each class, both masks uint8 ``(H, W)``, 255 in the truth ignored.

    Boundary IoU of Cheng et al. 2021 (arXiv 2103.16562): of a class's pixels only those count that
    are at most ``DILATION_RATIO`` of the diagonal, in squares, from a pixel of another class or
    from the frame's edge, as in the authors' code. An ignored pixel is in no boundary and makes
    none.
    """
    ignored = truth == NOT_VALID
    depth = max(1, round(DILATION_RATIO * math.hypot(*truth.shape)))
    pairs = [
        (_boundary(truth == index, ignored, depth), _boundary(prediction == index, ignored, depth))
        for index in range(classes)
    ]
    return BoundaryCounts(
        intersections=np.array([np.count_nonzero(a & b) for a, b in pairs], np.int64),
        unions=np.array([np.count_nonzero(a | b) for a, b in pairs], np.int64),
    )


def _boundary(
    inside: npt.NDArray[np.bool_], ignored: npt.NDArray[np.bool_], depth: int
) -> npt.NDArray[np.bool_]:
    either = (inside | ignored).astype(np.uint8)
    core = cv2.erode(
        either, _SQUARE, iterations=depth, borderType=cv2.BORDER_CONSTANT, borderValue=(0,)
    )
    rim: npt.NDArray[np.bool_] = inside & ~ignored & (core == 0)
    return rim
