"""Overlays: masks lie where they belong, and only what is ice, water or unjudged is painted."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge.contract.overlay import TINT, paint, render_png, stretch

if TYPE_CHECKING:
    from edge.contract.classes import ClassMap

SIDES = st.integers(1, 60)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_stretching_takes_the_pixel_under_each_centre_in_exact_arithmetic(
    height: int, width: int, to_height: int, to_width: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    expected = [
        [
            mask[
                (2 * row + 1) * height // (2 * to_height),
                (2 * column + 1) * width // (2 * to_width),
            ]
            for column in range(to_width)
        ]
        for row in range(to_height)
    ]
    assert np.array_equal(stretch(mask, to_height, to_width), expected)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((224, 384), (1080, 1920)),
        ((224, 384), (720, 1280)),
        ((448, 768), (1441, 2560)),
        ((720, 1280), (224, 384)),
        ((5, 7), (5, 7)),
    ],
    ids=str,
)
def test_stretching_at_a_station_s_sizes_is_opencv_s_exact_nearest_neighbour(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    mask = np.random.default_rng(7).integers(0, 256, source, np.uint8)
    expected = cv2.resize(mask, target[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    # Where a centre lies on the border of two pixels either is right, and OpenCV's choice varies.
    rows, columns = (
        (2 * np.arange(to) + 1) * of % (2 * to) != 0 for of, to in zip(source, target, strict=True)
    )
    assert rows.mean() > 0.6
    assert columns.mean() > 0.6
    sure = np.ix_(rows, columns)
    assert np.array_equal(stretch(mask, *target)[sure], expected[sure])


def test_a_mask_of_half_the_size_covers_two_by_two_pixels_each() -> None:
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    assert stretch(mask, 4, 4).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [2, 2, 255, 255],
        [2, 2, 255, 255],
    ]


@pytest.fixture
def frame() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)


def test_painting_leaves_other_as_it_is_tints_ice_and_water_and_dims_what_is_not_valid(
    class_map: ClassMap, frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    mask = np.repeat(np.array([0, 1, 2, 255], np.uint8), 15)[None].repeat(40, axis=0)
    before = frame.copy()
    painted = paint(frame, mask, class_map).astype(int)
    assert np.array_equal(frame, before)
    # Away from the borders at columns 15, 30, 45. The class map's colours are RGB, frames BGR.
    assert np.array_equal(painted[:, :14], before[:, :14])
    for columns, rgb in ((slice(16, 29), (28, 78, 138)), (slice(31, 44), (127, 219, 255))):
        mixed = before[:, columns] * (1 - TINT) + np.array(rgb[::-1]) * TINT
        assert np.abs(painted[:, columns] - mixed).max() <= 1
    assert (painted[:, 46:] <= before[:, 46:] * 0.5).all()


def test_the_border_between_two_classes_is_drawn_darker_than_either_side(
    class_map: ClassMap,
) -> None:
    frame = np.full((10, 20, 3), 200, np.uint8)
    mask = np.repeat(np.array([1, 2], np.uint8), 10)[None].repeat(10, axis=0)
    painted = paint(frame, mask, class_map).astype(int).sum(axis=2)
    assert (painted[:, 10] < painted[:, 2]).all()
    assert (painted[:, 10] < painted[:, 17]).all()


def test_the_picture_for_people_keeps_the_frame_s_width_and_colours_under_a_title_strip(
    class_map: ClassMap,
) -> None:
    frame = np.zeros((180, 320, 3), np.uint8)
    frame[:] = (10, 20, 230)  # BGR: red
    data = render_png(frame, np.zeros((45, 80), np.uint8), class_map, title="Salluit 42 %")
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.width == 320
        assert image.height > 180
        assert image.getpixel((160, image.height - 20)) == (230, 20, 10)


def test_labels_in_inuktitut_syllabics_can_be_drawn(class_map: ClassMap) -> None:
    named = [one.model_copy(update={"labels": {"iu": "ᓯᑯ"}}) for one in class_map.root]
    labelled = type(class_map)(tuple(named))
    frame = np.zeros((60, 80, 3), np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    assert render_png(frame, mask, labelled, title="ᓯᑯ", language="iu").startswith(b"\x89PNG")
