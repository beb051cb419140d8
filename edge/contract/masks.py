"""Masks: uint8 ``(height, width)`` of class indices, 255 = not valid, as 8-bit grey PNGs."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt

from edge.contract.classes import NOT_VALID
from edge.contract.errors import DeliveryError, IcecamError

Mask = npt.NDArray[np.uint8]

MAX_MASK_PIXELS = 50_000_000
_BIT_DEPTH_AT = 24


def encode_png(mask: Mask) -> bytes:
    """Return the mask as an 8-bit grey PNG whose values are the class indices.

    Raises ValueError where the array is not uint8 ``(height, width)`` with at least one pixel.
    """
    from PIL import Image  # noqa: PLC0415 - not needed to start the program

    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:  # noqa: PLR2004 - two axes
        message = f"a mask is uint8 (height, width), found {mask.dtype} {mask.shape}"
        raise ValueError(message)
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG", compress_level=9)
    return file.getvalue()


def decode_png(
    data: bytes, *, where: str = "mask", error: type[IcecamError] = DeliveryError
) -> Mask:
    """Read a mask from the bytes of an 8-bit grey PNG, values untouched.

    Raises ``error`` for anything else: palettes and colours are refused, because their values
    are not class indices.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - not needed to start

    expected = "an 8-bit grey PNG of class indices"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.verify()  # the checksums, which decoding passes over
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                grey = image.mode == "L" and data[_BIT_DEPTH_AT] == 8  # noqa: PLR2004 - bits
                if not grey or image.width * image.height > MAX_MASK_PIXELS:
                    found = f"{image.mode} {image.width}x{image.height}, {data[_BIT_DEPTH_AT]}-bit"
                    raise error(f"{where}: a PNG of kind {found}", expected=expected)
                return np.array(image, dtype=np.uint8)
    except UnidentifiedImageError:
        raise error(f"{where}: not a readable PNG (another format)", expected=expected) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise error(f"{where}: not a readable PNG ({problem})", expected=expected) from None


def stray_values(mask: Mask, class_count: int) -> list[int]:
    """Return the values of a mask that are neither a class index nor 255, ascending."""
    seen = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    return [int(value) for value in seen if class_count <= value != NOT_VALID]
