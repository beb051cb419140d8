"""What training minimises: cross-entropy and Dice, over valid pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from edge.contract.classes import NOT_VALID

if TYPE_CHECKING:
    from torch import Tensor

_SMOOTH = 1.0


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return mean cross-entropy plus Dice loss, a scalar; 0 where no pixel is valid.

    logits: float32 ``[B, C, H, W]``; masks: int64 ``[B, H, W]``, 255 is ignored.
    """
    valid = (masks != NOT_VALID).sum().clamp(min=1)
    entropy = functional.cross_entropy(logits, masks, ignore_index=NOT_VALID, reduction="sum")
    return entropy / valid + dice_loss(logits, masks)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return 1 - Dice, averaged over the classes that the batch's masks hold.

    Dice = 2 |P T| / (|P| + |T|) over all valid pixels of the batch, P the softmax probabilities
    (Milletari et al. 2016, V-Net, with the sum instead of the sum of squares).
    """
    valid = masks != NOT_VALID
    truth = functional.one_hot(masks.where(valid, 0), logits.shape[1]).movedim(-1, 1)
    truth = truth.to(logits.dtype) * valid[:, None]
    guess = logits.softmax(dim=1) * valid[:, None]
    everywhere = (0, 2, 3)
    overlap = (guess * truth).sum(everywhere)
    sizes = guess.sum(everywhere) + truth.sum(everywhere)
    present = (truth.sum(everywhere) > 0).to(logits.dtype)
    dice = (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)
