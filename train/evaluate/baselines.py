"""The floor: what needs no network.

Otsu splits a frame's grey levels in two; a logistic regression knows a pixel's colour and row. Both
are blind to its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
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
    from train.predict import Predictor

PIXELS = 60_000
"""How many training pixels it is fitted on, spread evenly over the images."""


class OtsuBaseline:
    """A predictor that was fitted to nothing: of each frame, the bright pixels are ice.

    The threshold is Otsu's (1979, IEEE Trans. SMC 9(1)), over all of the frame's grey levels, so
    that it knows nothing of the labels. (Where a reference figure takes the threshold inside the
    labels' footprint, the truth has helped it.) Bright is the map's first ice class, dark its
    first water class; it does not know how sure it is.
    """

    name = "otsu"

    def __init__(self, class_map: Classes) -> None:
        """Raise ConfigError where the map has no ice or no water."""
        if not tells_ice_from_water(class_map):
            raise ConfigError(
                f"the classes {class_map.describe()}", expected="ice and water, for a threshold"
            )
        self.class_map = class_map
        self._ice, self._water = class_map.indices("ice")[0], class_map.indices("water")[0]

    def segment(self, pixels: Pixels) -> Prediction:
        """Read a frame; the answer has its own size."""
        grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        mask = np.where(grey > threshold, self._ice, self._water).astype(np.uint8)
        return Prediction(mask=mask)


class ColourBaseline:
    """A predictor that any network should beat, fitted to the train split."""

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


def fit_baselines(dataset: Dataset) -> tuple[Predictor, ...]:
    """Return every baseline that the dataset's classes allow. Raises ConfigError as they do."""
    otsu = (OtsuBaseline(dataset.class_map),) if tells_ice_from_water(dataset.class_map) else ()
    return (*otsu, fit_baseline(dataset))


def tells_ice_from_water(class_map: Classes) -> bool:
    """Whether both roles have a class."""
    return bool(class_map.indices("ice") and class_map.indices("water"))


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
