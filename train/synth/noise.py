"""Smooth random fields: tiles without seams, sampled anywhere on the plane."""

from __future__ import annotations

from functools import cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Kind = Literal["fractal", "crests"]

TILE_PX = 512
TILE_SEED = 1831
FRACTAL_SLOPE = 1.75
FRACTAL_LOWEST = 3.0
CREST_WAVES = 20.0
CREST_SPREAD = 0.45
CREST_LENGTH = 2.6


def _spectrum(kind: Kind) -> NDArray[np.float64]:
    ky = np.abs(np.fft.fftfreq(TILE_PX, 1 / TILE_PX))[:, None]
    kx = np.fft.rfftfreq(TILE_PX, 1 / TILE_PX)[None, :]
    if kind == "fractal":
        k = np.hypot(kx, ky)
        return np.where(k >= FRACTAL_LOWEST, np.maximum(k, 1) ** -FRACTAL_SLOPE, 0)
    k = np.hypot(kx * CREST_LENGTH, ky)
    octaves_off = np.log2(np.maximum(k, 0.1) / CREST_WAVES)
    return np.asarray(np.exp(-((octaves_off / CREST_SPREAD / 2) ** 2)), np.float64)


@cache
def _tile(kind: Kind) -> Field:
    rng = np.random.default_rng([TILE_SEED, len(kind)])
    white = np.fft.rfft2(rng.standard_normal((TILE_PX, TILE_PX)))
    field = np.fft.irfft2(white * _spectrum(kind), s=(TILE_PX, TILE_PX))
    return np.pad(field / field.std(), (0, 1), mode="wrap").astype(np.float32)


def sample(kind: Kind, x: Field, y: Field) -> Field:
    """Return the field at x, y (2-D, in tile periods): zero mean, unit spread, period 1, bilinear.

    "fractal" has detail at all scales; "crests" has some 20 wave crests per period, long along x.
    """
    u = ((x - np.floor(x)) * TILE_PX).astype(np.float32)
    v = ((y - np.floor(y)) * TILE_PX).astype(np.float32)
    return np.asarray(cv2.remap(_tile(kind), u, v, cv2.INTER_LINEAR), np.float32)


def curve(rng: np.random.Generator, count: int, knots: int, octaves: int) -> NDArray[np.float64]:
    """Return a random line of count points: each octave doubles the knots and halves the size."""
    at = np.linspace(0, 1, count)
    total = np.zeros(count)
    for octave in range(octaves):
        number = (knots << octave) + 1
        total += np.interp(at, np.linspace(0, 1, number), rng.standard_normal(number)) / 2**octave
    return total


def chance(rng: np.random.Generator, share: float) -> bool:
    """Return True in this share of draws."""
    return bool(rng.random() < share)


def smoothstep(low: float, high: float, value: Field) -> Field:
    """Return 0 below low, 1 above high, smooth between (Hermite)."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
