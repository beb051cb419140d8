from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from edge.contract.errors import ConfigError, EngineError
from train.data.dataset import read_dataset, read_sample
from train.evaluate.evaluation import evaluate
from train.evaluate.record import write_json
from train.evaluate.scores import confusion_of, score
from train.evaluate.table import table_of
from train.predict import Prediction, open_predictor

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.contract.classes import ClassMap
    from edge.contract.frames import Pixels
    from edge.contract.masks import Mask
    from train.data.dataset import Dataset
    from train.runs import Run

REPOSITORY = Path(__file__).parents[3]


class Fixed:
    """Answers every frame with one mask."""

    name = "fixed"

    def __init__(
        self, class_map: ClassMap, mask: Mask, *, confidence: np.ndarray | None = None
    ) -> None:
        self.class_map = class_map
        self._answer = Prediction(mask=mask, confidence=confidence)

    def segment(self, pixels: Pixels) -> Prediction:
        del pixels
        return self._answer


class Oracle:
    """Knows the masks of a dataset by their frames, and shrinks them."""

    name = "oracle"

    def __init__(self, dataset: Dataset) -> None:
        self.class_map = dataset.class_map
        samples = [read_sample(dataset, item) for item in dataset.items]
        self._masks = {s.frame.tobytes(): np.where(s.mask == 255, 0, s.mask) for s in samples}

    def segment(self, pixels: Pixels) -> Prediction:
        return Prediction(mask=self._masks[pixels.tobytes()])


def truths(dataset: Dataset, split: str) -> np.ndarray:
    masks = [read_sample(dataset, item).mask for item in dataset.items if item.split == split]
    return np.concatenate([mask.ravel() for mask in masks])


def test_scores_are_those_of_scikit_learn(tiny_dataset: Dataset):
    """Pooled over pixels, 255 in the truth left out."""
    guess = np.random.default_rng(1).integers(0, 3, (48, 64)).astype(np.uint8)
    found = evaluate(Fixed(tiny_dataset.class_map, guess), tiny_dataset)
    truth = truths(tiny_dataset, "test")
    valid = truth != 255
    expected, predicted = truth[valid], np.tile(guess.ravel(), 2)[valid]
    iou = jaccard_score(expected, predicted, average=None)
    assert np.array_equal(found.confusion, confusion_matrix(expected, predicted))
    assert found.scores.iou == pytest.approx(iou)
    assert found.scores.miou == pytest.approx(iou.mean())
    assert found.scores.pixel_accuracy == pytest.approx(accuracy_score(expected, predicted))
    assert [image.stem for image in found.images] == ["day-3_0", "day-3_1"]


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 255]), st.integers(0, 2)), min_size=1, max_size=60
    )
)
def test_the_confusion_is_that_of_scikit_learn_on_any_masks(pairs: list[tuple[int, int]]):
    truth, guess = np.array(pairs, np.uint8).T[:, None, :]
    valid = truth != 255
    if valid.any():
        expected = confusion_matrix(truth[valid], guess[valid], labels=[0, 1, 2])
        assert np.array_equal(confusion_of(truth, guess, 3), expected)
    else:
        assert not confusion_of(truth, guess, 3).any()


