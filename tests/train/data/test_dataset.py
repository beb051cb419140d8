from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from edge.contract.errors import ConfigError
from train.data.check import check, check_layout
from train.data.dataset import read_dataset, read_sample

if TYPE_CHECKING:
    from pathlib import Path

    from train.data.dataset import Dataset


def rewrite(folder: Path, *changes: tuple[str, str]) -> Path:
    toml = folder / "dataset.toml"
    text = toml.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    toml.write_text(text)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_dataset(folder)
    return str(caught.value)


def defects(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check(read_dataset(folder))
    return str(caught.value)


def test_a_folder_and_its_toml_are_the_same_dataset(tiny: Path):
    by_folder, by_file = read_dataset(tiny), read_dataset(tiny / "dataset.toml")
    assert by_folder.items == by_file.items
    assert by_folder.class_map == by_file.class_map
    assert by_folder.class_map.describe() == "0 sky (other), 1 water (water), 2 ice (ice)"


def test_groups_not_frames_are_split(tiny_dataset: Dataset):
    sides = {split: [i.stem for i in tiny_dataset.of(split)] for split in ("train", "test")}
    assert sides == {"train": ["day-1_0", "day-1_1"], "test": ["day-3_0", "day-3_1"]}
    assert [i.stem for i in tiny_dataset.of("validation")] == ["day-2_0", "day-2_1"]
    assert len(tiny_dataset.of("all")) == 6


def test_mask_values_become_class_indices_and_ignore_becomes_255(tiny: Path):
    dataset = read_dataset(tiny)
    item = dataset.items[0]
    drawn = np.asarray(Image.open(item.mask))
    sample = read_sample(dataset, item)
    expected = {0: 0, 10: 1, 11: 1, 20: 2, 255: 255}
    assert sample.mask.dtype == np.uint8
    assert np.array_equal(sample.mask, np.vectorize(expected.__getitem__)(drawn))


def test_frames_are_bgr_at_native_size(tiny_dataset: Dataset):
    item = tiny_dataset.items[0]
    sample = read_sample(tiny_dataset, item)
    rgb = np.asarray(Image.open(item.image))
    assert sample.frame.shape == (48, 64, 3)
    assert np.array_equal(sample.frame, rgb[:, :, ::-1])


def test_a_whole_dataset_passes_and_progress_counts_it(tiny_dataset: Dataset):
    seen: list[tuple[int, int]] = []
    check(tiny_dataset, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_every_defect_is_listed_at_once(tiny: Path):
    truncated = tiny / "images" / "day-1_0.png"
    truncated.write_bytes(truncated.read_bytes()[:600])
    (tiny / "masks" / "day-1_1.png").unlink()
    Image.fromarray(np.full((20, 64), 10, np.uint8)).save(tiny / "masks" / "day-2_0.png")
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(tiny / "masks" / "day-2_1.png")
    (tiny / "masks" / "day-3_0.png").write_bytes(b"not a png")
    (tiny / "images" / "stray.png").write_bytes((tiny / "images" / "day-3_1.png").read_bytes())
    rewrite(tiny, ('test = ["day-3"]', 'test = ["day-3", "day-9"]'))
    told = defects(tiny)
    for expected in (
        "images/day-1_0.png: not a readable picture",
        "images/day-1_1.png: has no mask; expected it at masks/day-1_1.png",
        "masks/day-2_0.png: is 20x64 (height x width); expected its image's 48x64",
        "masks/day-2_1.png: holds the values [77]; expected only [0, 10, 11, 20, 255]",
        "masks/day-3_0.png: not a readable PNG",
        "images/stray.png: its name does not match the group pattern",
        "split.test: no image is of group 'day-9'; found day-1, day-2, day-3",
    ):
        assert expected in told
    assert "images/stray.png: has no mask" in told
    assert told.count("\n") == 8


def test_a_truncated_jpeg_is_refused_not_filled_with_grey(tiny: Path):
    image = tiny / "images" / "day-1_0.jpg"
    Image.open(tiny / "images" / "day-1_0.png").save(image, quality=95)
    image.write_bytes(image.read_bytes()[:-400])
    (tiny / "images" / "day-1_0.png").unlink()
    rewrite(tiny, ("images/*.png", "images/*"))
    assert "images/day-1_0.jpg: not a readable picture" in defects(tiny)
    dataset = read_dataset(tiny)
    with pytest.raises(ConfigError, match="not a readable picture"):
        read_sample(dataset, dataset.items[0])


def test_a_colour_mask_is_refused(tiny: Path):
    Image.new("RGB", (64, 48)).save(tiny / "masks" / "day-1_0.png")
    assert "masks/day-1_0.png: a PNG of kind RGB 64x48" in defects(tiny)


def test_a_class_that_training_never_shows_is_a_defect(tiny: Path):
    for number in (0, 1):
        Image.fromarray(np.full((48, 64), 10, np.uint8)).save(
            tiny / "masks" / f"day-1_{number}.png"
        )
    told = defects(tiny)
    assert "classes[0]: no training mask holds 'sky'" in told
    assert "classes[2]: no training mask holds 'ice'" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('validation = ["day-2"]', "validation = []"), "no image is left for validation"),
        (
            ('validation = ["day-2"]', 'validation = ["day-1", "day-2"]'),
            "no image is left for train",
        ),
    ],
)
def test_an_empty_train_or_validation_side_is_a_defect(
    tiny: Path, change: tuple[str, str], told: str
):
    assert told in defects(rewrite(tiny, change))


