"""Weights and temperatures: found again where they are known, and the optimum of the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from train.ensemble.pixels import ValidationPixels
from train.ensemble.weigh import (
    LeftOut,
    candidates,
    fit_temperature,
    fit_weights,
    left_out_losses,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

IMAGES, PER_IMAGE, CLASSES = 12, 1500, 3
N = IMAGES * PER_IMAGE


def pixels_of(
    logits: list[Floats], truth: NDArray[np.int64], images: int = IMAGES, **changes: object
) -> ValidationPixels:
    """Pixels in equally many of each image; logits ``(N, C)``."""
    fields: dict[str, object] = {
        "outputs": tuple(torch.tensor(one.T, dtype=torch.float32) for one in logits),
        "kinds": ("surfaces",) * len(logits),
        "ice": (2,),
        "water": (1,),
        "classes": CLASSES,
        "truth": torch.from_numpy(truth),
        "image": np.repeat(np.arange(images), len(truth) // images),
        "images": tuple(f"frame-{number}" for number in range(images)),
        **changes,
    }
    return ValidationPixels(**fields)  # type: ignore[arg-type]


def drawn_from(logits: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Classes drawn with the probabilities softmax(logits): the Gumbel trick."""
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def objective(weights: Floats, likelihoods: Floats, shares: Floats) -> float:
    return float(shares @ np.log(likelihoods @ weights) + np.log(weights).mean())


