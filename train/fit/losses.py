"""What training minimises: cross-entropy and Dice, over valid pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional

from edge.contract.classes import NOT_VALID

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

MOST_BALANCE = 10.0
_SMOOTH = 1.0


def segmentation_loss(logits: Tensor, masks: Tensor, balance: Tensor | None = None) -> Tensor:
    """Return mean cross-entropy plus Dice loss, a scalar; 0 where no pixel is valid.

    logits: float32 ``[B, C, H, W]``; masks: int64 ``[B, H, W]``, 255 is ignored; balance: float32
    ``[C]``, how much a pixel of each class counts in the cross-entropy, the same for all if None.
    """
    entropy = functional.cross_entropy(
        logits, masks, weight=balance, ignore_index=NOT_VALID, reduction="sum"
    )
    return entropy / _counted(masks, balance).clamp(min=1e-6) + dice_loss(logits, masks)


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


def median_balance(pixels: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Return float32 ``(C,)``: median share / share of each class, at most ``MOST_BALANCE``.

    pixels: how many training pixels each class has, ``(C,)``. Median frequency balancing (Eigen
    and Fergus 2015, arXiv 1411.4734), with shares over all images together.
    """
    shares = pixels / max(1, pixels.sum())
    seen = shares > 0
    factors = np.full(len(pixels), MOST_BALANCE)
    factors[seen] = np.median(shares[seen]) / shares[seen]
    return factors.clip(max=MOST_BALANCE).astype(np.float32)


def _counted(masks: Tensor, balance: Tensor | None) -> Tensor:
    valid = masks != NOT_VALID
    if balance is None:
        return valid.sum()
    return (balance[masks.where(valid, 0)] * valid).sum()
