"""The true ice fraction, measured on the ground plane without any picture of the ice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.synth.ice import ice_cover
from train.synth.view import azimuths, nearest_m

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from train.synth.camera import Camera
    from train.synth.fracture import Points
    from train.synth.ice import Ice

FAR_GRAZING_DEG = 5.0
CELLS_ACROSS = 512
FEWEST_CELLS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """An even metric grid over the ground that a picture shows."""

    x: Points
    """(m,) cell centres in metres."""
    y: Points
    """(n,)."""
    seen: NDArray[np.bool_]
    """(n, m): cells that the picture shows as water or ice, within the far limit."""


def far_limit_m(camera: Camera) -> float:
    """Return how far out the truth is measured: where sight grazes the water at FAR_GRAZING_DEG."""
    return camera.height_m / float(np.tan(np.radians(FAR_GRAZING_DEG)))


def ground_grid(camera: Camera) -> tuple[Points, Points]:
    """Return cell centres of an even metric grid over what the picture shows: x (m,), y (n,)."""
    far = far_limit_m(camera)
    low, high = azimuths(camera, margin_deg=0)
    left, right = far * np.sin(low), far * np.sin(high)
    nearest = min(nearest_m(camera), far) * min(np.cos(low), np.cos(high))
    cell = max(far, right - left) / CELLS_ACROSS
    return np.arange(left, right, cell) + cell / 2, np.arange(nearest, far, cell) + cell / 2


def footprint(camera: Camera, other: NDArray[np.bool_]) -> Footprint:
    """Return the water surface that a camera sees within the far limit.

    other: the pixels that land, sky or breakwater take, whatever the ice.
    """
    x, y = ground_grid(camera)
    if len(x) < FEWEST_CELLS or len(y) < FEWEST_CELLS:
        return Footprint(x=x, y=y, seen=np.zeros((len(y), len(x)), np.bool_))
    height, width = camera.size
    across, down, depth = (
        a * x[None, :] + b * y[:, None] + c for a, b, c in camera.ground_homography
    )
    column = np.rint(across / depth).astype(np.int32)
    row = np.rint(down / depth).astype(np.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    inside &= (depth > 0) & (x[None, :] ** 2 + y[:, None] ** 2 <= far_limit_m(camera) ** 2)
    hidden = other[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return Footprint(x=x, y=y, seen=inside & ~hidden)


def ground_area_fraction(seen: Footprint, ice: Ice) -> float | None:
    """Return ice over ice and water by ground area; None where neither is seen."""
    if not seen.seen.any():
        return None
    start = np.array([seen.x[0], seen.y[0]])
    cell = np.array([seen.x[1] - seen.x[0], seen.y[1] - seen.y[0]])
    covered = ice_cover(ice, lambda ground: (ground - start) / cell, seen.seen.shape)
    return float((covered & seen.seen).sum() / seen.seen.sum())
