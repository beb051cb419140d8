"""Overlays: a frame with its mask painted over it, for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.classes import NOT_VALID

if TYPE_CHECKING:
    from edge.contract.classes import Classes, Language
    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask

TINT = 0.45
_DIMMED = 0.35


def paint(frame: Pixels, mask: Mask, class_map: Classes) -> Pixels:
    """Tint ice and water in their classes' colours, outline them, and dim what is not valid.

    frame: uint8 ``(height, width, 3)`` BGR; mask: uint8 of any size, stretched to the frame's by
    nearest neighbour. Classes of role ``other`` stay as they are. Returns a new frame.
    """
    fitted = stretch(mask, frame.shape[0], frame.shape[1])
    colours = np.zeros((256, 3), np.float32)
    strength = np.zeros((256, 1), np.float32)
    for surface in class_map.root:
        colours[surface.index] = surface.colour[::-1]
        strength[surface.index] = 0 if surface.role == "other" else TINT
    strength[NOT_VALID] = 1 - _DIMMED
    alpha = strength[fitted]
    painted = frame * (1 - alpha) + colours[fitted] * alpha
    edges = _edges(fitted)
    painted[edges] = painted[edges] * _DIMMED
    return painted.astype(np.uint8)


def stretch(mask: Mask, height: int, width: int) -> Mask:
    """Return the mask at another size: each pixel takes the value under its centre."""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
    stretched: Mask = mask[rows[:, None], columns[None, :]]
    return stretched


def render_png(
    frame: Pixels, mask: Mask, class_map: Classes, *, title: str, language: Language = "en"
) -> bytes:
    """Return the painted frame under a strip with the title and a legend, as PNG bytes."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - not needed to start the program

    height, width = frame.shape[:2]
    strip = max(20, height // 18)
    canvas = Image.new("RGB", (width, height + strip), (18, 22, 28))
    canvas.paste(Image.fromarray(paint(frame, mask, class_map)[:, :, ::-1].copy()), (0, strip))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(strip * 0.55)
    draw.text((strip * 0.4, strip / 2), title, fill="white", font=font, anchor="lm")
    right = width - strip * 0.4
    for surface in reversed([s for s in class_map.root if s.role != "other"]):
        draw.text((right, strip / 2), surface.label(language), fill="white", font=font, anchor="rm")
        right -= draw.textlength(surface.label(language), font=font) + strip * 0.3
        box = (right - strip * 0.5, strip * 0.25, right, strip * 0.75)
        draw.rectangle(box, fill=surface.colour)
        right = box[0] - strip * 0.6
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    return file.getvalue()


def _edges(mask: Mask) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    edges = np.zeros(mask.shape, np.bool_)
    edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edges[1:, :] |= mask[1:, :] != mask[:-1, :]
    return edges
