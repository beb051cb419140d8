"""How good probabilities are, and how differently members err."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from train.ensemble.weigh import given_to
from train.evaluate.calibration import reliability_of
from train.evaluate.scores import confusion_of, score

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of probabilities over sampled validation pixels.

    nll: mean negative log of what the drawn class was given, in nats; brier: mean squared distance
    to the drawn class over all classes, 0..2 (Brier 1950); both by image. ece: expected
    calibration error, 0..1, over 15 bins; miou: 0..1; both over all pixels together.
    """

    nll: float
    brier: float
    ece: float
    miou: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """How alike two members are.

    disagreement: share of pixels that they give different classes, 0..1; error_correlation:
    Pearson's, of whether each is wrong, -1..1, None where one is always or never wrong.
    """

    first: str
    second: str
    disagreement: float
    error_correlation: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity:
    """How differently members decide; the means are None for a single member."""

    pairs: tuple[Pair, ...]

    @property
    def disagreement(self) -> float | None:
        """Mean over the pairs."""
        return _mean([pair.disagreement for pair in self.pairs])

    @property
    def error_correlation(self) -> float | None:
        """Mean over the pairs that have one."""
        return _mean([p.error_correlation for p in self.pairs if p.error_correlation is not None])


def figures_of(probabilities: Tensor, truth: Tensor, shares: npt.NDArray[np.float64]) -> Figures:
    """Measure float32 ``[C, N]`` against drawn classes int64 ``[N]``; shares: what each counts.

    Raises ConfigError where there is no pixel.
    """
    sure, decided = probabilities.max(dim=0)
    drawn, said = (classes.numpy().astype(np.uint8) for classes in (truth, decided))
    miou = score(confusion_of(drawn, said, len(probabilities))).miou
    by_pixel = shares / shares.sum()
    given = given_to(probabilities, truth)
    squares = probabilities.double().square().sum(dim=0).numpy()
    own = probabilities.gather(0, truth[None])[0].double().numpy()
    return Figures(
        nll=-float(by_pixel @ np.log(given)),
        brier=float(by_pixel @ (squares - 2 * own + 1)),
        ece=reliability_of(sure.numpy(), drawn == said).ece or 0.0,
        miou=miou,
    )


def diversity_of(names: Sequence[str], decided: Sequence[Tensor], truth: Tensor) -> Diversity:
    """Compare the classes int64 ``[N]`` that each member decides for."""
    return Diversity(
        pairs=tuple(
            Pair(
                first=names[first],
                second=names[second],
                disagreement=float((decided[first] != decided[second]).double().mean()),
                error_correlation=_correlation(
                    (decided[first] != truth).numpy(), (decided[second] != truth).numpy()
                ),
            )
            for first, second in combinations(range(len(names)), 2)
        )
    )


def _correlation(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float | None:
    if first.all() or second.all() or not (first.any() and second.any()):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
