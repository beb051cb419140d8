"""Datasets of many 1080p frames that cost the disk two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

NATIVE = (1080, 1920)
CLASSES = ("water", "ice")
DATASET_TOML = r"""
schema = "icecam.dataset/1"
name = "copies"
images = "images/*.jpg"
masks = "masks/{stem}.png"
group = '^([ab])_'

[[classes]]
name = "water"
role = "water"
colour = [0, 0, 128]
values = [0]

[[classes]]
name = "ice"
role = "ice"
colour = [255, 255, 255]
values = [1]

[split]
validation = [HELD_OUT]
"""


def write_copies(folder: Path, train: int, *, validation: int = 0) -> Path:
    """Write a frame and its mask, and links to them: each is read and decoded anew all the same."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    frame, mask = _drawn()
    cv2.imwrite(str(folder / "frame.jpg"), frame)
    cv2.imwrite(str(folder / "mask.png"), mask)
    for group, count in (("a", train), ("b", validation)):
        for number in range(count):
            (folder / "images" / f"{group}_{number}.jpg").symlink_to("../frame.jpg")
            (folder / "masks" / f"{group}_{number}.png").symlink_to("../mask.png")
    held_out = '"b"' if validation else ""
    (folder / "dataset.toml").write_text(DATASET_TOML.replace("HELD_OUT", held_out))
    return folder


def _drawn() -> tuple[np.ndarray, np.ndarray]:
    """Return a frame uint8 ``(1080, 1920, 3)`` of noise, brighter on ice, and its mask."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (27, 48)), np.ones((40, 40))).astype(np.uint8)
    noise = cv2.resize(rng.integers(0, 100, (270, 480, 3), np.uint8), NATIVE[::-1])
    return noise + mask[:, :, None] * np.uint8(100), mask
