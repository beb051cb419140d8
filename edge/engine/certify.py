"""Golden frames: does an engine answer here what the members answered where they were trained."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.contract.errors import BundleError, CameraError
from edge.contract.frames import decode_image
from edge.engine import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge.contract.bundle import Bundle, GoldenCase
    from edge.contract.frames import Pixels
    from edge.engine import Engine

CLOSE_CALL = 0.01
"""Where the two best probabilities are this near, rounding may decide either way."""

AGREEMENT_FLOOR = 0.999
CONFIDENCE_LEVELS = 2
"""Of 255: how far a confidence may be from the stored one."""

_NOT_ARRAYS = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenAnswer:
    """A stored float32 answer, and how near the decision was.

    margin: float16 ``(height, width)``, best minus second-best probability.
    """

    answer: Answer
    margin: npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How an engine did on all golden frames together.

    agreement: share of pixels with the stored class; clear_disagreements: pixels that differ though
    the decision was not a close call; member_agreement: of the member that agrees least;
    confidence_agreement: share of pixels within CONFIDENCE_LEVELS of the stored confidence.
    slowest_s: the longest frame.
    """

    frames: int
    agreement: float
    clear_disagreements: int
    member_agreement: float
    confidence_agreement: float
    slowest_s: float

    @property
    def passed(self) -> bool:
        """Whether the engine may serve."""
        shares = (self.agreement, self.member_agreement, self.confidence_agreement)
        return min(shares) >= AGREEMENT_FLOOR and self.clear_disagreements == 0

    def describe(self) -> str:
        """Return the figures in a few words."""
        return (
            f"agreement {self.agreement:.3%} of the mask, {self.member_agreement:.3%} of the "
            f"members', {self.confidence_agreement:.3%} of the confidence; "
            f"{self.clear_disagreements} clear disagreements"
        )


def judge(answers: Iterable[tuple[Answer, GoldenAnswer, float]]) -> Verdict:
    """Compare what an engine answered with what was stored; the third value is the time taken.

    Raises ValueError where there is nothing to compare.
    """
    frames = clear = 0
    masks: list[float] = []
    confidences: list[float] = []
    members: list[npt.NDArray[np.float64]] = []
    slowest_s = 0.0
    for found, stored, took_s in answers:
        differs = found.mask != stored.answer.mask
        levels = np.abs(found.confidence.astype(np.int16) - stored.answer.confidence)
        clear += int(np.count_nonzero(differs & (stored.margin > CLOSE_CALL)))
        masks.append(1 - float(differs.mean()))
        confidences.append(float((levels <= CONFIDENCE_LEVELS).mean()))
        members.append((found.member_masks == stored.answer.member_masks).mean(axis=(1, 2)))
        slowest_s = max(slowest_s, took_s)
        frames += 1
    if not frames:
        message = "no frames to judge by"
        raise ValueError(message)
    return Verdict(
        frames=frames,
        agreement=float(np.mean(masks)),
        clear_disagreements=clear,
        member_agreement=float(np.mean(members, axis=0).min()),
        confidence_agreement=float(np.mean(confidences)),
        slowest_s=slowest_s,
    )


def replay_golden(bundle: Bundle, engine: Engine) -> Verdict:
    """Run every golden frame of a bundle through an engine of it. Raises BundleError."""

    def answers() -> Iterator[tuple[Answer, GoldenAnswer, float]]:
        for case in bundle.manifest.golden:
            frame, stored = read_golden(bundle, case)
            found = engine.segment(frame)
            yield found.answer, stored, found.latency_s

    return judge(answers())


def pack_answer(golden: GoldenAnswer) -> bytes:
    """Return a stored answer as bytes: an npz of four arrays."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        mask=golden.answer.mask,
        confidence=golden.answer.confidence,
        member_masks=golden.answer.member_masks,
        margin=golden.margin,
    )
    return file.getvalue()


def read_golden(bundle: Bundle, case: GoldenCase) -> tuple[Pixels, GoldenAnswer]:
    """Return a golden frame (uint8 BGR, the bundle's size) and its answer. Raises BundleError."""
    size = (bundle.manifest.input.height, bundle.manifest.input.width)
    try:
        frame = decode_image(bundle.read(case.frame), where=f"{bundle.path}: {case.frame}")
    except CameraError as problem:
        raise BundleError(problem.found) from None
    try:
        with np.load(io.BytesIO(bundle.read(case.answer)), allow_pickle=False) as arrays:
            golden = GoldenAnswer(
                answer=Answer(
                    mask=arrays["mask"],
                    confidence=arrays["confidence"],
                    member_masks=arrays["member_masks"],
                ),
                margin=arrays["margin"],
            )
    except _NOT_ARRAYS as problem:
        raise BundleError(
            f"{bundle.path}: {case.answer} is not a golden answer ({problem})"
        ) from None
    answer = golden.answer
    arrays_of = (
        frame[:, :, 0],
        answer.mask,
        answer.confidence,
        answer.member_masks[0],
        golden.margin,
    )
    if any(array.shape != size for array in arrays_of):
        raise BundleError(f"{bundle.path}: golden {case.frame} is not of the bundle's size {size}")
    return frame, golden
