"""Predictors: whatever turns a frame into a mask, a run, an ensemble, a bundle or a baseline."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge.contract.bundle import open_bundle
from edge.contract.errors import ConfigError
from edge.engine import open_engine, resize
from train.ensembles import ENSEMBLE_ENDING, common_input, read_ensemble
from train.runs import load_member, read_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import torch

    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask
    from edge.engine import Engine
    from train.models.members import Kind
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


class EnsemblePredictor:
    """Runs that decide together, in torch: the weighted mean of their calibrated probabilities.

    One run alone is an ensemble of one. A member that sees floes takes what it does not know, the
    other classes, from those beside it; read alone, all that is not ice is the first water class.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        name: str,
        weights: Sequence[float],
        temperatures: Sequence[float],
    ) -> None:
        """Load the members' parameters, once, onto the GPU where there is one.

        The runs must be alike (``require_alike``).
        """
        self.name = name
        self.runs = tuple(runs)
        self.class_map = runs[0].class_map
        self._size, self._max_anisotropy = common_input(runs)
        self._device = quickest_device()
        self._members = [load_member(run).to(self._device) for run in runs]
        self._weights = tuple(weights)
        self._temperatures = tuple(temperatures)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What each member's output says."""
        return tuple(member.kind for member in self._members)

    def segment(self, pixels: Pixels) -> Prediction:
        """Read a frame; the answer has the runs' input size."""
        import torch  # noqa: PLC0415 - a bundle is evaluated without it

        from train.models.mixture import mix  # noqa: PLC0415 - loads torch

        with torch.inference_mode():
            probabilities = mix(
                self._outputs(pixels),
                kinds=self.kinds,
                weights=self._weights,
                temperatures=self._temperatures,
                ice=self.class_map.indices("ice"),
                water=self.class_map.indices("water"),
                classes=len(self.class_map),
            )
            confidence, mask = probabilities[0].max(dim=0)
        return Prediction(
            mask=mask.to(torch.uint8).cpu().numpy(), confidence=confidence.cpu().numpy()
        )

    def outputs(self, pixels: Pixels) -> list[torch.Tensor]:
        """Return each member's own output for a frame, float32 ``[1, C, H, W]``, on the CPU."""
        return [output.cpu() for output in self._outputs(pixels)]

    def _outputs(self, pixels: Pixels) -> list[torch.Tensor]:
        """Return the same, where the members are."""
        import torch  # noqa: PLC0415 - a bundle is evaluated without it

        frame = resize(pixels, self._size, max_anisotropy=self._max_anisotropy)
        channels_first = np.ascontiguousarray(frame.transpose(2, 0, 1)[None])
        batch = torch.from_numpy(channels_first).to(self._device).float()
        with torch.inference_mode():
            return [member(batch) for member in self._members]


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


def quickest_device() -> torch.device:
    """Return the GPU that torch was built for (CUDA or ROCm) where there is one, else the CPU."""
    import torch  # noqa: PLC0415 - a bundle is evaluated without it

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_predictor(run: Run) -> EnsemblePredictor:
    """Return a run's member alone, as it was trained."""
    return EnsemblePredictor([run], name=run.name, weights=[1.0], temperatures=[1.0])


@contextmanager
def open_predictor(path: Path) -> Iterator[Predictor]:
    """Open a run folder, a bundle (``.icecam``) or an ensemble (``.toml``).

    Raises ConfigError, BundleError, EngineError.
    """
    if path.suffix == BUNDLE_ENDING and path.is_file():
        with open_engine(open_bundle(path)) as engine:
            yield BundlePredictor(engine)
    elif path.suffix == ENSEMBLE_ENDING and path.is_file():
        read = read_ensemble(path)
        yield EnsemblePredictor(
            read.runs, name=read.name, weights=read.weights, temperatures=read.temperatures
        )
    elif path.is_dir():
        yield run_predictor(read_run(path))
    else:
        raise ConfigError(
            f"{path}: neither a folder nor a file that ends in {BUNDLE_ENDING} or "
            f"{ENSEMBLE_ENDING}",
            expected="a run folder or a bundle, or the ensemble.toml of several runs",
        )
