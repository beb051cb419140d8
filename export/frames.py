"""The pictures that a bundle is tried on: which to take, and which of them become golden."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edge.contract.errors import ConfigError
from edge.contract.frames import SUFFIXES, decode_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge.contract.frames import Pixels
    from edge.engine.golden import GoldenAnswer
    from train.data.dataset import Dataset

CHECKED_FRAMES = 24
CHECKED_WITH_FLOES = 6
"""Mask R-CNN computes all its places for floes on each frame, however few there are."""
GOLDEN_FRAMES = 4


def choose_frames(
    dataset: Dataset | None, folder: Path | None, *, most: int = CHECKED_FRAMES
) -> list[Pixels]:
    """Return up to ``most`` pictures, spread evenly over validation images or a folder.

    A dataset without validation images gives of all it has.

    Raises ConfigError where neither or both are given, or there is no picture; CameraError for one
    that cannot be read.
    """
    if dataset is not None and folder is None:
        paths = [item.image for item in dataset.of("validation") or dataset.of("all")]
        where = dataset.source
    elif folder is not None and dataset is None:
        where = folder
        paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES]
    else:
        raise ConfigError("no frames to check with", expected="either --data or --frames")
    if not paths:
        raise ConfigError(f"{where}: no pictures", expected="a folder of JPEG or PNG files")
    spread = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    chosen = [paths[index] for index in spread]
    return [decode_image(path.read_bytes(), where=str(path)) for path in chosen]


def choose_golden(answers: Sequence[GoldenAnswer], class_count: int) -> list[int]:
    """Pick frames so that every class is somewhere: each next one adds most to the rarest class."""
    shares = np.array(
        [np.bincount(a.answer.mask.ravel(), minlength=256)[:class_count] for a in answers], float
    )
    shares /= shares.sum(axis=1, keepdims=True)
    chosen: list[int] = []
    while len(chosen) < min(GOLDEN_FRAMES, len(answers)):
        rest = [index for index in range(len(answers)) if index not in chosen]
        together = shares[chosen].sum(axis=0)
        chosen.append(max(rest, key=lambda index: float(np.sqrt(together + shares[index]).sum())))
    return chosen


def to_png(frame: Pixels) -> bytes:
    """Return a uint8 BGR frame as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1])).save(file, format="PNG", optimize=True)
    return file.getvalue()