def by_slsqp(likelihoods: Floats, shares: Floats) -> Floats:
    count = likelihoods.shape[1]
    found = minimize(
        lambda w: -objective(w, likelihoods, shares),
        np.full(count, 1 / count),
        method="SLSQP",
        bounds=[(1e-6, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return np.asarray(found.x)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_that_the_logits_were_scaled_by(factor: float):
    rng = np.random.default_rng(4)
    honest = rng.normal(0, 2, (N, CLASSES))
    truth = drawn_from(honest, rng)

    def likelihood(temperature: float) -> Floats:
        return softmax(honest * factor / temperature, axis=1)[np.arange(N), truth]

    assert fit_temperature(likelihood, np.ones(N)) == pytest.approx(factor, rel=0.04)


def test_the_temperature_is_where_a_fine_grid_finds_the_best_score():
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (400, CLASSES))
    truth = rng.integers(0, CLASSES, 400)
    truth[:250] = logits[:250].argmax(axis=1)
    shares = rng.random(400)
    grid = np.linspace(0.3, 9.9, 4000)
    losses = [-(shares @ log_softmax(logits / one, axis=1)[np.arange(400), truth]) for one in grid]
    found = fit_temperature(lambda t: softmax(logits / t, axis=1)[np.arange(400), truth], shares)
    assert found == pytest.approx(grid[int(np.argmin(losses))], abs=0.01)


def test_a_member_that_is_always_sure_and_right_is_not_cooled_without_end():
    assert fit_temperature(lambda t: np.full(3, 1 / (1 + np.exp(-5 / t))), np.ones(3)) > 0.199
    assert fit_temperature(lambda t: np.full(3, 1 / (1 + np.exp(5 / t))), np.ones(3)) < 10.001


def test_the_member_that_made_the_classes_gets_nearly_all_of_the_weight():
    rng = np.random.default_rng(6)
    honest, other = rng.normal(0, 2, (2, N, CLASSES))
    truth = drawn_from(honest, rng)
    pixels = pixels_of([honest, other], truth)
    many = candidates(pixels, np.ones(N))["fitted", "none"].weights  # as of one image per pixel
    few = candidates(pixels, pixels.shares())["fitted", "none"].weights
    assert many[0] > 0.98
    assert sum(many) == pytest.approx(1)
    assert 0.7 < few[0] < many[0]  # twelve images prove less
    assert few[1] >= 0.5 / (IMAGES + 1)  # what the prior alone gives


def test_members_that_took_turns_at_making_the_classes_get_the_shares_of_their_turns():
    rng = np.random.default_rng(7)
    first, second = rng.normal(0, 2, (2, N, CLASSES))
    turn = rng.random(N) < 0.7
    truth = np.where(turn, drawn_from(first, rng), drawn_from(second, rng))
    found = candidates(pixels_of([first, second], truth), np.ones(N))
    assert found["fitted", "none"].weights == pytest.approx((0.7, 0.3), abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_are_those_of_a_general_solver(seed: int):
    rng = np.random.default_rng(seed)
    count = 2 + seed % 4
    likelihoods = rng.beta(2, 1, (600, count)) * rng.random(count)
    likelihoods = np.maximum(likelihoods, 1e-9)
    shares = np.repeat(rng.random(6), 100) / 50
    found = fit_weights(likelihoods, shares)
    expected = by_slsqp(likelihoods, shares)
    assert found == pytest.approx(expected, abs=2e-4)
    best = objective(expected, likelihoods, shares)
    assert objective(found, likelihoods, shares) >= best - 1e-7


@given(
    likelihoods=st.lists(st.tuples(*[st.floats(1e-9, 1)] * 3), min_size=1, max_size=20),
)
def test_weights_are_above_zero_and_sum_to_one_whatever_the_members_say(
    likelihoods: list[tuple[float, float, float]],
):
    shares = np.full(len(likelihoods), 1 / len(likelihoods))
    weights = fit_weights(np.array(likelihoods), shares)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= (1 / 3) / 2 - 1e-12).all()  # a third of the prior's one image, over two


def test_every_image_counts_the_same_however_many_pixels_it_has():
    """One image of 900 pixels speaks for the first member, one of 100 for the second."""
    likelihoods = np.repeat([[0.8, 0.4], [0.4, 0.8]], [900, 100], axis=0)
    image = np.repeat([0, 1], [900, 100])
    pixels = pixels_of([np.zeros((1000, 3))], np.zeros(1000, np.int64), images=2, image=image)
    assert fit_weights(likelihoods, pixels.shares()) == pytest.approx([0.5, 0.5])
    assert pixels.shares(np.array([False, True])).sum() == pytest.approx(1)
    assert not pixels.shares(np.array([False, True]))[:900].any()


def test_an_image_left_out_is_judged_by_a_fit_without_it():
    """Two images of opposite taste: the fit on either one is wrong about the other."""
    sure = np.log([0.001, 0.009, 0.99])
    doubts = np.log([0.45, 0.1, 0.45])
    logits = [np.repeat([sure, doubts], 200, axis=0), np.repeat([doubts, sure], 200, axis=0)]
    pixels = pixels_of(logits, np.full(400, 2), images=2)
    losses = left_out_losses(pixels).ensembles
    equal = -np.log((0.99 + 0.45) / 2)
    assert losses["equal", "none"] == pytest.approx(equal, rel=1e-5)
    assert losses["fitted", "none"] > equal
    # By hand: on one image alone, w of the sure member maximises
    # log(w .99 + (1 - w) .45) + log(w (1 - w)) / 2.
    grid = np.linspace(0.001, 0.999, 99_801)
    best = grid[np.argmax(np.log(grid * 0.99 + (1 - grid) * 0.45) + np.log(grid * (1 - grid)) / 2)]
    expected = -np.log(best * 0.45 + (1 - best) * 0.99)
    assert losses["fitted", "none"] == pytest.approx(expected, abs=1e-4)


def test_a_member_left_out_is_judged_alone_at_the_temperature_of_the_other_images():
    """Two images, each of which a grid over T reads best for the other."""
    rng = np.random.default_rng(9)
    logits = rng.normal(0, 2, (2, 600, CLASSES))
    truth = np.where(rng.random(600) < 0.6, logits[0].argmax(axis=1), rng.integers(0, 3, 600))
    grid = np.linspace(0.2, 10, 2000)
    found = left_out_losses(pixels_of(list(logits), truth, images=2)).members
    for member, loss in zip(logits, found, strict=True):
        given = np.array([log_softmax(member / t, axis=1)[np.arange(600), truth] for t in grid])
        first, second = -given[:, :300].mean(axis=1), -given[:, 300:].mean(axis=1)
        expected = (second[first.argmin()] + first[second.argmin()]) / 2
        assert loss == pytest.approx(expected, abs=1e-3)


def test_one_image_alone_leaves_nothing_to_be_judged_on():
    pixels = pixels_of([np.zeros((5, 3))], np.zeros(5, np.int64), images=1)
    assert left_out_losses(pixels) == LeftOut(ensembles={}, members=())


def test_a_member_of_floes_is_calibrated_by_ice_or_not_alone():
    """Ice was drawn with sigmoid(z); what it said is z * 2; where that is wrong, there is sky."""
    rng = np.random.default_rng(8)
    honest = rng.normal(0, 2, N)
    ice = rng.random(N) < 1 / (1 + np.exp(-honest))
    truth = np.where(ice, 2, np.where(honest > 0, 0, 1))
    surfaces = torch.zeros(3, N)
    pixels = pixels_of(
        [],
        truth,
        outputs=(surfaces, torch.tensor(2 * honest[None], dtype=torch.float32)),
        kinds=("surfaces", "floes"),
    )
    found = candidates(pixels, np.ones(N))["fitted", "fitted"]
    assert found.temperatures[1] == pytest.approx(2, rel=0.05)
    # It knows the ice and borrows the rest; the other knows nothing.
    assert found.weights[1] > 0.98
