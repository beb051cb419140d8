"""From what a config draws on a frame to the pixels of a mask that it means."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.contract.coverage import Region
    from edge.contract.frames import Size

    Polygon = Sequence[tuple[float, float]]


def region_mask(polygons: Sequence[Polygon], frame_size: Size, mask_size: Size) -> Region:
    """Return bool ``mask_size``: True where a mask pixel's centre lies inside a polygon.

    Polygons are (x, y) points in frame pixels, where pixel (row r, column c) covers
    ``[c, c + 1) x [r, r + 1)``; each is filled by the even-odd rule, and they are joined. Sizes
    are (height, width). No polygons: every pixel counts.
    """
    height, width = mask_size
    if not polygons:
        return np.ones(mask_size, np.bool_)
    x = (np.arange(width) + 0.5) * frame_size[1] / width
    y = (np.arange(height) + 0.5) * frame_size[0] / height
    joined = np.zeros(mask_size, np.bool_)
    for polygon in polygons:
        joined |= _inside(polygon, x, y)
    return joined


def region_id(polygons: Sequence[Polygon]) -> str | None:
    """Return the sha256 of a region's polygons, None for the whole frame."""
    if not polygons:
        return None
    text = json.dumps([[[float(x), float(y)] for x, y in polygon] for polygon in polygons])
    return hashlib.sha256(text.encode()).hexdigest()


def _inside(
    polygon: Polygon,
    x: np.ndarray[tuple[int], np.dtype[np.float64]],
    y: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Region:
    """Even-odd rule: a point is inside where a ray to the right crosses an odd number of edges."""
    inside = np.zeros((y.size, x.size), np.bool_)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        crossed = (y0 > y) != (y1 > y)
        rows = np.flatnonzero(crossed)
        crossing = x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1.0)
        inside[rows] ^= x[None, :] < crossing[:, None]
    return inside
