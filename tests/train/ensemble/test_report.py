"""What is told of members alone, and of the ensemble beside the best of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, log_loss

from train.ensemble.pixels import ValidationPixels
from train.ensemble.report import choose

SKY, WATER, ICE = 0, 1, 2


def pixels_of(
    outputs: list[np.ndarray], truth: np.ndarray, kinds: tuple[str, ...], images: int = 3
) -> ValidationPixels:
    """Pixels in equally many of each image; outputs ``(C, N)``."""
    return ValidationPixels(
        outputs=tuple(torch.tensor(one, dtype=torch.float32) for one in outputs),
        kinds=kinds,  # type: ignore[arg-type]
        ice=(ICE,),
        water=(WATER,),
        classes=3,
        truth=torch.from_numpy(truth),
        image=np.repeat(np.arange(images), len(truth) // images),
        images=tuple(f"frame-{number}" for number in range(images)),
    )


def sure_of(classes: np.ndarray, logit: float) -> np.ndarray:
    return logit * np.eye(3)[classes].T


@pytest.fixture
def with_floes() -> ValidationPixels:
    """One that sees surfaces, 80 % right; one that knows the ice exactly and nothing else."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 900)
    guess = np.where(rng.random(900) < 0.8, truth, rng.integers(0, 3, 900))
    ice = np.where(truth == ICE, 8.0, -8.0)[None]
    return pixels_of([sure_of(guess, 2.0), ice], truth, ("surfaces", "floes"))


def test_a_member_that_knows_only_ice_is_not_the_best_on_borrowed_knowledge(
    with_floes: ValidationPixels,
):
    report = choose(with_floes, ["unet", "maskrcnn"])
    assert report.best_member.name == "unet"
    alone = np.where(with_floes.truth == ICE, ICE, WATER)  # all that is not ice is water
    floes = report.members[1]
    iou = jaccard_score(with_floes.truth, alone, average="macro", zero_division=0)
    assert floes.as_trained.miou == pytest.approx(iou)
    given = np.where(with_floes.truth == SKY, 1e-9, 1 / (1 + np.exp(-8.0)))
    assert floes.as_trained.nll == pytest.approx(-np.log(given).mean(), rel=1e-4)
    assert floes.left_out_nll is not None
    assert floes.nll > report.members[0].nll


def test_members_are_compared_by_what_each_decides_alone(with_floes: ValidationPixels):
    (pair,) = choose(with_floes, ["unet", "maskrcnn"]).diversity.pairs
    alone = np.where(with_floes.truth == ICE, ICE, WATER)
    guess = with_floes.outputs[0].argmax(dim=0).numpy()
    assert pair.disagreement == pytest.approx((guess != alone).mean())


def test_the_verdict_says_by_how_much_the_ensemble_beats_its_best_member():
    """Two that are wrong in different places: the mean of both is better than either."""
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 1200)
    said = [np.where(rng.random(1200) < 0.75, truth, rng.integers(0, 3, 1200)) for _ in range(2)]
    report = choose(
        pixels_of([sure_of(s, 2.0) for s in said], truth, ("surfaces",) * 2), ["a", "b"]
    )
    chosen = report.chosen.left_out_nll
    assert chosen is not None
    best = min(report.members, key=lambda member: member.nll)
    assert report.gain == pytest.approx(best.nll - chosen)
    assert report.gain > 0.05
    assert (
        f"on images left out the ensemble beats its best member alone by {best.nll - chosen:.4f} "
        f"(NLL {chosen:.4f} against {best.nll:.4f} of {best.name})"
    ) in report.verdict()
    assert report.as_plain()["gain_over_best_member"] == round(report.gain, 6)


def test_the_verdict_admits_that_a_member_alone_does_better():
    """One that always errs beside one that is always right: the prior keeps both."""
    truth = np.random.default_rng(3).integers(0, 3, 300)
    outputs = [sure_of(truth, 6.0), sure_of((truth + 1) % 3, 6.0)]
    report = choose(pixels_of(outputs, truth, ("surfaces",) * 2), ["good", "bad"])
    assert report.gain < 0
    assert "the ensemble does not beat its best member alone" in report.verdict()
    assert report.verdict().endswith("of good)")


def test_of_one_image_nothing_fitted_is_compared():
    truth = np.array([SKY, WATER, ICE, ICE])
    logits = np.random.default_rng(4).normal(0, 1, (2, 3, 4))
    report = choose(pixels_of(list(logits), truth, ("surfaces",) * 2, images=1), ["a", "b"])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    members = [log_loss(truth, one.T) for one in shares]
    assert [member.nll for member in report.members] == pytest.approx(members, rel=1e-5)
    assert report.gain == pytest.approx(min(members) - log_loss(truth, shares.mean(axis=0).T))
    assert "; on it the ensemble " in report.verdict()


def test_a_run_alone_is_not_compared_with_itself():
    truth = np.array([SKY, WATER, ICE, ICE])
    report = choose(pixels_of([sure_of(truth, 1.0)], truth, ("surfaces",), images=2), ["a"])
    assert "best member" not in report.verdict()
