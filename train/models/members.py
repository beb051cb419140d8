"""What every member of an ensemble is: a network that takes camera bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.contract.frames import Size

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (123.675, 116.28, 103.53)
IMAGENET_STD: Triple = (58.395, 57.12, 57.375)
"""RGB, on the scale 0..255 (torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225)."""

Kind = Literal["surfaces", "floes"]
"""What a member's output says: every class of each pixel, or ice alone, by its floes."""

Depth = Annotated[int, Field(ge=3, le=5)]
Channels = Annotated[int, Field(gt=0)]


class Options(BaseModel):
    """The parameters of an architecture, kept in ``run.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberFacts:
    """What a member is built from; all of it can be had from ``run.toml``.

    classes: how many; ice, water: the indices of those with that role, which a member of floes
    needs; mean, std: RGB on the scale 0..255.
    """

    architecture: str
    encoder: str
    options: Options
    classes: int
    ice: tuple[int, ...]
    water: tuple[int, ...]
    mean: Triple
    std: Triple


class Member(nn.Module, ABC):
    """One network of an ensemble, from camera bytes on: BGR float32 ``[B, 3, H, W]``, 0..255.

    Colour order and normalisation are part of it, so that training and the exported graph cannot
    disagree. ``mean`` and ``std`` are RGB on the scale 0..255; they are kept in ``run.toml``, not
    among the parameters.
    """

    kind: ClassVar[Kind]
    mean: Tensor
    std: Tensor

    def __init__(self, facts: MemberFacts, *, size_multiple: int) -> None:
        """Keep the facts; size_multiple: what height and width must be multiples of."""
        super().__init__()
        self.architecture = facts.architecture
        self.encoder = facts.encoder
        self.options = facts.options
        self.classes = facts.classes
        self.size_multiple = size_multiple
        self.normalisation = (facts.mean, facts.std)
        for name, triple in (("mean", facts.mean), ("std", facts.std)):
            self.register_buffer(name, torch.tensor(triple).reshape(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def decide(self, frames: Tensor) -> Tensor:
        """Return the member's own class of each pixel, int64 ``[B, H, W]``, for such frames."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return ``encoder``, ``decoder`` and ``head``: together, all of the parameters."""

    def normalised(self, frames: Tensor) -> Tensor:
        """Return RGB float32 ``[B, 3, H, W]``, mean 0 and deviation 1 where the facts hold."""
        blue, green, red = torch.split(frames, 1, dim=1)
        return (torch.cat((red, green, blue), dim=1) - self.mean) / self.std

    @property
    def parameter_count(self) -> int:
        """How many numbers training can change."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_size(self, size: Size) -> None:
        """Raise ConfigError where this member cannot take frames of (height, width)."""
        if any(side <= 0 or side % self.size_multiple for side in size):
            raise ConfigError(
                f"{self.architecture} on frames of {size[0]}x{size[1]} (height x width)",
                expected=f"multiples of {self.size_multiple}",
            )
