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

    Of the rest, ``validation_share`` (0..1) goes to validation, evenly spread over their names; at
    least one image, and never the last that trains.
    Raises ConfigError for a group that no image has, or where it is the only one.
    """
    groups = groups_of(dataset)
    if group not in groups or len(groups) == 1:
        others = "" if group not in groups else " and at least one other"
        raise ConfigError(
            f"{dataset.source}: cannot hold out {group!r}; the groups are {listed(groups)}",
            expected=f"one of them{others}",
        )
    return _split_anew(dataset, {group: "test"}, validation_share)


def keep_all(dataset: Dataset, *, validation_share: float = VALIDATION_SHARE) -> Dataset:
    """Return the dataset with nothing held back for testing: else as ``hold_out``."""
    return _split_anew(dataset, {}, validation_share)


def groups_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the groups of a dataset, in order."""
    return tuple(sorted({item.group for item in dataset.items if item.group is not None}))


def _split_anew(dataset: Dataset, held_back: dict[str, Split], share: float) -> Dataset:
    if not 0 < share < 1:
        raise ConfigError(f"a validation share of {share}", expected="more than 0, less than 1")
    grouped = [item for item in dataset.items if item.group is not None]
    splits: dict[str, Split] = {
        item.stem: held_back.get(item.group or "", "train") for item in grouped
    }
    rest = [stem for stem, split in splits.items() if split == "train"]
    splits |= dict.fromkeys(_spread(rest, share), "validation")
    items = tuple(replace(item, split=splits.get(item.stem)) for item in dataset.items)
    return replace(dataset, items=items, held_back=held_back)


def _spread(stems: Sequence[str], share: float) -> list[str]:
    """Return a share of the stems, at least one but not all, away from both ends."""
    count = min(max(1, round(len(stems) * share)), len(stems) - 1)
    return [stems[int((position + 0.5) * len(stems) / count)] for position in range(count)]
