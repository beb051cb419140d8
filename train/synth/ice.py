"""The ice of a scene in ground metres: sheets, leads, floes and brash, by regime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from train.synth.fracture import (
    Fan,
    Floes,
    Points,
    polar_edge,
    polar_points,
    shatter,
)
from train.synth.noise import chance, curve, sample
from train.synth.raster import inside
from train.synth.view import REFERENCE_ROWS, azimuths, nearest_m

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from train.synth.camera import Camera
    from train.synth.conditions import Conditions

FARTHEST_M = 7_000.0
LEAST_SCALE = 0.05
"""The smallest floe against the camera's height."""
GAP_ROWS = 1.2
"""Floes lie close where the gap between them would not fill so many of 360 rows."""
BGR = tuple[float, float, float]
SNOW: BGR = (0.90, 0.90, 0.89)
BARE: BGR = (0.62, 0.58, 0.50)
GREY: BGR = (0.34, 0.32, 0.29)
NILAS: BGR = (0.150, 0.140, 0.122)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """One unbroken piece larger than a floe."""

    outline: Points
    """(n, 2) ground metres."""
    albedo: BGR


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A crack, ridge or track on a sheet."""

    points: Points
    """(n, 2) ground metres."""
    width_m: float
    gain: float
    """What it does to the albedo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ice:
    """All ice of a scene in the order it is laid: sheets, then leads cut out, then floes, brash."""

    sheets: tuple[Sheet, ...] = ()
    leads: tuple[Points, ...] = ()
    floes: Floes | None = None
    albedos: Points = field(default_factory=lambda: np.zeros((0, 3)))
    """(floes, 3)."""
    freeboards_m: Points = field(default_factory=lambda: np.zeros(0))
    """(floes,): how high each stands out of the water."""
    brash: Points = field(default_factory=lambda: np.zeros((0, 7, 2)))
    """(n, corners, 2) small bits, one tone."""
    brash_albedo: BGR = BARE
    lines: tuple[Line, ...] = ()
    rims: float = 0.0
    """Raised rims of floes against their inside: above 1 bright (pancakes), below dark and wet."""
    dusting: float = 0.0
    """Snow blown in streaks over all ice, 0..1."""
    ponds: float = 0.0
    """The share of melt ponds on the ice."""


def ice_cover(
    ice: Ice,
    plane: Callable[[Points], Points],
    shape: tuple[int, int],
) -> NDArray[np.bool_]:
    """Return cells (height, width) of a plane that ice covers: sheets less leads, floes, brash.

    plane: ground points (..., 2) in metres to the plane's cells (..., 2) as x, y.
    """
    covered = np.zeros(shape, np.bool_)
    if ice.sheets:
        covered |= inside([plane(sheet.outline) for sheet in ice.sheets], shape)
    if ice.leads:
        covered &= ~inside([plane(lead) for lead in ice.leads], shape)
    if ice.floes is not None and len(ice.floes):
        covered |= inside(plane(ice.floes.outlines), shape)
    if len(ice.brash):
        covered |= inside(plane(ice.brash), shape)
    return covered


def fan_of(camera: Camera) -> Fan:
    """Return where floes are laid for a camera."""
    near = nearest_m(camera) * 0.7
    return Fan(
        height_m=camera.height_m,
        row_rad=float(np.radians(camera.vertical_fov_deg)) / REFERENCE_ROWS,
        azimuths=azimuths(camera, margin_deg=3),
        nearest_m=near,
        farthest_m=FARTHEST_M,
    )


def draw_ice(rng: np.random.Generator, camera: Camera, weather: Conditions) -> Ice:
    """Return the ice that the regime brings."""
    fan = fan_of(camera)
    if weather.regime == "open water":
        return _open_water(rng, fan, weather)
    if weather.regime == "freeze-up":
        return _freeze_up(rng, fan, weather)
    if weather.regime == "pancakes":
        return _drifting(rng, fan, weather, rounding=5)
    if weather.regime in {"drifting floes", "pack"}:
        return _drifting(rng, fan, weather, rounding=int(rng.integers(0, 3)))
    return _fast_ice(rng, fan, weather)


def _open_water(rng: np.random.Generator, fan: Fan, weather: Conditions) -> Ice:
    return Ice() if chance(rng, 0.6) else _drifting(rng, fan, weather, rounding=1)


