from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from train.evaluate.plots import (
    draw_confusion,
    draw_ice_fraction,
    draw_reliability,
    write_plots,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from train.evaluate.evaluation import Evaluation

    Make = Callable[..., Evaluation]

IMAGES = {"a": [[80, 20], [10, 90]], "b": [[90, 10], [30, 70]]}


def silent(evaluation: Evaluation) -> Evaluation:
    images = tuple(dataclasses.replace(i, reliability=None) for i in evaluation.images)
    return dataclasses.replace(evaluation, images=images)


def test_the_plots_are_pictures_on_a_light_ground(make_evaluation: Make, tmp_path: Path):
    paths = write_plots(tmp_path / "new" / "plots", [make_evaluation(IMAGES)])
    assert [path.name for path in paths] == ["confusion.png", "reliability.png", "ice_fraction.png"]
    for path in paths:
        with Image.open(path) as picture:
            corner = np.asarray(picture.convert("RGB"))[0, 0]
        assert corner.tolist() == [255, 255, 255]


def test_without_confidence_there_is_no_calibration_plot(make_evaluation: Make, tmp_path: Path):
    paths = write_plots(tmp_path, [silent(make_evaluation(IMAGES))])
    assert [path.name for path in paths] == ["confusion.png", "ice_fraction.png"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_confusion_is_drawn_as_shares_of_each_true_class(make_evaluation: Make):
    """Water 170 of 200 and 30; ice 40 and 160 of 200."""
    (axes,) = draw_confusion([make_evaluation(IMAGES)]).axes
    assert [text.get_text() for text in axes.texts] == ["85.0%", "15.0%", "20.0%", "80.0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["water", "ice"]


def test_a_dot_per_image_lies_at_its_true_and_predicted_ice(make_evaluation: Make):
    figure = draw_ice_fraction([make_evaluation(IMAGES)])
    assert figure is not None
    _, dots = figure.axes[0].lines
    assert dots.get_xydata().tolist() == [[0.5, 0.55], [0.5, 0.4]]


def test_the_reliability_curve_has_a_point_per_bin(make_evaluation: Make):
    """The fixture is 0.9 sure of what is right and 0.6 of what is wrong."""
    figure = draw_reliability([silent(make_evaluation(IMAGES)), make_evaluation(IMAGES)])
    assert figure is not None
    _, curve = figure.axes[0].lines
    assert np.allclose(curve.get_xydata(), [[0.6, 0], [0.9, 1]])
