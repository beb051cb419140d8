"""The weather, the light and the ice of one moment, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from train.synth.noise import chance

Regime = Literal[
    "open water",
    "freeze-up",
    "pancakes",
    "drifting floes",
    "pack",
    "floe edge",
    "break-up",
    "fast ice",
]
REGIMES: dict[Regime, float] = {
    "open water": 0.10,
    "freeze-up": 0.15,
    "pancakes": 0.08,
    "drifting floes": 0.24,
    "pack": 0.14,
    "floe edge": 0.11,
    "break-up": 0.10,
    "fast ice": 0.08,
}
"""Regimes and how often each is drawn."""
CONCENTRATION: dict[Regime, tuple[float, float]] = {
    "open water": (0.0, 0.02),
    "freeze-up": (0.0, 0.35),
    "pancakes": (0.4, 0.95),
    "drifting floes": (0.08, 0.75),
    "pack": (0.75, 1.0),
    "floe edge": (0.0, 0.35),
    "break-up": (0.1, 0.7),
    "fast ice": (0.0, 0.0),
}
"""The share of floes kept on what water the regime leaves free."""
CLEAR_VISIBILITY_M = 60_000.0
FOG_M = 2_500.0
OVERCAST = 0.75
GLARE_DEG = 35.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What was drawn for a scene."""

    regime: Regime
    concentration: float
    """Of floes, where floes drift: the scene's true fraction is measured, not set."""
    floe_scale_m: float
    """The largest floes are about this wide."""
    sun_elevation_deg: float
    sun_azimuth_deg: float
    """Relative to the camera: 0 ahead, positive to the right."""
    cloud_cover: float
    visibility_m: float
    wind_m_s: float
    snow_cover: float
    """On land, 0..1."""
    exposure: float
    """Against the camera's own choice, 1 = as it chose."""
    sensor_noise: float
    """Standard deviation, of the full range."""
    vignetting: float
    """Light lost in the corners, 0..1."""
    jpeg_quality: int

    @property
    def lighting(self) -> str:
        """One word for the light: fog, dusk, overcast, glare or clear."""
        if self.visibility_m < FOG_M:
            return "fog"
        if self.sun_elevation_deg < 0:
            return "dusk"
        if self.cloud_cover > OVERCAST:
            return "overcast"
        return "glare" if abs(self.sun_azimuth_deg) < GLARE_DEG else "clear"


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Draw one moment."""
    names = list(REGIMES)
    regime = names[int(rng.choice(len(names), p=list(REGIMES.values())))]
    dusk = chance(rng, 0.15)
    sun = rng.uniform(-6, 0) if dusk else 1.5 + 28 * rng.beta(1.1, 1.8)
    ahead = chance(rng, 0.3)
    azimuth = rng.uniform(-24, 24) if ahead else rng.uniform(-180, 180)
    foggy = chance(rng, 0.14)
    return Conditions(
        regime=regime,
        concentration=float(rng.uniform(*CONCENTRATION[regime])),
        floe_scale_m=float(np.exp(rng.uniform(np.log(12), np.log(80)))),
        sun_elevation_deg=float(sun),
        sun_azimuth_deg=float(azimuth),
        cloud_cover=float(rng.beta(0.7, 0.7)),
        visibility_m=float(
            np.exp(rng.uniform(np.log(700), np.log(FOG_M)))
            if foggy
            else np.exp(rng.uniform(np.log(9_000), np.log(CLEAR_VISIBILITY_M)))
        ),
        wind_m_s=float(rng.gamma(2.0, 2.2)),
        snow_cover=float(rng.beta(0.9, 0.7)),
        exposure=float(np.exp(rng.normal(0, 0.14))),
        sensor_noise=float(0.004 + rng.exponential(0.005) + (0.011 if dusk else 0)),
        vignetting=float(rng.uniform(0, 0.3)),
        jpeg_quality=int(rng.integers(45, 96)),
    )