def _freeze_up(rng: np.random.Generator, fan: Fan, weather: Conditions) -> Ice:
    """Return sheets of dark young ice, some with floes in them."""
    sheets = []
    for _ in range(int(rng.integers(1, 7))):
        albedo = _between(NILAS, GREY, float(rng.beta(1.5, 1.3)))
        sheets.append(Sheet(outline=_blob(rng, fan), albedo=albedo))
    lines: tuple[Line, ...] = ()
    if chance(rng, 0.5):
        edge = polar_edge(rng, fan, _depression(rng, fan), ragged=0.2)
        albedo = _between(NILAS, GREY, float(rng.beta(1.5, 1.3)))
        sheets.append(Sheet(outline=_to_shore(fan, *edge), albedo=albedo))
        lines = _refrozen(rng, *edge)
    drift = _drifting(rng, fan, weather, rounding=1)
    return Ice(
        sheets=tuple(sheets),
        leads=tuple(_crack(rng, fan, 1.2) for _ in range(int(rng.integers(0, 4)))),
        floes=drift.floes,
        albedos=drift.albedos,
        freeboards_m=drift.freeboards_m,
        lines=lines,
        rims=drift.rims,
        dusting=float(rng.uniform(0.1, 0.9)) if chance(rng, 0.6) else 0.0,
    )


def _drifting(rng: np.random.Generator, fan: Fan, weather: Conditions, *, rounding: int) -> Ice:
    pancakes = weather.regime == "pancakes"
    largest = (
        min(weather.floe_scale_m, max(6.0, 0.3 * fan.height_m))
        if pancakes
        else weather.floe_scale_m
    )
    smallest = max(fan.height_m * LEAST_SCALE, largest / (4 if pancakes else 24))
    floes = shatter(rng, fan, largest_m=largest, smallest_m=smallest, rounding=rounding)
    floes = floes.only(_kept(rng, floes, weather.concentration))
    tight = weather.regime == "pack"
    gap = (0.03 if tight else 0.10) * rng.uniform(0.4, 1.6)
    loss = gap * rng.uniform(0.5, 1.5, len(floes)) + np.minimum(0.15 / floes.widths_m, 0.25) * 0.7
    open_rows = loss * floes.widths_m / fan.row_m(np.hypot(*floes.centres.T))
    floes = floes.scaled(1 - np.where(open_rows > GAP_ROWS, np.clip(loss, 0, 0.45), 0))
    age = float(rng.beta(1.3, 0.8))
    return Ice(
        floes=floes,
        albedos=_tones(rng, len(floes), age),
        freeboards_m=(0.04 + 0.34 * age) * rng.uniform(0.4, 1.4, len(floes)),
        brash=_brash(rng, fan, weather) if not pancakes else np.zeros((0, 7, 2)),
        brash_albedo=_between(GREY, BARE, 0.3 + 0.7 * age),
        rims=rng.uniform(1.1, 1.5) if pancakes else rng.uniform(0.62, 0.98),
        ponds=float(rng.uniform(0.05, 0.4)) if chance(rng, 0.12) else 0.0,
    )


def _fast_ice(rng: np.random.Generator, fan: Fan, weather: Conditions) -> Ice:
    """Return ice fast to the shore: to the far side, to a floe edge, or breaking up."""
    whole = weather.regime == "fast ice"
    depression = np.radians(0.02) if whole else _depression(rng, fan)
    angles, edge = polar_edge(rng, fan, depression, ragged=0.05 if whole else 0.13)
    albedo = _between(GREY if chance(rng, 0.2) else BARE, SNOW, float(rng.beta(2.5, 0.8)))
    melting = weather.regime == "break-up"
    drift = Ice() if whole else _drifting(rng, fan, weather, rounding=1)
    floes = drift.floes
    if floes is not None:
        limit = np.interp(np.arctan2(*floes.centres.T), angles, edge)
        outside = np.hypot(*floes.centres.T) - floes.widths_m * 0.7 > limit
        floes = floes.only(outside)
        drift_albedos, freeboards = drift.albedos[outside], drift.freeboards_m[outside]
    else:
        drift_albedos, freeboards = drift.albedos, drift.freeboards_m
    leads = [_crack(rng, fan, 3.0) for _ in range(int(rng.integers(1, 7)) if melting else 0)]
    return Ice(
        sheets=(Sheet(outline=_to_shore(fan, angles, edge), albedo=albedo),),
        leads=tuple(leads),
        floes=floes,
        albedos=drift_albedos,
        freeboards_m=freeboards,
        lines=_markings(rng, angles, np.minimum(edge, 60 * fan.height_m)),
        rims=drift.rims,
        ponds=float(rng.uniform(0.15, 0.6)) if melting and chance(rng, 0.7) else 0.0,
    )


