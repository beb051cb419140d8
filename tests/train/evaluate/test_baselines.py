from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from PIL import Image

from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from train.data.dataset import read_dataset, read_sample
from train.evaluate.baselines import OtsuBaseline, features, fit_baseline, fit_baselines
from train.evaluate.evaluation import evaluate
from train.evaluate.scores import confusion_of, score

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.classes import ClassMap
    from train.data.dataset import Dataset


def otsu_by_the_book(grey: np.ndarray) -> int:
    """The threshold whose two sides differ most: every one tried, variance by its definition."""
    levels = grey.astype(float)

    def between(threshold: int) -> float:
        dark, bright = levels[grey <= threshold], levels[grey > threshold]
        if not (dark.size and bright.size):
            return -1.0
        return dark.size * bright.size * (dark.mean() - bright.mean()) ** 2

    return max(range(256), key=between)


@pytest.mark.parametrize("seed", range(4))
def test_otsu_s_threshold_parts_the_grey_levels_best(seed: int, class_map: ClassMap):
    rng = np.random.default_rng(seed)
    grey = np.where(
        rng.random((40, 60)) < 0.3, rng.normal(60, 12, (40, 60)), rng.normal(180, 25, (40, 60))
    )
    frame = np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    expected = np.where(frame[:, :, 0] > otsu_by_the_book(frame[:, :, 0]), 2, 1)
    found = OtsuBaseline(class_map).segment(frame)
    assert np.array_equal(found.mask, expected)
    assert found.confidence is None


def test_otsu_needs_ice_and_water():
    dry = Classes.model_validate(
        [
            {"index": 0, "name": "land", "role": "other", "colour": (0, 0, 0)},
            {"index": 1, "name": "water", "role": "water", "colour": (0, 0, 9)},
        ]
    )
    with pytest.raises(ConfigError, match=r"1 water .*expected ice and water"):
        OtsuBaseline(dry)


def test_a_dataset_without_ice_has_one_baseline_less(tiny: Path):
    names = [baseline.name for baseline in fit_baselines(read_dataset(tiny))]
    assert names == ["otsu", "colour and row"]
    toml = tiny / "dataset.toml"
    toml.write_text(toml.read_text().replace('role = "ice"', 'role = "other"'))
    assert [baseline.name for baseline in fit_baselines(read_dataset(tiny))] == ["colour and row"]


def test_the_baseline_tells_colours_apart(tiny_dataset: Dataset):
    """Sky, water and ice of the tiny scenes differ by colour alone."""
    found = evaluate(fit_baseline(tiny_dataset), tiny_dataset)
    assert found.scores.miou > 0.9


def test_the_baseline_sees_colour_and_row():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1] = (51, 102, 255)
    seen = features(pixels)
    assert seen.shape == (6, 4)
    assert seen[1] == pytest.approx([0.2, 0.4, 1.0, 0.25])
    assert seen[5] == pytest.approx([0, 0, 0, 0.75])


def test_a_baseline_needs_two_classes(tiny: Path):
    for number in (0, 1):
        Image.new("L", (64, 48), 10).save(tiny / "masks" / f"day-1_{number}.png")
    with pytest.raises(ConfigError, match="fewer than two classes"):
        fit_baseline(read_dataset(tiny))


@pytest.mark.data
def test_otsu_inside_the_footprint_scores_on_real_floes_what_was_published(agulhas: Dataset):
    """The data's README: per-image Otsu, pooled mIoU 0.759. Ours, blind to the footprint: 0.761."""
    inside, blind = np.zeros((2, 2, 2), np.int64)
    otsu = OtsuBaseline(agulhas.class_map)
    for item in agulhas.items:
        sample = read_sample(agulhas, item)
        grey = cv2.cvtColor(sample.frame, cv2.COLOR_BGR2GRAY)
        seen = grey[sample.mask != 255].reshape(-1, 1)
        threshold, _ = cv2.threshold(seen, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        inside += confusion_of(sample.mask, (grey > threshold).astype(np.uint8), 2)
        blind += confusion_of(sample.mask, otsu.segment(sample.frame).mask, 2)
    assert score(inside).miou == pytest.approx(0.759, abs=5e-4)
    assert score(blind).miou == pytest.approx(0.761, abs=5e-4)
