"""The perspective camera on its pole: pixels to metres on the water and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A pinhole camera without distortion above a flat sea.

    Source: Hartley & Zisserman, Multiple View Geometry, 2nd ed., section 6.1: a world point X is
    seen at x ~ K (R X + t), t = -R C. The same convention as cv2.projectPoints: camera axes right,
    down, forward; pixels (x, y), the centre of the top left pixel at (0, 0).

    World axes in metres: X right, Y ahead, Z up; the origin lies on the water below the camera.
    The Earth is flat here: at 2 km a true horizon would lie 0.3 m higher.
    """

    height_m: float
    tilt_deg: float
    """How far the optical axis points below the horizon."""
    roll_deg: float
    """Positive turns the camera clockwise, so the horizon falls to the left."""
    vertical_fov_deg: float
    size: tuple[int, int]
    """Height, width in pixels."""

    @property
    def focal_px(self) -> float:
        """The focal length, the same along both axes."""
        return self.size[0] / 2 / float(np.tan(np.radians(self.vertical_fov_deg) / 2))

    @property
    def matrix(self) -> Float:
        """K, 3 x 3: the principal point is the picture's centre."""
        height, width = self.size
        f = self.focal_px
        return np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])

    @property
    def rotation(self) -> Float:
        """R, 3 x 3: world axes to camera axes."""
        tilt, roll = np.radians([self.tilt_deg, self.roll_deg])
        level = np.array(
            [
                [1, 0, 0],
                [0, -np.sin(tilt), -np.cos(tilt)],
                [0, np.cos(tilt), -np.sin(tilt)],
            ],
        )
        rolled = np.array(
            [[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]],
        )
        return np.asarray(rolled @ level, np.float64)

    @property
    def translation(self) -> Float:
        """t, 3: R X + t is X in camera axes."""
        return np.asarray(-self.rotation @ np.array([0, 0, self.height_m]), np.float64)

    @property
    def ground_homography(self) -> Float:
        """H = K [r1 r2 t], 3 x 3: [x w, y w, w] = H [X, Y, 1] (Hartley & Zisserman, 8.1)."""
        columns = np.column_stack([self.rotation[:, :2], self.translation])
        return np.asarray(self.matrix @ columns, np.float64)

    def project(self, points_m: ArrayLike) -> Float:
        """Take world points (..., 3) in metres to pixels (..., 2): x, y; NaN behind the camera."""
        x, y, z = np.moveaxis(np.asarray(points_m, np.float64), -1, 0)
        return self._pixels(x, y, z)

    def _pixels(self, x: Float, y: Float, z: float | Float) -> Float:
        lens = self.matrix @ np.column_stack([self.rotation, self.translation])
        across, down, depth = (a * x + b * y + c * z + d for a, b, c, d in lens)
        depth = np.where(depth > 0, depth, np.nan)
        return np.stack([across / depth, down / depth], axis=-1)

    def ground_to_pixel(self, ground_m: ArrayLike, height_m: float | Float = 0.0) -> Float:
        """Take points (..., 2) as X, Y on a plane height_m above the water to pixels (..., 2)."""
        ground = np.asarray(ground_m, np.float64)
        return self._pixels(ground[..., 0], ground[..., 1], height_m)

    def pixel_to_ground(self, pixels: ArrayLike) -> Float:
        """Take pixels (..., 2) as x, y to X, Y (..., 2) on the water; NaN at and above the horizon.

        The ray R' K^-1 x from the camera meets Z = 0 (Hartley & Zisserman, section 6.2).
        """
        rays = self.pixel_rays(pixels)
        down = np.where(rays[..., 2:] < 0, -rays[..., 2:], np.nan)
        return np.asarray(rays[..., :2] / down * self.height_m, np.float64)

    def pixel_rays(self, pixels: ArrayLike) -> Float:
        """Return unit vectors (..., 3) in world axes along which pixels (..., 2) look."""
        across, down = np.moveaxis(np.asarray(pixels, np.float64) - self.matrix[:2, 2], -1, 0)
        u, v = across / self.focal_px, down / self.focal_px
        length = np.sqrt(u * u + v * v + 1)
        return np.stack([(a * u + b * v + c) / length for a, b, c in self.rotation.T], axis=-1)

    def pixel_grid(self) -> Float:
        """Return all pixel centres, (height, width, 2) as x, y."""
        height, width = self.size
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(float)
