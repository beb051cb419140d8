from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from edge.contract.errors import ConfigError
from train.data.check import check, check_split, pixels_of
from train.data.dataset import read_dataset
from train.data.splits import hold_out

if TYPE_CHECKING:
    from pathlib import Path


def test_pixels_are_counted_by_class_and_split(tiny: Path):
    dataset = read_dataset(tiny)
    counts = check(dataset)
    expected = [0, 0, 0]
    for path in (tiny / "masks").glob("day-1_*.png"):
        mask = np.array(Image.open(path))
        expected[0] += int((mask == 0).sum())
        expected[1] += int(np.isin(mask, (10, 11)).sum())
        expected[2] += int((mask == 20).sum())
    assert pixels_of(dataset, counts, "train").tolist() == expected


def test_instance_pictures_are_opened_too(tiny: Path):
    toml = (tiny / "dataset.toml").read_text()
    masks = 'masks = "masks/{stem}.png"'
    with_floes = toml.replace(masks, masks + '\ninstances = "floes/{stem}.png"')
    (tiny / "dataset.toml").write_text(with_floes)
    (tiny / "floes").mkdir()
    for image in (tiny / "images").iterdir():
        (tiny / "floes" / image.name).write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"6 defects(.|\n)*floes/day-1_0\.png"):
        check(read_dataset(tiny))


def test_a_validation_split_that_nobody_judged_is_refused(tiny: Path):
    for path in (tiny / "masks").glob("day-2_*.png"):
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    with pytest.raises(ConfigError, match="no mask for validation holds a pixel that is not 255"):
        check(read_dataset(tiny))


def test_another_split_of_counted_images_is_judged_without_opening_them(tiny: Path):
    """Sky on one day only: fine as it stands, not where that day is held out."""
    for path in (tiny / "masks").glob("day-[23]_*.png"):
        values = np.array(Image.open(path))
        Image.fromarray(np.where(values == 0, 10, values).astype(np.uint8)).save(path)
    dataset = read_dataset(tiny)
    counts = check(dataset)
    for path in (tiny / "masks").iterdir():
        path.unlink()
    check_split(hold_out(dataset, "day-2"), counts)
    with pytest.raises(ConfigError, match="no training mask holds 'sky'"):
        check_split(hold_out(dataset, "day-1"), counts)
