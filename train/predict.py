"""Predictors: whatever turns a frame into a mask, be it a run, a bundle or a baseline."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge.contract.bundle import open_bundle
from edge.contract.errors import ConfigError
from edge.engine import open_engine, resize
from train.runs import load_member, read_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask
    from edge.engine import Engine
    from train.runs import Run

BUNDLE_ENDING = ".icecam"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a predictor says of one frame, at a size of its own.

    mask: uint8 ``(H, W)``; confidence: float32 ``(H, W)``, the probability (0..1) of the mask's
    class, None where the predictor knows none.
    """

    mask: Mask
    confidence: npt.NDArray[np.float32] | None = None


class Predictor(Protocol):
    """Segments frames by one class map."""

    @property
    def name(self) -> str:
        """What to call it in a report."""
        ...

    @property
    def class_map(self) -> Classes:
        """What its masks mean."""
        ...

    def segment(self, pixels: Pixels) -> Prediction:
        """Read a uint8 ``(h, w, 3)`` BGR frame of any size."""
        ...


class RunPredictor:
    """A run's member, in torch."""

    def __init__(self, run: Run) -> None:
        """Load the member's parameters."""
        self.name = run.name
        self.class_map = run.class_map
        self._run = run
        self._member = load_member(run)

    def segment(self, pixels: Pixels) -> Prediction:
        """Read a frame; the answer has the run's input size."""
        import torch  # noqa: PLC0415 - a bundle is evaluated without it

        frame = resize(pixels, self._run.input_size, max_anisotropy=self._run.max_anisotropy)
        channels_first = np.ascontiguousarray(frame.transpose(2, 0, 1)[None])
        with torch.inference_mode():
            logits = self._member(torch.from_numpy(channels_first).float())
            confidence, mask = logits[0].softmax(dim=0).max(dim=0)
        return Prediction(mask=mask.to(torch.uint8).numpy(), confidence=confidence.numpy())


class BundlePredictor:
    """A bundle's full ensemble, in ONNX Runtime."""

    def __init__(self, engine: Engine) -> None:
        """Use an open engine; who opened it closes it."""
        self.name = engine.manifest.id
        self.class_map = engine.manifest.class_map
        self._engine = engine

    def segment(self, pixels: Pixels) -> Prediction:
        """Read a frame; the answer has the bundle's input size."""
        answer = self._engine.segment(pixels).answer
        return Prediction(
            mask=answer.mask, confidence=np.divide(answer.confidence, 255, dtype=np.float32)
        )


@contextmanager
def open_predictor(path: Path) -> Iterator[Predictor]:
    """Open a run folder or a bundle (``.icecam``). Raises ConfigError, BundleError, EngineError."""
    if path.suffix == BUNDLE_ENDING and path.is_file():
        with open_engine(open_bundle(path)) as engine:
            yield BundlePredictor(engine)
    elif path.is_dir():
        yield RunPredictor(read_run(path))
    else:
        raise ConfigError(
            f"{path}: neither a folder nor a file that ends in {BUNDLE_ENDING}",
            expected="a run folder or a bundle",
        )
