from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import multiclass_calibration_error

from edge.contract.errors import EngineError
from train.evaluate.calibration import BINS, joined, reliability_of


def drawn(seed: int, pixels: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of three classes, truth, and whether the likeliest is the truth.

    Too unsure below 0.6, always right there, and too sure above.
    """
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet((0.7, 0.7, 0.7), pixels).astype(np.float32)
    truth = np.where(shares.max(1) < 0.6, shares.argmax(1), rng.integers(0, 3, pixels))
    return shares, truth, shares.argmax(1) == truth


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int):
    shares, truth, right = drawn(seed)
    expected = multiclass_calibration_error(
        torch.from_numpy(shares), torch.from_numpy(truth), num_classes=3, n_bins=15, norm="l1"
    )
    assert reliability_of(shares.max(1), right).ece == pytest.approx(float(expected), abs=1e-6)


def test_the_curve_is_that_of_scikit_learn():
    shares, _, right = drawn(7)
    share_right, confidence = calibration_curve(right, shares.max(1), n_bins=BINS)
    found = reliability_of(shares.max(1), right).curve
    assert found[0] == pytest.approx(confidence)
    assert found[1] == pytest.approx(share_right)


def test_images_add_up_to_the_whole():
    shares, _, right = drawn(3)
    sure = shares.max(1)
    whole = reliability_of(sure, right)
    parts = [reliability_of(sure[at], right[at]) for at in (slice(0, 700), slice(700, None))]
    sum_of_parts = joined([parts[0], None, parts[1]])
    assert sum_of_parts is not None
    assert sum_of_parts.pixels.tolist() == whole.pixels.tolist()
    assert sum_of_parts.ece == pytest.approx(whole.ece)


def test_nothing_counted_is_not_known():
    assert reliability_of(np.zeros(0, np.float32), np.zeros(0, np.bool_)).ece is None
    assert joined([None, None]) is None


def test_full_confidence_is_in_the_last_bin_even_a_hair_above_one():
    found = reliability_of(np.array([1, 1.000001], np.float32), np.array([True, False]))
    assert found.pixels.tolist() == [0] * (BINS - 1) + [2]
    assert found.right.tolist() == [0] * (BINS - 1) + [1]


@pytest.mark.parametrize("wrong", [float("nan"), 1.5, -0.2, 255.0])
def test_what_is_no_probability_is_refused(wrong: float):
    with pytest.raises(EngineError, match="expected 0 to 1"):
        reliability_of(np.array([0.5, wrong]), np.array([True, True]))
