"""Draw the frames that lie beside the demo bundle: a winter of one shore, in five pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from train.synth import make_scene

SIZE = (720, 1280)
JPEG_QUALITY = 88
SEEDS = {
    "2025-12-02T14-30-00": 918,  # freeze-up
    "2025-12-19T16-00-00": 153,  # pancakes
    "2026-03-11T15-00-00": 935,  # pack
    "2026-06-08T13-00-00": 908,  # break-up
    "2026-06-21T22-30-00": 938,  # drifting floes, low sun
}
"""Seeds that no training scene has: those begin with a pose."""


def main(folder: Path) -> None:
    """Write one JPEG per seed into ``folder``, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in SEEDS.items():
        scene = make_scene(seed, SIZE)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        if not cv2.imwrite(str(folder / f"{name}.jpg"), scene.image, quality):
            raise OSError(f"{folder}: cannot be written to")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