def test_scores_of_a_hand_calculation():
    """Truth 0 0 0 1 1, prediction 0 0 1 1 0: IoU 2/4 and 1/3; nobody speaks of class 2."""
    found = score(np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert found.iou == (0.5, pytest.approx(1 / 3), None)
    assert found.miou == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.pixel_accuracy == 0.6


def test_a_class_that_is_only_predicted_counts_against_the_mean():
    assert score(np.array([[3, 1], [0, 0]])).iou == (0.75, 0.0)


def test_masks_without_a_valid_pixel_have_no_score():
    with pytest.raises(ConfigError, match="no pixel of these masks is valid"):
        score(np.zeros((2, 2), np.int64))


def test_ice_fraction_errors_are_predicted_minus_true_over_valid_pixels(tiny: Path):
    """Truth: 2 of 4 valid ice/water pixels ice; then 1 of 4. Prediction: all ice, 255 ignored."""
    for number, row in enumerate(([20, 20, 10, 11, 0, 255], [20, 10, 10, 11, 0, 255])):
        mask = np.tile(np.array(row, np.uint8), (2, 1))
        Image.fromarray(mask).save(tiny / "masks" / f"day-3_{number}.png")
        Image.new("RGB", (6, 2)).save(tiny / "images" / f"day-3_{number}.png")
    dataset = read_dataset(tiny)
    found = evaluate(Fixed(dataset.class_map, np.full((4, 12), 2, np.uint8)), dataset)
    assert [image.ice.true for image in found.images] == [0.5, 0.25]
    assert [image.ice.predicted for image in found.images] == [1.0, 1.0]
    assert found.ice_fraction_mae == pytest.approx((0.5 + 0.75) / 2)
    assert found.ice_fraction_bias == pytest.approx((0.5 + 0.75) / 2)
    too_little = evaluate(Fixed(dataset.class_map, np.full((4, 12), 1, np.uint8)), dataset)
    assert too_little.ice_fraction_mae == pytest.approx((0.5 + 0.25) / 2)
    assert too_little.ice_fraction_bias == pytest.approx(-(0.5 + 0.25) / 2)


def test_where_neither_ice_nor_water_is_known_there_is_no_error(tiny_dataset: Dataset):
    found = evaluate(Fixed(tiny_dataset.class_map, np.zeros((48, 64), np.uint8)), tiny_dataset)
    assert found.images[0].ice.predicted is None
    assert found.ice_fraction_mae is None
    assert found.held_out().ice_fraction_mae is None


def test_a_perfect_prediction_is_perfect(tiny_dataset: Dataset):
    found = evaluate(Oracle(tiny_dataset), tiny_dataset, split="all")
    assert (found.scores.miou, found.scores.pixel_accuracy) == (1, 1)
    assert (found.ice_fraction_mae, found.ice_fraction_bias) == (0, 0)
    assert len(found.images) == 6


def test_what_the_manifest_is_told(tiny_dataset: Dataset):
    told = evaluate(Oracle(tiny_dataset), tiny_dataset, split="validation").held_out()
    assert (told.dataset, told.images, told.miou) == ("tiny/validation", 2, 1)
    assert told.iou == {"sky": 1, "water": 1, "ice": 1}


def test_another_class_map_is_refused_before_any_work(tiny: Path, tiny_run: Run):
    toml = tiny / "dataset.toml"
    toml.write_text(toml.read_text().replace('name = "sky"', 'name = "land"'))
    for image in (tiny / "images").iterdir():
        image.write_bytes(b"would fail when opened")
    with open_predictor(tiny_run.folder) as predictor, pytest.raises(ConfigError) as caught:
        evaluate(predictor, read_dataset(tiny))
    assert "0 sky (other)" in str(caught.value)
    assert "expected those of tiny: 0 land (other)" in str(caught.value)


def test_other_colours_and_labels_are_the_same_map(tiny: Path, tiny_run: Run):
    toml = tiny / "dataset.toml"
    toml.write_text(toml.read_text().replace("[0, 0, 128]", "[1, 2, 3]"))
    with open_predictor(tiny_run.folder) as predictor:
        assert evaluate(predictor, read_dataset(tiny)).predictor == "run"


def test_an_empty_split_is_refused(tiny: Path, tiny_run: Run):
    toml = tiny / "dataset.toml"
    toml.write_text(toml.read_text().replace('test = ["day-3"]', "test = []"))
    with (
        open_predictor(tiny_run.folder) as predictor,
        pytest.raises(ConfigError, match="no image is left for test"),
    ):
        evaluate(predictor, read_dataset(tiny))


def test_a_damaged_image_stops_the_evaluation_by_name(tiny: Path, tiny_run: Run):
    image = tiny / "images" / "day-3_1.png"
    image.write_bytes(image.read_bytes()[:500])
    with (
        open_predictor(tiny_run.folder) as predictor,
        pytest.raises(ConfigError, match=r"images/day-3_1\.png: not a readable picture"),
    ):
        evaluate(predictor, read_dataset(tiny))


def test_a_frame_of_another_shape_is_refused_by_name(tiny: Path, tiny_run: Run):
    Image.new("RGB", (64, 20)).save(tiny / "images" / "day-3_0.png")
    Image.new("L", (64, 20)).save(tiny / "masks" / "day-3_0.png")
    with (
        open_predictor(tiny_run.folder) as predictor,
        pytest.raises(ConfigError, match=r"day-3_0\.png: a frame of 20x64 .* distorted 2.40"),
    ):
        evaluate(predictor, read_dataset(tiny))


def test_a_predictor_that_answers_no_class_is_an_engine_error(tiny_dataset: Dataset):
    for value in (3, 255):
        mask = np.full((48, 64), value, np.uint8)
        with pytest.raises(EngineError, match=rf"a predicted mask holds \[{value}\]"):
            evaluate(Fixed(tiny_dataset.class_map, mask), tiny_dataset)


def test_a_run_answers_at_its_input_size(tiny_run: Run, tiny_dataset: Dataset):
    frame = read_sample(tiny_dataset, tiny_dataset.items[0]).frame
    with open_predictor(tiny_run.folder) as predictor:
        mask = predictor.segment(np.repeat(np.repeat(frame, 2, 0), 2, 1)).mask
    assert (mask.dtype, mask.shape) == (np.uint8, (48, 64))
    assert mask.max() < 3


def test_what_is_neither_run_nor_bundle_is_refused(tmp_path: Path):
    (tmp_path / "model.onnx").touch()
    for path in (tmp_path / "nowhere", tmp_path / "model.onnx"):
        with pytest.raises(ConfigError, match="a run folder or a bundle"), open_predictor(path):
            pass


def test_overlays_show_frame_truth_and_prediction(tiny_dataset: Dataset, tmp_path: Path):
    folder = tmp_path / "new" / "overlays"
    evaluate(Oracle(tiny_dataset), tiny_dataset, overlays=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["day-3_0.png", "day-3_1.png"]
    picture = np.asarray(Image.open(folder / "day-3_0.png"))
    strip = picture.shape[0] - 48
    truth, prediction = picture[strip:, 68:132], picture[strip:, 136:200]
    frame = read_sample(tiny_dataset, tiny_dataset.of("test")[0]).frame
    assert picture.shape == (48 + strip, 200, 3)
    assert np.array_equal(picture[strip:, :64], frame[:, :, ::-1])
    assert np.array_equal(truth, prediction)


def test_wide_frames_are_reduced(tiny: Path, tmp_path: Path):
    Image.new("RGB", (1920, 1440)).save(tiny / "images" / "day-3_0.png")
    Image.new("L", (1920, 1440), 10).save(tiny / "masks" / "day-3_0.png")
    dataset = read_dataset(tiny)
    evaluate(
        Fixed(dataset.class_map, np.ones((48, 64), np.uint8)), dataset, overlays=tmp_path / "o"
    )
    with Image.open(tmp_path / "o" / "day-3_0.png") as picture:
        assert picture.width == 3 * 480 + 2 * 4


def test_the_json_holds_what_was_measured(tiny_dataset: Dataset, tmp_path: Path):
    found = evaluate(Oracle(tiny_dataset), tiny_dataset)
    write_json(tmp_path / "figures.json", [found])
    (read,) = json.loads((tmp_path / "figures.json").read_text())
    assert read["figures"]["miou"] == 1
    assert read["figures"]["iou"] == {"sky": 1, "water": 1, "ice": 1}
    assert read["figures"]["confusion"] == found.confusion.tolist()
    assert [image["stem"] for image in read["images"]] == ["day-3_0", "day-3_1"]


def test_the_table_has_a_column_for_each_predictor_and_says_how_far_apart_they_are(
    tiny_dataset: Dataset,
):
    oracle = evaluate(Oracle(tiny_dataset), tiny_dataset)
    fixed = evaluate(Fixed(tiny_dataset.class_map, np.ones((48, 64), np.uint8)), tiny_dataset)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table_of([oracle, fixed]))
    text = console.export_text()
    assert "tiny, test: 2 images of day-3" in text
    assert "IoU ice │ 1.000 (1.000–1.000) │ 0.000 (0.000–0.000)" in " ".join(text.split())
    apart = 1 - fixed.scores.miou
    assert f"+{apart:.3f} (" in text
    assert "ground area" not in text


def test_the_table_says_how_many_images_an_error_of_the_ice_fraction_is_of(tiny: Path):
    """One predictor calls all of the second image sky: its error is of one image alone."""

    class SkyLast(Oracle):
        name = "sky last"

        def segment(self, pixels: Pixels) -> Prediction:
            mask = super().segment(pixels).mask
            return Prediction(mask=np.zeros_like(mask) if np.array_equal(pixels, last) else mask)

    dataset = read_dataset(tiny)
    last = read_sample(dataset, dataset.of("test")[1]).frame
    found = [evaluate(one, dataset) for one in (Oracle(dataset), SkyLast(dataset))]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table_of(found))
    assert "ice fraction: images │ 2 │ 1" in " ".join(console.export_text().split())
    console.print(table_of(found[:1]))
    assert "ice fraction: images" not in console.export_text()


