from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from PIL import Image

from edge.contract.errors import ConfigError
from train.commands.augmentations import augmentations
from train.data.loader import Resized
from train.data.sheet import contact_sheet

if TYPE_CHECKING:
    from pathlib import Path

    from train.data.dataset import Dataset


def test_a_sheet_has_a_row_for_each_sample_and_shows_frame_and_mask_by_turns(
    tiny_dataset: Dataset,
):
    """Without augmentation, columns 1 and 3 are the frame itself, 2 and 4 are painted."""
    png = contact_sheet(tiny_dataset, size=(48, 64), strength="none", grid=(5, 4))
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    assert sheet.shape == (2 * 48, 4 * 64, 3)
    samples = Resized(tiny_dataset, tiny_dataset.of("train"), (48, 64))
    for row in range(2):
        cells = np.split(sheet[row * 48 : (row + 1) * 48], 4, axis=1)
        frame = samples.read(row).frame[:, :, ::-1]
        assert np.array_equal(cells[0], frame)
        assert np.array_equal(cells[2], frame)
        assert not np.array_equal(cells[1], frame)
        assert np.array_equal(cells[1], cells[3])


def test_the_command_writes_a_sheet_of_crops(tiny: Path, tmp_path: Path):
    app = typer.Typer()
    app.command()(augmentations)
    out = tmp_path / "sheet.png"
    arguments = [str(tiny), "-o", str(out), "--size", "48x64", "--crop", "24x32"]
    app(arguments, standalone_mode=False)
    with Image.open(out) as sheet:
        assert sheet.size == (6 * 32, 2 * 24)
    with pytest.raises(ConfigError, match="'wild'; expected one of full, light, none"):
        app([*arguments, "--augmentation", "wild"], standalone_mode=False)
    with pytest.raises(ConfigError, match="cannot be written"):
        app([*arguments, "-o", str(tmp_path / "no" / "s.png")], standalone_mode=False)
