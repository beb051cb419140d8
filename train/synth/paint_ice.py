"""Ice as the camera sees it: painted far to near on a finer canvas, then shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from train.synth.ice import ice_cover
from train.synth.light import colour
from train.synth.noise import Field, sample, smoothstep
from train.synth.view import REFERENCE_ROWS, SHIFT_BITS, SUPERSAMPLE, View, finer, relief, subpixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from train.synth.camera import Camera
    from train.synth.fracture import Points
    from train.synth.ice import BGR, Ice
from train.synth.light import Light

SIDE_GAIN = (0.66, 0.60, 0.52)
UNCHANGED = 128
SIDE_ROWS = 0.5
MOST_SIDE = 0.3
RIM_ROWS = 5.0
RIM_INSET = 0.84
DUST = colour((0.62, 0.60, 0.57))
POND = colour((0.33, 0.27, 0.16))
SNOW_PERIOD_M = 34.0
DRIFT_PERIOD_M = 160.0


@dataclass(frozen=True, kw_only=True, slots=True)
class IceLayer:
    """What of the picture is ice, and how bright."""

    share: Field
    """0..1 of each pixel, from SUPERSAMPLE squared samples."""
    albedo: Field
    """(3, height, width) times share."""


def paint_ice(camera: Camera, ice: Ice) -> IceLayer:
    """Paint every piece of ice of a scene through the camera.

    cv2.fillPoly lays the colours, a little too wide; ice_cover then says where ice is.
    """
    height, width = camera.size
    canvas = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE, 4), np.uint8)
    for sheet in ice.sheets:
        _fill(canvas, camera.ground_to_pixel(sheet.outline), _ink(sheet.albedo))
    _draw_lines(canvas, camera, ice)
    for lead in ice.leads:
        _fill(canvas, camera.ground_to_pixel(lead), (0, 0, 0, 0))
    _draw_brash(canvas, camera, ice)
    _draw_floes(canvas, camera, ice)
    fine = ice_cover(
        ice,
        lambda ground: finer(camera.ground_to_pixel(ground)),
        canvas.shape[:2],
    )
    kept = cv2.bitwise_and(canvas, canvas, mask=fine.astype(np.uint8))
    small = cv2.resize(kept, (width, height), interpolation=cv2.INTER_AREA)
    layer = np.stack(cv2.split(small)) * np.float32(1 / 255)
    return IceLayer(share=layer[3], albedo=layer[:3])


Ink = tuple[int, int, int, int]


def _ink(albedo: Sequence[float] | BGR) -> Ink:
    b, g, r = (round(min(max(float(part), 0.0), 1.0) * 255) for part in albedo)
    return b, g, r, 255


def _fill(canvas: NDArray[np.uint8], pixels: Points, ink: Ink) -> None:
    if np.isfinite(pixels).all():
        cv2.fillPoly(canvas, [subpixels(pixels)], ink, shift=SHIFT_BITS)


def _draw_lines(canvas: NDArray[np.uint8], camera: Camera, ice: Ice) -> None:
    """Let cracks and tracks darken what ice lies below them; they thin out with distance."""
    if not ice.lines:
        return
    darker = np.full(canvas.shape[:2], UNCHANGED, np.uint8)
    for line in ice.lines:
        pixels = subpixels(camera.ground_to_pixel(line.points))
        slant = np.hypot(np.hypot(*line.points.T), camera.height_m)
        thick = line.width_m * camera.focal_px * SUPERSAMPLE / slant
        for level in range(1, 13):
            chosen = np.flatnonzero(np.rint(thick) == level)
            value = int(np.clip(line.gain * UNCHANGED, 0, 255))
            for run in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1):
                if run.size > 1:
                    cv2.polylines(
                        darker,
                        [pixels[run]],
                        isClosed=False,
                        color=value,
                        thickness=level,
                        lineType=cv2.LINE_8,
                        shift=SHIFT_BITS,
                    )
    marked = np.nonzero(darker != UNCHANGED)
    gain = darker[marked].astype(np.float32)[:, None] / UNCHANGED
    bgr = canvas[..., :3]
    bgr[marked] = np.minimum(bgr[marked] * gain, 255).astype(np.uint8)


def _draw_brash(canvas: NDArray[np.uint8], camera: Camera, ice: Ice) -> None:
    if len(ice.brash):
        pixels = subpixels(camera.ground_to_pixel(ice.brash))
        cv2.fillPoly(canvas, list(pixels), _ink(ice.brash_albedo), shift=SHIFT_BITS)


def _draw_floes(canvas: NDArray[np.uint8], camera: Camera, ice: Ice) -> None:
    """Paint sides first, then the top and, on large floes, its inside: farthest floes first."""
    floes = ice.floes
    if floes is None or not len(floes):
        return
    rows = camera.size[0] / REFERENCE_ROWS
    reach = np.hypot(np.hypot(*floes.centres.T), camera.height_m)
    freeboard = ice.freeboards_m
    side_px = freeboard * camera.focal_px / reach
    tall_px = floes.widths_m * camera.height_m * camera.focal_px / reach**2
    lifted = np.where(side_px > SIDE_ROWS * rows, np.minimum(side_px / tall_px, MOST_SIDE), 0)
    silhouette = camera.ground_to_pixel(floes.outlines)
    foot = subpixels(silhouette)
    top = subpixels(_raised(silhouette, lifted))
    inner = camera.ground_to_pixel(floes.scaled(np.full(len(floes), RIM_INSET)).outlines)
    inside = subpixels(_raised(inner, lifted))
    sides = _inks(ice.albedos * np.array(SIDE_GAIN))
    rims = _inks(ice.albedos * ice.rims)
    tops = _inks(ice.albedos)
    for i in range(len(floes)):
        if lifted[i]:
            cv2.fillPoly(canvas, [foot[i]], sides[i], shift=SHIFT_BITS)
        if tall_px[i] > RIM_ROWS * rows:
            cv2.fillPoly(canvas, [top[i]], rims[i], shift=SHIFT_BITS)
            cv2.fillPoly(canvas, [inside[i]], tops[i], shift=SHIFT_BITS)
        else:
            cv2.fillPoly(canvas, [top[i]], tops[i], shift=SHIFT_BITS)


def _raised(pixels: Points, share: Points) -> Points:
    """Return outlines (n, corners, 2) pressed against their far edge by a share of their height.

    The side shows below. So the outline on the water is the whole silhouette, and a floe hides no
    water behind it.
    """
    crest = pixels[..., 1].min(axis=1, keepdims=True)
    raised = pixels.copy()
    raised[..., 1] = crest + (pixels[..., 1] - crest) * (1 - share[:, None])
    return np.asarray(raised, np.float64)


def _inks(albedos: Points) -> list[list[int]]:
    values = np.rint(np.clip(albedos, 0, 1) * 255).astype(int)
    inks: list[list[int]] = np.column_stack([values, np.full(len(values), 255)]).tolist()
    return inks


def shade_ice(
    rng: np.random.Generator,
    view: View,
    light: Light,
    layer: IceLayer,
    ice: Ice,
) -> Field:
    """Return the ice's light, still times its share: drifts, ridges and melt ponds on it."""
    x = view.ground_x / np.float32(SNOW_PERIOD_M) + np.float32(rng.random())
    y = view.ground_y / np.float32(SNOW_PERIOD_M) + np.float32(rng.random())
    near = np.clip(1.3 / view.row_span_m, 0, 1)
    turn = rng.uniform(-0.9, 0.9)
    along = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
    across = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32)
    drifts = relief(along, across * 1.7, towards=light.sun_azimuth - turn, step=0.014) * near
    wide = sample("fractal", x * np.float32(SNOW_PERIOD_M / DRIFT_PERIOD_M), y * np.float32(0.2))
    direct = np.clip(0.72 + 0.21 * drifts, 0.05, 1.6)
    veiled = 1 + 0.05 * drifts + 0.05 * wide
    lit = light.ambient * veiled + light.sun * direct
    albedo = layer.albedo * (1 + 0.07 * wide)
    if ice.dusting > 0:
        blown = smoothstep(0.9 - 1.6 * ice.dusting, 2.2, wide + np.float32(0.5) * drifts)
        albedo = albedo + (DUST * layer.share - albedo) * (blown * np.float32(0.7))
    if ice.ponds > 0:
        edge = float(np.interp(ice.ponds, [0, 0.3, 0.6], [2.2, 0.75, 0.1]))
        pool = sample("fractal", x * 1.1 + 0.5, y * 1.1)
        wet = smoothstep(edge, edge + 0.3, pool) * np.clip(2.2 / view.row_span_m, 0.12, 1)
        albedo = albedo + (POND * layer.share - albedo) * (wet * 0.9)
    return np.asarray(albedo * lit, np.float32)
