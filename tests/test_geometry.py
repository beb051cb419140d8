"""Regions: a mask pixel counts where its centre lies inside a polygon drawn on the frame.

Ground areas: each mask pixel's share of the ground that the frame looks at.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image

from edge.geometry import ground_areas, region_id, region_mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Point = tuple[float, float]

HEIGHT, WIDTH = 12, 16
# Tenths of a pixel, so that the brute force below can count in whole numbers.
CORNERS = st.tuples(st.integers(-30, 190), st.integers(-30, 150))
POLYGONS = st.lists(CORNERS, min_size=3, max_size=9)


def in_pixels(tenths: Sequence[tuple[int, int]]) -> list[Point]:
    return [(x / 10, y / 10) for x, y in tenths]


def even_odd(tenths: Sequence[tuple[int, int]]) -> tuple[Bools, Bools]:
    """The even-odd rule, one centre and one edge at a time, in whole numbers.

    Returns what is inside, and which centres lie on no edge: those on one may go either way.
    """
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    sure = np.ones((HEIGHT, WIDTH), np.bool_)
    for row, column in itertools.product(range(HEIGHT), range(WIDTH)):
        x, y = 10 * column + 5, 10 * row + 5
        for ends in zip(tenths, [*tenths[1:], tenths[0]], strict=True):
            (x0, y0), (x1, y1) = sorted(ends, key=lambda end: end[1])
            left_by = (y - y0) * (x1 - x0) - (x - x0) * (y1 - y0)
            if y0 <= y < y1:
                inside[row, column] ^= left_by > 0
            if left_by == 0 and y0 <= y <= y1 and min(x0, x1) <= x <= max(x0, x1):
                sure[row, column] = False
    return inside, sure


def star_shaped(random: np.random.Generator, corners: int) -> list[Point]:
    """A polygon, mostly concave, that never crosses itself."""
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = random.uniform(4, 28, corners)
    return [
        (30 + radius * np.cos(angle), 20 + radius * np.sin(angle) * 0.7)
        for angle, radius in zip(angles, radii, strict=True)
    ]


@pytest.mark.parametrize("seed", range(25))
def test_pixels_of_a_polygon_are_those_whose_centres_matplotlib_finds_inside(seed: int) -> None:
    random = np.random.default_rng(seed)
    polygon = star_shaped(random, int(random.integers(5, 14)))
    rows, columns = np.mgrid[:40, :60] + 0.5
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    expected = Outline([*polygon, polygon[0]], closed=True).contains_points(centres)
    found = region_mask([polygon], (40, 60), (40, 60))
    assert found.dtype == np.bool_
    assert expected.any()
    assert np.array_equal(found, expected.reshape(40, 60))


@given(POLYGONS)
def test_any_polygon_even_one_that_crosses_itself_is_filled_by_the_even_odd_rule(
    tenths: list[tuple[int, int]],
) -> None:
    found = region_mask([in_pixels(tenths)], (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    expected, sure = even_odd(tenths)
    assert np.array_equal(found[sure], expected[sure])


def test_a_five_pointed_star_is_hollow_in_the_middle() -> None:
    angles = np.pi / 2 + np.arange(5) * 4 * np.pi / 5
    star = [(50 + 45 * np.cos(angle), 50 - 45 * np.sin(angle)) for angle in angles]
    found = region_mask([star], (100, 100), (100, 100))
    assert not found[50, 50]
    assert found[15, 50]


@given(POLYGONS, POLYGONS)
def test_several_polygons_are_joined_where_they_overlap_too(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    found = region_mask([in_pixels(first), in_pixels(second)], (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    (in_first, sure_first), (in_second, sure_second) = even_odd(first), even_odd(second)
    sure = sure_first & sure_second
    assert np.array_equal(found[sure], (in_first | in_second)[sure])


@given(POLYGONS)
def test_the_order_of_corners_and_a_closing_corner_change_nothing(
    tenths: list[tuple[int, int]],
) -> None:
    expected, sure = even_odd(tenths)
    polygon = in_pixels(tenths)
    for same in (polygon[::-1], [*polygon, polygon[0]], [*polygon[2:], *polygon[:2]]):
        found = region_mask([same], (HEIGHT, WIDTH), (HEIGHT, WIDTH))
        assert np.array_equal(found[sure], expected[sure])


def test_a_rectangle_covers_exactly_its_pixels() -> None:
    found = region_mask([[(2, 1), (5, 1), (5, 3), (2, 3)]], (4, 8), (4, 8))
    expected = np.zeros((4, 8), np.bool_)
    expected[1:3, 2:5] = True
    assert np.array_equal(found, expected)


def test_neighbouring_rectangles_share_no_pixel_and_leave_none_out() -> None:
    left = region_mask([[(0, 0), (3.5, 0), (3.5, 4), (0, 4)]], (4, 8), (4, 8))
    right = region_mask([[(3.5, 0), (8, 0), (8, 4), (3.5, 4)]], (4, 8), (4, 8))
    assert np.array_equal(left, ~right)


def test_a_polygon_in_frame_pixels_is_scaled_to_the_mask_by_each_axis_of_its_own() -> None:
    # A frame of 1080 x 1920, a mask of 224 x 384: 1 mask pixel is 4.821 rows by 5 columns.
    polygon = [(960.0, 0.0), (1920.0, 0.0), (1920.0, 540.0), (960.0, 540.0)]
    found = region_mask([polygon], (1080, 1920), (224, 384))
    expected = np.zeros((224, 384), np.bool_)
    expected[:112, 192:] = True
    assert np.array_equal(found, expected)


@given(POLYGONS, st.integers(1, 9), st.integers(1, 9))
def test_a_frame_larger_than_the_mask_by_any_factor_gives_the_same_region(
    tenths: list[tuple[int, int]], down: int, across: int
) -> None:
    stretched = [(x * across, y * down) for x, y in in_pixels(tenths)]
    found = region_mask([stretched], (HEIGHT * down, WIDTH * across), (HEIGHT, WIDTH))
    expected, sure = even_odd(tenths)
    assert np.array_equal(found[sure], expected[sure])


def test_no_polygon_is_the_whole_frame_and_one_outside_it_is_nothing() -> None:
    assert region_mask([], (1080, 1920), (3, 5)).all()
    assert region_mask([], (1080, 1920), (3, 5)).shape == (3, 5)
    assert not region_mask([[(90, 90), (99, 90), (99, 99)]], (50, 50), (50, 50)).any()
    assert not region_mask([[(5, 5), (5, 5), (5, 5)]], (50, 50), (50, 50)).any()


def test_a_region_s_id_is_the_sha256_of_its_polygons_as_json_with_decimal_points() -> None:
    text = b"[[[0.0, 1.5], [2.0, 3.0], [4.0, 0.0]]]"
    assert region_id([[(0, 1.5), (2, 3), (4, 0)]]) == hashlib.sha256(text).hexdigest()
    assert region_id([]) is None


def test_regions_that_differ_have_ids_that_differ_and_number_types_do_not_matter() -> None:
    square = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    assert region_id([square]) == region_id([[(0, 0), (1, 0), (1, 1)]])
    others = [[square[::-1]], [square, square], [[*square, (0.0, 1.0)]]]
    assert len({region_id([square]), *map(region_id, others)}) == 4


LOOKING_DOWN = np.diag([0.5, 2.0, 1.0])


def shoelace(homography: Floats, corners: Sequence[Point]) -> float:
    """A polygon's area after the map, by its corners there."""
    mapped = [homography @ (x, y, 1) for x, y in corners]
    x, y = np.array([point[:2] / point[2] for point in mapped]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_a_scale_gives_every_pixel_the_same_ground() -> None:
    """Half as wide, twice as tall; the mask's pixels are 2 x 3 of the frame's: 6 · 0.5 · 2."""
    found = ground_areas(LOOKING_DOWN, (12, 30), (6, 10))
    assert (found.dtype, found.shape) == (np.float64, (6, 10))
    assert found == pytest.approx(np.full((6, 10), 6.0))


def test_a_camera_at_sea_by_hand() -> None:
    """x' = x / y, y' = 1 / y, on a frame of 3 x 1 whose horizon is its top edge, y = 0.

    Row 1, between y = 1 and 2: a trapezium of height 1 - 1/2 and widths 1 and 1/2: 0.375.
    Row 2: 1/2 - 1/3 high, 1/2 and 1/3 wide: 5/72. Row 0 touches the horizon: none.
    """
    homography = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    found = ground_areas(homography, (3, 1), (3, 1))
    assert found.ravel() == pytest.approx([0, 0.375, 5 / 72])


@pytest.mark.parametrize("seed", range(20))
def test_each_pixel_has_the_area_of_its_mapped_corners_by_the_shoelace_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    homography = np.eye(3) + random.normal(0, 0.2, (3, 3))
    homography[2, :2] = random.normal(0, 0.01, 2)
    homography *= random.choice([-3.0, 1.0])
    found = ground_areas(homography, (24, 40), (8, 10))
    assert (found > 0).any()
    for row, column in itertools.product(range(8), range(10)):
        x, y = 4 * column, 3 * row
        corners = [(x, y), (x + 4, y), (x + 4, y + 3), (x, y + 3)]
        signs = [np.sign(homography[2] @ (*corner, 1)) for corner in (*corners, (20, 24))]
        expected = shoelace(homography, corners) if len(set(signs)) == 1 else 0
        assert found[row, column] == pytest.approx(expected, rel=1e-6)


def test_coarse_pixels_have_the_ground_of_the_fine_ones_in_them() -> None:
    """Pixels share it out: no ground is counted twice or lost, however coarse the mask."""
    homography = np.array([[1.0, 0.1, 3], [0.05, 1.2, -2], [0.001, 0.02, 0.4]])
    fine = ground_areas(homography, (60, 80), (60, 80))
    coarse = ground_areas(homography, (60, 80), (6, 8))
    assert coarse == pytest.approx(fine.reshape(6, 10, 8, 10).sum(axis=(1, 3)))


def test_the_scale_and_the_sign_of_a_homography_change_nothing() -> None:
    homography = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, -0.7]])
    found = ground_areas(homography, (4, 5), (4, 5))
    assert (found[0] == 0).all()
    assert (found[1:] > 0).all()
    for factor in (-1.0, 7.0, -0.01):
        assert ground_areas(factor * homography, (4, 5), (4, 5)) == pytest.approx(found)


