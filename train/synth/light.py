"""Sun, sky, haze and what the camera makes of them.

Colours are float32 (3, 1, 1) as B, G, R, white about 1; pictures (3, height, width), so that a
field (height, width) multiplies either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from train.synth.noise import Field, sample, smoothstep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.synth.conditions import Conditions
    from train.synth.view import View

Colour = NDArray[np.float32]

# By the sun's elevation in degrees; each colour B, G, R.
ELEVATIONS = (-6.0, -2.0, 2.0, 8.0, 25.0)
ZENITH = (
    (0.38, 0.21, 0.11),
    (0.55, 0.36, 0.23),
    (0.68, 0.48, 0.33),
    (0.76, 0.52, 0.29),
    (0.76, 0.48, 0.22),
)
HORIZON = (
    (0.50, 0.38, 0.36),
    (0.66, 0.58, 0.62),
    (0.80, 0.77, 0.80),
    (0.95, 0.86, 0.76),
    (1.02, 0.91, 0.78),
)
GLOW = (
    (0.26, 0.34, 0.50),
    (0.32, 0.52, 0.86),
    (0.45, 0.74, 1.05),
    (0.75, 0.95, 1.10),
    (0.95, 1.00, 1.05),
)
AMBIENT = (
    (0.50, 0.38, 0.30),
    (0.58, 0.47, 0.41),
    (0.54, 0.47, 0.42),
    (0.52, 0.47, 0.42),
    (0.50, 0.46, 0.42),
)
SUN = (
    (0.0, 0.0, 0.0),
    (0.02, 0.04, 0.07),
    (0.22, 0.34, 0.47),
    (0.40, 0.48, 0.54),
    (0.50, 0.54, 0.56),
)
OVERCAST_TINT = (1.02, 1.0, 0.975)
HAZE_E_FOLDS = 3.9  # Koschmieder: 2 % contrast is left at the visibility
CLOUD_PERIODS = 0.16
CLOUD_BASE = 0.07
SKY_FADE = 0.22
NIGHT_DEG = -2.0
MEAN_WANTED = 0.55
BRIGHTEST_WANTED = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """The light of a scene."""

    zenith: Colour
    horizon: Colour
    glow: Colour
    """The sky around the sun."""
    ambient: Colour
    sun: Colour
    """The direct sun on a surface that faces the light; nought below full cloud."""
    towards_sun: NDArray[np.float32]
    """Unit vector X, Y, Z."""
    clear: float
    """How much of the sun comes through, 0..1."""

    @property
    def sun_azimuth(self) -> float:
        """Radians from the camera's axis."""
        return float(np.arctan2(self.towards_sun[0], self.towards_sun[1]))


def colour(parts: Sequence[float]) -> Colour:
    """Return b, G, R as a colour."""
    return np.array(parts, np.float32).reshape(3, 1, 1)


def light_of(conditions: Conditions) -> Light:
    """Return the light under these conditions."""
    elevation = conditions.sun_elevation_deg
    grey = float(np.clip(conditions.cloud_cover * 1.3 - 0.3, 0, 1))
    hidden = max(grey, 0.9 if conditions.lighting == "fog" else 0.0)
    azimuth, height = np.radians([conditions.sun_azimuth_deg, elevation])
    towards = np.array(
        [np.sin(azimuth) * np.cos(height), np.cos(azimuth) * np.cos(height), np.sin(height)],
        np.float32,
    )
    return Light(
        zenith=_greyed(_at(ZENITH, elevation), hidden, 0.92),
        horizon=_greyed(_at(HORIZON, elevation), hidden, 0.96),
        glow=_at(GLOW, elevation),
        ambient=_greyed(_at(AMBIENT, elevation), hidden * 0.8, 1.25),
        sun=_at(SUN, elevation) * np.float32((1 - hidden) ** 1.5),
        towards_sun=towards,
        clear=float((1 - hidden) ** 1.5),
    )


def _at(table: tuple[tuple[float, ...], ...], elevation_deg: float) -> Colour:
    columns = zip(*table, strict=True)
    return colour([float(np.interp(elevation_deg, ELEVATIONS, c)) for c in columns])


def _greyed(tone: Colour, share: float, gain: float) -> Colour:
    grey = np.float32(tone.mean() * gain) * colour(OVERCAST_TINT)
    return np.asarray(tone + (grey - tone) * np.float32(share), np.float32)


def mix(base: Field, over: Field | Colour, share: Field) -> Field:
    """Return over laid on base with a share of (height, width)."""
    return np.asarray(base + (over - base) * share, np.float32)


def sky_gradient(light: Light, up: Field) -> Field:
    """Return the cloudless sky's colour at the sine of an elevation."""
    share = 1 - np.exp(-np.maximum(up, 0) / np.float32(SKY_FADE))
    return np.asarray(light.horizon + (light.zenith - light.horizon) * share, np.float32)


