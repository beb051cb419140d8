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
from train.models.maskrcnn import InstanceMember

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor

    from train.data.loader import Batch
    from train.fit.plan import Plan
    from train.models.members import Member

WEIGHT_DECAY = 0.01
WARM_UP = 0.15
"""Share of all steps in which the learning rate rises."""
PLAN = "icecam_plan"
_STEPS_PER_SEED = 1 << 32

_CRASH_CHANNELS_LAST = ("repvgg",)
"""Encoders whose backward pass kills torch 2.15 on the CPU in that format (SIGSEGV)."""


class Learner(LightningModule):
    """Trains a member as a plan says. Dropout's randomness is a function of (seed, step)."""

    balance: Tensor | None

    def __init__(
        self,
        member: Member,
        plan: Plan,
        class_names: Sequence[str],
        *,
        balance: Tensor | None = None,
    ) -> None:
        """Keep member and plan.

        class_names: in the order of their indices; balance: float32 ``[C]``, how much a pixel of
        each class counts.
        """
        super().__init__()
        self.member = member.to(memory_format=memory_format(member.encoder))
        self.plan = plan
        self.class_names = tuple(class_names)
        self.confusion = MulticlassConfusionMatrix(member.classes, ignore_index=NOT_VALID)
        self.losses: list[float] = []
        self.scores: Scores | None = None
        self.register_buffer("balance", balance, persistent=False)
        self._frozen = [member.parts()[part] for part in plan.settings.frozen]
        for part in self._frozen:
            part.requires_grad_(requires_grad=False)

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's losses; what is frozen does not even count its batches."""
        self.losses = []
        for part in self._frozen:
            part.eval()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch; ConfigError where it is not a finite number."""
        torch.manual_seed(self.plan.settings.seed * _STEPS_PER_SEED + self.global_step)
        loss = self._loss(batch)
        self.losses.append(loss.item())
        if not torch.isfinite(loss):
            raise ConfigError(
                f"training broke down: the loss is {loss.item()} in epoch "
                f"{self.current_epoch + 1}, batch {index + 1}",
                expected=f"a lower learning rate than {self.plan.settings.learning_rate:g}",
                then="Start anew in another folder.",
            )
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Count a batch."""
        self.confusion.update(self.member.decide(self._pixels(batch)), batch.masks.long())

    def on_validation_epoch_end(self) -> None:
        """Score what was counted."""
        self.scores = score(self.confusion.compute().cpu().numpy())
        self.confusion.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW (no decay of biases and norms) under one cycle, stepped by batch."""
        learnt = [p for p in self.member.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learnt if p.ndim > 1]},
            {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self.plan.settings.learning_rate,
            weight_decay=WEIGHT_DECAY,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.plan.settings.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=WARM_UP,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: Batch) -> Tensor:
        frames = self._pixels(batch)
        if isinstance(self.member, InstanceMember):
            return self.member.loss(frames, batch.masks, batch.floes)
        return segmentation_loss(self.member(frames).float(), batch.masks.long(), self.balance)

    def _pixels(self, batch: Batch) -> Tensor:
        return batch.frames.float().contiguous(memory_format=memory_format(self.member.encoder))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the plan beside the state, so that another plan cannot go on from it."""
        checkpoint[PLAN] = self.plan.as_plain()


def memory_format(encoder: str) -> torch.memory_format:
    """Return the layout in memory that an encoder is trained in: channels last is quicker."""
    if any(name in encoder for name in _CRASH_CHANNELS_LAST):
        return torch.contiguous_format
    return torch.channels_last
