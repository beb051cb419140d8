"""Engines: a frame in, a segmentation out. Inputs are checked here; a backend only runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from edge import __version__
from edge.contract.errors import BundleError, ConfigError, EngineError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from edge.contract.bundle import Bundle, Graph, Manifest
    from edge.contract.frames import Pixels, Size
    from edge.contract.masks import Mask

BackendName = Literal["ort", "trt"]

INPUT = "frame"
OUTPUTS = ("mask", "confidence", "member_masks")
"""What every graph takes and gives, by name (see ``Answer``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the one graph answers: uint8 arrays.

    mask: ``(height, width)`` class indices; confidence: ``(height, width)``,
    round(255 * probability of that class); member_masks: ``(members, height, width)``.
    """

    mask: Mask
    confidence: npt.NDArray[np.uint8]
    member_masks: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """An answer, what gave it, and how long resize and graph took together.

    degraded: the word for the rung of the ladder that gave it, where that was not the best.
    """

    answer: Answer
    graph: str
    engine: BackendName
    latency_s: float
    degraded: str = "none"


class WrongAnswerError(EngineError):
    """A graph ran, and its answer cannot be one: of another shape, of no class, not numbers."""


class Backend(Protocol):
    """Runs one graph on frames of the bundle's size."""

    def run(self, frame: Pixels) -> Answer:
        """Answer one uint8 ``(height, width, 3)`` BGR frame of exactly the bundle's size."""
        ...

    def close(self) -> None:
        """Free what was loaded. Safe to call twice."""
        ...


class Engine:
    """A graph of a bundle, loaded. A context manager; not for several threads at once."""

    def __init__(
        self, manifest: Manifest, graph: Graph, name: BackendName, backend: Backend
    ) -> None:
        """Keep the manifest's promises beside the backend that must hold them."""
        self.manifest = manifest
        self.graph = graph
        self.name: BackendName = name
        self._backend = backend

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the backend."""
        self._backend.close()

    def segment(self, pixels: Pixels) -> Segmentation:
        """Stretch a uint8 ``(h, w, 3)`` BGR frame of any size to the bundle's and segment it.

        Raises ConfigError where the stretch is stronger than the bundle allows, EngineError where
        the graph fails, answers out of shape, or answers what are not numbers.
        """
        began = time.perf_counter()
        size = (self.manifest.input.height, self.manifest.input.width)
        frame = resize(pixels, size, max_anisotropy=self.manifest.input.max_anisotropy)
        found = self.answer(frame)
        self._require_numbers(found.answer)
        return replace(found, latency_s=time.perf_counter() - began)

    def answer(self, frame: Pixels) -> Segmentation:
        """Segment a uint8 BGR frame of exactly the bundle's size, whatever the answer is worth.

        Raises EngineError where the graph fails or answers out of shape.
        """
        began = time.perf_counter()
        answer = self._backend.run(frame)
        self._require_shapes(answer, (self.manifest.input.height, self.manifest.input.width))
        return Segmentation(
            answer=answer,
            graph=self.graph.name,
            engine=self.name,
            latency_s=time.perf_counter() - began,
        )

    def _require_shapes(self, answer: Answer, size: Size) -> None:
        shapes = {
            "mask": (answer.mask, size),
            "confidence": (answer.confidence, size),
            "member_masks": (answer.member_masks, (len(self.graph.members), *size)),
        }
        for name, (array, shape) in shapes.items():
            if array.dtype != np.uint8 or array.shape != shape:
                raise WrongAnswerError(
                    f"graph {self.graph.name!r}: {name} is {array.dtype} {array.shape}",
                    expected=f"uint8 {shape}",
                )
        classes = len(self.manifest.class_map)
        highest = max(int(answer.mask.max()), int(answer.member_masks.max()))
        if highest >= classes:
            raise WrongAnswerError(
                f"graph {self.graph.name!r} answers class {highest}",
                expected=f"classes below {classes}",
            )

    def _require_numbers(self, answer: Answer) -> None:
        least = least_confidence(len(self.manifest.class_map))
        broken = int(np.count_nonzero(answer.confidence < least))
        if broken:
            raise WrongAnswerError(
                f"graph {self.graph.name!r} answers {broken} pixels with a confidence down to "
                f"{answer.confidence.min()} of 255",
                expected=f"at least {least}, which the likeliest of the classes always has: these "
                "are not numbers (NaN)",
            )


def least_confidence(classes: int) -> int:
    """Return the least of 255 that a confidence can be, rounding allowed for.

    The likeliest of n classes has a probability of at least 1/n. A NaN becomes 0 as it is cast.
    """
    return 255 // classes - 2


def resize(pixels: Pixels, size: Size, *, max_anisotropy: float = 1.2) -> Pixels:
    """Stretch a uint8 ``(h, w, 3)`` frame to ``size`` (height, width) by area averaging.

    The one resize of training and station (OpenCV INTER_AREA). Raises ConfigError where height
    and width would be scaled by factors whose ratio is above ``max_anisotropy``.
    """
    import cv2  # noqa: PLC0415 - heavy; importing this module must stay light

    height, width = pixels.shape[:2]
    refuse_distortion((height, width), size, max_anisotropy=max_anisotropy)
    if (height, width) == size:
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def refuse_distortion(frame: Size, size: Size, *, max_anisotropy: float) -> None:
    """Raise ConfigError where ``resize`` would for a frame of (height, width)."""
    height, width = frame
    down, across = size[0] / height, size[1] / width
    anisotropy = max(down / across, across / down)
    if anisotropy > max_anisotropy:
        raise ConfigError(
            f"a frame of {height}x{width} stretched to {size[0]}x{size[1]} (height x width) would "
            f"be distorted {anisotropy:.2f} times",
            expected=f"at most {max_anisotropy:g}",
            then="Crop the frames, or use a bundle of another input size.",
        )


def open_engine(
    bundle: Bundle,
    *,
    backend: BackendName = "ort",
    graph: str = "",
    cache: Path | None = None,
) -> Engine:
    """Load a graph of a bundle, by default its first (the full ensemble).

    cache: where this machine keeps the engines it compiled, for the backend trt.
    Raises BundleError where the bundle asks for what this version cannot do, EngineError where the
    name is unknown, the backend refuses the graph, or no certified engine was compiled here.
    """
    require_able(bundle)
    chosen = graph_of(bundle, graph or bundle.manifest.graphs[0].name)
    return Engine(bundle.manifest, chosen, backend, _BACKENDS[backend](bundle, chosen, cache))


def graph_of(bundle: Bundle, name: str) -> Graph:
    """Return a graph of a bundle by its name. Raises EngineError, listing those there are."""
    graphs = {found.name: found for found in bundle.manifest.graphs}
    if name not in graphs:
        raise EngineError(
            f"{bundle.path}: no graph {name!r}", expected=f"one of {', '.join(graphs)}"
        )
    return graphs[name]


def require_able(bundle: Bundle) -> None:
    """Raise BundleError where a bundle asks for what this version of icecam cannot do."""
    needed = bundle.manifest.min_icecam
    if _version(needed) > _version(__version__):
        raise BundleError(
            f"{bundle.path} needs icecam {needed}; this is {__version__}",
            then="Update icecam, or use an older bundle.",
        )
    if bundle.manifest.tiles is not None:
        raise BundleError(
            f"{bundle.path} asks for tiles", expected="a bundle that sees the whole frame at once"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _load_ort(bundle: Bundle, graph: Graph, _: Path | None) -> Backend:
    from edge.engine.ort import OrtBackend  # noqa: PLC0415 - loads onnxruntime

    return OrtBackend(bundle.read(graph.file), where=f"{bundle.path}: {graph.file}")


def _load_trt(bundle: Bundle, graph: Graph, cache: Path | None) -> Backend:
    from edge.engine.trt.certified import load_certified  # noqa: PLC0415 - loads TensorRT

    return load_certified(bundle, graph, cache)


_BACKENDS = {"ort": _load_ort, "trt": _load_trt}
