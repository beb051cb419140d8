"""What is counted of one image: enough that images add up to any set of them without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.classes import NOT_VALID
from edge.contract.overlay import stretch
from train.evaluate.boundary import BoundaryCounts, boundary_counts
from train.evaluate.calibration import Reliability, reliability_of
from train.evaluate.scores import confusion_of, score

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.contract.classes import Classes
    from edge.contract.masks import Mask
    from train.predict import Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class IceFractions:
    """ice / (ice + water) of one image, 0..1, truth and prediction; None where neither is seen."""

    true: float | None
    predicted: float | None

    @property
    def error(self) -> float | None:
        """Predicted minus true; None where either is not known."""
        if self.true is None or self.predicted is None:
            return None
        return self.predicted - self.true


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageResult:
    """One image, counted over the labels' valid pixels.

    confusion: int64 ``(C, C)``, rows truth, columns prediction; ice: fractions of pixels;
    ice_area: fractions of ground area, None where the dataset knows no homography; reliability:
    None where the predictor does not say how sure it is.
    """

    stem: str
    group: str | None
    confusion: npt.NDArray[np.int64]
    boundary: BoundaryCounts
    ice: IceFractions
    ice_area: IceFractions | None
    reliability: Reliability | None

    @property
    def miou(self) -> float | None:
        """Mean IoU of this image alone; None where no pixel is valid."""
        return score(self.confusion).miou if self.confusion.any() else None


def measure_image(
    truth: Mask,
    prediction: Prediction,
    class_map: Classes,
    *,
    stem: str,
    group: str | None = None,
    areas: npt.NDArray[np.float64] | None = None,
) -> ImageResult:
    """Compare at the truth's size; the prediction is stretched to it by nearest neighbour.

    truth: uint8 ``(H, W)``, 255 ignored; areas: ground area of each pixel of it, float64
    ``(H, W)``. Raises EngineError where the prediction holds what is no class or no probability.
    """
    said = stretch(prediction.mask, *truth.shape)
    confusion = confusion_of(truth, said, len(class_map))
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ImageResult(
        stem=stem,
        group=group,
        confusion=confusion,
        boundary=boundary_counts(truth, said, len(class_map)),
        ice=_fractions(true, predicted, class_map),
        ice_area=None if areas is None else _by_area(truth, said, class_map, areas),
        reliability=_reliability(truth, said, prediction.confidence),
    )


def _by_area(
    truth: Mask, said: Mask, class_map: Classes, areas: npt.NDArray[np.float64]
) -> IceFractions:
    valid = truth != NOT_VALID
    true, predicted = (
        np.bincount(mask[valid], weights=areas[valid], minlength=len(class_map))
        for mask in (truth, said)
    )
    return _fractions(true, predicted, class_map)


def _fractions(
    true: npt.NDArray[np.number], predicted: npt.NDArray[np.number], class_map: Classes
) -> IceFractions:
    return IceFractions(true=_fraction(true, class_map), predicted=_fraction(predicted, class_map))


def _fraction(amounts: npt.NDArray[np.number], class_map: Classes) -> float | None:
    ice, water = (amounts[list(class_map.indices(role))].sum() for role in ("ice", "water"))
    return float(ice / (ice + water)) if ice + water else None


def _reliability(
    truth: Mask, said: Mask, confidence: npt.NDArray[np.float32] | None
) -> Reliability | None:
    if confidence is None:
        return None
    valid = truth != NOT_VALID
    sure = stretch(confidence, *truth.shape)  # type: ignore[arg-type] # of any dtype
    return reliability_of(sure[valid], (truth == said)[valid])
