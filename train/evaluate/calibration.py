"""Calibration: how often a predictor is right when it says how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

BINS = 15


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reliability:
    """Pixels by how sure the predictor was of them, in BINS equal bins of 0..1, ``(BINS,)`` each.

    pixels: how many, int64; right: how many of them were right, int64; confidence: the sum of
    their confidences, float64. Sums, so that images add up to a dataset without loss.
    """

    pixels: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]

    @property
    def ece(self) -> float | None:
        """Expected calibration error, 0..1; None where nothing was counted.

        The mean distance of confidence and share right over the bins, by their pixels (Naeini et
        al. 2015, AAAI; Guo et al. 2017, arXiv 1706.04599).
        """
        total = self.pixels.sum()
        return float(np.abs(self.right - self.confidence).sum() / total) if total else None

    @property
    def curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean confidence and share right of each bin that has pixels, in order."""
        some = self.pixels > 0
        return self.confidence[some] / self.pixels[some], self.right[some] / self.pixels[some]


def reliability_of(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]
) -> Reliability:
    """Count pixels, both arrays ``(N,)``. Raises EngineError for a confidence outside 0..1.

    Counted here, not by torchmetrics: its calibration error is one number, which neither adds up
    over images nor draws a curve. The tests hold ours to it and to scikit-learn's curve.
    """
    sure = confidence.astype(np.float64)
    slack = 1e-5  # a softmax in float32 may end a hair above 1
    if sure.size and not (sure.min() >= -slack and sure.max() <= 1 + slack):
        raise EngineError(
            f"a predictor's confidence lies between {sure.min():g} and {sure.max():g}",
            expected="0 to 1",
        )
    bins = np.clip((sure * BINS).astype(np.intp), 0, BINS - 1)
    return Reliability(
        pixels=np.bincount(bins, minlength=BINS).astype(np.int64),
        right=np.bincount(bins[right], minlength=BINS).astype(np.int64),
        confidence=np.bincount(bins, weights=sure, minlength=BINS).astype(np.float64),
    )


def joined(parts: Sequence[Reliability | None]) -> Reliability | None:
    """Return the sum over those that are known; None where none is."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return Reliability(
        pixels=np.sum([part.pixels for part in known], axis=0),
        right=np.sum([part.right for part in known], axis=0),
        confidence=np.sum([part.confidence for part in known], axis=0),
    )
