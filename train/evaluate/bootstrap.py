"""How far figures would move with other images: percentile bootstrap over images.

Whole images are drawn again with replacement (Efron & Tibshirani 1993, An Introduction to the
Bootstrap, ch. 13). This takes the images for independent draws from all that the camera may see.
Frames of one day look alike, so a few days give intervals that are too narrow for new days: they
say how much hangs on which of these images were labelled, not what another season brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.errors import ConfigError
from train.evaluate.evaluation import refuse_another_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from train.evaluate.evaluation import Evaluation
    from train.evaluate.measure import IceFractions, ImageResult

    Numbers = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """From ``low`` to ``high`` lies the middle LEVEL of the resamples' figures."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Intervals of an evaluation's figures; None where there are too few images to say.

    iou and boundary_iou are by class name. A resample in which a class is neither drawn nor
    predicted says nothing of it; one in which no fraction is known, nothing of the fractions.
    """

    miou: Interval | None
    pixel_accuracy: Interval | None
    iou: dict[str, Interval | None]
    boundary_miou: Interval | None
    boundary_iou: dict[str, Interval | None]
    ice_fraction_mae: Interval | None
    ice_fraction_bias: Interval | None
    ice_area_fraction_mae: Interval | None
    ice_area_fraction_bias: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """mIoU of ``first`` minus that of ``second`` on the same images."""

    first: str
    second: str
    value: float
    interval: Interval | None


def intervals(
    evaluation: Evaluation, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Intervals:
    """Return the interval of every figure; all None for a single image."""
    images = evaluation.images
    times = _times(len(images), resamples, seed)
    hits, unions = _hits_and_unions(images, times)
    iou, pixels = _ratio(hits, unions), _pooled([i.confusion for i in images], times).sum((1, 2))
    boundary = _ratio(
        _pooled([i.boundary.intersections for i in images], times),
        _pooled([i.boundary.unions for i in images], times),
    )
    enough = len(images) > 1

    def middle(figures: Numbers) -> Interval | None:
        return _middle(figures, level) if enough else None

    names = evaluation.class_map.names
    errors = _errors([image.ice for image in images])
    area_errors = _errors([image.ice_area for image in images])
    return Intervals(
        miou=middle(_mean_known(iou)),
        pixel_accuracy=middle(_ratio(hits.sum(1), pixels)),
        iou={name: middle(iou[:, index]) for index, name in enumerate(names)},
        boundary_miou=middle(_mean_known(boundary)),
        boundary_iou={name: middle(boundary[:, index]) for index, name in enumerate(names)},
        ice_fraction_mae=middle(_means(np.abs(errors), times)),
        ice_fraction_bias=middle(_means(errors, times)),
        ice_area_fraction_mae=middle(_means(np.abs(area_errors), times)),
        ice_area_fraction_bias=middle(_means(area_errors, times)),
    )


def paired_difference(
    first: Evaluation,
    second: Evaluation,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """Return how much higher the mIoU of ``first`` is; both see the same images in each resample.

    Narrower than two intervals side by side tell: an image that is hard for one mostly is for the
    other. Raises ConfigError where the two were not measured on the same images.
    """
    refuse_another_dataset(first, second)
    pairs = [sorted(e.images, key=lambda image: image.stem) for e in (first, second)]
    stems = [{image.stem for image in images} for images in pairs]
    if stems[0] != stems[1]:
        lone = ", ".join(sorted(stems[0] ^ stems[1]))
        raise ConfigError(
            f"{lone}: measured for only one of {first.predictor} and {second.predictor}",
            expected="the same images for both",
        )
    times = _times(len(pairs[0]), resamples, seed)
    a, b = (_mean_known(_ratio(*_hits_and_unions(images, times))) for images in pairs)
    return Difference(
        first=first.predictor,
        second=second.predictor,
        value=first.scores.miou - second.scores.miou,
        interval=_middle(a - b, level) if len(first.images) > 1 else None,
    )


def _times(images: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each resample has each image, ``(resamples, images)``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples)


def _hits_and_unions(
    images: Sequence[ImageResult], times: npt.NDArray[np.int64]
) -> tuple[Numbers, Numbers]:
    confusion = _pooled([image.confusion for image in images], times)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return hits, confusion.sum(axis=1) + confusion.sum(axis=2) - hits


def _pooled(counts: Sequence[npt.NDArray[np.int64]], times: npt.NDArray[np.int64]) -> Numbers:
    """Sum counts ``(…)`` over the images of each resample: ``(resamples, …)``."""
    pooled: Numbers = np.tensordot(times.astype(np.float64), np.stack(counts), 1)
    return pooled


def _errors(fractions: Sequence[IceFractions | None]) -> Numbers:
    found = [None if fraction is None else fraction.error for fraction in fractions]
    return np.array([np.nan if error is None else error for error in found])


def _means(values: Numbers, times: npt.NDArray[np.int64]) -> Numbers:
    known = np.isfinite(values)
    return _ratio(times[:, known] @ values[known], times[:, known].sum(axis=1))


def _mean_known(values: Numbers) -> Numbers:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def _ratio(part: npt.NDArray[np.number], whole: npt.NDArray[np.number]) -> Numbers:
    """Divide; NaN where the whole is 0."""
    ratio: Numbers = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _middle(figures: Numbers, level: float) -> Interval | None:
    known = figures[np.isfinite(figures)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))