def test_where_the_frame_s_bottom_is_on_the_horizon_nothing_is_ground() -> None:
    homography = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, -4]])
    assert not ground_areas(homography, (4, 5), (4, 5)).any()


@pytest.mark.data
def test_floes_by_ground_area_are_those_of_the_masks_drawn_on_the_ground(icecam_data: Path) -> None:
    """An oblique mask weighted by area against a plain count of the same labels, seen from above.

    Unweighted, the fractions are up to 0.1 off; weighted, less than 0.001, of which the masks'
    resampling is most.
    """
    folder = icecam_data / "agulhas_floes"
    homography = np.load(folder / "H_oblique_to_ortho.npy")
    to_centres = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # it takes pixels' indices
    plain = []
    for path in sorted((folder / "masks").glob("*.png")):
        oblique, ortho = (
            np.asarray(Image.open(each)) for each in (path, folder / "ortho_masks" / path.name)
        )
        areas = ground_areas(homography @ to_centres, oblique.shape, oblique.shape)
        found = areas[oblique == 1].sum() / areas[oblique != 255].sum()
        expected = (ortho == 1).sum() / (ortho != 255).sum()
        plain.append(abs((oblique == 1).sum() / (oblique != 255).sum() - expected))
        assert found == pytest.approx(expected, abs=1e-3)
        assert areas[oblique != 255].sum() == pytest.approx((ortho != 255).sum(), rel=1e-3)
    assert max(plain) > 0.05
