"""Golden frames of a bundle: pictures, and what float32 answered where the members were trained."""

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
    from edge.contract.bundle import Bundle, GoldenCase, Graph
    from edge.contract.frames import Pixels

_NOT_ARRAYS = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenAnswer:
    """A stored float32 answer, and how near the decision was.

    margin: float16 ``(height, width)``, best minus second-best probability.
    """

    answer: Answer
    margin: npt.NDArray[np.float16]


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


def read_golden(bundle: Bundle, case: GoldenCase, graph: Graph) -> tuple[Pixels, GoldenAnswer]:
    """Return a golden frame (uint8 BGR, the bundle's size) and a graph's answer to it.

    Raises BundleError where either is not what it should be.
    """
    size = (bundle.manifest.input.height, bundle.manifest.input.width)
    try:
        frame = decode_image(bundle.read(case.frame), where=f"{bundle.path}: {case.frame}")
    except CameraError as problem:
        raise BundleError(problem.found) from None
    path = case.answer_of(graph.name)
    golden = _unpack_answer(bundle.read(path), where=f"{bundle.path}: {path}")
    answer = golden.answer
    whole = (frame.shape[:2], answer.mask.shape, answer.confidence.shape, golden.margin.shape)
    members = (len(graph.members), *size)
    if any(shape != size for shape in whole) or answer.member_masks.shape != members:
        raise BundleError(
            f"{bundle.path}: golden {case.frame} or {path} is not of the bundle's size {size} and "
            f"the {len(graph.members)} members of graph {graph.name!r}"
        )
    if max(answer.mask.max(), answer.member_masks.max()) >= len(bundle.manifest.class_map):
        raise BundleError(f"{bundle.path}: {path} answers a class that the bundle does not have")
    return frame, golden


def _unpack_answer(data: bytes, *, where: str) -> GoldenAnswer:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return GoldenAnswer(
                answer=Answer(
                    mask=arrays["mask"],
                    confidence=arrays["confidence"],
                    member_masks=arrays["member_masks"],
                ),
                margin=arrays["margin"],
            )
    except _NOT_ARRAYS as problem:
        raise BundleError(f"{where} is not a golden answer ({problem})") from None
