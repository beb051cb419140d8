"""How an ice sheet breaks: floe outlines in ground metres with a power law of sizes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from train.synth.noise import curve, sample

Points = NDArray[np.float64]

CORNERS = 28
ROOT_M = 4_096.0
SPLIT_AGAIN = 0.72
"""A piece breaks into four with this chance: N(> L) ~ L^-log2(4 * 0.72), about L^-1.5."""
ROUNDED_ABOVE = 2.0
"""Corners are worn off floes this many times larger than the smallest that can be seen."""
ROWS_HIGH = 3.2
"""No floe is made that would stand lower than this many of 360 rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fan:
    """The part of the ground where floes are laid."""

    height_m: float
    """The camera's."""
    row_rad: float
    """What one of 360 rows spans."""
    azimuths: tuple[float, float]
    nearest_m: float
    farthest_m: float

    @property
    def stretch_m(self) -> float:
        """Beyond about this distance pieces are longer than wide."""
        return 22 * self.height_m

    def squeezed(self, y_m: Points) -> Points:
        """Take distances to a scale on which all pieces are as long as wide."""
        return self.stretch_m * np.log1p(y_m / self.stretch_m)

    def stretched(self, squeezed: Points) -> Points:
        """Undo squeezed."""
        return self.stretch_m * np.expm1(squeezed / self.stretch_m)

    def row_m(self, range_m: Points) -> Points:
        """Return the ground that a row covers along the line of sight."""
        return (range_m**2 + self.height_m**2) / self.height_m * self.row_rad

    def smallest_m(self, range_m: Points) -> Points:
        """Return how wide a piece must be to be seen there, on the squeezed scale."""
        return ROWS_HIGH * self.row_m(range_m) / (1 + range_m / self.stretch_m)

    def holds(self, x: Points, y: Points, slack: Points) -> NDArray[np.bool_]:
        """Return which squares (centre, half width) on the squeezed scale may touch the fan."""
        far = self.squeezed(np.array([self.farthest_m]))[0]
        reach = np.hypot(x, self.stretched(np.maximum(y, 0)))
        low, high = self.azimuths
        ahead = self.stretched(np.maximum(y + slack, 0)) + slack
        left, right = ahead * np.tan(max(low, -1.4)), ahead * np.tan(min(high, 1.4))
        inside = (x + 1.5 * slack > left) & (x - 1.5 * slack < right)
        inside &= (y - slack < far) & (reach + 3 * slack > self.nearest_m)
        return np.asarray(inside, np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class Floes:
    """Floes, farthest first."""

    outlines: Points
    """(n, corners, 2) in ground metres."""
    centres: Points
    """(n, 2)."""
    widths_m: Points
    """(n,): the diameter of a disk of the same area, roughly."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.widths_m)

    def only(self, kept: NDArray[np.bool_]) -> Floes:
        """Return the floes where kept."""
        return Floes(
            outlines=self.outlines[kept],
            centres=self.centres[kept],
            widths_m=self.widths_m[kept],
        )

    def scaled(self, factor: Points) -> Floes:
        """Return each floe's outline drawn towards its centre by its factor (n,)."""
        centre = self.centres[:, None]
        return Floes(
            outlines=centre + (self.outlines - centre) * factor[:, None, None],
            centres=self.centres,
            widths_m=self.widths_m * factor,
        )


def seeds(
    rng: np.random.Generator,
    fan: Fan,
    *,
    largest_m: float,
    smallest_m: float,
) -> tuple[Points, Points]:
    """Return where pieces lie: points (n, 2) on the squeezed scale and their widths (n,).

    A square of ROOT_M breaks into four again and again: always while wider than largest_m, then
    with chance SPLIT_AGAIN, never below smallest_m nor below what can be seen.
    """
    x, y = np.array([0.0]), np.array([ROOT_M / 2])
    width, found = ROOT_M, []
    while x.size:
        reach = np.hypot(x, fan.stretched(np.maximum(y - width / 2, 0)))
        least = np.maximum(smallest_m, fan.smallest_m(np.maximum(reach, fan.nearest_m)))
        again = (width > largest_m) | (rng.random(x.size) < SPLIT_AGAIN)
        breaks = again & (width / 2 >= least)
        rest = ~breaks
        jitter = rng.uniform(-0.42, 0.42, (int(rest.sum()), 2)) * width
        whole = np.stack([x[rest], y[rest]], axis=-1) + jitter
        found.append(np.column_stack([whole, np.full(len(whole), width)]))
        quarter = width / 4 * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        x = (x[breaks, None] + quarter[:, 0]).ravel()
        y = (y[breaks, None] + quarter[:, 1]).ravel()
        width /= 2
        kept = fan.holds(x, y, np.full(x.size, width / 2))
        x, y = x[kept], y[kept]
    table = np.concatenate(found)
    return table[:, :2], table[:, 2]


def shatter(
    rng: np.random.Generator,
    fan: Fan,
    *,
    largest_m: float,
    smallest_m: float,
    rounding: int,
) -> Floes:
    """Break the whole fan into floes without gaps: Voronoi cells of the seeds, edges roughened.

    rounding: how many times the corners are worn off.
    """
    points, widths = seeds(rng, fan, largest_m=largest_m, smallest_m=smallest_m)
    order = np.argsort(-points[:, 1])
    points, widths = points[order].astype(np.float32).astype(float), widths[order]
    outlines = _cells(points, widths)
    outlines[..., 1] = fan.stretched(np.maximum(outlines[..., 1], 0))
    outlines = _roughened(rng, outlines, widths)
    worn = widths > ROUNDED_ABOVE * fan.smallest_m(np.hypot(*outlines.mean(axis=1).T))
    for _ in range(rounding):
        soft = (np.roll(outlines, 1, 1) + 2 * outlines + np.roll(outlines, -1, 1)) / 4
        outlines = np.where(worn[:, None, None], soft, outlines)
    return Floes(outlines=outlines, centres=outlines.mean(axis=1), widths_m=widths * 0.9)


def _cells(points: Points, widths: Points) -> Points:
    """Return the Voronoi cells of points (n, 2), evenly along each outline: (n, CORNERS, 2)."""
    margin = float(widths.max()) * 2
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    left, top, width, height = (int(v) for v in (*low, *(high - low + 2)))
    plane = cv2.Subdiv2D((left, top, width, height))
    index = [plane.insert((x, y)) for x, y in points.tolist()]
    facets, _ = plane.getVoronoiFacetList(index)
    closed = np.concatenate([part for facet in facets for part in (facet, facet[:1])])
    return _resampled(np.clip(closed, low, high), np.array([len(f) + 1 for f in facets]))


def _resampled(closed: Points, lengths: NDArray[np.int_]) -> Points:
    """Space points evenly along closed polygons given one after the other, lengths points each."""
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    step = np.hypot(*np.diff(closed, axis=0).T) + 1e-9
    along = np.concatenate([[0.0], np.cumsum(step)])
    share = np.arange(CORNERS) / CORNERS
    at = along[first, None] + share * (along[last] - along[first])[:, None]
    return np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=-1)


