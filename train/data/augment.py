"""Augmentation: what weather, hour and a nudged mast do to a frame. The mask follows the frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge.contract.classes import NOT_VALID

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask

FLIPPED = 0.5
MOVED = 0.5
BLURRED = 0.1
NOISY = 0.2
SCALE = (0.9, 1.3)
TURN_DEG = 2.0
EXPOSURE = 0.2
CONTRAST = 0.15
GAMMA = 0.15
WHITE_BALANCE = 0.05
SATURATION = (0.6, 1.2)
BLUR_PX = (0.4, 1.0)
NOISE = (1.0, 5.0)

_GREY_BGR = np.array([0.114, 0.587, 0.299], np.float32)
_LEVELS = np.arange(256, dtype=np.float32) / 255


def augment(frame: Pixels, mask: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Return a changed copy of a frame uint8 ``(H, W, 3)`` BGR and its mask uint8 ``(H, W)``.

    The same ``rng`` state gives the same result. What comes in from outside the frame is mirrored
    in the frame and 255 in the mask.
    """
    frame, mask = _place(frame, mask, rng)
    frame = _light(_saturation(frame, rng), rng)
    return _sensor(frame, rng), mask


def _place(frame: Pixels, mask: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    if rng.random() < FLIPPED:
        frame, mask = frame[:, ::-1].copy(), mask[:, ::-1].copy()
    if rng.random() >= MOVED:
        return frame, mask
    height, width = mask.shape
    scale = float(np.exp(rng.uniform(*np.log(SCALE))))
    matrix = cv2.getRotationMatrix2D(
        ((width - 1) / 2, (height - 1) / 2), rng.uniform(-TURN_DEG, TURN_DEG), scale
    )
    room = abs(scale - 1) / 2
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-room, room, 2) * (width, height)
    moved = cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    labels = cv2.warpAffine(
        mask,
        matrix,
        (width, height),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=NOT_VALID,
    )
    return np.asarray(moved, np.uint8), np.asarray(labels, np.uint8)


def _saturation(frame: Pixels, rng: np.random.Generator) -> Pixels:
    amount = np.float32(rng.uniform(*SATURATION))
    mix = np.eye(3, dtype=np.float32) * amount + np.tile(_GREY_BGR, (3, 1)) * (1 - amount)
    return np.asarray(cv2.transform(frame, mix), np.uint8)


def _light(frame: Pixels, rng: np.random.Generator) -> Pixels:
    """Exposure, contrast, gamma and white balance, as one table per channel."""
    gamma = np.exp(rng.uniform(-GAMMA, GAMMA))
    gain = np.exp(rng.uniform(-EXPOSURE, EXPOSURE))
    contrast = np.exp(rng.uniform(-CONTRAST, CONTRAST))
    balance = np.exp(rng.uniform(-WHITE_BALANCE, WHITE_BALANCE, 3))
    mean = float(frame.mean()) / 255
    curve = ((_LEVELS**gamma - mean) * contrast + mean) * gain
    table = np.clip(curve[:, None] * balance * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(frame, table[None]), np.uint8)


def _sensor(frame: Pixels, rng: np.random.Generator) -> Pixels:
    if rng.random() < BLURRED:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), rng.uniform(*BLUR_PX)), np.uint8)
    if rng.random() >= NOISY:
        return frame
    noise: npt.NDArray[np.float32] = rng.standard_normal(frame.shape, np.float32)
    noisy = frame + noise * np.float32(rng.uniform(*NOISE))
    return np.asarray(np.clip(noisy + 0.5, 0, 255), np.uint8)
