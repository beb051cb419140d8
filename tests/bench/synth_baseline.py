"""How far colour and row alone get on synthetic scenes: the floor that a network must beat.

A logistic regression sees each pixel as B, G, R and its row, nothing around it. It is trained on
scenes of some poses and scored on scenes of others, by the mean of the three classes'
intersection over union, pooled over all pixels. Above the ceiling the scenes are too easy.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from train.synth import make_scene

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

CEILING = 0.65
CLASSES = (0, 1, 2)
PIXELS_PER_SCENE = 3_000
HELD_OUT_SEED = 500_000


def pixel_table(
    seeds: Iterable[int],
    size: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return features (pixels, 4) as B, G, R, row in 0..1, and their classes (pixels,)."""
    features, classes = [], []
    for seed in seeds:
        scene = make_scene(seed, size)
        chosen = np.random.default_rng(seed).choice(
            scene.mask.size,
            min(PIXELS_PER_SCENE, scene.mask.size),
            replace=False,
        )
        row = chosen[:, None] // size[1] / size[0]
        colours = scene.image.reshape(-1, 3)[chosen] / 255
        features.append(np.hstack([colours, row]).astype(np.float32))
        classes.append(scene.mask.ravel()[chosen])
    return np.concatenate(features), np.concatenate(classes)


def baseline_miou(*, train: int, test: int, size: tuple[int, int]) -> tuple[float, list[float]]:
    """Return the held-out mIoU and the IoU of other, water and ice (0..1)."""
    features, classes = pixel_table(range(train), size)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(features, classes)
    features, classes = pixel_table(range(HELD_OUT_SEED, HELD_OUT_SEED + test), size)
    counts = confusion_matrix(classes, model.predict(features), labels=CLASSES)
    hits = np.diag(counts)
    ious = hits / (counts.sum(axis=0) + counts.sum(axis=1) - hits)
    return float(ious.mean()), [float(iou) for iou in ious]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m tests.bench.synth_baseline --train 120 --test 60",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train", type=int, default=120, help="training scenes (default 120)")
    parser.add_argument("--test", type=int, default=60, help="held-out scenes (default 60)")
    parser.add_argument("--height", type=int, default=224, help="picture height (default 224)")
    parser.add_argument("--width", type=int, default=384, help="picture width (default 384)")
    chosen = parser.parse_args()
    size = (chosen.height, chosen.width)
    miou, ious = baseline_miou(train=chosen.train, test=chosen.test, size=size)
    names = ("other", "water", "ice")
    each = ", ".join(f"{name} {iou:.3f}" for name, iou in zip(names, ious, strict=True))
    print(f"held-out mIoU {miou:.3f} ({each}); ceiling {CEILING}")


if __name__ == "__main__":
    main()
