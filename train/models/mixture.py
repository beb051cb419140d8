"""Probabilities of an ensemble, from members that see surfaces and members that see floes.

Only slices, sums and products of fixed shape, so that it also serves inside an exported graph.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from train.models.members import Kind

_TINY = 1e-6
"""What the rest's class gets of a non-ice share beforehand, so that none is divided by zero."""


def mix(  # noqa: PLR0913 - each is a fact of the ensemble, named at the call
    outputs: Sequence[Tensor],
    *,
    kinds: Sequence[Kind],
    weights: Sequence[float],
    temperatures: Sequence[float],
    ice: Sequence[int],
    water: Sequence[int],
    classes: int,
) -> Tensor:
    """Return the weighted mean of the members' probabilities, float32 ``[B, C, H, W]``.

    The arguments are those of ``member_probabilities``; the weights need not sum to 1.
    """
    each = member_probabilities(
        outputs,
        kinds=kinds,
        weights=weights,
        temperatures=temperatures,
        ice=ice,
        water=water,
        classes=classes,
    )
    return _weighted_mean(each, weights)


def member_probabilities(  # noqa: PLR0913 - each is a fact of the ensemble, named at the call
    outputs: Sequence[Tensor],
    *,
    kinds: Sequence[Kind],
    weights: Sequence[float],
    temperatures: Sequence[float],
    ice: Sequence[int],
    water: Sequence[int],
    classes: int,
) -> list[Tensor]:
    """Return each member's calibrated probabilities, float32 ``[B, C, H, W]``, summing to 1.

    outputs: what the members returned: of kind surfaces logits ``[B, C, H, W]``, of kind floes a
    logit for each ice class ``[B, K, H, W]``, in the order of ``ice``; weights, temperatures:
    positive, one for each member; ice, water: indices of the classes with these roles;
    classes: C.

    A member of surfaces says softmax(logits / temperature). A member of floes says
    sigmoid(logits / temperature) for ice, scaled down where that sums above 1; the rest is shared
    out in the proportions of the non-ice classes in the weighted mean of the members of surfaces.
    Where these leave nothing for non-ice, or where there are none, all of the rest is the first
    water class's (the first class that is not ice, where none is water).
    """
    rest_class = next(iter(water), None)
    if rest_class is None:
        rest_class = next(index for index in range(classes) if index not in ice)
    surfaces = {
        position: torch.softmax(outputs[position].float() / temperatures[position], dim=1)
        for position, kind in enumerate(kinds)
        if kind == "surfaces"
    }
    shares = None
    if surfaces and len(surfaces) < len(outputs):
        mean = _weighted_mean(list(surfaces.values()), [weights[position] for position in surfaces])
        shares = _non_ice_shares(mean, ice=ice, rest_class=rest_class)
    return [
        surfaces[position]
        if position in surfaces
        else _with_rest(
            ice_probabilities(output, temperatures[position]),
            shares,
            ice=ice,
            rest_class=rest_class,
            classes=classes,
        )
        for position, output in enumerate(outputs)
    ]


def ice_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the probability of each ice class, float32 ``[B, K, H, W]``, summing to at most 1."""
    each = torch.sigmoid(logits.float() / temperature)
    if each.shape[1] == 1:
        return each
    return each / each.sum(dim=1, keepdim=True).clamp(min=1)


def _weighted_mean(each: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return reduce(torch.add, (p * share for p, share in zip(each, shares, strict=True)))


def _non_ice_shares(mean: Tensor, *, ice: Sequence[int], rest_class: int) -> dict[int, Tensor]:
    """Return, for each class that is not ice, its share ``[B, 1, H, W]`` of all that is not."""
    parts = {
        index: mean[:, index : index + 1] for index in range(mean.shape[1]) if index not in ice
    }
    parts[rest_class] = parts[rest_class] + _TINY
    total = reduce(torch.add, parts.values())
    return {index: part / total for index, part in parts.items()}


def _with_rest(
    seen: Tensor,
    shares: dict[int, Tensor] | None,
    *,
    ice: Sequence[int],
    rest_class: int,
    classes: int,
) -> Tensor:
    """Return ``[B, C, H, W]`` for the ice that was seen, ``[B, K, H, W]``."""
    rest = (1 - seen.sum(dim=1, keepdim=True)).clamp(min=0)
    if shares is None:
        others = dict.fromkeys(range(classes), rest * 0) | {rest_class: rest}
    else:
        others = {index: rest * share for index, share in shares.items()}
    channels = others | {index: seen[:, channel : channel + 1] for channel, index in enumerate(ice)}
    return torch.cat([channels[index] for index in range(classes)], dim=1)
