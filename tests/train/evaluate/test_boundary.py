from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from train.evaluate.boundary import boundary_counts


def by_scipy(truth: np.ndarray, guess: np.ndarray, index: int, depth: int) -> tuple[int, int]:
    """The same by a square's minimum instead of repeated erosion; beyond the frame is outside."""
    rims = []
    for mask in (truth == index, guess == index):
        free = np.where(truth == 255, 1, mask).astype(np.uint8)
        least = ndimage.minimum_filter(free, size=2 * depth + 1, mode="constant", cval=0)
        rims.append(mask & (truth != 255) & (least == 0))
    return int((rims[0] & rims[1]).sum()), int((rims[0] | rims[1]).sum())


@given(seed=st.integers(0, 10_000), ignored=st.booleans())
def test_boundaries_are_those_of_scipy(seed: int, *, ignored: bool):
    """150 x 200: a diagonal of 250, so a boundary is 5 pixels deep."""
    rng = np.random.default_rng(seed)
    truth, guess = (
        np.kron(rng.integers(0, 3, (6, 8)), np.ones((25, 25))).astype(np.uint8) for _ in range(2)
    )
    if ignored:
        truth[:40, 60:140] = 255
    found = boundary_counts(truth, guess, 3)
    for index in range(3):
        expected = by_scipy(truth, guess, index, 5)
        assert (found.intersections[index], found.unions[index]) == expected


def test_a_shifted_square_by_hand():
    """30 x 40, diagonal 50: 1 deep. Two 5 x 5 squares, one a column further right.

    Each rim has 16 pixels; they share the 4 + 4 of the top and bottom rows. (The left column of
    the right square is inside the left one, off its rim, but for the two corners counted.)
    """
    truth, guess = np.zeros((2, 30, 40), np.uint8)
    truth[10:15, 10:15] = 1
    guess[10:15, 11:16] = 1
    found = boundary_counts(truth, guess, 2)
    assert (found.intersections[1], found.unions[1]) == (8, 16 + 16 - 8)


def test_a_perfect_mask_agrees_everywhere():
    truth = np.random.default_rng(2).integers(0, 2, (30, 40)).astype(np.uint8)
    found = boundary_counts(truth, truth, 2)
    assert np.array_equal(found.intersections, found.unions)
    assert found.unions.all()


def test_ignored_pixels_make_no_boundary_and_count_in_none():
    """Ice fills the frame but for what is ignored: only the frame's edge is a boundary, 1 deep."""
    truth = np.ones((30, 40), np.uint8)
    truth[10:20, 10:20] = 255
    guess = np.ones((30, 40), np.uint8)
    guess[12:18, 12:18] = 0
    found = boundary_counts(truth, guess, 2)
    edge = 2 * 40 + 2 * 28
    assert found.unions.tolist() == [0, edge]
    assert found.intersections.tolist() == [0, edge]


@pytest.mark.parametrize(("height", "width", "depth"), [(3, 4, 1), (300, 400, 10), (540, 960, 22)])
def test_the_depth_is_two_hundredths_of_the_diagonal(height: int, width: int, depth: int):
    """A frame of one class has a rim of that depth: whole minus core."""
    truth = np.zeros((height, width), np.uint8)
    core = max(0, height - 2 * depth) * max(0, width - 2 * depth)
    assert boundary_counts(truth, truth, 1).unions.tolist() == [height * width - core]