def test_confidence_is_compared_under_the_same_pixel_as_the_mask(tiny_dataset: Dataset):
    """A predictor that knows the truth, at half the size: sure where it is right, unsure else."""
    guess = np.random.default_rng(5).integers(0, 3, (24, 32)).astype(np.uint8)
    truth = read_sample(tiny_dataset, tiny_dataset.of("test")[0]).mask
    last = tiny_dataset.of("test")[1]
    one = dataclasses.replace(
        tiny_dataset, items=tuple(item for item in tiny_dataset.items if item != last)
    )
    right = (guess == truth[1::2, 1::2]).astype(np.float32)
    found = evaluate(Fixed(one.class_map, guess, confidence=right), one)
    assert found.reliability is not None
    assert found.reliability.pixels.sum() == (truth != 255).sum()
    big_right = np.kron(right, np.ones((2, 2)))[truth != 255].astype(bool)
    hits = (np.kron(guess, np.ones((2, 2))) == truth)[truth != 255]
    expected = (hits != big_right).mean()
    assert found.ece == pytest.approx(expected)


def test_where_no_confidence_is_known_there_is_no_calibration(tiny_dataset: Dataset):
    found = evaluate(Oracle(tiny_dataset), tiny_dataset)
    assert found.reliability is None
    assert found.ece is None


