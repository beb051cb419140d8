"""Engines: a frame in, a segmentation out. Inputs are checked here; a backend only runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from edge import __version__
from edge.contract.errors import BundleError, ConfigError, EngineError

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from edge.contract.bundle import Bundle, Graph, Manifest
    from edge.contract.frames import Pixels, Size
    from edge.contract.masks import Mask

BackendName = Literal["ort"]


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
    """An answer, what gave it, and how long resize and graph took together."""

    answer: Answer
    graph: str
    engine: BackendName
    latency_s: float


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
        the graph fails or answers out of shape.
        """
        began = time.perf_counter()
        size = (self.manifest.input.height, self.manifest.input.width)
        frame = resize(pixels, size, max_anisotropy=self.manifest.input.max_anisotropy)
        answer = self._backend.run(frame)
        self._check(answer, size)
        return Segmentation(
            answer=answer,
            graph=self.graph.name,
            engine=self.name,
            latency_s=time.perf_counter() - began,
        )

    def _check(self, answer: Answer, size: Size) -> None:
        shapes = {
            "mask": (answer.mask, size),
            "confidence": (answer.confidence, size),
            "member_masks": (answer.member_masks, (len(self.graph.members), *size)),
        }
        for name, (array, shape) in shapes.items():
            if array.dtype != np.uint8 or array.shape != shape:
                raise EngineError(
                    f"graph {self.graph.name!r}: {name} is {array.dtype} {array.shape}",
                    expected=f"uint8 {shape}",
                )
        classes = len(self.manifest.class_map)
        highest = max(int(answer.mask.max()), int(answer.member_masks.max()))
        if highest >= classes:
            raise EngineError(
                f"graph {self.graph.name!r} answers class {highest}",
                expected=f"classes below {classes}",
            )


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


def open_engine(bundle: Bundle, *, backend: BackendName = "ort", graph: str = "") -> Engine:
    """Load a graph of a bundle, by default its first (the full ensemble).

    Raises BundleError where the bundle asks for what this version cannot do, EngineError where the
    name is unknown or the backend refuses the graph.
    """
    _require_able(bundle)
    graphs = {found.name: found for found in bundle.manifest.graphs}
    chosen = graphs.get(graph or bundle.manifest.graphs[0].name)
    if chosen is None:
        raise EngineError(
            f"{bundle.path}: no graph {graph!r}", expected=f"one of {', '.join(graphs)}"
        )
    return Engine(bundle.manifest, chosen, backend, _BACKENDS[backend](bundle, chosen))


def _require_able(bundle: Bundle) -> None:
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


def _load_ort(bundle: Bundle, graph: Graph) -> Backend:
    from edge.engine.ort import OrtBackend  # noqa: PLC0415 - loads onnxruntime

    return OrtBackend(bundle.read(graph.file), where=f"{bundle.path}: {graph.file}")


_BACKENDS = {"ort": _load_ort}
