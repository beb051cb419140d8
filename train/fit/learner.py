"""One member in training: its steps, its optimiser and what it reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torchmetrics.classification import MulticlassConfusionMatrix

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from train.evaluate.scores import Scores, score
from train.fit.losses import segmentation_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor

    from train.data.loader import Batch
    from train.fit.plan import Plan
    from train.models.architectures import Member

WEIGHT_DECAY = 0.01
WARM_UP = 0.15
"""Share of all steps in which the learning rate rises."""
PLAN = "icecam_plan"
_STEPS_PER_SEED = 1 << 32

_CRASH_CHANNELS_LAST = ("repvgg",)
"""Encoders whose backward pass kills torch 2.15 on the CPU in that format (SIGSEGV)."""


class Learner(LightningModule):
    """Trains a member as a plan says. Dropout's randomness is a function of (seed, step)."""

    def __init__(self, member: Member, plan: Plan, class_names: Sequence[str]) -> None:
        """Keep member and plan; ``class_names`` in the order of their indices."""
        super().__init__()
        self.member = member.to(memory_format=memory_format(member.encoder))
        self.plan = plan
        self.class_names = tuple(class_names)
        self.confusion = MulticlassConfusionMatrix(member.classes, ignore_index=NOT_VALID)
        self.losses: list[float] = []
        self.scores: Scores | None = None

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's losses."""
        self.losses = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch; ConfigError where it is not a finite number."""
        torch.manual_seed(self.plan.seed * _STEPS_PER_SEED + self.global_step)
        loss = segmentation_loss(self._logits(batch), batch[1].long())
        self.losses.append(loss.item())
        if not torch.isfinite(loss):
            raise ConfigError(
                f"training broke down: the loss is {loss.item()} in epoch "
                f"{self.current_epoch + 1}, batch {index + 1}",
                expected=f"a lower learning rate than {self.plan.learning_rate:g}",
                then="Start anew in another folder.",
            )
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Count a batch."""
        self.confusion.update(self._logits(batch).argmax(dim=1), batch[1].long())

    def on_validation_epoch_end(self) -> None:
        """Score what was counted."""
        self.scores = score(self.confusion.compute().cpu().numpy())
        self.confusion.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW (no decay of biases and norms) under one cycle, stepped by batch."""
        decayed = [p for p in self.member.parameters() if p.ndim > 1]
        free = [p for p in self.member.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": free, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self.plan.learning_rate,
            weight_decay=WEIGHT_DECAY,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.plan.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=WARM_UP,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _logits(self, batch: Batch) -> Tensor:
        frames = batch[0].float().contiguous(memory_format=memory_format(self.member.encoder))
        logits: Tensor = self.member(frames)
        return logits.float()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the plan beside the state, so that another plan cannot go on from it."""
        checkpoint[PLAN] = self.plan.as_plain()


def memory_format(encoder: str) -> torch.memory_format:
    """Return the layout in memory that an encoder is trained in: channels last is quicker."""
    if any(name in encoder for name in _CRASH_CHANNELS_LAST):
        return torch.contiguous_format
    return torch.channels_last
