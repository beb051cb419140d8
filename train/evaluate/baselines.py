"""The floor: logistic regression on a pixel's colour and row, blind to its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from train.data.dataset import read_sample
from train.predict import Prediction

if TYPE_CHECKING:
    import numpy.typing as npt
    from sklearn.pipeline import Pipeline

    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels
    from train.data.dataset import Dataset

PIXELS = 60_000
"""How many training pixels it is fitted on, spread evenly over the images."""


class ColourBaseline:
    """A predictor that any network should beat."""

    name = "colour and row"

    def __init__(self, class_map: Classes, regression: Pipeline) -> None:
        """Use ``fit_baseline`` to make one."""
        self.class_map = class_map
        self._regression = regression

    def segment(self, pixels: Pixels) -> Prediction:
        """Read a frame; the answer has its own size."""
        shares = self._regression.predict_proba(features(pixels))
        best = shares.argmax(axis=1)
        classes = np.asarray(self._regression.classes_, np.uint8)[best].reshape(pixels.shape[:2])
        confidence = np.asarray(shares.max(axis=1), np.float32).reshape(pixels.shape[:2])
        return Prediction(mask=classes, confidence=confidence)


def fit_baseline(dataset: Dataset, *, seed: int = 0) -> ColourBaseline:
    """Fit the regression to pixels of the train split. Raises ConfigError where none is valid."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow to load
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415 - with it
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415 - with it

    colours, classes = _pixels(dataset, np.random.default_rng(seed))
    if len(np.unique(classes)) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise ConfigError(
            f"{dataset.source}: the training masks hold fewer than two classes",
            expected="at least two, for a baseline",
        )
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    regression.fit(colours, classes)
    return ColourBaseline(dataset.class_map, regression)


def features(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return B, G, R and row / height of every pixel, float32 ``(height * width, 4)``, 0..1."""
    height, width = pixels.shape[:2]
    rows = np.repeat((np.arange(height, dtype=np.float32) + 0.5) / height, width)
    colours = pixels.reshape(-1, 3).astype(np.float32) / 255
    return np.column_stack((colours, rows))


def _pixels(
    dataset: Dataset, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    items = dataset.of("train")
    share = -(-PIXELS // max(1, len(items)))
    colours: list[npt.NDArray[np.float32]] = [np.zeros((0, 4), np.float32)]
    classes: list[npt.NDArray[np.uint8]] = [np.zeros(0, np.uint8)]
    for item in items:
        sample = read_sample(dataset, item)
        valid = np.flatnonzero(sample.mask != NOT_VALID)
        chosen = rng.choice(valid, min(share, valid.size), replace=False)
        colours.append(features(sample.frame)[chosen])
        classes.append(sample.mask.ravel()[chosen])
    return np.concatenate(colours), np.concatenate(classes)
