"""What members say of validation pixels whose class was drawn by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from edge.contract.overlay import stretch
from train.data.check import check_layout
from train.data.dataset import read_sample
from train.models.mixture import member_probabilities, mix
from train.predict import EnsemblePredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from train.data.dataset import Dataset, Progress
    from train.models.members import Kind
    from train.runs import Run

MOST_PER_IMAGE = 20_000
MOST_IN_ALL = 300_000
"""Bounds the memory: 4 bytes for each of these pixels, members and classes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ValidationPixels:
    """N pixels of some images, and what M members say of them.

    outputs: of each member float32 ``[C, N]`` logits (of one that sees floes ``[K, N]``: its
    ice classes alone); truth: int64 ``[N]`` classes; image: int64 ``(N,)``, an index of ``images``.
    """

    outputs: tuple[Tensor, ...]
    kinds: tuple[Kind, ...]
    ice: tuple[int, ...]
    water: tuple[int, ...]
    classes: int
    truth: Tensor
    image: npt.NDArray[np.int64]
    images: tuple[str, ...]

    def mixture(self, weights: Sequence[float], temperatures: Sequence[float]) -> Tensor:
        """Return the ensemble's probabilities, float32 ``[C, N]``."""
        mixed = mix(
            self._as_images(),
            kinds=self.kinds,
            weights=weights,
            temperatures=temperatures,
            ice=self.ice,
            water=self.water,
            classes=self.classes,
        )
        return mixed[0, :, 0]

    def each(self, weights: Sequence[float], temperatures: Sequence[float]) -> list[Tensor]:
        """Return each member's own probabilities, float32 ``[C, N]``.

        The weights matter only to members that see floes: they borrow by them.
        """
        each = member_probabilities(
            self._as_images(),
            kinds=self.kinds,
            weights=weights,
            temperatures=temperatures,
            ice=self.ice,
            water=self.water,
            classes=self.classes,
        )
        return [one[0, :, 0] for one in each]

    def alone(self, member: int, temperature: float) -> Tensor:
        """Return what one member says when nobody is beside it, float32 ``[C, N]``."""
        alone = mix(
            [self.outputs[member][None, :, None]],
            kinds=[self.kinds[member]],
            weights=[1.0],
            temperatures=[temperature],
            ice=self.ice,
            water=self.water,
            classes=self.classes,
        )
        return alone[0, :, 0]

    def shares(self, kept: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float64]:
        """Return what each pixel counts, ``(N,)``: every kept image 1 in all, the others 0."""
        counts = np.bincount(self.image, minlength=len(self.images))
        each = 1 / counts if kept is None else np.where(kept, 1 / counts, 0.0)
        shares: npt.NDArray[np.float64] = each[self.image]
        return shares

    def _as_images(self) -> list[Tensor]:
        return [output[None, :, None] for output in self.outputs]


def draw_pixels(
    runs: Sequence[Run],
    dataset: Dataset,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> ValidationPixels:
    """Run all members over the validation images and keep an even sample of the valid pixels.

    At most MOST_PER_IMAGE of an image and MOST_IN_ALL together, at the members' input size; the
    same seed draws the same. Raises ConfigError: other classes, no valid pixel, an image that
    cannot be read.
    """
    _refuse_other_classes(runs, dataset)
    check_layout(dataset, needed=("validation",))
    items = dataset.of("validation")
    predictor = EnsemblePredictor(
        runs, name="", weights=[1.0] * len(runs), temperatures=[1.0] * len(runs)
    )
    most = max(1, min(MOST_PER_IMAGE, MOST_IN_ALL // len(items)))
    rng = np.random.default_rng(seed)
    outputs: list[list[Tensor]] = [[] for _ in runs]
    truths: list[npt.NDArray[np.uint8]] = []
    stems: list[str] = []
    for done, item in enumerate(items, 1):
        sample = read_sample(dataset, item)
        truth = stretch(sample.mask, *runs[0].input_size).ravel()
        places = _evenly(np.flatnonzero(truth != NOT_VALID), most, rng)
        if len(places):
            for kept, output in zip(outputs, predictor.outputs(sample.frame), strict=True):
                kept.append(output[0].flatten(1)[:, torch.from_numpy(places)])
            truths.append(truth[places])
            stems.append(item.stem)
        if progress:
            progress(done, len(items))
    if not stems:
        raise ConfigError(
            f"{dataset.source}: no pixel of the validation masks is valid",
            expected="some that are not 255",
            then="Nothing was written.",
        )
    return ValidationPixels(
        outputs=tuple(torch.cat(kept, dim=1) for kept in outputs),
        kinds=predictor.kinds,
        ice=dataset.class_map.indices("ice"),
        water=dataset.class_map.indices("water"),
        classes=len(dataset.class_map),
        truth=torch.from_numpy(np.concatenate(truths).astype(np.int64)),
        image=np.repeat(np.arange(len(truths)), [len(truth) for truth in truths]),
        images=tuple(stems),
    )


def _evenly(
    places: npt.NDArray[np.intp], most: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Draw one of each of ``most`` equally long stretches of ``places``; all where they are few."""
    if len(places) <= most:
        return places
    drawn = (np.arange(most) + rng.random(most)) * (len(places) / most)
    return places[drawn.astype(np.intp)]


def _refuse_other_classes(runs: Sequence[Run], dataset: Dataset) -> None:
    if runs[0].class_map.signature != dataset.class_map.signature:
        raise ConfigError(
            f"the runs have the classes {runs[0].class_map.describe()}",
            expected=f"those of {dataset.name}: {dataset.class_map.describe()}",
            then="Nothing was written.",
        )
