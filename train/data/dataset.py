"""Datasets: a ``dataset.toml`` beside images and masks."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edge.contract.boundary import parse, read_toml
from edge.contract.bundle import Name
from edge.contract.classes import NOT_VALID, Byte, Classes, Language, Role
from edge.contract.errors import CameraError, ConfigError
from edge.contract.frames import decode_image
from edge.contract.masks import decode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask

    Progress = Callable[[int, int], None]
    """Called with (done, total)."""

DATASET = "dataset.toml"
DATA_FOLDER = "ICECAM_DATA"

Split = Literal["train", "validation", "test"]
_Row = tuple[float, float, float]


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        message = "expected a relative path that stays inside the folder"
        raise ValueError(message)
    return path


def _one_mask_each(path: str) -> str:
    if "{stem}" not in path:
        message = "expected {stem} in it, which stands for the image's name without its ending"
        raise ValueError(message)
    return path


def _with_a_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as problem:
        message = f"expected a regular expression ({problem})"
        raise ValueError(message) from None
    if not groups:
        message = "expected a regular expression with a (group)"
        raise ValueError(message)
    return pattern


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _DatasetClass(_Part):
    """A class of the class map, and the mask values that stand for it."""

    name: str
    role: Role
    colour: tuple[Byte, Byte, Byte]
    labels: dict[Language, str] = {}
    values: Annotated[tuple[Byte, ...], Field(min_length=1)]


class _Split(_Part):
    """Groups held back; all others are for training."""

    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


class _Ground(_Part):
    """Where the ground is: a homography from pixels (x, y) to a plane, in any unit of length.

    ``homography``: a .npy file of 3x3 numbers under the root, or the nine numbers row by row.
    """

    homography: Annotated[str, AfterValidator(_inside)] | tuple[_Row, _Row, _Row]


class _DatasetFile(_Part):
    """What a ``dataset.toml`` says.

    instances: where given, 8 or 16 bit PNGs of one value per floe, 0 where there is none.
    """

    schema_id: Literal["icecam.dataset/1"] = Field(alias="schema")
    name: Name
    root: Annotated[str, AfterValidator(_inside)] | None = None
    images: Annotated[str, AfterValidator(_inside)]
    masks: Annotated[str, AfterValidator(_inside), AfterValidator(_one_mask_each)]
    instances: Annotated[str, AfterValidator(_inside), AfterValidator(_one_mask_each)] | None = None
    ignore: Byte = NOT_VALID
    ground: _Ground | None = None
    group: Annotated[str, AfterValidator(_with_a_group)]
    classes: Annotated[tuple[_DatasetClass, ...], Field(min_length=2)]
    split: _Split

    @model_validator(mode="after")
    def _each_value_once(self) -> _DatasetFile:
        values = Counter([v for c in self.classes for v in c.values] + [self.ignore])
        repeated = sorted(value for value, times in values.items() if times > 1)
        if repeated:
            message = f"expected each mask value in one class or ignore, repeated {repeated}"
            raise ValueError(message)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One image and its mask. ``group`` and ``split`` are None where the stem has no group.

    instances: a picture of its floes, None where the dataset has none.
    """

    stem: str
    image: Path
    mask: Path
    instances: Path | None
    group: str | None
    split: Split | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """frame: uint8 ``(height, width, 3)`` BGR; mask: uint8 ``(height, width)`` class indices."""

    frame: Pixels
    mask: Mask


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """What lies on disk, found but not yet decoded.

    lookup: uint8 ``(256,)``, mask value on disk → class index or 255;
    known: bool ``(256,)``, the values that may occur on disk;
    homography: float64 ``(3, 3)``, pixel (x, y, 1) of a native frame → ground, None if not known.
    """

    name: str
    source: Path
    root: Path
    class_map: Classes
    items: tuple[Item, ...]
    held_back: dict[str, Split]
    lookup: npt.NDArray[np.uint8]
    known: npt.NDArray[np.bool_]
    homography: npt.NDArray[np.float64] | None = None

    def of(self, split: Split | Literal["all"]) -> tuple[Item, ...]:
        """Return the items of a split, in the order of their names."""
        return tuple(i for i in self.items if i.split and split in ("all", i.split))


def read_dataset(path: Path, *, data: Path | None = None) -> Dataset:
    """Read a ``dataset.toml``, or the one in a folder, and list its images.

    data: where its ``root`` lies, if not beside it; else the folder named by ICECAM_DATA.

    Raises ConfigError where the file is wrong or no image is found. Images and masks are not
    opened: that is ``check``.
    """
    source = path / DATASET if path.is_dir() else path
    raw = read_toml(source, what=f"a dataset: a folder with {DATASET}, or such a file")
    said = parse(_DatasetFile, raw, where=str(source))
    surfaces = [
        {"index": index, **surface.model_dump(exclude={"values"})}
        for index, surface in enumerate(said.classes)
    ]
    root = _root(source, said.root, data or data_folder())
    known = np.zeros(256, np.bool_)
    lookup = np.full(256, NOT_VALID, np.uint8)
    known[said.ignore] = True
    for index, surface in enumerate(said.classes):
        known[list(surface.values)] = True
        lookup[list(surface.values)] = index
    held_back: dict[str, Split] = dict.fromkeys(said.split.validation, "validation")
    held_back |= dict.fromkeys(said.split.test, "test")
    _refuse_both(source, said.split)
    return Dataset(
        name=said.name,
        source=source,
        root=root,
        class_map=parse(Classes, surfaces, where=f"{source}: classes"),
        items=tuple(_items(source, root, said, held_back)),
        held_back=held_back,
        lookup=lookup,
        known=known,
        homography=None if said.ground is None else _homography(source, root, said.ground),
    )


