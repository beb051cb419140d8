"""Figures beside scikit-learn's, torchmetrics' and a hand's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, jaccard_score, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from train.ensemble.figures import diversity_of, figures_of


def said(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.5] * classes, rows).astype(np.float32)
    return torch.from_numpy(probabilities.T.copy()), torch.from_numpy(
        rng.integers(0, classes, rows)
    )


def test_figures_of_three_classes_are_those_of_the_libraries():
    probabilities, truth = said(500, 3, 1)
    shares = np.random.default_rng(2).random(500)
    found = figures_of(probabilities, truth, shares)
    rows = probabilities.T.double().numpy()
    rows /= rows.sum(axis=1, keepdims=True)
    assert found.nll == pytest.approx(log_loss(truth, rows, sample_weight=shares), rel=1e-5)
    expected = MulticlassCalibrationError(num_classes=3, n_bins=15, norm="l1")
    assert found.ece == pytest.approx(float(expected(probabilities.T, truth)))
    iou = jaccard_score(truth, probabilities.argmax(dim=0), average="macro")
    assert found.miou == pytest.approx(iou)


def test_brier_over_both_classes_is_twice_scikit_learn_s_for_one():
    probabilities, truth = said(400, 2, 3)
    shares = np.random.default_rng(4).random(400)
    one = brier_score_loss(truth, probabilities[1].double(), sample_weight=shares)
    assert figures_of(probabilities, truth, shares).brier == pytest.approx(2 * one, rel=1e-5)


def test_brier_by_hand():
    """(0.2, 0.3, 0.5), drawn 2: 0.04 + 0.09 + 0.25. (1, 0, 0), drawn 1: 1 + 1."""
    probabilities = torch.tensor([[0.2, 1.0], [0.3, 0.0], [0.5, 0.0]])
    found = figures_of(probabilities, torch.tensor([2, 1]), np.array([3.0, 1.0]))
    assert found.brier == pytest.approx((3 * 0.38 + 2) / 4)


def test_who_is_sure_and_wrong_is_not_punished_without_end():
    found = figures_of(torch.tensor([[1.0], [0.0]]), torch.tensor([1]), np.ones(1))
    assert found.nll == pytest.approx(-np.log(1e-9))
    assert found.ece == pytest.approx(1)


def test_disagreement_and_error_correlation_by_hand():
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    first = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])  # wrong at 3 and 7
    second = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])  # wrong at 2 and 3
    never_wrong = truth.clone()
    found = diversity_of(["a", "b", "c"], [first, second, never_wrong], truth)
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert [pair.disagreement for pair in found.pairs] == [2 / 8, 2 / 8, 2 / 8]
    # Phi of the 2x2 table both wrong 1, one alone 1 and 1, neither 5: (1*5 - 1*1) / (2*6).
    assert found.pairs[0].error_correlation == pytest.approx(4 / 12)
    assert found.pairs[1].error_correlation is None
    assert found.disagreement == pytest.approx(0.25)
    assert found.error_correlation == pytest.approx(4 / 12)


def test_a_member_alone_has_nobody_to_disagree_with():
    found = diversity_of(["a"], [torch.zeros(3, dtype=torch.long)], torch.zeros(3))
    assert (found.pairs, found.disagreement, found.error_correlation) == ((), None, None)
