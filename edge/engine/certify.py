"""Golden frames: does an engine answer here what the members answered where they were trained."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from edge.clock import utc_now
from edge.contract.coverage import measure
from edge.contract.messages import Certification
from edge.engine import least_confidence
from edge.engine.golden import read_golden

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from edge.contract.bundle import Bundle
    from edge.contract.classes import Classes
    from edge.engine import Answer, Engine
    from edge.engine.golden import GoldenAnswer

CONFIDENCE_LEVELS = 2
"""Of 255: how far a confidence may be from the stored one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """What an engine must reach on all golden frames together, or on the worst of them.

    mask, members, confidence: least share of pixels alike; class_iou: least of any class;
    coverage_difference: largest of ice_pixel_fraction on any frame; close_call: where the two best
    stored probabilities are this near, rounding may decide either way; clear_disagreements: whether
    a pixel may differ that was no close call.
    """

    mask: float
    members: float
    confidence: float
    class_iou: float
    coverage_difference: float
    close_call: float
    clear_disagreements: bool


SAME_ARITHMETIC = Bars(
    mask=0.999,
    members=0.999,
    confidence=0.999,
    class_iou=0.97,
    coverage_difference=0.005,
    close_call=0.01,
    clear_disagreements=False,
)
"""float32 in ONNX Runtime: the same numbers as in training, but for the order of sums."""

