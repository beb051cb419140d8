"""What survives an interruption: the state after each whole epoch, with the best one in it."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from edge.contract.errors import ConfigError
from edge.contract.files import write_atomically

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from train.fit.learner import Learner

_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError)

Parameters = dict[str, "Tensor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What an epoch (from 1) reached on the validation split, at the members' size."""

    epoch: int
    loss: float
    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]
    learning_rate: float


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, and are read as plain tensors only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write a checkpoint atomically. ``storage_options`` are Lightning's, and not used."""
        del storage_options
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_atomically(Path(path), buffer.getvalue())
        except OSError as problem:
            raise ConfigError(
                f"{path}: the state could not be written ({problem.strerror})",
                expected=f"{len(buffer.getvalue()) / 1e6:.0f} MB of room beside the last one",
                then="What was kept before is whole: make room and run the same fit again.",
            ) from None

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: object = None,
        weights_only: bool | None = None,  # noqa: FBT001 - Lightning's
    ) -> dict[str, Any]:
        """Read a checkpoint into host memory; never runs code from it."""
        del map_location, weights_only
        return read_state(Path(path))


class Keeper(Callback):
    """Keeps every epoch's scores and the best epoch's parameters, and saves the state.

    It also stops a fit that has not become better for a while.
    """

    def __init__(self, state: Path, *, patience: int = 0) -> None:
        """Save to ``state`` after each epoch.

        patience: epochs without a better one before it stops, 0 for never.
        """
        self.state = state
        self._patience = patience
        self.history: list[Epoch] = []
        self.best_parameters: Parameters = {}

    @property
    def best(self) -> Epoch:
        """The epoch of the highest validation mIoU, the earliest where several reach it."""
        return max(self.history, key=lambda epoch: (epoch.miou, -epoch.epoch))

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        waited = len(self.history) - self.best.epoch if self.history else 0
        return bool(self._patience) and waited >= self._patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing more where an interrupted fit was at its end."""
        del pl_module
        trainer.should_stop = self.exhausted

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch, and save after it."""
        learner: Learner = pl_module  # type: ignore[assignment]  # ours is the only one
        self.history.append(_noted(trainer, learner))
        if self.best is self.history[-1]:
            self.best_parameters = _copied(learner.member)
        trainer.save_checkpoint(self.state, weights_only=False)
        trainer.should_stop = self.exhausted

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning puts into the checkpoint."""
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "best_parameters": self.best_parameters,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history = [Epoch(**epoch) for epoch in state_dict["history"]]
        self.best_parameters = state_dict["best_parameters"]


def read_state(path: Path) -> dict[str, Any]:
    """Read an unfinished run's state as plain tensors and values. Raises ConfigError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as problem:
        raise ConfigError(
            f"{path}: not a readable state ({_first_line(problem)})",
            then="Remove it to begin the run anew.",
        ) from None
    if not isinstance(state, dict):
        raise ConfigError(f"{path}: not a state", then="Remove it to begin the run anew.")
    return state


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def _noted(trainer: Trainer, learner: Learner) -> Epoch:
    scores = learner.scores
    if scores is None:
        message = "an epoch ended without validation"
        raise RuntimeError(message)
    return Epoch(
        epoch=trainer.current_epoch + 1,
        loss=sum(learner.losses) / len(learner.losses),
        miou=scores.miou,
        pixel_accuracy=scores.pixel_accuracy,
        iou=dict(zip(learner.class_names, scores.iou, strict=True)),
        learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
    )


def _copied(member: torch.nn.Module) -> Parameters:
    return {name: value.detach().cpu().clone() for name, value in member.state_dict().items()}
