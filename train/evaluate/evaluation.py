"""How good a predictor is on images of a dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge.contract.bundle import HeldOut
from edge.contract.errors import ConfigError
from edge.contract.files import make_folder, write_atomically
from edge.contract.overlay import stretch
from edge.geometry import ground_areas
from train.data.check import check_layout
from train.data.dataset import read_sample
from train.evaluate.calibration import joined
from train.evaluate.measure import measure_image
from train.evaluate.panels import render_panels
from train.evaluate.scores import mean_known, ratios, score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from edge.contract.classes import Classes
    from edge.contract.frames import Size
    from train.data.dataset import Dataset, Item, Progress, Sample, Split
    from train.evaluate.calibration import Reliability
    from train.evaluate.measure import ImageResult
    from train.evaluate.scores import Scores
    from train.predict import Prediction, Predictor

Side = Literal["train", "validation", "test", "all"]
MeasuredOn = Literal["train", "validation", "test", "all", "cross-validation"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """What was measured: each image's counts, from which every figure follows.

    Raises ConfigError where no image has a valid pixel.
    """

    predictor: str
    dataset: str
    split: MeasuredOn
    class_map: Classes
    images: tuple[ImageResult, ...]

    def __post_init__(self) -> None:
        """Refuse to say anything of no pixel."""
        score(self.confusion)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Pixels of all images, int64 ``(C, C)``: rows truth, columns prediction."""
        size = len(self.class_map)
        return sum((image.confusion for image in self.images), np.zeros((size, size), np.int64))

    @property
    def scores(self) -> Scores:
        """IoU, mIoU and pixel accuracy, pooled over the pixels of all images."""
        return score(self.confusion)

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union by class name."""
        return dict(zip(self.class_map.names, self.scores.iou, strict=True))

    @property
    def boundary_iou(self) -> dict[str, float | None]:
        """Boundary IoU by class name: intersections and unions summed over the images."""
        intersections, unions = (
            np.sum([getattr(image.boundary, part) for image in self.images], axis=0)
            for part in ("intersections", "unions")
        )
        return dict(zip(self.class_map.names, ratios(intersections, unions), strict=True))

    @property
    def boundary_miou(self) -> float | None:
        """The mean over the classes that have a boundary; None where none has."""
        return mean_known(list(self.boundary_iou.values()))

    @property
    def reliability(self) -> Reliability | None:
        """Confidence against share right; None where the predictor knows no confidence."""
        return joined([image.reliability for image in self.images])

    @property
    def ece(self) -> float | None:
        """Expected calibration error of the mask's class; None where there is no confidence."""
        return self.reliability.ece if self.reliability else None

    @property
    def errors(self) -> tuple[float, ...]:
        """Predicted minus true ice fraction of every image where both are known."""
        return tuple(i.ice.error for i in self.images if i.ice.error is not None)

    @property
    def area_errors(self) -> tuple[float, ...]:
        """The same by ground area; empty where the dataset knows no homography."""
        found = [image.ice_area.error for image in self.images if image.ice_area]
        return tuple(error for error in found if error is not None)

    @property
    def ice_fraction_mae(self) -> float | None:
        """Mean absolute error of the ice fraction; None where it is known for no image."""
        return mean_known([abs(error) for error in self.errors])

    @property
    def ice_fraction_bias(self) -> float | None:
        """Mean error of the ice fraction: above 0 where too much ice is seen."""
        return mean_known(self.errors)

    @property
    def ice_area_fraction_mae(self) -> float | None:
        """Mean absolute error of the ice fraction by ground area; None where that is not known."""
        return mean_known([abs(error) for error in self.area_errors])

    @property
    def ice_area_fraction_bias(self) -> float | None:
        """Mean error of the ice fraction by ground area."""
        return mean_known(self.area_errors)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the images are of, in order."""
        return tuple(sorted({image.group for image in self.images if image.group is not None}))

    def held_out(self) -> HeldOut:
        """Return what a bundle's manifest says of it."""
        return HeldOut(
            dataset=f"{self.dataset}/{self.split}",
            images=len(self.images),
            miou=self.scores.miou,
            pixel_accuracy=self.scores.pixel_accuracy,
            iou=self.iou,
            ice_fraction_mae=self.ice_fraction_mae,
        )


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: Side = "test",
    overlays: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Segment the images of a split and compare with their masks, at the masks' own size.

    overlays: a folder that gets frame | truth | prediction of every image, as PNG.
    Raises ConfigError, before any image is opened, where the class maps differ or the split is
    empty; ConfigError and EngineError where an image or the predictor fails; ConfigError where the
    dataset knows a homography and its labels are of several sizes.
    """
    refuse_another_map(predictor, dataset)
    needed: Sequence[Split] = () if split == "all" else (split,)
    check_layout(dataset, needed=needed)
    if overlays:
        make_folder(overlays, what="the overlays' folder")
    ground = _Ground(dataset)
    images: list[ImageResult] = []
    items = dataset.of(split)
    for item in items:
        sample = read_sample(dataset, item)
        prediction = _predict(predictor, sample, item)
        images.append(
            measure_image(
                sample.mask,
                prediction,
                dataset.class_map,
                stem=item.stem,
                group=item.group,
                areas=ground.areas(sample.mask.shape, item),
            )
        )
        if overlays:
            _draw(overlays / f"{item.stem}.png", sample, prediction, dataset.class_map)
        if progress:
            progress(len(images), len(items))
    return Evaluation(
        predictor=predictor.name,
        dataset=dataset.name,
        split=split,
        class_map=dataset.class_map,
        images=tuple(images),
    )


def pool(evaluations: Sequence[Evaluation], *, predictor: str = "") -> Evaluation:
    """Join the folds of a cross-validation into one evaluation, as if of one predictor.

    predictor: what to call it; else the name that all have. Raises ConfigError where there is
    none, or they disagree in name, dataset or classes, or an image is in two of them.
    """
    if not evaluations:
        raise ConfigError("no evaluation to pool", expected="at least one")
    first = evaluations[0]
    for other in evaluations[1:]:
        refuse_another_dataset(first, other)
    names = sorted({evaluation.predictor for evaluation in evaluations})
    if not predictor and len(names) > 1:
        raise ConfigError(
            f"folds of {', '.join(names)}", expected="one predictor, or a name for them together"
        )
    images = sorted((i for e in evaluations for i in e.images), key=lambda image: image.stem)
    twice = [stem for stem, times in Counter(i.stem for i in images).items() if times > 1]
    if twice:
        raise ConfigError(
            f"{', '.join(twice)}: in more than one of the evaluations", expected="each image once"
        )
    return Evaluation(
        predictor=predictor or first.predictor,
        dataset=first.dataset,
        split="cross-validation",
        class_map=first.class_map,
        images=tuple(images),
    )


def refuse_another_map(predictor: Predictor, dataset: Dataset) -> None:
    """Raise ConfigError where predictor and dataset do not mean the same by their classes."""
    if predictor.class_map.signature != dataset.class_map.signature:
        raise ConfigError(
            f"{predictor.name} has the classes {predictor.class_map.describe()}",
            expected=f"those of {dataset.name}: {dataset.class_map.describe()}",
            then="Nothing was evaluated.",
        )


def refuse_another_dataset(first: Evaluation, second: Evaluation) -> None:
    """Raise ConfigError where two evaluations are not of one dataset with the same classes."""
    for found, expected in (
        (second.dataset, first.dataset),
        (second.class_map.describe(), first.class_map.describe()),
    ):
        if found != expected:
            raise ConfigError(
                f"{second.predictor} was measured on {found}",
                expected=f"{expected}, as {first.predictor} was",
            )


_TO_CENTRES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
"""A dataset's homography takes pixels by their indices: their centres, not their corners."""


