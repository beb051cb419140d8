"""Polygons to cells, exactly: a cell belongs to a polygon where its centre lies inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Points = NDArray[np.float64]


def inside(polygons: Sequence[Points] | Points, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the cells (height, width) whose centre lies in any polygon (n, 2).

    The centre of cell (0, 0) is at x = y = 0. Unlike cv2.fillPoly, which also draws the outline,
    this makes nothing larger. Polygons with a NaN are left out; no more than 127 may lie over each
    other. The winding number by scan lines (Foley et al., Computer Graphics, 2nd ed., section 3.6):
    a cell is inside where the signed crossings to its left do not add up to nought.
    """
    height, width = shape
    start, end = _edges(polygons)
    upward = end[:, 1] > start[:, 1]
    low = np.where(upward[:, None], start, end)
    high = np.where(upward[:, None], end, start)
    first = np.clip(np.ceil(low[:, 1]), 0, height).astype(np.int64)
    count = np.clip(np.ceil(high[:, 1]), 0, height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(low)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (high - low)[:, 0] / np.maximum((high - low)[:, 1], 1e-12)
    at = low[edge, 0] + (row - low[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(at), 0, width).astype(np.int64)
    cells = np.zeros(shape, np.bool_)
    if not len(row):
        return cells
    top, bottom = int(row.min()), int(row.max()) + 1
    crossings = np.zeros((bottom - top, width + 1), np.int8)
    np.add.at(crossings, (row - top, column), np.where(upward, 1, -1).astype(np.int8)[edge])
    # Every row adds up to nought, so that one sum may run through all rows.
    winding = np.cumsum(crossings, dtype=np.int8).reshape(crossings.shape)
    cells[top:bottom] = winding[:, :-1] != 0
    return cells


def _edges(polygons: Sequence[Points] | Points) -> tuple[Points, Points]:
    """Return all edges' starts and ends, every polygon turned the same way."""
    if isinstance(polygons, np.ndarray):
        stack = polygons[np.isfinite(polygons).all(axis=(1, 2))]
        end = np.roll(stack, -1, axis=1)
        turned = _area(stack, end) < 0
        start = np.where(turned[:, None, None], end, stack)
        end = np.where(turned[:, None, None], stack, end)
        return start.reshape(-1, 2), end.reshape(-1, 2)
    pairs = [_edges(polygon[None]) for polygon in polygons]
    if not pairs:
        return np.zeros((0, 2)), np.zeros((0, 2))
    starts, ends = zip(*pairs, strict=True)
    return np.concatenate(starts), np.concatenate(ends)


def _area(start: Points, end: Points) -> Points:
    return np.asarray(
        (start[..., 0] * end[..., 1] - end[..., 0] * start[..., 1]).sum(axis=1),
        np.float64,
    )
