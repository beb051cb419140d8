"""Members: networks that take camera bytes, from one table of architectures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from edge.contract.boundary import parse
from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge.contract.frames import Size

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""RGB, on the scale 0..255 (torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225)."""

Triple = tuple[float, float, float]
Depth = Annotated[int, Field(ge=3, le=5)]
Channels = Annotated[int, Field(gt=0)]


class Options(BaseModel):
    """The parameters of an architecture, kept in ``run.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_depth: Depth


class UnetOptions(Options):
    """``decoder_channels``: deepest first, one for each halving of the encoder."""

    encoder_depth: Depth = 5
    decoder_channels: tuple[Channels, ...] = (64, 32, 24, 16, 8)

    @model_validator(mode="after")
    def _one_for_each_halving(self) -> UnetOptions:
        if len(self.decoder_channels) != self.encoder_depth:
            message = f"expected {self.encoder_depth} decoder_channels, one per encoder_depth"
            raise ValueError(message)
        return self


class PspnetOptions(Options):
    """``psp_out_channels``: width of the pyramid's output; dropout drops whole channels of it."""

    encoder_depth: Depth = 3
    psp_out_channels: Channels = 128
    psp_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A row of the table. ``build(encoder, classes, options)`` makes the network."""

    options: type[Options]
    default_encoder: str
    build: Callable[[str, int, Any], nn.Module]


def _unet(encoder: str, classes: int, options: UnetOptions) -> nn.Module:
    from segmentation_models_pytorch import Unet  # noqa: PLC0415 - loads hundreds of encoders

    network: nn.Module = Unet(
        encoder,
        encoder_weights=None,
        encoder_depth=options.encoder_depth,
        decoder_channels=options.decoder_channels,
        classes=classes,
    )
    return network


def _pspnet(encoder: str, classes: int, options: PspnetOptions) -> nn.Module:
    from segmentation_models_pytorch import PSPNet  # noqa: PLC0415 - loads hundreds of encoders

    network: nn.Module = PSPNet(
        encoder,
        encoder_weights=None,
        encoder_depth=options.encoder_depth,
        psp_out_channels=options.psp_out_channels,
        psp_dropout=options.psp_dropout,
        upsampling=2**options.encoder_depth,
        classes=classes,
    )
    return network


ARCHITECTURES: dict[str, Architecture] = {
    "unet": Architecture(
        options=UnetOptions, default_encoder="tu-mobilenetv4_conv_small_050", build=_unet
    ),
    "pspnet": Architecture(options=PspnetOptions, default_encoder="tu-resnet10t", build=_pspnet),
}


class Member(nn.Module):
    """One network of an ensemble, from camera bytes to logits.

    Colour order and normalisation are part of it, so that training and the exported graph cannot
    disagree. ``mean`` and ``std`` are RGB on the scale 0..255; they are kept in ``run.toml``, not
    among the parameters.
    """

    mean: Tensor
    std: Tensor

    def __init__(  # noqa: PLR0913 - each is a fact of the member, named at the call
        self,
        network: nn.Module,
        *,
        architecture: str,
        encoder: str,
        options: Options,
        classes: int,
        mean: Triple,
        std: Triple,
    ) -> None:
        """Wrap a network that takes normalised RGB; use ``build_member``."""
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.encoder = encoder
        self.options = options
        self.classes = classes
        self.normalisation = (mean, std)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits float32 ``[B, C, H, W]`` for BGR frames float32 ``[B, 3, H, W]``, 0..255.

        Raises ConfigError where H or W is not a multiple of ``size_multiple``.
        """
        self.check_size((frames.shape[-2], frames.shape[-1]))
        blue, green, red = torch.split(frames, 1, dim=1)
        rgb = torch.cat((red, green, blue), dim=1)
        logits: Tensor = self.network((rgb - self.mean) / self.std)
        return logits

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of: the encoder's halvings."""
        return int(2**self.options.encoder_depth)

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


def build_member(
    architecture: str,
    encoder: str = "",
    *,
    classes: int,
    options: Mapping[str, Any] | None = None,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Member:
    """Make a member with random parameters (torch's global seed); no encoder: the usual one.

    Raises ConfigError for an architecture, an option or an encoder that is not known.
    """
    chosen, settings = settle(architecture, encoder, options)
    try:
        network = ARCHITECTURES[architecture].build(chosen, classes, settings)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"encoder {chosen!r} is refused for {architecture}: {_first_words(problem)}",
            expected="an encoder of segmentation-models-pytorch, or tu- and the name of a timm "
            "model that yields features at every halving",
        ) from None
    return Member(
        network,
        architecture=architecture,
        encoder=chosen,
        options=settings,
        classes=classes,
        mean=mean,
        std=std,
    )


def settle(
    architecture: str, encoder: str = "", options: Mapping[str, Any] | None = None
) -> tuple[str, Options]:
    """Return encoder and options with nothing left open: the usual ones where none are named.

    Raises ConfigError for an unknown architecture, an unknown option or a wrong value.
    """
    row = ARCHITECTURES.get(architecture)
    if row is None:
        raise ConfigError(
            f"unknown architecture {architecture!r}", expected=f"one of {', '.join(ARCHITECTURES)}"
        )
    settings = parse(row.options, dict(options or {}), where=f"options of {architecture}")
    return encoder or row.default_encoder, settings


def _first_words(problem: Exception) -> str:
    text = str(problem.args[0]) if problem.args else type(problem).__name__
    return text.split(", supported encoders", maxsplit=1)[0].splitlines()[0]