def paint_sky(rng: np.random.Generator, view: View, light: Light, weather: Conditions) -> Field:
    """Paint the sky over all rows of a view."""
    sky = sky_gradient(light, view.up)
    x, y, z = (np.float32(v) for v in light.towards_sun)
    cosine = np.clip(view.east * x + view.north * y + view.up * z, -1, 1)
    angle = np.arccos(cosine)
    halo = 0.55 * np.exp(-angle / np.float32(0.32)) + 0.9 * np.exp(-((angle / 0.06) ** 2))
    sky = mix(sky, light.glow, np.asarray(halo * np.float32(light.clear**0.5), np.float32))
    sky = _clouds(rng, view, light, weather, sky, halo.astype(np.float32))
    disk = smoothstep(0.994, 0.9985, cosine.astype(np.float32)) * np.float32(1.2 * light.clear**2)
    return np.asarray(sky + disk * (weather.sun_elevation_deg > 0), np.float32)


def _clouds(
    rng: np.random.Generator,
    view: View,
    light: Light,
    weather: Conditions,
    sky: Field,
    halo: Field,
) -> Field:
    flat = np.float32(CLOUD_PERIODS * rng.uniform(0.6, 1.4)) / (
        np.maximum(view.up, 0) + np.float32(CLOUD_BASE)
    )
    turn, shift = rng.uniform(-0.8, 0.8), rng.random(4).astype(np.float32)
    x = (view.east * np.cos(turn) + view.north * np.sin(turn)) * flat * np.float32(1.5)
    y = (view.north * np.cos(turn) - view.east * np.sin(turn)) * flat * np.float32(0.8)
    body = sample("fractal", x + shift[0], y + shift[1])
    shade = sample("fractal", x * 1.7 + shift[2], y * 1.7 + shift[3])
    edge = float(np.interp(weather.cloud_cover, [0, 0.5, 1], [2.6, 0.4, -2.8]))
    dense = smoothstep(edge - 0.5, edge + 0.9, body + np.float32(0.35) * shade)
    bright = light.ambient * np.float32(1.25) + light.sun * np.float32(0.75)
    lit = bright + (light.glow * np.float32(1.05) - bright) * (halo * light.clear)
    dark = light.ambient * np.float32(1.30)
    tone = np.clip(0.55 + 0.25 * shade - 0.22 * dense, 0, 1).astype(np.float32)
    return mix(sky, dark + (lit - dark) * tone, np.asarray(dense * 0.93, np.float32))


def haze(picture: Field, view: View, light: Light, weather: Conditions) -> Field:
    """Return what haze leaves of the picture; the sky is as far as its haze layer is thick."""
    layer_m = 220.0 if weather.lighting == "fog" else 700.0
    sky_m = np.float32(layer_m) / np.maximum(view.up, np.float32(layer_m / 30_000))
    slant = np.where(view.up > 0, sky_m, np.hypot(view.range_m, np.float32(view.camera.height_m)))
    left = np.exp(np.float32(-HAZE_E_FOLDS / weather.visibility_m) * slant)
    veil = (light.horizon + light.ambient * np.float32(1.2)) / 2
    return mix(picture, veil.astype(np.float32), (1 - left).astype(np.float32))


def expose(rng: np.random.Generator, picture: Field, weather: Conditions) -> NDArray[np.uint8]:
    """Expose as the camera does: vignetting, lens, tone, noise and JPEG, to uint8 BGR."""
    height, width = picture.shape[1:]
    seen = float(picture[:, ::4, ::4].mean())
    night = 0.62 if weather.sun_elevation_deg < NIGHT_DEG else 1.0
    brightest = float(np.quantile(picture[:, ::8, ::8].max(axis=0), 0.9))
    gain = (MEAN_WANTED * night / max(seen, 0.02)) ** 0.9
    gain = min(gain, BRIGHTEST_WANTED * night / max(brightest, 0.02)) * weather.exposure
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    corner = (1 - weather.vignetting * ((x * x + y * y) / 2) ** 1.3).astype(np.float32)
    sharp = cv2.GaussianBlur(cv2.merge(list(picture * (corner * np.float32(gain)))), (3, 3), 0.55)
    film = _shoulder(np.asarray(sharp, np.float32))
    film += _grain(rng, (height, width), weather.sensor_noise)
    frame = cv2.convertScaleAbs(np.maximum(film, 0), alpha=255)
    _, stream = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, weather.jpeg_quality])
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)


def _grain(rng: np.random.Generator, size: tuple[int, int], spread: float) -> Field:
    """Return sensor noise (height, width, 3), coarser in colour as behind a Bayer filter."""
    height, width = size
    fine = rng.standard_normal(size, dtype=np.float32) * np.float32(spread)
    coarse = rng.standard_normal((-(-height // 2), -(-width // 2), 3), dtype=np.float32)
    tint = cv2.resize(coarse * np.float32(0.8 * spread), (width, height))
    return np.asarray(tint + cv2.merge([fine] * 3), np.float32)


def _shoulder(linear: Field) -> Field:
    """Let highlights roll off above 0.75 and reach white at about 1.5."""
    over = np.maximum(linear - np.float32(0.75), 0)
    return np.asarray(np.minimum(linear, 0.75) + 0.26 * (1 - np.exp(-over / 0.26)), np.float32)
