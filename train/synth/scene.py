"""One scene: land, light, water and ice composed into a picture, a mask and a true fraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.synth.conditions import Conditions, draw_conditions
from train.synth.ice import draw_ice
from train.synth.land import (
    Land,
    draw_camera,
    draw_land,
    far_cover,
    paint_hills,
    paint_pier,
    paint_shore,
    pier_cover,
    shore_cover,
)
from train.synth.light import expose, haze, light_of, mix, paint_sky
from train.synth.paint_ice import paint_ice, shade_ice
from train.synth.truth import Footprint, far_limit_m, footprint, ground_area_fraction
from train.synth.view import View, look
from train.synth.water import paint_water

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from train.synth.camera import Camera
    from train.synth.ice import Ice
    from train.synth.light import Light
    from train.synth.noise import Field
    from train.synth.paint_ice import IceLayer

OTHER, WATER, ICE = 0, 1, 2
HALF = 0.5
POSE_STREAM, SCENE_STREAM = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A synthetic picture and all that is known of it."""

    image: NDArray[np.uint8]
    """(height, width, 3) BGR."""
    mask: NDArray[np.uint8]
    """(height, width): 0 other, 1 water, 2 ice."""
    camera: Camera
    ground_area_fraction: float | None
    """Ice over ice and water by ground area, over the water that the picture shows up to
    far_limit_m; None where it shows none."""
    far_limit_m: float
    conditions: Conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """A camera at its place: what stays the same from frame to frame."""

    view: View
    land: Land
    shore: Field
    pier: Field
    pier_top: Field
    far: Field
    """The share of each pixel beyond the far shore."""
    other: NDArray[np.bool_]
    """The pixels that are mostly neither water nor ice."""
    footprint: Footprint


def draw_pose(seed: int, size: tuple[int, int]) -> Pose:
    """Return the camera and the land of a pose, for pictures of size (height, width)."""
    rng = np.random.default_rng([POSE_STREAM, seed])
    camera = draw_camera(rng, size)
    land = draw_land(rng, camera)
    view = look(camera)
    shore, (pier, top), far = shore_cover(view, land), pier_cover(view, land), far_cover(view, land)
    other = np.maximum(np.maximum(shore, pier), far) >= HALF
    return Pose(
        view=view,
        land=land,
        shore=shore,
        pier=pier,
        pier_top=top,
        far=far,
        other=other,
        footprint=footprint(camera, other),
    )


def make_scene(
    seed: int,
    size: tuple[int, int] = (360, 640),
    *,
    pose_seed: int | None = None,
) -> Scene:
    """Return a scene of size (height, width), the same for the same seeds.

    seed draws the ice, the weather and the light; pose_seed (default: seed) the camera and land.
    """
    return scene_at(draw_pose(seed if pose_seed is None else pose_seed, size), seed)


def scene_at(pose: Pose, seed: int) -> Scene:
    """Return a moment at a pose."""
    rng = np.random.default_rng([SCENE_STREAM, seed])
    weather = draw_conditions(rng)
    light = light_of(weather)
    camera = pose.view.camera
    ice = draw_ice(rng, camera, weather)
    layer = paint_ice(camera, ice)
    picture = _compose(rng, pose, light, weather, layer, ice)
    mask = np.where(layer.share >= HALF, ICE, WATER).astype(np.uint8)
    mask[pose.other] = OTHER
    return Scene(
        image=expose(rng, picture, weather),
        mask=mask,
        camera=camera,
        ground_area_fraction=ground_area_fraction(pose.footprint, ice),
        far_limit_m=far_limit_m(camera),
        conditions=weather,
    )


def _compose(
    rng: np.random.Generator,
    pose: Pose,
    light: Light,
    weather: Conditions,
    layer: IceLayer,
    ice: Ice,
) -> Field:
    picture = np.zeros((3, *pose.view.up.shape), np.float32)
    far = _far(rng, pose, light, weather)
    picture[:, : far.shape[1]] = far
    rows = pose.view.sea_rows
    sea = _sea(rng, pose, light, weather, layer, ice)
    picture[:, rows] = mix(sea, picture[:, rows], pose.far[rows])
    picture = haze(picture, pose.view, light, weather)
    return _near(rng, picture, pose, light, weather)


def _far(rng: np.random.Generator, pose: Pose, light: Light, weather: Conditions) -> Field:
    """Paint sky and hills, down to the last row that shows any."""
    rows = np.flatnonzero(pose.far.any(axis=1))
    part = pose.view.rows(slice(0, int(rows[-1]) + 1 if rows.size else 0))
    if not part.up.size:
        return np.zeros((3, *part.up.shape), np.float32)
    sky = paint_sky(rng, part, light, weather)
    return paint_hills(rng, sky, part, pose.land, light, weather)


def _sea(
    rng: np.random.Generator,
    pose: Pose,
    light: Light,
    weather: Conditions,
    layer: IceLayer,
    ice: Ice,
) -> Field:
    rows = pose.view.sea_rows
    part = pose.view.rows(rows)
    crest = np.max([ridge.crest for ridge in pose.land.ridges], axis=0)
    hills = np.interp(part.azimuth, pose.land.azimuths, crest).astype(np.float32)
    water = paint_water(rng, part, light, weather, hills)
    seen = type(layer)(share=layer.share[rows], albedo=layer.albedo[:, rows])
    if not seen.share.any():
        return water
    lit = shade_ice(rng, part, light, seen, ice)
    return lit + water * (1 - seen.share)


def _near(
    rng: np.random.Generator,
    picture: Field,
    pose: Pose,
    light: Light,
    weather: Conditions,
) -> Field:
    """Paint the shore and the breakwater."""
    for cover, paint in ((pose.shore, paint_shore), (pose.pier, None)):
        rows = np.flatnonzero(cover.any(axis=1))
        if not rows.size:
            continue
        band = slice(int(rows[0]), int(rows[-1]) + 1)
        part = pose.view.rows(band)
        if paint is not None:
            ground = paint(rng, part, pose.land, light, weather)
        else:
            ground = paint_pier(rng, part, pose.land, light, weather, pose.pier_top[band])
        ground = haze(ground, part, light, weather)
        picture[:, band] = mix(picture[:, band], ground, cover[band])
    return picture
