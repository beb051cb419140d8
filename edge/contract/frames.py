"""Frames: what a camera saw, and when. One decoder for training and station."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edge.contract.errors import CameraError

if TYPE_CHECKING:
    from datetime import datetime

    from PIL import Image

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""(height, width)."""

TimeSource = Literal["exif", "name", "mtime", "clock"]
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
"""What a picture file's name ends in, in lower case."""

MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One picture of a camera.

    pixels: uint8 ``(height, width, 3)``, BGR.
    captured_at: aware UTC; ``time_source`` says where it was read.
    cursor: what the camera needs to go on after this frame (a file name), or None.
    """

    pixels: Pixels
    captured_at: datetime
    time_source: TimeSource
    cursor: str | None = None

    @property
    def size(self) -> Size:
        """(height, width)."""
        height, width = self.pixels.shape[:2]
        return height, width


def decode_image(data: bytes, *, where: str) -> Pixels:
    """Decode JPEG, PNG, TIFF, BMP or WebP bytes to uint8 ``(height, width, 3)`` BGR.

    EXIF orientation is applied; grey becomes three equal channels; 16-bit grey keeps its high byte.
    A picture that stops early is refused, never filled with grey.
    Raises CameraError (fault ``unreadable``).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - not needed to start

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _unreadable(where, f"{image.width}x{image.height} pixels", data)
                image.load()
                rgb = _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise _unreadable(where, "no known format", data) from None
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as problem:
        raise _unreadable(where, str(problem), data) from None
    return np.ascontiguousarray(rgb[:, :, ::-1])


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)
        return np.repeat(high_byte[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _unreadable(where: str, why: str, data: bytes) -> CameraError:
    return CameraError(
        f"{where}: not a readable picture ({why.strip() or 'unknown reason'}; {len(data)} bytes)",
        fault="unreadable",
        expected="a whole JPEG, PNG, TIFF, BMP or WebP file",
    )