def _between(low: BGR, high: BGR, share: float) -> BGR:
    b, g, r = (one + (other - one) * share for one, other in zip(low, high, strict=True))
    return b, g, r


def _depression(rng: np.random.Generator, fan: Fan) -> float:
    """Return an angle below the horizon, anywhere between far off and the picture's lower edge."""
    lowest = float(np.arctan(fan.height_m / fan.nearest_m))
    return float(lowest * rng.uniform(0.05, 0.7))


def _to_shore(fan: Fan, angles: Points, edge: Points) -> Points:
    """Return the outline of all that lies nearer than an edge."""
    inner = np.full(len(angles), fan.nearest_m * 0.55)
    return np.concatenate([polar_points(angles, edge), polar_points(angles[::-1], inner)])


def _spot(rng: np.random.Generator, fan: Fan) -> Points:
    """Return a place in the picture, evenly by depression rather than by ground area."""
    lowest = np.arctan(fan.height_m / fan.nearest_m)
    distance = fan.height_m / np.tan(lowest * rng.uniform(0.06, 0.85, 1))
    return np.asarray(polar_points(rng.uniform(*fan.azimuths, 1), distance)[0], np.float64)


def _blob(rng: np.random.Generator, fan: Fan) -> Points:
    """Return an irregular patch with a torn edge."""
    centre = _spot(rng, fan)
    count = 240
    around = np.linspace(0, 2 * np.pi, count, endpoint=False)
    ring = np.zeros(count)
    for wave in range(2, 26):
        ring += rng.normal(0, 0.5 / wave**0.9) * np.cos(wave * around + rng.uniform(0, 2 * np.pi))
    reach = np.hypot(*centre) * rng.uniform(0.12, 0.5) * np.exp(0.55 * ring)
    long = rng.uniform(1.0, 3.0)
    x, y = np.cos(around) * reach * long, np.sin(around) * reach
    outline = centre + np.stack([x, y], axis=-1)
    outline[:, 1] = np.maximum(outline[:, 1], fan.nearest_m * 0.5)
    return np.asarray(outline, np.float64)


def _crack(rng: np.random.Generator, fan: Fan, width_share: float) -> Points:
    """Return a lead: a long jagged opening, pointed at both ends, as wide as it can be seen."""
    centre, bearing = _spot(rng, fan), rng.uniform(0, np.pi)
    count = 60
    along = np.linspace(-1, 1, count)
    distance = float(np.hypot(*centre))
    length = distance * rng.uniform(0.5, 1.6)
    visible = (distance**2 / fan.height_m) * fan.row_rad
    width = visible * width_share * rng.uniform(1.0, 4.0) * (1 - along**2)
    middle = length * 0.10 * curve(rng, count, 3, 4)
    ragged = 1 + 0.3 * curve(rng, count, 12, 2)
    left, right = middle + width * np.abs(ragged), middle - width
    sides = np.concatenate([left, right[::-1]])
    run = np.concatenate([along, along[::-1]]) * length
    turn = np.array([[np.cos(bearing), np.sin(bearing)], [-np.sin(bearing), np.cos(bearing)]])
    outline = centre + np.stack([run, sides], axis=-1) @ turn
    outline[:, 1] = np.maximum(outline[:, 1], fan.nearest_m * 0.5)
    return np.asarray(outline, np.float64)


def _kept(rng: np.random.Generator, floes: Floes, concentration: float) -> NDArray[np.bool_]:
    """Return which floes are there: wind and current gather them in bands and patches."""
    x, y = (floes.centres[:, axis].astype(np.float32)[None] for axis in (0, 1))
    shift = rng.random(4).astype(np.float32)
    turn = rng.uniform(-0.7, 0.7)
    u = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32) / np.float32(rng.uniform(700, 2e3))
    v = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32) / np.float32(rng.uniform(350, 900))
    bands = sample("fractal", u + shift[0], v + shift[1])[0]
    mood = bands * rng.uniform(0.2, 1.8) + rng.standard_normal(len(floes)) * 0.5
    weight = np.minimum(floes.widths_m, 30) ** 2 / np.hypot(*floes.centres.T)
    order = np.argsort(-mood)
    share = np.cumsum(weight[order]) / weight.sum()
    kept = np.zeros(len(floes), bool)
    kept[order[share <= concentration]] = True
    return kept


