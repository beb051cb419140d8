"""Where the camera stands and what land it sees: shore, breakwater, far hills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from train.synth.camera import Camera
from train.synth.light import Light, colour, mix
from train.synth.noise import Field, chance, curve, sample, smoothstep
from train.synth.view import View, azimuths, coverage, nearest_m, relief

if TYPE_CHECKING:
    from train.synth.conditions import Conditions

Points = NDArray[np.float64]

CURVE_POINTS = 400
PIER_HEIGHT_M = 2.2
PIER_POINTS = 160
SNOW_ALBEDO = 0.90
ROCKS = ((0.17, 0.18, 0.20), (0.13, 0.16, 0.19), (0.24, 0.25, 0.26), (0.12, 0.12, 0.13))
RELIEF_PERIOD_M = 46.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ridge:
    """One range of far hills."""

    distance_m: float
    crest: Points
    """Elevation angles in radians at Land.azimuths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Land:
    """All that is neither water nor ice, in ground metres."""

    azimuths: Points
    """Radians, ascending: where the curves below are given."""
    shore_m: Points
    """The near shoreline's distance."""
    far_shore_m: Points
    """The far shoreline's distance."""
    pier: Points | None
    """The breakwater's outline (n, 2) on the ground."""
    ridges: tuple[Ridge, ...]
    """Farthest first."""
    rock: tuple[float, float, float]
    """The bare rock's albedo, BGR."""
    bouldered: float
    """How broken the shore's ground is, 0..1."""


def draw_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Return a camera on a pole or roof at a harbour, 8 to 42 m above the water.

    The horizon is mostly in the picture.
    """
    fov = float(rng.uniform(28, 50))
    horizon_at = rng.uniform(0.06, 0.36) if chance(rng, 0.88) else rng.uniform(-0.14, 0.0)
    tilt = np.arctan((1 - 2 * horizon_at) * np.tan(np.radians(fov) / 2))
    return Camera(
        height_m=float(np.exp(rng.uniform(np.log(8), np.log(42)))),
        tilt_deg=float(np.degrees(tilt)),
        roll_deg=float(np.clip(rng.normal(0, 1.3), -3.5, 3.5)),
        vertical_fov_deg=fov,
        size=size,
    )


def draw_land(rng: np.random.Generator, camera: Camera) -> Land:
    """Return land around a bay that the camera looks over."""
    angles = np.linspace(*azimuths(camera), CURVE_POINTS)
    shore = _shoreline(rng, camera)
    far = np.exp(rng.uniform(np.log(700), np.log(6_000)))
    far_shore = far * np.exp(0.22 * curve(rng, CURVE_POINTS, 4, 5))
    return Land(
        azimuths=angles,
        shore_m=shore,
        far_shore_m=far_shore,
        pier=_pier(rng, camera, angles, shore) if chance(rng, 0.3) else None,
        ridges=_ridges(rng, far),
        rock=ROCKS[int(rng.integers(len(ROCKS)))],
        bouldered=float(rng.random()),
    )


def _shoreline(rng: np.random.Generator, camera: Camera) -> Points:
    """Draw the depression below the horizon: the shore then takes a sane part of the picture."""
    fov = np.radians(camera.vertical_fov_deg)
    lowest = np.arctan(camera.height_m / nearest_m(camera))
    across = np.linspace(-1, 1, CURVE_POINTS)
    lean = rng.normal(0, 0.10)
    headland = rng.choice([-1, 0, 1], p=[0.22, 0.56, 0.22])
    coast = rng.uniform(0.2, 0.75) * np.clip(headland * across - rng.uniform(0.1, 0.6), 0, 1)
    share = rng.uniform(-0.06, 0.2) + lean * across + coast
    share += 0.05 * curve(rng, CURVE_POINTS, 5, 2)
    depression = np.maximum(lowest - share * fov, np.radians(0.35))
    ragged = 0.022 * curve(rng, CURVE_POINTS, 24, 4)
    return np.asarray(camera.height_m / np.tan(depression) * np.exp(ragged), np.float64)


def _pier(
    rng: np.random.Generator,
    camera: Camera,
    angles: Points,
    shore: Points,
) -> Points | None:
    """Return a straight breakwater from the shore, out and to one side."""
    root_at = int(rng.uniform(0.1, 0.9) * CURVE_POINTS)
    turn = -1 if root_at > CURVE_POINTS / 2 else 1
    start = min(shore[root_at] * 0.9, camera.height_m * 12)
    length = start * rng.uniform(0.7, 1.6)
    width = camera.height_m * rng.uniform(0.16, 0.3)
    bearing = angles[root_at] + turn * rng.uniform(0.5, 1.15)
    root = start * np.array([np.sin(angles[root_at]), np.cos(angles[root_at])])
    along = np.array([np.sin(bearing), np.cos(bearing)])
    across = np.array([along[1], -along[0]]) * width / 2
    end = root + along * length
    corners = np.array([root - across, end - across, end + across, root + across])
    side = np.linspace(0, 4, PIER_POINTS, endpoint=False)
    outline = np.stack(
        [
            np.interp(side, np.arange(5), np.append(corners[:, axis], corners[0, axis]))
            for axis in (0, 1)
        ],
        axis=-1,
    )
    return np.asarray(outline + rng.normal(0, width * 0.035, outline.shape), np.float64)


def _ridges(rng: np.random.Generator, far_m: float) -> tuple[Ridge, ...]:
    count = int(rng.integers(1, 4))
    distances = far_m * np.sort(np.concatenate([[1.0], rng.uniform(1.2, 4, count - 1)]))[::-1]
    tallest = rng.uniform(40, 330) * np.sqrt(far_m / 3_000)
    ridges = []
    for level, distance in enumerate(distances):
        bumps = 1 + 0.75 * curve(rng, CURVE_POINTS, 4, 6)
        scale = tallest * (distance / far_m) ** 0.75 * (1.25 if level < count - 1 else 0.7)
        heights = scale * np.log1p(np.exp(2.2 * bumps)) / 2.6
        ridges.append(Ridge(distance_m=float(distance), crest=np.arctan(heights / distance)))
    return tuple(ridges)


def shore_polygon(land: Land, *, nearest: float) -> Points:
    """Return the near shore's outline (n, 2) on the ground, down to a distance nearest."""
    sines = np.stack([np.sin(land.azimuths), np.cos(land.azimuths)], axis=-1)
    reach = np.maximum(land.shore_m, nearest * 1.01)[:, None]
    return np.concatenate([sines * reach, sines[::-1] * nearest])


