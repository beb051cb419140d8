"""Which pixels belong to which floe: from a dataset's own pictures, or from its masks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.contract.classes import Classes
    from train.data.dataset import Dataset, Item, Sample

FloeMap = npt.NDArray[np.int32]
"""int32 ``(height, width)``: 0 where there is no floe, otherwise a number of its own for each."""

MAX_PIXELS = 50_000_000
_GREY = 0
_DEPTHS = (8, 16)
_DEPTH_AT, _COLOUR_AT = 24, 25
"""Where a PNG's header (IHDR) says bit depth and colour type (RFC 2083, 4.1.1)."""
_EXPECTED = "an 8 or 16 bit grey PNG of one value for each floe, 0 where there is none"


def floes_of(sample: Sample, class_map: Classes, instances: FloeMap | None = None) -> FloeMap:
    """Return the floes of a sample at the size of its mask, all of them on valid pixels.

    instances: the dataset's own map, whose numbers are kept. Without one, a floe is a connected
    part of one ice class. Pixels that touch by a corner alone are apart: touching floes are
    separated by drawn gaps, and a gap of one pixel that runs at a slant has such corners.
    """
    if instances is not None:
        return np.where(sample.mask == NOT_VALID, 0, instances).astype(np.int32)
    floes = np.zeros(sample.mask.shape, np.int32)
    found = 0
    for index in class_map.indices("ice"):
        surface = (sample.mask == index).astype(np.uint8)
        count, parts = cv2.connectedComponents(surface, connectivity=4, ltype=cv2.CV_32S)
        floes += np.where(parts > 0, parts + found, 0).astype(np.int32)
        found += count - 1
    return floes


def read_instances(dataset: Dataset, item: Item) -> FloeMap | None:
    """Read an item's own picture of its floes at native size; None where the dataset has none.

    Raises ConfigError, naming the picture, where it is missing or damaged, of another kind than
    8 or 16 bit grey PNG, or of another size than the item's mask.
    """
    if item.instances is None:
        return None
    where = str(item.instances.relative_to(dataset.root))
    try:
        data = item.instances.read_bytes()
    except FileNotFoundError:
        image = item.image.relative_to(dataset.root)
        raise ConfigError(f"{image}: has no picture of its floes", expected=f"it at {where}") from (
            None
        )
    except OSError as problem:
        raise ConfigError(f"{where}: cannot be read ({problem.strerror})") from None
    floes = _decode(data, where)
    _refuse_another_size(floes, item, where)
    return floes


def _decode(data: bytes, where: str) -> FloeMap:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - not needed to start

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksums, which decoding passes over
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            depth = data[_DEPTH_AT]
            grey = data[_COLOUR_AT] == _GREY and depth in _DEPTHS
            if not grey or image.width * image.height > MAX_PIXELS:
                found = f"{image.mode} {image.width}x{image.height}, {depth}-bit"
                raise ConfigError(f"{where}: a PNG of kind {found}", expected=_EXPECTED)
            return np.array(image).astype(np.int32)
    except UnidentifiedImageError:
        raise ConfigError(f"{where}: not a readable PNG", expected=_EXPECTED) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ConfigError(f"{where}: not a readable PNG ({problem})", expected=_EXPECTED) from None


def _refuse_another_size(floes: FloeMap, item: Item, where: str) -> None:
    from PIL import Image  # noqa: PLC0415 - not needed to start

    try:
        with Image.open(item.mask) as mask:
            size = mask.height, mask.width
    except OSError:
        return  # the mask itself is refused by name where it is read
    if floes.shape != size:
        raise ConfigError(
            f"{where}: is {floes.shape[0]}x{floes.shape[1]} (height x width)",
            expected=f"its mask's {size[0]}x{size[1]}",
        )