def read_sample(dataset: Dataset, item: Item) -> Sample:
    """Decode an image (native size) and its mask, mapped to class indices, 255 = not valid.

    Raises ConfigError where either is missing or damaged, the sizes differ or the mask holds a
    value that no class names.
    """
    frame, values = read_frame(dataset, item), read_values(dataset, item)
    for defect in disagreements(dataset, item, frame, values):
        raise ConfigError(defect)
    return Sample(frame=frame, mask=np.asarray(cv2.LUT(values, dataset.lookup), np.uint8))


def read_frame(dataset: Dataset, item: Item) -> Pixels:
    """Decode an image: uint8 ``(height, width, 3)`` BGR. Raises ConfigError."""
    where = str(item.image.relative_to(dataset.root))
    try:
        return decode_image(item.image.read_bytes(), where=where)
    except OSError as problem:
        raise ConfigError(f"{where}: cannot be read ({problem.strerror})") from None
    except CameraError as problem:
        raise ConfigError(problem.found, expected=problem.expected) from None


def read_values(dataset: Dataset, item: Item) -> Mask:
    """Decode a mask: uint8 ``(height, width)``, the values on disk. Raises ConfigError."""
    where = str(item.mask.relative_to(dataset.root))
    try:
        return decode_png(item.mask.read_bytes(), where=where, error=ConfigError)
    except FileNotFoundError:
        image = item.image.relative_to(dataset.root)
        raise ConfigError(f"{image}: has no mask", expected=f"it at {where}") from None
    except OSError as problem:
        raise ConfigError(f"{where}: cannot be read ({problem.strerror})") from None


def disagreements(
    dataset: Dataset, item: Item, frame: Pixels | None, values: Mask
) -> Iterator[str]:
    """Yield what is wrong between a frame and its mask values, a sentence each."""
    where = item.mask.relative_to(dataset.root)
    if frame is not None and frame.shape[:2] != values.shape:
        found, expected = (f"{h}x{w}" for h, w in (values.shape, frame.shape[:2]))
        yield f"{where}: is {found} (height x width); expected its image's {expected}"
    seen = cv2.calcHist([values], [0], None, [256], [0, 256]).ravel() > 0
    strays = [int(value) for value in np.flatnonzero(seen & ~dataset.known)]
    if strays:
        allowed = [int(value) for value in np.flatnonzero(dataset.known)]
        yield f"{where}: holds the values {strays}; expected only {allowed}"


def _refuse_both(source: Path, split: _Split) -> None:
    both = sorted(set(split.validation) & set(split.test))
    if both:
        raise ConfigError(
            f"{source}: split: {listed(both)} both in validation and in test",
            expected="each group in one of them",
        )


def _items(
    source: Path, root: Path, said: _DatasetFile, held_back: dict[str, Split]
) -> Iterator[Item]:
    images = sorted(path for path in root.glob(said.images) if path.is_file())
    if not images:
        raise ConfigError(f"{source}: images: nothing matches {said.images!r} in {root}")
    for image in images:
        found = re.search(said.group, image.stem)
        group = found.group(1) if found else None
        yield Item(
            stem=image.stem,
            image=image,
            mask=root / said.masks.replace("{stem}", image.stem),
            instances=root / said.instances.replace("{stem}", image.stem)
            if said.instances
            else None,
            group=group,
            split=None if group is None else held_back.get(group, "train"),
        )


def _homography(source: Path, root: Path, ground: _Ground) -> npt.NDArray[np.float64]:
    said, where = ground.homography, f"{source}: ground.homography"
    try:
        matrix = np.load(root / said) if isinstance(said, str) else np.array(said)
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"{where}: {said} cannot be read ({problem})", expected="a .npy file of 3x3 numbers"
        ) from None
    plain = np.asarray(matrix, np.float64) if matrix.dtype.kind in "fiu" else np.zeros(0)
    if plain.shape != (3, 3) or not np.isfinite(plain).all() or not np.linalg.det(plain):
        raise ConfigError(
            f"{where}: an array of {matrix.dtype} {matrix.shape}",
            expected="3x3 finite numbers that can be inverted",
        )
    return plain


def _root(source: Path, root: str | None, data: Path) -> Path:
    if root is None:
        return source.parent
    places = [source.parent, data]
    for place in places:
        if (place / root).is_dir():
            return place / root
    tried = " or ".join(str(place) for place in places)
    raise ConfigError(
        f"{source}: root: no folder {root!r} in {tried}",
        then=f"Set {DATA_FOLDER} to the folder that holds it.",
    )


def data_folder() -> Path:
    """Return where datasets lie: ICECAM_DATA, or ``shared/data`` beside the checkout."""
    beside_the_checkout = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get(DATA_FOLDER) or beside_the_checkout)


def listed(groups: Iterable[str]) -> str:
    """Return names for a message."""
    return ", ".join(sorted(groups)) or "none"
