"""Evaluations as JSON: every image's counts, so that folds can be pooled later without loss."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from edge.contract.boundary import parse, parse_json
from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from edge.contract.files import write_atomically
from train.evaluate.bootstrap import intervals
from train.evaluate.boundary import BoundaryCounts
from train.evaluate.calibration import BINS, Reliability
from train.evaluate.evaluation import Evaluation, MeasuredOn
from train.evaluate.measure import IceFractions, ImageResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA: Literal["icecam.evaluation/1"] = "icecam.evaluation/1"

_Count = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Counts = tuple[_Count, ...]
_Bins = Annotated[tuple[_Count, ...], Field(min_length=BINS, max_length=BINS)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Boundary(_Part):
    intersections: _Counts
    unions: _Counts


class _Ice(_Part):
    true: _Fraction | None
    predicted: _Fraction | None


class _Reliability(_Part):
    pixels: _Bins
    right: _Bins
    confidence: Annotated[
        tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=BINS, max_length=BINS)
    ]


class _Image(_Part):
    stem: Annotated[str, Field(min_length=1)]
    group: str | None
    confusion: tuple[_Counts, ...]
    boundary: _Boundary
    ice: _Ice
    ice_area: _Ice | None
    reliability: _Reliability | None


class _Document(_Part):
    """``figures`` is for readers elsewhere: it follows from the images, and is not read here."""

    schema_id: Literal["icecam.evaluation/1"] = Field(alias="schema")
    predictor: Annotated[str, Field(min_length=1)]
    dataset: str
    split: MeasuredOn
    classes: Classes
    figures: dict[str, Any] = {}
    images: Annotated[tuple[_Image, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_the_classes(self) -> _Document:
        size = len(self.classes)
        for image in self.images:
            lengths = {len(image.confusion), len(image.boundary.unions)}
            lengths |= {len(image.boundary.intersections), *map(len, image.confusion)}
            if lengths != {size}:
                message = f"expected counts of {size} classes for {image.stem}"
                raise ValueError(message)
        return self


class _Documents(RootModel[Annotated[tuple[_Document, ...], Field(min_length=1)]]):
    """What a file holds."""


def to_plain(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything as plain values, and the figures that follow, for JSON."""
    return {
        "schema": SCHEMA,
        "predictor": evaluation.predictor,
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "classes": evaluation.class_map.model_dump(mode="json"),
        "figures": _figures(evaluation),
        "images": [_plain_image(image) for image in evaluation.images],
    }


def from_plain(plain: object, *, where: str) -> Evaluation:
    """Return what ``to_plain`` was given. Raises ConfigError naming ``where`` and each field."""
    return _evaluation(parse(_Document, plain, where=where))


def write_json(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write evaluations, whole or not at all. Raises ConfigError where that cannot be done."""
    plain = [to_plain(evaluation) for evaluation in evaluations]
    text = json.dumps(plain, indent=1, allow_nan=False)
    try:
        write_atomically(path, text.encode())
    except OSError as problem:
        names = ", ".join(evaluation.predictor for evaluation in evaluations)
        raise ConfigError(
            f"{path}: cannot be written ({problem.strerror})",
            expected="room for a file there",
            then=f"The figures of {names} were not kept; a file that was there is as it was.",
        ) from None


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """Read what ``write_json`` wrote. Raises ConfigError naming every field that is wrong."""
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise ConfigError(
            f"{path}: cannot be read ({problem.strerror})",
            expected="figures of python -m train evaluate --json",
        ) from None
    documents = parse_json(_Documents, text, where=str(path))
    return tuple(_evaluation(document) for document in documents.root)


def read_evaluation(path: Path) -> Evaluation:
    """Read a file of exactly one evaluation. Raises ConfigError."""
    found = read_evaluations(path)
    if len(found) > 1:
        names = ", ".join(evaluation.predictor for evaluation in found)
        raise ConfigError(f"{path}: holds evaluations of {names}", expected="one")
    return found[0]


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    reliability = evaluation.reliability
    return {
        "miou": evaluation.scores.miou,
        "pixel_accuracy": evaluation.scores.pixel_accuracy,
        "iou": evaluation.iou,
        "boundary_miou": evaluation.boundary_miou,
        "boundary_iou": evaluation.boundary_iou,
        "ice_fraction_mae": evaluation.ice_fraction_mae,
        "ice_fraction_bias": evaluation.ice_fraction_bias,
        "ice_fraction_images": len(evaluation.errors),
        "ice_area_fraction_mae": evaluation.ice_area_fraction_mae,
        "ice_area_fraction_bias": evaluation.ice_area_fraction_bias,
        "ece": evaluation.ece,
        "reliability": None if reliability is None else [c.tolist() for c in reliability.curve],
        "confusion": evaluation.confusion.tolist(),
        "groups": list(evaluation.groups),
        "intervals_95": asdict(intervals(evaluation)),
    }


def _plain_image(image: ImageResult) -> dict[str, Any]:
    plain: dict[str, Any] = asdict(image)
    return {key: _plain(value) for key, value in plain.items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _evaluation(document: _Document) -> Evaluation:
    return Evaluation(
        predictor=document.predictor,
        dataset=document.dataset,
        split=document.split,
        class_map=document.classes,
        images=tuple(_image(image) for image in document.images),
    )


def _image(image: _Image) -> ImageResult:
    return ImageResult(
        stem=image.stem,
        group=image.group,
        confusion=np.array(image.confusion, np.int64),
        boundary=BoundaryCounts(
            intersections=np.array(image.boundary.intersections, np.int64),
            unions=np.array(image.boundary.unions, np.int64),
        ),
        ice=IceFractions(**image.ice.model_dump()),
        ice_area=None if image.ice_area is None else IceFractions(**image.ice_area.model_dump()),
        reliability=None if image.reliability is None else _bins(image.reliability),
    )


def _bins(said: _Reliability) -> Reliability:
    return Reliability(
        pixels=np.array(said.pixels, np.int64),
        right=np.array(said.right, np.int64),
        confidence=np.array(said.confidence, np.float64),
    )
