"""From what a config draws on a frame to the pixels of a mask that it means."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

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


def ground_areas(
    homography: npt.NDArray[np.float64], frame_size: Size, mask_size: Size
) -> npt.NDArray[np.float64]:
    """Return the ground area under each pixel of a mask, float64 ``mask_size``, >= 0.

    homography: ``(3, 3)``, frame point (x, y, 1) → ground plane, in units whose square the areas
    have; pixel (row r, column c) of a frame covers ``[c, c + 1) x [r, r + 1)``. Sizes are
    (height, width). A pixel that does not lie below the horizon (w = 0) with all its corners has
    the area 0; the ground is on that side of it where the middle of the frame's bottom edge is,
    and where that middle lies on the horizon itself no pixel has any.

    Exact: the map takes straight lines to straight lines, so a pixel is two triangles, and a
    triangle's area is ``|det H| / |w1 w2 w3|`` times what it was in the frame, since
    ``det(H P) = det H det P`` (Hartley & Zisserman 2004, Multiple View Geometry, ch. 2).
    """
    height, width = mask_size
    x = np.arange(width + 1) * (frame_size[1] / width)
    y = np.arange(height + 1) * (frame_size[0] / height)
    bottom = homography[2] @ (frame_size[1] / 2, frame_size[0], 1)
    w = homography[2, 0] * x + homography[2, 1] * y[:, None] + homography[2, 2]
    w *= np.sign(bottom)
    corners = w[:-1, :-1], w[:-1, 1:], w[1:, 1:], w[1:, :-1]
    below = np.min(corners, axis=0) > 0
    first, second, third, fourth = (np.where(below, corner, 1) for corner in corners)
    triangle = abs(np.linalg.det(homography)) * x[1] * y[1] / 2
    areas = triangle * (1 / second + 1 / fourth) / (first * third)
    return np.where(below, areas, 0.0)


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
