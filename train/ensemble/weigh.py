"""Temperatures and weights by the log score: what the drawn classes would have been given.

A pixel's score is the log of the probability that was given to its drawn class: a proper score
(Gneiting & Raftery 2007, doi 10.1198/016214506000001437), best on average only where the
probabilities are true. Pixels of one image are not independent, so the unit is the image: each
counts by the mean over its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.ensembles import HowCalibrated, HowWeighed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from train.data.dataset import Progress
    from train.ensemble.pixels import ValidationPixels

    FloatArray = npt.NDArray[np.float64]

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.2, 10.0
LEAST_PROBABILITY = 1e-9
"""A drawn class that was thought impossible is read as this, so that one pixel cannot decide."""

PRIOR_IMAGES = 1.0
MOST_FOLDS = 20
_MOST_STEPS = 5000
_STILL = 1e-7
_TURNS = 4

Choice = tuple[HowWeighed, HowCalibrated]
"""How the weights and how the temperatures are found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """One weight (they sum to 1) and one temperature for each member."""

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Negative log scores on images that the fit did not see: less is better.

    ensembles: by how weights and temperatures are found; members: of each alone, at a temperature
    fitted to the other images. Both are empty where there is but one image.
    """

    ensembles: dict[Choice, float]
    members: tuple[float, ...]


def fit_temperature(likelihood: Callable[[float], FloatArray], shares: FloatArray) -> float:
    """Return the temperature T in 0.2..10 by which logits / T score best (Guo et al. 2017).

    likelihood(T): float64 ``(N,)``, what the drawn classes are given at T; shares: ``(N,)``, what
    each pixel counts. The score of softmax(logits / T) is concave in 1/T, so one search in 1/T
    finds the optimum (arXiv 1706.04599, section 4.2).
    """
    from scipy.optimize import (  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to load
        minimize_scalar,
    )

    found = minimize_scalar(
        lambda inverse: -float(shares @ np.log(likelihood(1 / inverse))),
        bounds=(1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return 1 / float(found.x)


def fit_weights(
    likelihoods: FloatArray, shares: FloatArray, *, start: Sequence[float] | None = None
) -> FloatArray:
    r"""Return the weights ``(M,)``, above 0 and 1 in sum, under which the mixture scores best.

    likelihoods: ``(N, M)``, what each member gives the drawn class, above 0; shares: ``(N,)``, what
    each pixel counts: 1 in sum over each image. They maximise

        Σ_n share_n · log Σ_m w_m p_nm  +  (PRIOR_IMAGES / M) · Σ_m log w_m

    which is concave in w. The second term is a Dirichlet prior: it counts as one image of which
    every member knew as much, so with few images the weights stay near equal, and none becomes 0.
    Expectation maximisation climbs it without a step size (Dempster et al. 1977, section 4.3):

        w_m  ←  (Σ_n share_n · r_nm + PRIOR_IMAGES / M) / (images + PRIOR_IMAGES)
        r_nm =  w_m p_nm / Σ_k w_k p_nk      (the responsibility of member m for pixel n)
    """
    count = likelihoods.shape[1]
    weights = np.full(count, 1 / count) if start is None else np.asarray(start, np.float64)
    total = shares.sum() + PRIOR_IMAGES
    for _ in range(_MOST_STEPS):
        responsible = weights * ((shares / (likelihoods @ weights)) @ likelihoods)
        stepped = (responsible + PRIOR_IMAGES / count) / total
        moved = float(np.abs(stepped - weights).max())
        weights = stepped
        if moved < _STILL:
            break
    return weights


def candidates(pixels: ValidationPixels, shares: FloatArray) -> dict[Choice, Fit]:
    """Return the best weights and temperatures under each choice; equal and 1 where not fitted.

    Temperatures come first, each member's on its own, then the weights under them. Members that see
    floes borrow by the weights: with such a one, weights and what is borrowed are found in turns.
    """
    count = len(pixels.outputs)
    plain = (1.0,) * count
    calibrated = tuple(_temperature(pixels, member, shares) for member in range(count))
    equal = (1 / count,) * count
    return {
        ("equal", "none"): Fit(weights=equal, temperatures=plain),
        ("equal", "fitted"): Fit(weights=equal, temperatures=calibrated),
        ("fitted", "none"): _weighed(pixels, shares, plain),
        ("fitted", "fitted"): _weighed(pixels, shares, calibrated),
    }


def left_out_losses(pixels: ValidationPixels, *, progress: Progress | None = None) -> LeftOut:
    """Return how each choice and each member alone score on images that were not fitted to.

    Each image is left out once, alone (where there are more than MOST_FOLDS: with some others), the
    rest is fitted, and the mean over the images left out is taken. Images of a day are alike, so
    this still flatters a little.
    """
    images = np.arange(len(pixels.images))
    if len(images) == 1:
        return LeftOut(ensembles={}, members=())
    folds = np.array_split(images, min(len(images), MOST_FOLDS))
    sums: dict[Choice, float] = {}
    alone = np.zeros(len(pixels.outputs))
    for done, fold in enumerate(folds, 1):
        left_out = np.isin(images, fold)
        unseen = pixels.shares(left_out)
        fits = candidates(pixels, pixels.shares(~left_out))
        for choice, found in fits.items():
            mixed = pixels.mixture(found.weights, found.temperatures)
            sums[choice] = sums.get(choice, 0.0) + _loss(mixed, pixels.truth, unseen)
        for member, temperature in enumerate(fits["equal", "fitted"].temperatures):
            alone[member] += _loss(pixels.alone(member, temperature), pixels.truth, unseen)
        if progress:
            progress(done, len(folds))
    return LeftOut(
        ensembles={choice: total / len(images) for choice, total in sums.items()},
        members=tuple((alone / len(images)).tolist()),
    )


def given_to(probabilities: Tensor, truth: Tensor) -> FloatArray:
    """Return what float32 ``[C, N]`` gives the classes int64 ``[N]``, as float64 above 0."""
    given = probabilities.gather(0, truth[None])[0].double().numpy()
    above_zero: FloatArray = np.maximum(given, LEAST_PROBABILITY)
    return above_zero


def _weighed(pixels: ValidationPixels, shares: FloatArray, temperatures: tuple[float, ...]) -> Fit:
    count = len(pixels.outputs)
    weights = [1 / count] * count
    for _ in range(_TURNS if "floes" in pixels.kinds else 1):
        each = pixels.each(weights, temperatures)
        likelihoods = np.stack([given_to(one, pixels.truth) for one in each], axis=1)
        weights = fit_weights(likelihoods, shares, start=weights).tolist()
    return Fit(weights=tuple(weights), temperatures=temperatures)


def _loss(probabilities: Tensor, truth: Tensor, shares: FloatArray) -> float:
    return -float(shares @ np.log(given_to(probabilities, truth)))


def _temperature(pixels: ValidationPixels, member: int, shares: FloatArray) -> float:
    """Return a member's temperature; one that sees floes is judged by ice class or none alone."""
    floes = pixels.kinds[member] == "floes"
    no_ice = ~np.isin(pixels.truth.numpy(), pixels.ice)

    def likelihood(temperature: float) -> FloatArray:
        alone = pixels.alone(member, temperature)
        given = given_to(alone, pixels.truth)
        if floes:
            rest = 1 - alone[list(pixels.ice)].sum(dim=0).double().numpy()
            given[no_ice] = np.maximum(rest[no_ice], LEAST_PROBABILITY)
        return given

    return fit_temperature(likelihood, shares)
