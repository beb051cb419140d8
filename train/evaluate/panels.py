"""Pictures for people: frame, truth and prediction side by side."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edge.contract.classes import NOT_VALID
from edge.contract.coverage import measure
from edge.contract.overlay import paint, stretch

if TYPE_CHECKING:
    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask
    from train.data.dataset import Sample

PANEL_PX = 480
STRIP_PX = 26
GAP_PX = 4
BACKGROUND = (18, 22, 28)


def render_panels(sample: Sample, prediction: Mask, class_map: Classes, *, title: str) -> bytes:
    """Return PNG bytes: the frame, the truth and the prediction painted over it, captioned.

    prediction: uint8 of any size. It is shown, and its ice counted, where the truth is valid.
    """
    frame = _reduced(sample.frame)
    height, width = frame.shape[:2]
    truth = stretch(sample.mask, height, width)
    guess = np.where(truth == NOT_VALID, NOT_VALID, stretch(prediction, height, width))
    panels = {
        title: frame,
        f"truth: {_ice(truth, class_map)}": paint(frame, truth, class_map),
        f"prediction: {_ice(guess, class_map)}": paint(frame, guess, class_map),
    }
    step = width + GAP_PX
    canvas = Image.new("RGB", (step * len(panels) - GAP_PX, height + STRIP_PX), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(STRIP_PX * 0.55)
    for column, (caption, panel) in enumerate(panels.items()):
        canvas.paste(Image.fromarray(panel[:, :, ::-1].copy()), (column * step, STRIP_PX))
        at = (column * step + GAP_PX, STRIP_PX / 2)
        draw.text(at, caption, fill="white", font=font, anchor="lm")
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    return file.getvalue()


def _reduced(frame: Pixels) -> Pixels:
    height, width = frame.shape[:2]
    if width <= PANEL_PX:
        return frame
    size = (PANEL_PX, max(1, round(height * PANEL_PX / width)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _ice(mask: Mask, class_map: Classes) -> str:
    fraction = measure(mask, class_map).ice_pixel_fraction
    return "no ice or water" if fraction is None else f"{fraction:.0%} ice"
