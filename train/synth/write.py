"""A dataset folder of synthetic scenes: pictures, masks, the truth, and dataset.toml last."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge.contract.errors import ConfigError
from edge.contract.files import write_atomically
from edge.contract.masks import encode_png
from train.synth.scene import ICE, WATER, Scene, draw_pose, scene_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JPEG_QUALITY = 90
HELD_BACK = 0.15
"""The share of poses for validation, and again for test."""
FEWEST_POSES = 3
SMALLEST = 32
DATASET_TOML = """\
# Synthetic scenes by train.synth, seed {seed}: each group is one camera pose over time.
schema = "icecam.dataset/1"
name = "synthetic"
images = "images/*.jpg"
masks = "masks/{{stem}}.png"
ignore = 255
group = '^(pose-\\d+)_'

[[classes]]
name = "other"
role = "other"
colour = [112, 112, 112]
labels = {{en = "other", fr = "autre"}}
values = [0]

[[classes]]
name = "water"
role = "water"
colour = [28, 78, 138]
labels = {{en = "water", fr = "eau"}}
values = [1]

[[classes]]
name = "ice"
role = "ice"
colour = [127, 219, 255]
labels = {{en = "ice", fr = "glace"}}
values = [2]

[split]
validation = [{validation}]
test = [{test}]
"""


def write_dataset(
    out: Path,
    *,
    count: int,
    seed: int,
    size: tuple[int, int] = (360, 640),
    sequence_length: int = 8,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write count scenes of size (height, width) to the empty or missing folder out.

    images/pose-0007_003.jpg, masks/pose-0007_003.png, truth.csv and, last of all, dataset.toml.
    A pose holds sequence_length scenes: one camera and coast, ever new weather and ice. About 15 %
    of the poses go to validation and to test each, at least one. progress is called with the
    number of scenes written.

    Raises ConfigError where out is not empty or the numbers make no dataset; nothing is written
    then.
    """
    poses = -(-count // sequence_length) if sequence_length > 0 else 0
    _check(out, poses=poses, seed=seed, size=size)
    for folder in (out / "images", out / "masks"):
        folder.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for pose_number in range(poses):
        pose = draw_pose(_derived(seed, pose_number), size)
        group = _group(pose_number)
        for frame in range(min(sequence_length, count - len(rows))):
            scene = scene_at(pose, _derived(seed, pose_number, frame))
            name = f"{group}_{frame:03d}"
            _write_pair(out, name, scene)
            rows.append({"name": name, "group": group, **_truth(scene)})
            if progress is not None:
                progress(len(rows))
    write_atomically(out / "truth.csv", _csv(rows))
    write_atomically(out / "dataset.toml", _dataset_toml(seed, poses).encode())


def _check(out: Path, *, poses: int, seed: int, size: tuple[int, int]) -> None:
    then = "Nothing was written."
    if poses < FEWEST_POSES:
        found = f"count and sequence_length make {max(poses, 0)} poses"
        expected = f"at least {FEWEST_POSES}: one each to train, validate and test"
        raise ConfigError(found, expected=expected, then=then)
    if seed < 0:
        raise ConfigError(f"seed {seed}", expected="0 or more", then=then)
    if min(size) < SMALLEST:
        found = f"size {size[0]}x{size[1]} (height x width)"
        raise ConfigError(found, expected=f"{SMALLEST} pixels or more each way", then=then)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", expected="an empty or a new folder", then=then)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", expected="an empty or a new folder", then=then)


def _derived(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _group(pose_number: int) -> str:
    return f"pose-{pose_number:04d}"


def _write_pair(out: Path, name: str, scene: Scene) -> None:
    _, stream = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    write_atomically(out / "images" / f"{name}.jpg", stream.tobytes())
    write_atomically(out / "masks" / f"{name}.png", encode_png(scene.mask))


def ice_pixel_fraction(scene: Scene) -> float | None:
    """Return ice over ice and water in the scene's mask, 0..1; None where it shows neither."""
    ice, water = int((scene.mask == ICE).sum()), int((scene.mask == WATER).sum())
    return ice / (ice + water) if ice + water else None


def _truth(scene: Scene) -> dict[str, object]:
    camera = asdict(scene.camera)
    height, width = camera.pop("size")
    return {
        "ground_area_fraction": scene.ground_area_fraction,
        "ice_pixel_fraction": ice_pixel_fraction(scene),
        "far_limit_m": scene.far_limit_m,
        **{f"camera_{name}": value for name, value in camera.items()},
        "height": height,
        "width": width,
        "lighting": scene.conditions.lighting,
        **asdict(scene.conditions),
    }


def _csv(rows: list[dict[str, object]]) -> bytes:
    """Write one line a scene; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _dataset_toml(seed: int, poses: int) -> str:
    shuffled = np.random.default_rng(seed).permutation(poses).tolist()
    held = max(1, round(poses * HELD_BACK))
    sides = (sorted(shuffled[:held]), sorted(shuffled[held : 2 * held]))
    validation, test = (", ".join(f'"{_group(n)}"' for n in side) for side in sides)
    return DATASET_TOML.format(seed=seed, validation=validation, test=test)
