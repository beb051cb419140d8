"""Augmentation: what weather, hour and a nudged mast do to a frame. Masks follow the frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from train.data.weather import Fog, Glare, Jpeg, LightField, MotionBlur, Searchlight, Snow, Tone

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Strength = Literal["full", "light", "none"]


class FloeMap(tv_tensors.Mask):  # type: ignore[misc]  # torchvision ships no types
    """A map of floes, int32 ``[H, W]``: what comes in from outside the frame is no floe."""


OUTSIDE = {tv_tensors.Image: 0, tv_tensors.Mask: NOT_VALID, FloeMap: 0}
"""What comes in from outside the frame."""


def strength_of(text: str) -> Strength:
    """Return the name of a preset. Raises ConfigError for any other text."""
    for strength in PRESETS:
        if text == strength:
            return strength
    raise ConfigError(f"augmentation {text!r}", expected=f"one of {', '.join(PRESETS)}")


def augmentation(strength: Strength) -> v2.Transform:
    """Return the transform of a preset. Raises ConfigError for an unknown one."""
    return PRESETS[strength_of(strength)]()


def augment(
    change: v2.Transform, frame: Tensor, mask: Tensor, floes: Tensor, *, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a frame uint8 ``[3, H, W]`` BGR, its mask uint8 and floes int32 ``[H, W]``, changed.

    The same seed (0 to 2**64 - 1) gives the same pixels; torch's generator is left as it was.
    What comes in from outside the frame is black in the frame, 255 in the mask, 0 in the floes,
    which may be empty ``[0, 0]``. The inputs are not written to.
    """
    parts = [tv_tensors.Image(frame.flip(0)), tv_tensors.Mask(mask)]
    if floes.numel():
        parts.append(FloeMap(floes))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        changed = [part.as_subclass(torch.Tensor) for part in change(*parts)]
    return changed[0].flip(0), changed[1], changed[2] if floes.numel() else floes


def _full() -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            _sometimes(
                0.75, _one_of(_affine(4.0, (0.5, 1.6)), _perspective(0.25), odds=(0.7, 0.3))
            ),
            _sometimes(0.45, _one_of(LightField(), Searchlight(), odds=(0.55, 0.45))),
            _sometimes(0.15, Glare()),
            _sometimes(0.15, Fog()),
            _sometimes(0.07, Snow()),
            _sometimes(0.12, _one_of(MotionBlur(), v2.GaussianBlur(5, (0.4, 1.6)))),
            _sometimes(0.8, v2.ColorJitter(brightness=0.4, contrast=0.3, saturation=0.5)),
            _sometimes(0.5, Tone()),
            v2.RandomGrayscale(0.15),
            _sometimes(0.3, _one_of(*(v2.GaussianNoise(sigma=s) for s in (0.01, 0.025, 0.05)))),
            _sometimes(0.15, Jpeg((25, 90))),
        ]
    )


def _light() -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            _sometimes(0.5, _affine(2.0, (0.9, 1.3))),
            v2.ColorJitter(brightness=0.2, contrast=0.15, saturation=0.3),
            _sometimes(0.5, Tone(gamma=0.15, balance=0.05)),
            _sometimes(0.05, v2.GaussianBlur(3, (0.4, 1.0))),
            _sometimes(0.15, v2.GaussianNoise(sigma=0.015)),
        ]
    )


PRESETS: dict[Strength, Callable[[], v2.Transform]] = {
    "full": _full,
    "light": _light,
    "none": v2.Identity,
}


def _sometimes(chance: float, change: v2.Transform) -> v2.Transform:
    return v2.RandomApply([change], p=chance)


def _one_of(*changes: v2.Transform, odds: tuple[float, ...] | None = None) -> v2.Transform:
    return v2.RandomChoice(list(changes), p=odds and list(odds))


def _affine(turn_deg: float, scale: tuple[float, float]) -> v2.Transform:
    return v2.RandomAffine(
        turn_deg,
        translate=(0.1, 0.1),
        scale=scale,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=OUTSIDE,
    )


def _perspective(distortion: float) -> v2.Transform:
    return v2.RandomPerspective(distortion, p=1, fill=OUTSIDE)
