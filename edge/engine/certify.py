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
    from edge.contract.bundle import Bundle, GoldenCase
    from edge.contract.frames import Pixels
    from edge.engine import Engine

CLOSE_CALL = 0.01
"""Where the two best probabilities are this near, rounding may decide either way."""

AGREEMENT_FLOOR = 0.999
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
    the decision was not a close call; slowest_s: the longest frame.
    """

    frames: int
    agreement: float
    clear_disagreements: int
    slowest_s: float

    @property
    def passed(self) -> bool:
        """Whether the engine may serve."""
        return self.agreement >= AGREEMENT_FLOOR and self.clear_disagreements == 0


def replay_golden(bundle: Bundle, engine: Engine) -> Verdict:
    """Run every golden frame of a bundle through an engine of it. Raises BundleError."""
    same = total = clear = 0
    slowest_s = 0.0
    for case in bundle.manifest.golden:
        frame, stored = read_golden(bundle, case)
        found = engine.segment(frame)
        differs = found.answer.mask != stored.answer.mask
        clear += int(np.count_nonzero(differs & (stored.margin > CLOSE_CALL)))
        same += differs.size - int(np.count_nonzero(differs))
        total += differs.size
        slowest_s = max(slowest_s, found.latency_s)
    return Verdict(
        frames=len(bundle.manifest.golden),
        agreement=same / total,
        clear_disagreements=clear,
        slowest_s=slowest_s,
    )


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
    if frame.shape[:2] != size or golden.answer.mask.shape != size or golden.margin.shape != size:
        raise BundleError(f"{bundle.path}: golden {case.frame} is not of the bundle's size {size}")
    return frame, golden
