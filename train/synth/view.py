"""What each pixel looks at: computed once for a camera, used by all that paints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from train.synth.noise import Field, sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from train.synth.camera import Camera

FARTHEST_M = 60_000.0
SUPERSAMPLE = 3
SHIFT_BITS = 4
REFERENCE_ROWS = 360
BEYOND_PX = 20_000.0
RIM_POINTS = 33


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Per-pixel directions and ground positions, each (height, width) float32."""

    camera: Camera
    east: Field
    """The ray's world components: X right,"""
    north: Field
    """Y ahead,"""
    up: Field
    """Z up; the three make a unit vector."""
    azimuth: Field
    """Radians, 0 ahead, positive to the right."""
    ground_x: Field
    """Metres on the water; beyond the horizon FARTHEST_M away along the azimuth."""
    ground_y: Field
    range_m: Field
    """Level distance from the pole."""
    row_span_m: Field
    """Ground that one of REFERENCE_ROWS rows covers, along the line of sight."""

    @property
    def sea_rows(self) -> slice:
        """The rows that reach below the horizon anywhere."""
        rows = np.flatnonzero((self.up < 0).any(axis=1))
        return slice(int(rows[0]), self.camera.size[0])

    def rows(self, part: slice) -> View:
        """Return the same view of some rows only; camera stays that of the whole picture."""
        fields = {name: getattr(self, name)[part] for name in View.__slots__ if name != "camera"}
        return View(camera=self.camera, **fields)


def look(camera: Camera) -> View:
    """Return the view of a camera."""
    rays = camera.pixel_rays(camera.pixel_grid()).astype(np.float32)
    east, north, up = (np.ascontiguousarray(rays[..., axis]) for axis in range(3))
    level = np.hypot(east, north)
    steepest = np.float32(camera.height_m / FARTHEST_M)
    range_m = np.float32(camera.height_m) / np.maximum(-up / level, steepest)
    reference_f = camera.focal_px * REFERENCE_ROWS / camera.size[0]
    slant2 = range_m**2 + np.float32(camera.height_m**2)
    return View(
        camera=camera,
        east=east,
        north=north,
        up=up,
        azimuth=np.arctan2(east, north),
        ground_x=east / level * range_m,
        ground_y=north / level * range_m,
        range_m=range_m,
        row_span_m=slant2 / np.float32(camera.height_m * reference_f),
    )


def azimuths(camera: Camera, margin_deg: float = 6.0) -> tuple[float, float]:
    """Return the least and greatest azimuth (radians) along the picture's rim, with a margin."""
    rays = camera.pixel_rays(_rim(camera))
    angles = np.arctan2(rays[:, 0], rays[:, 1])
    margin = np.radians(margin_deg)
    return float(angles.min() - margin), float(angles.max() + margin)


def nearest_m(camera: Camera) -> float:
    """Return the level distance of the nearest water in the picture."""
    return float(np.nanmin(np.hypot(*camera.pixel_to_ground(_rim(camera)).T)))


def _rim(camera: Camera) -> NDArray[np.float64]:
    """Return points (n, 2) along the picture's outer edge, the same at any resolution."""
    height, width = camera.size
    share = np.linspace(0, 1, RIM_POINTS)
    low, high = np.zeros(RIM_POINTS), np.ones(RIM_POINTS)
    sides = ((share, low), (share, high), (low, share), (high, share))
    rim = np.concatenate([np.stack(side, axis=-1) for side in sides])
    return np.asarray(rim * [width, height] - 0.5, np.float64)


def finer(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take pixel coordinates to those of the supersampled canvas."""
    return (pixels + 0.5) * SUPERSAMPLE - 0.5


def subpixels(pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """Take pixel coordinates to cv2's fixed point on the supersampled canvas (shift=SHIFT_BITS)."""
    inside = np.clip(np.nan_to_num(pixels, nan=BEYOND_PX), -BEYOND_PX, BEYOND_PX)
    return np.rint(finer(inside) * (1 << SHIFT_BITS)).astype(np.int32)


def coverage(camera: Camera, polygons: list[NDArray[np.float64]]) -> Field:
    """Return the share (0..1) of each pixel that pixel polygons (n, 2) cover."""
    height, width = camera.size
    canvas = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [subpixels(polygon)], 255, shift=SHIFT_BITS)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small.astype(np.float32) / 255, np.float32)


def relief(x: Field, y: Field, *, towards: float, step: float) -> Field:
    """Return the fractal field's slopes as a low sun shows them; their spread is about 1.

    x, y and step in tile periods; towards: the sun's azimuth in radians.
    """
    dx, dy = np.float32(step * np.sin(towards)), np.float32(step * np.cos(towards))
    slope = sample("fractal", x, y) - sample("fractal", x + dx, y + dy)
    return np.asarray(slope * np.float32(1.6 / (step * 60) ** 0.75), np.float32)
