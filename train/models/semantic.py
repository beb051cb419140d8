"""Semantic members: segmentation-models-pytorch's decoders over any of its encoders."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edge.contract.errors import ConfigError
from train.models.members import Channels, Depth, Kind, Member, MemberFacts, Options
from train.models.pretrained import TIMM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.contract.frames import Size

REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What segmentation-models-pytorch and timm raise for combinations that they cannot build."""
_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")

Dropout = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[int, Field(gt=0)]

_MULTIPLES = (1, 2, 4, 7, 8)
# In halvings: the windows of Swin, MaxViT and their kin are 7 or 8 cells wide.
_BASE = 64
_LISTS = (
    "a name of segmentation_models_pytorch.encoders.get_encoder_names(), or tu- and a name of "
    "timm.list_models()"
)


class EncoderOptions(Options):
    """``encoder_depth``: how often the encoder halves the picture."""

    encoder_depth: Depth

    @property
    def coarsest(self) -> int:
        """How many pixels of the frame one cell of the encoder's last map is wide."""
        return int(2**self.encoder_depth)


class UnetOptions(EncoderOptions):
    """``decoder_channels``: deepest first, one for each halving of the encoder."""

    encoder_depth: Depth = 5
    decoder_channels: tuple[Channels, ...] = (64, 32, 24, 16, 8)

    @model_validator(mode="after")
    def _one_for_each_halving(self) -> UnetOptions:
        if len(self.decoder_channels) != self.encoder_depth:
            message = f"expected {self.encoder_depth} decoder_channels, one per encoder_depth"
            raise ValueError(message)
        return self


class PspnetOptions(EncoderOptions):
    """``psp_out_channels``: width of the pyramid's output; dropout drops whole channels of it."""

    encoder_depth: Depth = 3
    psp_out_channels: Channels = 128
    psp_dropout: Dropout = 0.1


class DeeplabOptions(EncoderOptions):
    """``encoder_output_stride``: where the encoder stops halving and dilates instead.

    ``decoder_atrous_rates``: the three dilations of the spatial pyramid, in cells of its map.
    """

    encoder_depth: Depth = 5
    encoder_output_stride: Literal[8, 16] = 16
    decoder_channels: Channels = 64
    decoder_atrous_rates: tuple[Rate, Rate, Rate] = (6, 12, 18)
    decoder_aspp_dropout: Dropout = 0.1

    @property
    def coarsest(self) -> int:
        """How many pixels of the frame one cell of the encoder's last map is wide."""
        return int(min(self.encoder_output_stride, 2**self.encoder_depth))


class UpernetOptions(EncoderOptions):
    """``decoder_channels``: width of every level of the feature pyramid."""

    encoder_depth: Depth = 4
    decoder_channels: Channels = 48


def unet(encoder: str, classes: int, options: UnetOptions) -> nn.Module:
    """Build U-Net (arXiv 1505.04597)."""
    from segmentation_models_pytorch import Unet  # noqa: PLC0415 - loads hundreds of encoders

    network: nn.Module = Unet(
        encoder, encoder_weights=None, classes=classes, **options.model_dump()
    )
    return network


def pspnet(encoder: str, classes: int, options: PspnetOptions) -> nn.Module:
    """Build PSPNet (arXiv 1612.01105)."""
    from segmentation_models_pytorch import PSPNet  # noqa: PLC0415 - loads hundreds of encoders

    network: nn.Module = PSPNet(
        encoder,
        encoder_weights=None,
        upsampling=options.coarsest,
        classes=classes,
        **options.model_dump(),
    )
    return network


def deeplabv3plus(encoder: str, classes: int, options: DeeplabOptions) -> nn.Module:
    """Build DeepLabV3+ (arXiv 1802.02611)."""
    from segmentation_models_pytorch import (  # noqa: PLC0415 - loads hundreds of encoders
        DeepLabV3Plus,
    )

    network: nn.Module = DeepLabV3Plus(
        encoder, encoder_weights=None, classes=classes, **options.model_dump()
    )
    return network


def upernet(encoder: str, classes: int, options: UpernetOptions) -> nn.Module:
    """Build UPerNet (arXiv 1807.10221)."""
    from segmentation_models_pytorch import UPerNet  # noqa: PLC0415 - loads hundreds of encoders

    network: nn.Module = UPerNet(
        encoder, encoder_weights=None, classes=classes, **options.model_dump()
    )
    return network