class _Ground:
    """The ground area of each pixel of frames of one size: a homography holds for no other."""

    def __init__(self, dataset: Dataset) -> None:
        centred = dataset.homography
        self._homography = None if centred is None else centred @ _TO_CENTRES
        self._first: tuple[Item, Size, npt.NDArray[np.float64]] | None = None

    def areas(self, shape: tuple[int, ...], item: Item) -> npt.NDArray[np.float64] | None:
        """Return float64 of a mask's shape; None where the dataset knows no homography.

        The first mask sets the size. Raises ConfigError for one of another.
        """
        if self._homography is None:
            return None
        size = (shape[0], shape[1])
        if self._first is None:
            self._first = item, size, ground_areas(self._homography, size, size)
        first, expected, areas = self._first
        if size != expected:
            raise ConfigError(
                f"{item.mask}: is {size[0]}x{size[1]} (height x width)",
                expected=f"{expected[0]}x{expected[1]}, as {first.mask.name}: the dataset's "
                "[ground] is a homography of pixels of one size",
                then="Nothing was evaluated; leave [ground] out, or the frames of other sizes.",
            )
        return areas


def _predict(predictor: Predictor, sample: Sample, item: Item) -> Prediction:
    try:
        return predictor.segment(sample.frame)
    except ConfigError as problem:
        raise ConfigError(
            f"{item.image}: {problem.found}", expected=problem.expected, then=problem.then
        ) from None


def _draw(path: Path, sample: Sample, prediction: Prediction, class_map: Classes) -> None:
    said = stretch(prediction.mask, *sample.mask.shape)
    write_atomically(path, render_panels(sample, said, class_map, title=path.stem))
