"""The pictures that a bundle is tried on, and which of them become golden."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from edge.contract.errors import CameraError, ConfigError
from edge.contract.frames import decode_image
from edge.engine import Answer
from edge.engine.golden import GoldenAnswer
from export.commands.make import _affordable
from export.frames import choose_frames, choose_golden, to_png
from tests.train.conftest import write_tiny
from train.data.dataset import read_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


def golden(mask: Bytes) -> GoldenAnswer:
    answer = Answer(mask=mask, confidence=mask, member_masks=mask[None])
    return GoldenAnswer(answer=answer, margin=np.ones(mask.shape, np.float16))


def test_golden_frames_are_chosen_so_that_every_class_is_somewhere() -> None:
    masks = [np.full((20, 20), index % 2, np.uint8) for index in range(12)]
    masks[7][3, 4:9] = 2  # five pixels in one frame of twelve
    chosen = choose_golden([golden(mask) for mask in masks], 3)
    assert len(chosen) == len(set(chosen)) == 4
    assert 7 in chosen
    assert {0, 1, 2} <= {int(v) for index in chosen for v in np.unique(masks[index])}


def test_fewer_frames_than_golden_ones_are_all_taken() -> None:
    assert choose_golden([golden(np.zeros((4, 4), np.uint8))], 3) == [0]


def test_frames_come_evenly_from_a_folder_of_pictures(tmp_path: Path) -> None:
    for number in range(47):
        shade = np.full((4, 6, 3), number * 5, np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number:03}.png"), shade)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    chosen = [int(frame[0, 0, 0]) // 5 for frame in choose_frames(None, tmp_path)]
    assert chosen == list(range(0, 48, 2))  # 24 of 47: every second, first and last among them
    fewer = [int(frame[0, 0, 0]) // 5 for frame in choose_frames(None, tmp_path, most=3)]
    assert fewer == [0, 23, 46]


def test_only_a_member_that_sees_floes_makes_the_frames_tried_fewer() -> None:
    def runs(*architectures: str) -> list[Any]:
        return [SimpleNamespace(architecture=architecture) for architecture in architectures]

    assert _affordable(runs("unet", "pspnet", "upernet")) == 24
    assert _affordable(runs("unet", "maskrcnn")) == 6


def test_without_pictures_to_check_with_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either --data or --frames"):
        choose_frames(None, None)
    with pytest.raises(ConfigError, match="no pictures"):
        choose_frames(None, tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(CameraError, match=r"a\.jpg"):
        choose_frames(None, tmp_path)


def test_a_dataset_without_a_validation_split_gives_golden_frames_all_the_same(
    tmp_path: Path,
) -> None:
    tiny = write_tiny(tmp_path / "tiny")
    toml = (tiny / "dataset.toml").read_text().replace('validation = ["day-2"]', "validation = []")
    (tiny / "dataset.toml").write_text(toml.replace('test = ["day-3"]', "test = []"))
    assert len(choose_frames(read_dataset(tiny), None)) == 6


def test_a_frame_as_png_is_the_frame_for_the_station_and_for_opencv() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (8, 12, 3), np.uint8)
    png = to_png(frame)
    assert np.array_equal(decode_image(png, where="test"), frame)
    assert np.array_equal(
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR),  # type: ignore[arg-type]
        frame,
    )