def _tones(rng: np.random.Generator, count: int, age: float) -> Points:
    """Return snow-covered, bare and grey floes; old ice has more snow."""
    snow = np.clip(rng.normal(age * 1.3 - 0.1, 0.28, count), 0, 1)[:, None]
    thick = np.clip(rng.normal(0.25 + age, 0.3, count), 0, 1)[:, None]
    bare = np.array(NILAS) + (np.array(BARE) - np.array(NILAS)) * thick
    return np.asarray(bare + (np.array(SNOW) - bare) * snow * np.minimum(thick * 2, 1), np.float64)


def _brash(rng: np.random.Generator, fan: Fan, weather: Conditions) -> Points:
    """Return broken bits between the floes, where they stand a few rows high: (n, 7, 2)."""
    count = int(rng.uniform(0, 260) * min(1.0, weather.concentration * 2))
    lowest = np.arctan(fan.height_m / fan.nearest_m)
    distance = fan.height_m / np.tan(lowest * rng.uniform(0.35, 1.0, count))
    centres = polar_points(rng.uniform(*fan.azimuths, count), distance)
    least = fan.smallest_m(distance)
    size = np.maximum(least, fan.height_m * LEAST_SCALE * 0.6) * rng.uniform(0.9, 1.7, count) / 2
    around = np.linspace(0, 2 * np.pi, 7, endpoint=False)
    reach = size[:, None] * rng.uniform(0.6, 1.2, (count, 7))
    turned = around + rng.uniform(0, 2 * np.pi, (count, 1))
    ring = np.stack([np.cos(turned), np.sin(turned)], axis=-1) * reach[..., None]
    return np.asarray(centres[:, None] + ring, np.float64)


def _markings(rng: np.random.Generator, angles: Points, edge: Points) -> tuple[Line, ...]:
    """Return cracks, pressure ridges, snowmobile tracks."""
    lines = []
    for _ in range(int(rng.integers(1, 7))):
        ridge = chance(rng, 0.4)
        lines.append(
            Line(
                points=_crossing(rng, angles, edge),
                width_m=rng.uniform(0.5, 1.2) if ridge else rng.uniform(0.12, 0.4),
                gain=rng.uniform(0.8, 1.15) if ridge else rng.uniform(0.4, 0.75),
            ),
        )
    for _ in range(int(rng.integers(0, 3))):
        run = np.linspace(0.05, rng.uniform(0.3, 0.95), len(angles)) ** 1.5
        start, end = rng.uniform(angles[0], angles[-1], 2)
        bearing = start + (end - start) * run + 0.03 * curve(rng, len(angles), 3, 3)
        reach = np.interp(bearing, angles, edge) * run
        points = polar_points(bearing, reach)
        lines.append(Line(points=points, width_m=0.7, gain=rng.uniform(0.72, 0.86)))
    return tuple(lines)


def _refrozen(rng: np.random.Generator, angles: Points, edge: Points) -> tuple[Line, ...]:
    """Return lighter seams where young ice rafted or froze together."""
    return tuple(
        Line(
            points=_crossing(rng, angles, edge),
            width_m=rng.uniform(0.15, 0.6),
            gain=rng.uniform(1.2, 1.9),
        )
        for _ in range(int(rng.integers(0, 9)))
    )


def _crossing(rng: np.random.Generator, angles: Points, edge: Points) -> Points:
    """Return a jagged line across a sheet, kept inside its edge."""
    ends = rng.choice(len(angles), 2, replace=False)
    reach = edge[ends] * rng.uniform(0.03, 1.0, 2) ** 1.5
    start, end = polar_points(angles[ends], reach)
    along = np.linspace(-0.3, 1.3, len(angles))
    path = start + (end - start) * along[:, None]
    path += (
        0.03
        * np.hypot(*(end - start))
        * np.column_stack(
            [curve(rng, len(along), 5, 5), curve(rng, len(along), 5, 5)],
        )
    )
    bearing = np.arctan2(path[:, 0], np.maximum(path[:, 1], 0.1))
    limit = 0.97 * np.interp(bearing, angles, edge)
    return polar_points(bearing, np.minimum(np.hypot(*path.T), limit))
