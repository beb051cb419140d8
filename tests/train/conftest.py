"""Tiny datasets and runs, made in the test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from train.data.dataset import Dataset, read_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from train.runs import Run

SIZE = (48, 64)
SMALL = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
SMALL_ENCODER = "tu-test_resnet"
COLOURS = {0: (150, 170, 200), 10: (20, 40, 60), 11: (20, 40, 60), 20: (230, 230, 235)}
DATASET_TOML = r"""
schema = "icecam.dataset/1"
name = "tiny"
images = "images/*.png"
masks = "masks/{stem}.png"
group = '^(day-\d)_'

[[classes]]
name = "sky"
role = "other"
colour = [128, 128, 128]
values = [0]

[[classes]]
name = "water"
role = "water"
colour = [0, 0, 128]
values = [10, 11]

[[classes]]
name = "ice"
role = "ice"
colour = [255, 255, 255]
labels = { en = "ice", fr = "glace" }
values = [20]

[split]
validation = ["day-2"]
test = ["day-3"]
"""


def write_tiny(folder: Path, *, per_day: int = 2) -> Path:
    """Write three days of frames: sky above, dark water, a bright square of ice, a masked rim."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(3)
    for day in (1, 2, 3):
        for number in range(per_day):
            frame, mask = _scene(rng)
            stem = f"day-{day}_{number}"
            Image.fromarray(frame).save(folder / "images" / f"{stem}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    (folder / "dataset.toml").write_text(DATASET_TOML)
    return folder


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = SIZE
    mask = np.full(SIZE, 10, np.uint8)
    mask[:, width // 2 :] = 11
    mask[: height // 4] = 0
    top, left = rng.integers(height // 4, height // 2), rng.integers(4, width // 2)
    mask[top : top + 16, left : left + 20] = 20
    frame = np.zeros((*SIZE, 3), np.uint8)
    for value, colour in COLOURS.items():
        frame[mask == value] = colour
    frame += rng.integers(0, 12, frame.shape, np.uint8)
    mask[-2:] = 255
    return frame, mask


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a dataset: three days, two frames each, 48x64."""
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def tiny_dataset(tiny: Path) -> Dataset:
    """The same, read."""
    return read_dataset(tiny)


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_dataset: Dataset) -> Run:
    """A run of random parameters, at 48x64, with the tiny dataset's classes."""
    return make_run(tmp_path / "run", tiny_dataset)


@pytest.fixture
def tiny_pspnet(tmp_path: Path, tiny_dataset: Dataset) -> Run:
    """The same, of the other architecture."""
    return make_run(tmp_path / "pspnet", tiny_dataset, architecture="pspnet")


@pytest.fixture
def make_tiny_run() -> Callable[..., Run]:
    """``make_run``, for tests that need another dataset or size."""
    return make_run


def make_run(
    folder: Path, dataset: Dataset, *, architecture: str = "unet", size: tuple[int, int] = SIZE
) -> Run:
    """Write a run that was never trained."""
    import torch

    from train.models.architectures import build_member
    from train.runs import Training, write_run

    torch.manual_seed(5)
    options = SMALL if architecture == "unet" else {"psp_out_channels": 8}
    member = build_member(architecture, SMALL_ENCODER, class_map=dataset.class_map, options=options)
    return write_run(
        folder,
        member,
        name=folder.name,
        class_map=dataset.class_map,
        input_size=size,
        training=Training(dataset=dataset.name, seed=5, epochs=0),
    )


@pytest.fixture
def agulhas() -> Dataset:
    """The real floes, or a loud skip."""
    toml = Path(__file__).parents[2] / "train" / "datasets" / "agulhas_floes.toml"
    folder = Path(os.environ.get("ICECAM_DATA") or toml.parents[3] / "shared" / "data")
    if not (folder / "agulhas_floes").is_dir():
        pytest.skip(f"no real images: {folder}/agulhas_floes is missing; set ICECAM_DATA")
    return read_dataset(toml)
