"""Which images train, which validate, which test: split by group, never by frame."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edge.contract.errors import ConfigError
from train.data.dataset import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.data.dataset import Dataset, Split

VALIDATION_SHARE = 0.25


def hold_out(
    dataset: Dataset, group: str, *, validation_share: float = VALIDATION_SHARE
) -> Dataset:
    """Return the dataset split anew: ``group`` is for testing, the rest for fitting.

    Of each other group, every image in turn that makes up ``validation_share`` (0..1) goes to
    validation, evenly spread over the names; at least one, and never all of them together.
    Raises ConfigError for a group that no image has, or where it is the only one.
    """
    if not 0 < validation_share < 1:
        raise ConfigError(
            f"a validation share of {validation_share}", expected="more than 0, less than 1"
        )
    groups = groups_of(dataset)
    if group not in groups or len(groups) == 1:
        others = "" if group not in groups else " and at least one other"
        raise ConfigError(
            f"{dataset.source}: cannot hold out {group!r}; the groups are {listed(groups)}",
            expected=f"one of them{others}",
        )
    return _split_anew(dataset, {group: "test"}, validation_share)


def keep_all(dataset: Dataset, *, validation_share: float = VALIDATION_SHARE) -> Dataset:
    """Return the dataset with nothing held back for testing: as ``hold_out``, of every group."""
    return _split_anew(dataset, {}, validation_share)


def groups_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the groups of a dataset, in order."""
    return tuple(sorted({item.group for item in dataset.items if item.group is not None}))


def _split_anew(dataset: Dataset, held_back: dict[str, Split], share: float) -> Dataset:
    splits: dict[str, Split] = {}
    for group in groups_of(dataset):
        members = [item.stem for item in dataset.items if item.group == group]
        split = held_back.get(group, "train")
        splits |= dict.fromkeys(members, split)
        if split == "train":
            splits |= dict.fromkeys(_spread(members, share), "validation")
    items = tuple(replace(item, split=splits.get(item.stem)) for item in dataset.items)
    return replace(dataset, items=items, held_back=held_back)


def _spread(stems: Sequence[str], share: float) -> list[str]:
    """Return a share of the stems, at least one, evenly spread and away from both ends."""
    count = max(1, round(len(stems) * share))
    step = len(stems) / count
    return [stems[int((position + 0.5) * step)] for position in range(count)]