def test_an_empty_test_side_is_allowed_until_it_is_asked_for(tiny: Path):
    dataset = read_dataset(rewrite(tiny, ('test = ["day-3"]', "test = []")))
    check(dataset)
    with pytest.raises(ConfigError, match="no image is left for test"):
        check_layout(dataset, needed=("test",))


def test_two_images_that_share_a_mask_are_a_defect(tiny: Path):
    (tiny / "images" / "more").mkdir()
    Image.open(tiny / "images" / "day-1_0.png").save(tiny / "images" / "more" / "day-1_0.png")
    rewrite(tiny, ("images/*.png", "images/**/*.png"))
    assert "day-1_0: 2 images share this name, and so one mask" in defects(tiny)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("dataset/1", "dataset/2"), "schema: expected 'icecam.dataset/1'"),
        (("images/*.png", "../*.png"), "images: expected a relative path"),
        (("{stem}.png", "mask.png"), "masks: expected {stem} in it"),
        (("(day-", "(day-("), "group: expected a regular expression"),
        ((r"^(day-\d)_", r"^day-\d_"), "group: expected a regular expression with a (group)"),
        (("values = [20]", "values = [10]"), "repeated [10]"),
        (("values = [20]", "values = [255]"), "repeated [255]"),
        (("values = [20]", "values = [256]"), "classes[2].values[0]: expected less than or equal"),
        (("values = [20]", "values = []"), "classes[2].values: expected"),
        (('role = "ice"', 'role = "slush"'), "classes[2].role: expected 'ice', 'water' or 'other'"),
        (
            ("values = [20]", "value = [20]"),
            "classes[2].value: unknown key; did you mean 'values'?",
        ),
        (('test = ["day-3"]', 'test = ["day-2"]'), "day-2 both in validation and in test"),
        (("images/*.png", "images/*.tif"), "nothing matches 'images/*.tif'"),
        (('name = "tiny"', 'name = "tiny"\nroot = "elsewhere"'), "set ICECAM_DATA"),
        (("[split]", "[split"), "not TOML"),
    ],
)
def test_a_wrong_toml_is_refused_by_the_path_to_the_field(
    tiny: Path, change: tuple[str, str], told: str
):
    found = refusal(rewrite(tiny, change))
    assert told.lower() in found.lower()
    assert "dataset.toml" in found


def test_a_missing_dataset_is_named(tmp_path: Path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nowhere")


def test_root_is_looked_up_beside_the_toml_first_then_in_icecam_data(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    toml = rewrite(tiny, ('name = "tiny"', 'name = "tiny"\nroot = "tiny"')) / "dataset.toml"
    monkeypatch.setenv("ICECAM_DATA", str(tmp_path))
    assert read_dataset(toml).root == tmp_path / "tiny"
    beside = tiny / "tiny"
    (beside / "images").mkdir(parents=True)
    (beside / "images" / "day-1_7.png").touch()
    assert [item.stem for item in read_dataset(toml).items] == ["day-1_7"]


def test_reading_opens_no_picture(tiny: Path):
    for image in (tiny / "images").iterdir():
        image.write_bytes(b"")
    assert len(read_dataset(tiny).items) == 6


@pytest.mark.data
def test_the_real_floes_check_clean(agulhas: Dataset):
    began = time.monotonic()
    check(agulhas)
    assert time.monotonic() - began < 30
    assert agulhas.class_map.describe() == "0 water (water), 1 floe (ice)"
    assert {i.group for i in agulhas.of("train")} == {"2022-07-23"}
    assert (len(agulhas.of("train")), len(agulhas.of("validation"))) == (9, 6)
    sample = read_sample(agulhas, agulhas.items[0])
    assert sample.frame.shape == (1080, 1920, 3)
    assert set(np.unique(sample.mask)) == {0, 1, 255}
