"""The one table of architectures, and members built from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edge.contract.boundary import parse
from edge.contract.errors import ConfigError
from train.models.maskrcnn import InstanceMember, MaskRcnnOptions
from train.models.members import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Kind,
    Member,
    MemberFacts,
    Options,
    Triple,
)
from train.models.pretrained import TIMM
from train.models.semantic import (
    DeeplabOptions,
    PspnetOptions,
    UnetOptions,
    UpernetOptions,
    deeplabv3plus,
    pspnet,
    semantic,
    unet,
    upernet,
    without_norms_of_one,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge.contract.classes import Classes

__all__ = [
    "ARCHITECTURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Architecture",
    "Member",
    "MemberFacts",
    "Options",
    "Triple",
    "build_member",
    "same_outputs",
    "settle",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A row of the table. ``build(facts)`` makes the member with random parameters.

    family: how an encoder's name must begin, after any ``tu-``.
    """

    kind: Kind
    options: type[Options]
    default_encoder: str
    build: Callable[[MemberFacts], Member]
    family: str = ""


ARCHITECTURES: dict[str, Architecture] = {
    "unet": Architecture(
        kind="surfaces",
        options=UnetOptions,
        default_encoder="tu-mobilenetv4_conv_small_050",
        build=partial(semantic, unet),
    ),
    "pspnet": Architecture(
        kind="surfaces",
        options=PspnetOptions,
        default_encoder="tu-resnet10t",
        build=partial(semantic, pspnet),
    ),
    "psp-densenet": Architecture(
        kind="surfaces",
        options=PspnetOptions,
        default_encoder="densenet121",
        build=partial(semantic, pspnet),
        family="densenet",
    ),
    "deeplabv3plus": Architecture(
        kind="surfaces",
        options=DeeplabOptions,
        default_encoder="tu-mobilenetv4_conv_small_050",
        build=partial(semantic, deeplabv3plus, mend=without_norms_of_one),
    ),
    "upernet": Architecture(
        kind="surfaces",
        options=UpernetOptions,
        default_encoder="tu-resnet10t",
        build=partial(semantic, upernet, mend=without_norms_of_one),
    ),
    "maskrcnn": Architecture(
        kind="floes",
        options=MaskRcnnOptions,
        default_encoder="resnet18",
        build=InstanceMember,
    ),
}


def build_member(
    architecture: str,
    encoder: str = "",
    *,
    class_map: Classes,
    options: Mapping[str, Any] | None = None,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Member:
    """Make a member with random parameters (torch's global seed); no encoder: the usual one.

    Raises ConfigError for an architecture, an option or an encoder that is not known, and for an
    encoder that the architecture cannot take.
    """
    chosen, settings = settle(architecture, encoder, options)
    row = ARCHITECTURES[architecture]
    ice, water = (class_map.indices(role) for role in ("ice", "water"))
    if row.kind == "floes" and not ice:
        raise ConfigError(
            f"{architecture} for classes none of which is ice",
            expected="at least one class with the role ice",
        )
    facts = MemberFacts(
        architecture=architecture,
        encoder=chosen,
        options=settings,
        classes=len(class_map),
        ice=ice,
        water=water,
        mean=mean,
        std=std,
    )
    return row.build(facts)


def settle(
    architecture: str, encoder: str = "", options: Mapping[str, Any] | None = None
) -> tuple[str, Options]:
    """Return encoder and options with nothing left open: the usual ones where none are named.

    Raises ConfigError for an unknown architecture, an unknown option or a wrong value, and an
    encoder of another family than the architecture's.
    """
    row = ARCHITECTURES.get(architecture)
    if row is None:
        raise ConfigError(
            f"unknown architecture {architecture!r}", expected=f"one of {', '.join(ARCHITECTURES)}"
        )
    chosen = encoder or row.default_encoder
    if not chosen.removeprefix(TIMM).startswith(row.family):
        raise ConfigError(
            f"{architecture} with encoder {chosen!r}",
            expected=f"an encoder whose name begins with {row.family}, such as "
            f"{row.default_encoder}",
        )
    settings = parse(row.options, dict(options or {}), where=f"options of {architecture}")
    return chosen, settings


def same_outputs(kind: Kind, before: Classes, now: Classes) -> bool:
    """Tell whether each output means the same to a member for the one classes and the other.

    Surfaces: every class counts, in order. Floes: the names of the ice classes, in order.
    """
    if kind == "surfaces":
        return before.signature == now.signature
    return _ice_names(before) == _ice_names(now)


def _ice_names(classes: Classes) -> list[str]:
    return [classes.names[index] for index in classes.indices("ice")]