def shore_cover(view: View, land: Land) -> Field:
    """Return the share of each pixel that the near shore covers."""
    camera = view.camera
    outline = shore_polygon(land, nearest=nearest_m(camera) * 0.6)
    return coverage(camera, [camera.ground_to_pixel(outline)])


def pier_cover(view: View, land: Land) -> tuple[Field, Field]:
    """Return the share of each pixel that the breakwater covers, all of it and its level top."""
    nothing = np.zeros(view.up.shape, np.float32)
    if land.pier is None:
        return nothing, nothing
    camera = view.camera
    top = camera.ground_to_pixel(land.pier, PIER_HEIGHT_M)
    foot = camera.ground_to_pixel(land.pier)
    sides = np.stack([top, np.roll(top, -1, 0), np.roll(foot, -1, 0), foot], axis=1)
    if not np.isfinite(sides).all():
        return nothing, nothing
    return coverage(camera, [foot, top, *sides]), coverage(camera, [top])


def far_cover(view: View, land: Land) -> Field:
    """Return the share of each pixel that lies beyond the far shore or above the horizon."""
    limit = np.interp(view.azimuth, land.azimuths, land.far_shore_m)
    depression = np.arctan2(-view.up, np.hypot(view.east, view.north))
    pixel = 1 / view.camera.focal_px
    shore = np.arctan(view.camera.height_m / limit)
    return np.clip((shore - depression) / pixel + 0.5, 0, 1).astype(np.float32)


