"""Coverage: how much of what a mask shows is ice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.contract.classes import Classes, Role
    from edge.contract.masks import Mask

Region = npt.NDArray[np.bool_]
"""bool ``(height, width)``: True where a pixel is counted."""

UNDETERMINED = "99"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassShare:
    """What one class covers: pixels, and their share (0..1) of all valid pixels in the region.

    ``pixel_fraction`` is None where no pixel is valid.
    """

    name: str
    role: Role
    pixels: int
    pixel_fraction: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Coverage of one frame. Fractions are 0..1; None means not known, never 0.

    valid_pixel_fraction: valid (not 255) pixels / pixels of the region; 0 where it is empty.
    ice_pixel_fraction: ice / (ice + water) pixels inside the region; None where neither is seen.
    members: the same for each member's own mask.
    spread: weighted standard deviation of the members' fractions; None below two of them.
    """

    classes: tuple[ClassShare, ...]
    valid_pixel_fraction: float
    ice_pixel_fraction: float | None
    members: tuple[float | None, ...]
    spread: float | None


def measure(
    mask: Mask,
    class_map: Classes,
    *,
    region: Region | None = None,
    member_masks: npt.NDArray[np.uint8] | None = None,
    weights: Sequence[float] = (),
) -> Coverage:
    """Count a mask inside a region.

    mask: uint8 ``(height, width)``; region: bool of the same shape, or None for the whole frame;
    member_masks: uint8 ``(members, height, width)``; weights: one ensemble weight per member.
    Raises ValueError where shapes disagree or a value is neither a class index nor 255.
    """
    if member_masks is not None and member_masks.shape[1:] != mask.shape:
        message = f"member masks {member_masks.shape[1:]} and mask {mask.shape} differ in size"
        raise ValueError(message)
    counts = _counts(mask, class_map, region)
    in_region = mask.size if region is None else int(np.count_nonzero(region))
    valid = sum(counts)
    members = () if member_masks is None else tuple(member_masks)
    fractions = tuple(_ice_fraction(_counts(m, class_map, region), class_map) for m in members)
    return Coverage(
        classes=tuple(
            ClassShare(
                name=surface.name,
                role=surface.role,
                pixels=pixels,
                pixel_fraction=pixels / valid if valid else None,
            )
            for surface, pixels in zip(class_map.root, counts, strict=True)
        ),
        valid_pixel_fraction=valid / in_region if in_region else 0.0,
        ice_pixel_fraction=_ice_fraction(counts, class_map),
        members=fractions,
        spread=weighted_spread(fractions, weights),
    )


def weighted_spread(fractions: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Return the weighted standard deviation of the fractions that are known.

    sqrt(sum(w (x - mean)^2) / sum(w)), mean = sum(w x) / sum(w): the population form.
    None below two known fractions. Raises ValueError where there isn't one weight per fraction.
    """
    pairs = [(x, w) for x, w in zip(fractions, weights, strict=True) if x is not None]
    total = math.fsum(w for _, w in pairs)
    if len(pairs) < 2 or total <= 0:  # noqa: PLR2004 - one value has no spread
        return None
    mean = math.fsum(w * x for x, w in pairs) / total
    return math.sqrt(math.fsum(w * (x - mean) ** 2 for x, w in pairs) / total)


def concentration_tenths(fraction: float | None) -> int | None:
    """Return WMO tenths 0..10, rounded half up; below one tenth is 0 (open water)."""
    if fraction is None:
        return None
    return 0 if fraction < 0.1 else math.floor(fraction * 10 + 0.5)  # noqa: PLR2004 - one tenth


def sigrid3_ct(fraction: float | None) -> str:
    """Return the SIGRID-3 code for total concentration (CT).

    00 ice free, 01 open water (below 1/10), 10..90 tenths, 91 more than 9/10, 92 10/10,
    99 undetermined (JCOMM Technical Report 23, SIGRID-3, table 1).
    """
    tenths = concentration_tenths(fraction)
    if fraction is None or tenths is None:
        return UNDETERMINED
    if tenths == 0:
        return "00" if fraction == 0 else "01"
    if tenths == 10:  # noqa: PLR2004 - 10/10 is said only of full cover
        return "92" if fraction == 1 else "91"
    return f"{tenths}0"


def _counts(mask: Mask, class_map: Classes, region: Region | None) -> list[int]:
    if region is not None and region.shape != mask.shape:
        message = f"region {region.shape} and mask {mask.shape} differ in (height, width)"
        raise ValueError(message)
    counted = mask.ravel() if region is None else mask[region]
    counts = np.bincount(counted, minlength=256)
    strays = np.flatnonzero(counts[len(class_map) : 255])
    if strays.size:
        values = [int(stray) + len(class_map) for stray in strays]
        message = f"mask values {values} are neither one of {len(class_map)} classes nor 255"
        raise ValueError(message)
    return [int(count) for count in counts[: len(class_map)]]


def _ice_fraction(counts: Sequence[int], class_map: Classes) -> float | None:
    ice = sum(counts[index] for index in class_map.indices("ice"))
    water = sum(counts[index] for index in class_map.indices("water"))
    return ice / (ice + water) if ice + water else None
