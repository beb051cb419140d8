"""A contact sheet of augmented samples, for people: do masks follow, are frames plausible."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.overlay import paint
from train.data.loader import Augmented, Draw, Resized

if TYPE_CHECKING:
    from edge.contract.frames import Pixels, Size
    from train.data.augment import Strength
    from train.data.dataset import Dataset


def contact_sheet(  # noqa: PLR0913 - each is a fact of the sheet, named at the call
    dataset: Dataset,
    *,
    size: Size,
    strength: Strength = "full",
    crop: Size | None = None,
    grid: tuple[int, int] = (5, 6),
    seed: int = 0,
    max_anisotropy: float = 1.2,
) -> bytes:
    """Return PNG bytes: a row for each training sample, evenly spread, a column for each epoch.

    Every other column has its mask painted over it. size: (height, width) of the samples; grid:
    (rows, columns), fewer rows where there are fewer samples.

    Raises ConfigError where a picture is damaged, would be distorted, or a crop does not fit.
    """
    from PIL import Image  # noqa: PLC0415 - only to write it

    items = dataset.of("train")
    rows = min(grid[0], len(items))
    chosen = [items[row * len(items) // rows] for row in range(rows)]
    samples = Resized(dataset, chosen, size, max_anisotropy=max_anisotropy)
    augmented = Augmented(samples, seed, strength=strength, crop=crop)
    sheet = np.vstack(
        [
            np.hstack(
                [
                    _cell(augmented, dataset, Draw(epoch, row), painted=epoch % 2 == 1)
                    for epoch in range(grid[1])
                ]
            )
            for row in range(rows)
        ]
    )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet[:, :, ::-1])).save(file, format="PNG")
    return file.getvalue()


def _cell(augmented: Augmented, dataset: Dataset, draw: Draw, *, painted: bool) -> Pixels:
    batch = augmented[draw]
    frame: Pixels = batch.frames.permute(1, 2, 0).numpy()
    return paint(frame, batch.masks.numpy(), dataset.class_map) if painted else frame
