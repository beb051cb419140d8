"""Open water: wind waves that reflect the sky and the sun."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from train.synth.light import Colour, Light, colour, mix, sky_gradient
from train.synth.noise import Field, sample, smoothstep

if TYPE_CHECKING:
    from train.synth.conditions import Conditions
    from train.synth.view import View

BODIES = ((0.155, 0.105, 0.050), (0.115, 0.105, 0.070), (0.120, 0.110, 0.100))
NORMAL_REFLECTANCE = 0.02
WAVES_PER_PERIOD = 20.0
SHORTEST_WAVE_M = 0.9
GUSTS_M = 520.0
REFLECTION_FLOOR = 0.012


def paint_water(
    rng: np.random.Generator,
    view: View,
    light: Light,
    weather: Conditions,
    hills: Field,
) -> Field:
    """Paint the sea as if it filled the view.

    hills: the elevation (radians) of the land's crest above each pixel's azimuth.
    """
    gusts = _gusts(rng, view)
    rough = np.float32(_roughness(weather)) * (1 + np.float32(0.35) * gusts)
    slope = _waves(rng, view, weather) * rough
    grazing = np.arcsin(np.clip(-view.up, 1e-4, 1)).astype(np.float32)
    facet = np.maximum(grazing + rough * np.float32(0.45) + slope, np.float32(REFLECTION_FLOOR))
    sine = np.sin(np.minimum(facet, np.float32(1.5)))
    fresnel = (NORMAL_REFLECTANCE + (1 - NORMAL_REFLECTANCE) * _fifth(1 - sine)).astype(np.float32)
    seen = np.abs(facet * 2 - grazing)
    sky = sky_gradient(light, np.sin(np.minimum(seen, np.float32(1.5))))
    grey = light.ambient * np.float32(1.28)
    sky = mix(sky, grey, np.full(view.up.shape, 0.5 * weather.cloud_cover, np.float32))
    sky = _hills_mirrored(sky, light, seen, hills, rough)
    surface = mix(np.broadcast_to(_body(rng, light), sky.shape), sky, fresnel)
    return surface + _glitter(rng, view, light, weather, slope / rough) * light.glow


def _body(rng: np.random.Generator, light: Light) -> Colour:
    """Return light that comes back from inside the water."""
    albedo = colour(BODIES[int(rng.integers(len(BODIES)))])
    return np.asarray(albedo * (light.ambient + light.sun * np.float32(0.5)), np.float32)


def _roughness(weather: Conditions) -> float:
    """Return half the spread of wave slopes on clean water (Cox & Munk 1954, JOSA 44, 838)."""
    return math.sqrt(_slopes2(weather)) / 2


def _slopes2(weather: Conditions) -> float:
    """Return the mean square slope of waves: 0.003 + 0.00512 U (Cox & Munk 1954)."""
    return 0.003 + 0.00512 * weather.wind_m_s


def _fifth(base: Field) -> Field:
    """Return base to the fifth: Schlick's form of Fresnel's law (Comput. Graph. Forum 13, 1994)."""
    square = base * base
    return np.asarray(square * square * base, np.float32)


def _gusts(rng: np.random.Generator, view: View) -> Field:
    turn = rng.uniform(-0.6, 0.6)
    x = (view.ground_x * np.cos(turn) + view.ground_y * np.sin(turn)) / np.float32(GUSTS_M * 1.6)
    y = (view.ground_y * np.cos(turn) - view.ground_x * np.sin(turn)) / np.float32(GUSTS_M)
    near = np.clip(view.range_m / 90, 0.25, 1).astype(np.float32)
    shift = rng.random(2).astype(np.float32)
    gusts = np.clip(sample("fractal", x + shift[0], y + shift[1]), -2, 2) * near
    return np.asarray(gusts, np.float32)


def _waves(rng: np.random.Generator, view: View, weather: Conditions) -> Field:
    """Return slopes along the line of sight, unit spread near by, without waves below a row."""
    turn = float(rng.uniform(-0.7, 0.7))
    total = np.zeros(view.up.shape, np.float32)
    longest = 3.0 + 1.5 * weather.wind_m_s
    for octave, part in enumerate((0.62, 0.6, 0.5)):
        wave_m = max(longest / 2.7**octave, SHORTEST_WAVE_M / 2)
        period = np.float32(wave_m * WAVES_PER_PERIOD)
        heading = turn + 0.35 * (octave - 1)
        x = (view.ground_x * np.cos(heading) + view.ground_y * np.sin(heading)) / period
        y = (view.ground_y * np.cos(heading) - view.ground_x * np.sin(heading)) / period
        shown = np.clip(np.float32(wave_m) / (2.2 * view.row_span_m), 0, 1)
        shift = rng.random(2).astype(np.float32)
        total += sample("crests", x + shift[0], y + shift[1]) * (shown * np.float32(part))
    return total


def _hills_mirrored(sky: Field, light: Light, seen: Field, hills: Field, rough: Field) -> Field:
    """Let calm water show the far hills; waves smear them."""
    blur = np.float32(0.006) + rough * np.float32(0.5)
    share = 1 / (1 + np.exp(np.clip((seen - hills * 1.15) / blur * 2, -20, 20)))
    dark = light.horizon * np.float32(0.5)
    return mix(sky, dark, np.asarray(share * 0.75, np.float32))


def _glitter(
    rng: np.random.Generator,
    view: View,
    light: Light,
    weather: Conditions,
    waves: Field,
) -> Field:
    """Return the sun in the waves: the share of facets that mirror it (Cox & Munk 1954)."""
    if light.clear <= 0 or light.towards_sun[2] <= 0:
        return np.zeros(view.up.shape, np.float32)
    x, y, z = (np.float32(v) for v in light.towards_sun)
    half_x, half_y, half_z = x - view.east, y - view.north, z - view.up
    tangent2 = (half_x**2 + half_y**2) / np.maximum(half_z, 1e-3) ** 2
    slopes2 = np.float32(_slopes2(weather))
    facets = np.exp(-tangent2 / slopes2) / np.sqrt(slopes2)
    grain = sample(
        "crests",
        view.ground_x / 31 + np.float32(rng.random()),
        np.asarray(np.log(view.range_m) * 0.9, np.float32),
    )
    sparkle = smoothstep(-0.4, 2.2, waves * np.float32(0.9) + grain)
    return np.asarray(facets * sparkle * np.float32(0.55 * light.clear), np.float32)