def paint_hills(
    rng: np.random.Generator,
    picture: Field,
    view: View,
    land: Land,
    light: Light,
    weather: Conditions,
) -> Field:
    """Paint the far ranges over the sky, each with its own haze."""
    elevation = np.arcsin(view.up)
    bare = 1 - weather.snow_cover
    for ridge in land.ridges:
        crest = np.interp(view.azimuth, land.azimuths, ridge.crest).astype(np.float32)
        cover = np.clip((crest - elevation) * view.camera.focal_px + 0.5, 0, 1)
        if not cover.any():
            continue
        height = np.clip(elevation / np.maximum(crest, 1e-4), 0, 1).astype(np.float32)
        scale = np.float32(ridge.distance_m / 2_600)
        x, y = view.azimuth * scale, elevation * scale * 3
        x += np.float32(rng.random())
        slopes = relief(x, y, towards=light.sun_azimuth, step=0.012)
        patches = sample("fractal", x * 1.3, y * 1.3)
        snow = smoothstep(bare * 3.4 - 1.7, bare * 3.4 - 0.9, patches + np.float32(0.8) * height)
        ground = _lit(_ground(land, snow), light, slopes)
        left = np.exp(-2.0 * ridge.distance_m / min(weather.visibility_m, 30_000))
        hazy = ground * left + light.horizon * np.float32(0.94) * (1 - left)
        picture = mix(picture, hazy.astype(np.float32), cover.astype(np.float32))
    return picture


def _ground(land: Land, snow: Field) -> Field:
    rock = colour(land.rock)
    return np.asarray(rock + (np.float32(SNOW_ALBEDO) - rock) * snow, np.float32)


def _lit(albedo: Field, light: Light, slopes: Field) -> Field:
    direct = np.clip(0.75 + 0.55 * slopes, 0.05, 1.7)
    veiled = np.clip(1 + 0.10 * slopes, 0.6, 1.4)
    return np.asarray(albedo * (light.ambient * veiled + light.sun * direct), np.float32)


def paint_shore(
    rng: np.random.Generator,
    view: View,
    land: Land,
    light: Light,
    weather: Conditions,
) -> Field:
    """Paint the near shore as if it filled the view."""
    x = view.ground_x / np.float32(RELIEF_PERIOD_M) + np.float32(rng.random())
    y = view.ground_y / np.float32(RELIEF_PERIOD_M) + np.float32(rng.random())
    fine = np.clip(1.2 / view.row_span_m, 0, 1)
    coarse = relief(x, y, towards=light.sun_azimuth, step=0.012)
    rubble = relief(x * 3.7, y * 3.7, towards=light.sun_azimuth, step=0.012) * fine
    stones = sample("fractal", x * 2.3 + 0.3, y * 2.3)
    lumps = sample("fractal", x * 9, y * 9) * fine
    wet = _wet_band(view, land)
    bare = 1 - weather.snow_cover
    level = bare * 3.2 - 1.9 + 0.8 * land.bouldered
    snow = smoothstep(level - 0.3, level + 0.25, 1 - stones + 0.45 * lumps - 2.2 * wet)
    albedo = _ground(land, snow) * (1 + 0.22 * lumps * (1 - snow))
    albedo *= 1 - 0.45 * wet * (1 - snow)
    rough = coarse * 0.8 + rubble * (0.25 + 0.9 * land.bouldered * (1 - 0.8 * snow))
    return _lit(np.asarray(albedo, np.float32), light, np.asarray(rough, np.float32))


def _wet_band(view: View, land: Land) -> Field:
    """Return 1 at the waterline, 0 a tenth of the distance inland: the tide's reach."""
    shoreline = np.interp(view.azimuth, land.azimuths, land.shore_m).astype(np.float32)
    return np.asarray(np.clip(1 - (1 - view.range_m / shoreline) / 0.07, 0, 1), np.float32)


def paint_pier(
    rng: np.random.Generator,
    view: View,
    land: Land,
    light: Light,
    weather: Conditions,
    top: Field,
) -> Field:
    """Paint the breakwater as if it filled the view: rip-rap sides, a level top with snow."""
    period = np.float32(15 / view.camera.height_m)
    x = view.azimuth * period * 5 + np.float32(rng.random())
    y = np.log(view.range_m) * period * 5
    stones = relief(x, y, towards=light.sun_azimuth, step=0.016)
    drift = sample("fractal", x * 0.6, y * 0.6)
    bare = 1 - weather.snow_cover
    snow = smoothstep(bare * 2.6 - 1.3, bare * 2.6 - 0.7, drift) * (0.15 + 0.85 * top)
    shaded = _lit(_ground(land, snow.astype(np.float32)), light, stones)
    return np.asarray(shaded * (0.62 + 0.38 * top), np.float32)