class SemanticMember(Member):
    """A member that says for each pixel which class it is."""

    kind: ClassVar[Kind] = "surfaces"

    def __init__(self, network: nn.Module, facts: MemberFacts, *, size_multiple: int) -> None:
        """Wrap a network that takes normalised RGB; use ``build_member``."""
        super().__init__(facts, size_multiple=size_multiple)
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits float32 ``[B, C, H, W]`` for BGR frames float32 ``[B, 3, H, W]``, 0..255.

        Raises ConfigError where H or W is not a multiple of ``size_multiple``.
        """
        self.check_size((frames.shape[-2], frames.shape[-1]))
        logits: Tensor = self.network(self.normalised(frames))
        return logits

    def decide(self, frames: Tensor) -> Tensor:
        """Return the likeliest class of each pixel, int64 ``[B, H, W]``."""
        return self(frames).argmax(dim=1)  # type: ignore[no-any-return]

    def parts(self) -> dict[str, nn.Module]:
        """Return ``encoder``, ``decoder`` and ``head``: together, all of the parameters."""
        return {
            "encoder": self.network.get_submodule("encoder"),
            "decoder": self.network.get_submodule("decoder"),
            "head": self.network.get_submodule("segmentation_head"),
        }


def semantic(
    build: Callable[[str, int, Any], nn.Module],
    facts: MemberFacts,
    *,
    mend: Callable[[nn.Module], nn.Module] | None = None,
) -> SemanticMember:
    """Build a semantic member with random parameters, proven on a small black frame.

    mend: what the library's network needs before it is proven. Raises ConfigError for an encoder
    that is unknown or that the architecture cannot take, with the library's own reason.
    """
    check_encoder(facts.encoder)
    with torch.inference_mode(mode=False), torch.enable_grad():
        with _named_refusals(facts):
            network = build(facts.encoder, facts.classes, facts.options)
        network = (mend(network) if mend else network).eval()
        if not facts.encoder.startswith(TIMM):
            _drop_unused(network, _running(network, facts))
    multiple = _proven_multiple(network, facts)
    return SemanticMember(network.train(), facts, size_multiple=multiple)


@contextmanager
def _named_refusals(facts: MemberFacts) -> Iterator[None]:
    """Turn what the library raises inside into a ConfigError, all but a want of memory."""
    try:
        yield
    except REFUSALS as problem:
        if _lacks_memory(problem):
            raise
        raise ConfigError(
            f"encoder {facts.encoder!r} is refused for {facts.architecture}: {_reason(problem)}",
            expected="an encoder that yields features at every halving, at any size",
        ) from problem


def _lacks_memory(problem: Exception) -> bool:
    return isinstance(problem, torch.OutOfMemoryError) or (
        isinstance(problem, RuntimeError) and any(words in str(problem) for words in _NO_MEMORY)
    )


def check_encoder(encoder: str) -> None:
    """Raise ConfigError for a name that neither library knows, with the nearest that they do."""
    import timm  # noqa: PLC0415 - it comes with the encoders
    from segmentation_models_pytorch.encoders import encoders  # noqa: PLC0415 - the same

    timm_name = encoder.removeprefix(TIMM)
    if encoder in encoders or (timm_name != encoder and timm.is_model(timm_name)):
        return
    known = [*encoders, *(TIMM + name for name in timm.list_models())]
    near = difflib.get_close_matches(encoder, known, n=3)
    if TIMM + encoder in known:
        near = [TIMM + encoder, *near][:3]
    raise ConfigError(
        f"unknown encoder {encoder!r}" + (f" (near: {', '.join(near)})" if near else ""),
        expected=_LISTS,
    )


def _proven_multiple(network: nn.Module, facts: MemberFacts) -> int:
    """Return the least multiple of the coarsest cell that the network takes.

    Some encoders cut their maps into windows and need more than the halvings say. Raises
    ConfigError, with the library's reason at the least of them, where it takes none.
    """
    coarsest = cast("EncoderOptions", facts.options).coarsest
    refusals: list[ConfigError] = []
    for factor in _MULTIPLES:
        multiple = coarsest * factor
        try:
            _require_logits(network, facts, (2 * multiple, 3 * multiple))
        except ConfigError as problem:
            refusals.append(problem)
        else:
            return int(multiple)
    raise refusals[0]


def _require_logits(network: nn.Module, facts: MemberFacts, size: Size) -> None:
    with _named_refusals(facts), torch.inference_mode():
        found = tuple(network(torch.zeros(1, 3, *size)).shape)
        if found != (1, facts.classes, *size):
            message = f"logits {found} for a frame of {size[0]}x{size[1]}"
            raise ValueError(message)


def _running(network: nn.Module, facts: MemberFacts) -> set[nn.Module]:
    """Return the modules that run on a small black frame, and leave the parameters' gradients."""
    ran: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: ran.add(module))
        for module in network.modules()
    ]
    with _named_refusals(facts):
        network(torch.zeros(1, 3, _BASE, _BASE)).sum().backward()
    for hook in hooks:
        hook.remove()
    return ran


def _drop_unused(network: nn.Module, ran: set[nn.Module]) -> None:
    """Replace, in place, modules that never run and whose parameters no logit depends on.

    An encoder that is cut short keeps its deeper stages otherwise, in every file and every count.
    """
    used = {one for one in network.parameters() if one.grad is not None}
    network.zero_grad(set_to_none=True)
    for name, module in list(network.named_modules()):
        own = set(module.parameters())
        if name and own and not own & used and not ran & set(module.modules()):
            network.set_submodule(name, nn.Identity())


def without_norms_of_one(network: nn.Module) -> nn.Module:
    """Take batch norms off branches that pool a whole map to one cell, in place.

    Over a batch of one such a norm has a single value per channel, which torch refuses in training;
    segmentation-models-pytorch does the same in its PSPNet.
    """
    for name, block in list(network.named_modules()):
        if isinstance(block, nn.Sequential) and _pools_to_one(block[0]):
            for inner, module in list(block.named_modules()):
                if isinstance(module, nn.BatchNorm2d):
                    network.set_submodule(f"{name}.{inner}", nn.Identity())
    return network


def _pools_to_one(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in {1, (1, 1)}


def _reason(problem: Exception) -> str:
    text = str(problem.args[0]) if problem.args else type(problem).__name__
    return text.strip().splitlines()[0] if text.strip() else type(problem).__name__
