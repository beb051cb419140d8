from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from train.fit.losses import MOST_BALANCE, dice_loss, median_balance, segmentation_loss


def test_dice_is_that_of_a_hand_calculation():
    """Two classes, four valid pixels, P(1) = .9 .6 .2 .3, truth 1 1 0 1, a fifth is ignored.

    Class 1: 2 * 1.8 / (2.0 + 3); class 0: 2 * .8 / (2.0 + 1); both + 1 above and below.
    """
    chance = torch.tensor([0.9, 0.6, 0.2, 0.3, 0.99])
    logits = torch.stack((1 - chance, chance)).log()[None, :, None, :]
    masks = torch.tensor([[[1, 1, 0, 1, 255]]])
    expected = 1 - ((2 * 1.8 + 1) / (2.0 + 3 + 1) + (2 * 0.8 + 1) / (2.0 + 1 + 1)) / 2
    assert dice_loss(logits, masks).item() == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_is_a_mean_over_valid_pixels():
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, 0] = 255
    loss = segmentation_loss(logits, masks) - dice_loss(logits, masks)
    expected = functional.cross_entropy(logits, masks, ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_ignored_pixels_cannot_change_the_loss():
    logits, masks = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    masks[0, :2] = 255
    other = logits.clone()
    other[:, :, :2] += torch.randn(1, 3, 2, 4)
    assert torch.allclose(segmentation_loss(logits, masks), segmentation_loss(other, masks))


def test_a_batch_without_a_valid_pixel_costs_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_a_balanced_cross_entropy_is_that_of_torch():
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[1, :, 2] = 255
    balance = torch.tensor([0.5, 1.0, 4.0])
    loss = segmentation_loss(logits, masks, balance) - dice_loss(logits, masks)
    expected = functional.cross_entropy(logits, masks, weight=balance, ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_balance_of_two_classes_is_in_proportion_to_scikit_learns():
    """scikit-learn's is n / (classes * count): another constant, the same proportion."""
    truth = np.repeat([0, 1], [900, 300])
    theirs = compute_class_weight("balanced", classes=np.array([0, 1]), y=truth)
    ours = median_balance(np.bincount(truth))
    assert ours[1] / ours[0] == pytest.approx(theirs[1] / theirs[0])
    assert ours.tolist() == pytest.approx([0.5 / 0.75, 0.5 / 0.25])


def test_a_class_that_is_hardly_there_does_not_run_away_with_the_loss():
    balance = median_balance(np.array([1_000_000, 1_000_000, 1, 0]))
    assert balance.max() == MOST_BALANCE
    assert balance.dtype == np.float32