def test_ice_by_ground_area_follows_the_homography(tiny: Path):
    """Three columns that look further and further away: areas worked out by hand.

    The homography takes a pixel by its centre. By corners it is x' = x / (1 - x / 4), which puts
    the columns' edges 0, 1, 2, 3 at 0, 4/3, 4, 12, and y' = y / (1 - x / 4), which makes the two
    rows' edges h = 2, 8/3, 4, 8 tall together. A column is a trapezium: (x1' - x0') (h0 + h1) / 2.
    """
    toml = tiny / "dataset.toml"
    ground = "[ground]\nhomography = [[1, 0, 0.5], [0, 1, 0.5], [-0.25, 0, 0.875]]\n\n[split]"
    toml.write_text(toml.read_text().replace("[split]", ground))
    for number in (0, 1):
        mask = np.tile(np.array([20, 10, 20], np.uint8), (2, 1))
        Image.fromarray(mask).save(tiny / "masks" / f"day-3_{number}.png")
        Image.new("RGB", (3, 2)).save(tiny / "images" / f"day-3_{number}.png")
    dataset = read_dataset(tiny)
    guess = np.tile(np.array([2, 1, 1], np.uint8), (2, 1))
    found = evaluate(Fixed(dataset.class_map, guess), dataset)
    first, second, third = 4 / 3 * (14 / 3) / 2, 8 / 3 * (20 / 3) / 2, 8 * 12 / 2
    whole = first + second + third
    ice = found.images[0].ice_area
    assert ice is not None
    assert (ice.true, ice.predicted) == pytest.approx(((first + third) / whole, first / whole))
    assert found.ice_area_fraction_bias == pytest.approx(-third / whole)
    assert found.ice_area_fraction_mae == pytest.approx(third / whole)


def test_labels_of_a_second_size_are_refused_where_the_ground_is_known(tiny: Path):
    """A homography of 3x4 frames says nothing of 6x8 ones; without one, both are measured."""
    for number, size in ((0, (4, 3)), (1, (8, 6))):
        Image.new("L", size, 20).save(tiny / "masks" / f"day-3_{number}.png")
        Image.new("RGB", size).save(tiny / "images" / f"day-3_{number}.png")
    toml = tiny / "dataset.toml"
    plain = toml.read_text()
    ground = "[ground]\nhomography = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\n\n[split]"
    toml.write_text(plain.replace("[split]", ground))
    dataset = read_dataset(tiny)
    predictor = Fixed(dataset.class_map, np.full((3, 4), 2, np.uint8))
    with pytest.raises(ConfigError, match=r"day-3_1\.png: is 6x8 .*expected 3x4, as day-3_0\.png"):
        evaluate(predictor, dataset)
    toml.write_text(plain)
    assert evaluate(predictor, read_dataset(tiny)).scores.pixel_accuracy == 1


@pytest.mark.slow
def test_the_command_line_measures_a_run_beside_the_baseline(
    tiny: Path, tiny_run: Run, tmp_path: Path
):
    command = [sys.executable, "-m", "train", "evaluate", str(tiny_run.folder), str(tiny)]
    command += ["--baseline", "--json", str(tmp_path / "f.json"), "--overlays", str(tmp_path / "o")]
    command += ["--hold-out", "day-1", "--plots", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "tiny, test: 2 images of day-1" in done.stdout
    assert "IoU ice" in done.stdout
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [column["predictor"] for column in figures] == ["run", "otsu", "colour and row"]
    assert len(list((tmp_path / "o").iterdir())) == 2
    assert len(list((tmp_path / "plots").iterdir())) == 3


@pytest.mark.data
def test_a_run_is_measured_on_real_floes(
    agulhas: Dataset, tmp_path: Path, make_tiny_run: Callable[..., Run]
):
    """Two real images through a random member: figures exist, and add up."""
    two = dataclasses.replace(agulhas, items=agulhas.of("validation")[:2])
    run = make_tiny_run(tmp_path / "run", two, size=(112, 192))
    with open_predictor(run.folder) as predictor:
        found = evaluate(predictor, two, split="validation", overlays=tmp_path / "o")
    valid = sum(int((read_sample(two, item).mask != 255).sum()) for item in two.items)
    assert found.confusion.sum() == valid
    assert len(found.errors) == 2
    assert 0 <= found.scores.miou <= 1
    assert len(found.area_errors) == 2