def _roughened(rng: np.random.Generator, outlines: Points, widths: Points) -> Points:
    """Move outlines by a field over the ground: neighbours keep the same crack between them."""
    moved = outlines.copy()
    for period_m, reach_m in ((420.0, 2.4), (60.0, 0.55)):
        x, y = (outlines[..., axis].astype(np.float32) / np.float32(period_m) for axis in (0, 1))
        shift = rng.random(4).astype(np.float32)
        reach = np.minimum(reach_m, widths * 0.16)[:, None]
        moved[..., 0] += sample("fractal", x + shift[0], y + shift[1]) * reach
        moved[..., 1] += sample("fractal", x + shift[2], y + shift[3]) * reach
    return np.asarray(moved, np.float64)


def polar_edge(
    rng: np.random.Generator,
    fan: Fan,
    depression_rad: float,
    *,
    ragged: float,
) -> tuple[Points, Points]:
    """Return a sheet's edge as azimuths (n,) and distances (n,).

    It lies about depression_rad below the horizon.

    ragged: the spread of its distance, as a share.
    """
    count = 500
    angles = np.linspace(*fan.azimuths, count)
    slope = rng.normal(0, 0.35) * np.linspace(-1, 1, count)
    fine = 0.05 * curve(rng, count, 40, 3)
    distance = fan.height_m / np.tan(depression_rad)
    wander = np.exp(ragged * (curve(rng, count, 3, 3) + fine) + slope * ragged * 2)
    return angles, np.maximum(distance * wander, fan.nearest_m * 0.6)


def polar_points(angles: Points, distances: Points) -> Points:
    """Take azimuths and distances to ground points (n, 2)."""
    return np.stack([np.sin(angles) * distances, np.cos(angles) * distances], axis=-1)
