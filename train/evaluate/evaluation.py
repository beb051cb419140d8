"""How good a run or a bundle is, on images of a dataset."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.table import Table

from edge.contract.bundle import HeldOut
from edge.contract.classes import NOT_VALID
from edge.contract.coverage import measure
from edge.contract.errors import ConfigError, EngineError
from edge.contract.files import write_atomically
from edge.contract.masks import stray_values
from edge.contract.overlay import stretch
from train.data.dataset import check_layout, read_sample
from train.evaluate.panels import render_panels
from train.evaluate.scores import Scores, score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from edge.contract.classes import Classes
    from edge.contract.masks import Mask
    from train.data.dataset import Dataset, Item, Progress, Sample, Split
    from train.predict import Predictor

Side = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """One image. Ice fractions are ice / (ice + water) over the labels' valid pixels, 0..1.

    None where neither is seen; miou is None where no pixel is valid.
    """

    stem: str
    miou: float | None
    true_ice_fraction: float | None
    predicted_ice_fraction: float | None

    @property
    def error(self) -> float | None:
        """Predicted minus true ice fraction; None where either is not known."""
        if self.true_ice_fraction is None or self.predicted_ice_fraction is None:
            return None
        return self.predicted_ice_fraction - self.true_ice_fraction


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """What was measured. ``confusion`` int64 ``(C, C)``: rows truth, columns prediction, pooled."""

    predictor: str
    dataset: str
    split: Side
    class_map: Classes
    confusion: npt.NDArray[np.int64]
    scores: Scores
    images: tuple[ImageResult, ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """Predicted minus true ice fraction of every image where both are known."""
        return tuple(image.error for image in self.images if image.error is not None)

    @property
    def ice_fraction_mae(self) -> float | None:
        """Mean absolute error of the ice fraction; None where it is known for no image."""
        return sum(map(abs, self.errors)) / len(self.errors) if self.errors else None

    @property
    def ice_fraction_bias(self) -> float | None:
        """Mean error of the ice fraction: above 0 where too much ice is seen."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union by class name."""
        return dict(zip(self.class_map.names, self.scores.iou, strict=True))

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

    def as_plain(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "predictor": self.predictor,
            "dataset": self.dataset,
            "split": self.split,
            "miou": self.scores.miou,
            "pixel_accuracy": self.scores.pixel_accuracy,
            "iou": self.iou,
            "ice_fraction_mae": self.ice_fraction_mae,
            "ice_fraction_bias": self.ice_fraction_bias,
            "ice_fraction_images": len(self.errors),
            "classes": list(self.class_map.names),
            "confusion": self.confusion.tolist(),
            "images": [asdict(image) for image in self.images],
        }


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
    empty; ConfigError and EngineError where an image or the predictor fails.
    """
    refuse_another_map(predictor, dataset)
    needed: Sequence[Split] = () if split == "all" else (split,)
    check_layout(dataset, needed=needed)
    if overlays:
        overlays.mkdir(parents=True, exist_ok=True)
    confusion = np.zeros((len(dataset.class_map),) * 2, np.int64)
    images: list[ImageResult] = []
    items = dataset.of(split)
    for item in items:
        sample = read_sample(dataset, item)
        prediction = _predict(predictor, sample, item)
        counted = confusion_of(sample.mask, prediction, len(dataset.class_map))
        confusion += counted
        images.append(_result(item, sample, prediction, counted, dataset.class_map))
        if overlays:
            panels = render_panels(sample, prediction, dataset.class_map, title=item.stem)
            write_atomically(overlays / f"{item.stem}.png", panels)
        if progress:
            progress(len(images), len(items))
    return Evaluation(
        predictor=predictor.name,
        dataset=dataset.name,
        split=split,
        class_map=dataset.class_map,
        confusion=confusion,
        scores=score(confusion),
        images=tuple(images),
    )


def confusion_of(truth: Mask, prediction: Mask, classes: int) -> npt.NDArray[np.int64]:
    """Count pixels by (truth, prediction), ``(classes, classes)``, where the truth is not 255.

    Both uint8 of one shape. Raises EngineError where the prediction is not a class there.
    """
    valid = truth != NOT_VALID
    strays = stray_values(prediction[valid], classes)
    if strays or (prediction[valid] == NOT_VALID).any():
        raise EngineError(
            f"a predicted mask holds {strays or [NOT_VALID]}", expected=f"classes below {classes}"
        )
    pairs = truth[valid].astype(np.int64) * classes + prediction[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def refuse_another_map(predictor: Predictor, dataset: Dataset) -> None:
    """Raise ConfigError where predictor and dataset do not mean the same by their classes."""
    if predictor.class_map.signature != dataset.class_map.signature:
        raise ConfigError(
            f"{predictor.name} has the classes {predictor.class_map.describe()}",
            expected=f"those of {dataset.name}: {dataset.class_map.describe()}",
            then="Nothing was evaluated.",
        )


def write_json(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write evaluations, whole or not at all. Raises OSError."""
    plain = [evaluation.as_plain() for evaluation in evaluations]
    write_atomically(path, json.dumps(plain, indent=1, allow_nan=False).encode())


def table_of(evaluations: Sequence[Evaluation]) -> Table:
    """Return a table for people: one column per evaluation, all of the same dataset."""
    first = evaluations[0]
    table = Table(title=f"{first.dataset}, {first.split}: {len(first.images)} images")
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(evaluation.predictor, justify="right")
    for name in first.class_map.names:
        table.add_row(f"IoU {name}", *(_three(e.iou[name]) for e in evaluations))
    table.add_section()
    table.add_row("mIoU", *(_three(e.scores.miou) for e in evaluations), style="bold")
    table.add_row("pixel accuracy", *(_three(e.scores.pixel_accuracy) for e in evaluations))
    table.add_row("ice fraction: MAE", *(_three(e.ice_fraction_mae) for e in evaluations))
    table.add_row("ice fraction: bias", *(_signed(e.ice_fraction_bias) for e in evaluations))
    return table


def _predict(predictor: Predictor, sample: Sample, item: Item) -> Mask:
    try:
        prediction = predictor.segment(sample.frame)
    except ConfigError as problem:
        raise ConfigError(
            f"{item.image}: {problem.found}", expected=problem.expected, then=problem.then
        ) from None
    return stretch(prediction.mask, *sample.mask.shape)


def _result(
    item: Item,
    sample: Sample,
    prediction: Mask,
    confusion: npt.NDArray[np.int64],
    class_map: Classes,
) -> ImageResult:
    region = sample.mask != NOT_VALID
    true, predicted = (
        measure(mask, class_map, region=region).ice_pixel_fraction
        for mask in (sample.mask, prediction)
    )
    return ImageResult(
        stem=item.stem,
        miou=score(confusion).miou if confusion.any() else None,
        true_ice_fraction=true,
        predicted_ice_fraction=predicted,
    )


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
