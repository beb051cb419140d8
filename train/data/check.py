"""Everything that is wrong with a dataset, found at once and before hours are spent."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from train.data.dataset import disagreements, listed, read_frame, read_values
from train.data.floes import read_instances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from edge.contract.frames import Pixels
    from train.data.dataset import Dataset, Item, Progress, Split

    Counts = dict[str, npt.NDArray[np.int64]]
    """Pixels of each class, int64 ``(C,)``, by the image's name."""

FITTING: tuple[Split, ...] = ("train", "validation")
_MOST_SHOWN = 100


def check_layout(dataset: Dataset, *, needed: Sequence[Split] = FITTING) -> None:
    """Refuse a dataset whose names and groups are wrong, without opening a picture."""
    _refuse(dataset, list(_layout_defects(dataset, needed)))


def check(
    dataset: Dataset,
    *,
    needed: Sequence[Split] = FITTING,
    fits: Callable[[Pixels], object] | None = None,
    progress: Progress | None = None,
) -> Counts:
    """Open everything and raise one ConfigError that lists all that is wrong.

    Returns how many pixels of each class every mask holds.

    needed: the splits that may not be empty, nor without a valid pixel. Where "train" is among
    them, every class must occur in a training mask. fits: called with every frame; the ConfigError
    it raises is a defect too.
    """
    defects = list(_layout_defects(dataset, needed))
    counts: Counts = {}
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda item: _look_at(dataset, item, fits), dataset.items)
        for done, (item, look) in enumerate(zip(dataset.items, looks, strict=True), 1):
            defects += look.defects
            counts[item.stem] = look.pixels
            if progress:
                progress(done, len(dataset.items))
    _refuse(dataset, [*defects, *_count_defects(dataset, counts, needed)])
    return counts


def check_split(dataset: Dataset, counts: Counts, *, needed: Sequence[Split] = FITTING) -> None:
    """Refuse a split of images that ``check`` has counted, without opening any again."""
    defects = [*_layout_defects(dataset, needed), *_count_defects(dataset, counts, needed)]
    _refuse(dataset, defects)


def pixels_of(dataset: Dataset, counts: Counts, split: Split) -> npt.NDArray[np.int64]:
    """Return how many pixels of each class the masks of a split hold, int64 ``(C,)``."""
    nothing = np.zeros(len(dataset.class_map), np.int64)
    return sum((counts[item.stem] for item in dataset.of(split)), nothing)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """What one image and its mask showed. pixels: of each class, int64 ``(C,)``."""

    defects: tuple[str, ...]
    pixels: npt.NDArray[np.int64]


def _look_at(dataset: Dataset, item: Item, fits: Callable[[Pixels], object] | None) -> _Look:
    defects: list[str] = []
    frame = values = None
    try:
        frame = read_frame(dataset, item)
    except ConfigError as problem:
        defects.append(str(problem))
    if frame is not None and fits:
        defects += _unfitting(dataset, item, frame, fits)
    try:
        values = read_values(dataset, item)
    except ConfigError as problem:
        defects.append(str(problem))
    pixels = np.zeros(len(dataset.class_map), np.int64)
    if values is not None:
        pixels += np.bincount(dataset.lookup[values].ravel(), minlength=256)[: len(pixels)]
        defects += disagreements(dataset, item, frame, values)
    try:
        read_instances(dataset, item)
    except ConfigError as problem:
        defects.append(str(problem))
    return _Look(defects=tuple(defects), pixels=pixels)


def _unfitting(
    dataset: Dataset, item: Item, frame: Pixels, fits: Callable[[Pixels], object]
) -> Iterator[str]:
    try:
        fits(frame)
    except ConfigError as problem:
        yield f"{item.image.relative_to(dataset.root)}: {problem}"


def _layout_defects(dataset: Dataset, needed: Sequence[Split]) -> Iterator[str]:
    for item in dataset.items:
        if item.split is None:
            image = item.image.relative_to(dataset.root)
            yield f"{image}: its name does not match the group pattern"
    stems = Counter(item.stem for item in dataset.items)
    for stem in sorted(stem for stem, times in stems.items() if times > 1):
        yield f"{stem}: {stems[stem]} images share this name, and so one mask"
    groups = {item.group for item in dataset.items if item.group is not None}
    for group, split in dataset.held_back.items():
        if group not in groups:
            yield f"split.{split}: no image is of group {group!r}; found {listed(groups)}"
    for split in needed:
        if not dataset.of(split):
            yield f"split: no image is left for {split}; the groups are {listed(groups)}"


def _count_defects(dataset: Dataset, counts: Counts, needed: Sequence[Split]) -> Iterator[str]:
    for split in needed:
        pixels = pixels_of(dataset, counts, split)
        if dataset.of(split) and not pixels.any():
            yield f"split: no mask for {split} holds a pixel that is not {NOT_VALID}"
        elif split == "train" and dataset.of(split):
            for surface, count in zip(dataset.class_map.root, pixels, strict=True):
                if not count:
                    yield f"classes[{surface.index}]: no training mask holds {surface.name!r}"


def _refuse(dataset: Dataset, defects: Sequence[str]) -> None:
    if not defects:
        return
    listed = list(defects[:_MOST_SHOWN])
    if len(defects) > _MOST_SHOWN:
        listed.append(f"… and {len(defects) - _MOST_SHOWN} more")
    count = f"{len(defects)} defect{'s' if len(defects) > 1 else ''}"
    raise ConfigError(f"{dataset.source}: {count}\n  " + "\n  ".join(listed))