COMPILED = Bars(
    mask=0.99,
    members=0.97,
    confidence=0.0,
    class_iou=0.97,
    coverage_difference=0.005,
    close_call=0.05,
    clear_disagreements=True,
)
"""float16, or an engine that chose its own kernels: no two builds answer with the same bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How an engine did on all golden frames together.

    mask_agreement: share of pixels with the stored class; clear_disagreements: pixels that differ
    though the decision was no close call; member_agreement: of the member that agrees least;
    confidence_agreement: share of pixels within CONFIDENCE_LEVELS of the stored confidence;
    class_iou: by class, over pixels that were no close call, None where neither saw the class;
    coverage_difference: of ice_pixel_fraction, the largest of any frame (1 where one of the two is
    not known); not_numbers: pixels whose confidence no probabilities can have.
    """

    bars: Bars
    frames: int
    mask_agreement: float
    clear_disagreements: int
    member_agreement: float
    confidence_agreement: float
    class_iou: dict[str, float | None]
    coverage_difference: float
    not_numbers: int
    median_s: float
    slowest_s: float

    @property
    def passed(self) -> bool:
        """Whether the engine may serve."""
        return not self.shortfalls

    @property
    def least_class(self) -> tuple[str, float] | None:
        """The class with the least IoU, and that IoU; None where no class was seen."""
        seen = [(name, iou) for name, iou in self.class_iou.items() if iou is not None]
        return min(seen, key=lambda one: one[1], default=None)

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What was missed, each with figure and bar; nothing where all bars hold."""
        return tuple(self._shortfalls())

    def _shortfalls(self) -> Iterator[str]:
        bars = self.bars
        if self.not_numbers:
            yield f"{self.not_numbers} pixels are not numbers (NaN)"
        shares = {
            "mask": (self.mask_agreement, bars.mask),
            "least member": (self.member_agreement, bars.members),
            "confidence": (self.confidence_agreement, bars.confidence),
        }
        for what, (found, least) in shares.items():
            if found < least:
                yield f"{what} agreement {found:.3%}, at least {least:.1%} wanted"
        for name, iou in self.class_iou.items():
            if iou is not None and iou < bars.class_iou:
                yield f"IoU of {name} {iou:.3f}, at least {bars.class_iou:g} wanted"
        if self.coverage_difference > bars.coverage_difference:
            yield (
                f"ice fraction off by {self.coverage_difference:.4f}, at most "
                f"{bars.coverage_difference:g} wanted"
            )
        if self.clear_disagreements and not bars.clear_disagreements:
            yield f"{self.clear_disagreements} clear disagreements, none wanted"

    def describe(self) -> str:
        """Return the figures in a few words."""
        least = (
            "no class seen"
            if self.least_class is None
            else "least IoU {1:.3f} ({0})".format(*self.least_class)
        )
        return (
            f"agreement {self.mask_agreement:.3%} of the mask, {self.member_agreement:.3%} of the "
            f"least member's; {least}; ice fraction within {self.coverage_difference:.4f}"
        )

    def certification(self, engine: Engine, bundle: Bundle) -> Certification:
        """Return what is kept beside an engine and published."""
        least = self.least_class
        return Certification(
            engine=engine.name,
            graph=engine.graph.name,
            bundle_sha256=bundle.sha256,
            at=utc_now(),
            passed=self.passed,
            frames=self.frames,
            mask_agreement=self.mask_agreement,
            member_agreement=self.member_agreement,
            least_class_iou=least[1] if least else None,
            least_class=least[0] if least else None,
            coverage_difference=self.coverage_difference,
            not_numbers=self.not_numbers,
            median_s=self.median_s,
            slowest_s=self.slowest_s,
            shortfalls=self.shortfalls,
        )


def judge(
    answers: Iterable[tuple[Answer, GoldenAnswer, float]], class_map: Classes, bars: Bars
) -> Verdict:
    """Compare what an engine answered with what was stored; the third value is the time taken.

    Raises ValueError where there is nothing to compare.
    """
    compared = [_compare(*one, class_map, bars) for one in answers]
    if not compared:
        message = "no frames to judge by"
        raise ValueError(message)
    both = np.sum([one.both for one in compared], axis=0)
    either = np.sum([one.either for one in compared], axis=0)
    times = [one.took_s for one in compared]
    return Verdict(
        bars=bars,
        frames=len(compared),
        mask_agreement=float(np.mean([one.mask for one in compared])),
        clear_disagreements=sum(one.clear for one in compared),
        member_agreement=float(np.mean([one.members for one in compared], axis=0).min()),
        confidence_agreement=float(np.mean([one.confidence for one in compared])),
        class_iou={
            name: float(both[index] / either[index]) if either[index] else None
            for index, name in enumerate(class_map.names)
        },
        coverage_difference=max(one.coverage for one in compared),
        not_numbers=sum(one.not_numbers for one in compared),
        median_s=median(times),
        slowest_s=max(times),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compared:
    """One frame. both, either: pixels of each class in both masks, and in one of them."""

    mask: float
    clear: int
    members: npt.NDArray[np.float64]
    confidence: float
    both: npt.NDArray[np.int64]
    either: npt.NDArray[np.int64]
    coverage: float
    not_numbers: int
    took_s: float


def _compare(
    found: Answer, stored: GoldenAnswer, took_s: float, class_map: Classes, bars: Bars
) -> _Compared:
    classes = len(class_map)
    differs = found.mask != stored.answer.mask
    sure = stored.margin > bars.close_call
    levels = np.abs(found.confidence.astype(np.int16) - stored.answer.confidence)
    ours = np.bincount(found.mask[sure], minlength=classes)
    theirs = np.bincount(stored.answer.mask[sure], minlength=classes)
    both = np.bincount(found.mask[sure & ~differs], minlength=classes)
    return _Compared(
        mask=1 - float(differs.mean()),
        clear=int(np.count_nonzero(differs & sure)),
        members=(found.member_masks == stored.answer.member_masks).mean(axis=(1, 2)),
        confidence=float((levels <= CONFIDENCE_LEVELS).mean()),
        both=both,
        either=ours + theirs - both,
        coverage=_coverage_difference(found, stored.answer, class_map),
        not_numbers=int(np.count_nonzero(found.confidence < least_confidence(classes))),
        took_s=took_s,
    )


def _coverage_difference(found: Answer, stored: Answer, class_map: Classes) -> float:
    ours, theirs = (measure(one.mask, class_map).ice_pixel_fraction for one in (found, stored))
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else 1.0
    return abs(ours - theirs)


def bars_for(engine: Engine) -> Bars:
    """Return what an engine of this kind must reach."""
    same = engine.name == "ort" and engine.graph.precision == "float32"
    return SAME_ARITHMETIC if same else COMPILED


def replay_golden(bundle: Bundle, engine: Engine) -> Verdict:
    """Run every golden frame of a bundle through an engine of it. Raises BundleError, EngineError.

    One frame is run beforehand and not timed: the first takes longer than any after it.
    """
    cases = [read_golden(bundle, case, engine.graph) for case in bundle.manifest.golden]
    engine.answer(cases[0][0])

    def answers() -> Iterator[tuple[Answer, GoldenAnswer, float]]:
        for frame, stored in cases:
            found = engine.answer(frame)
            yield found.answer, stored, found.latency_s

    return judge(answers(), bundle.manifest.class_map, bars_for(engine))
