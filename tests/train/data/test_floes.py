from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from edge.contract.boundary import parse
from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from train.data.dataset import Sample, read_dataset, read_sample
from train.data.floes import floes_of, read_instances

if TYPE_CHECKING:
    from pathlib import Path

    from train.data.dataset import Dataset, Item

SURFACES = [("water", "water"), ("young_ice", "ice"), ("floe", "ice")]
CLASSES = parse(
    Classes,
    [
        {"index": index, "name": name, "role": role, "colour": (0, 0, 0)}
        for index, (name, role) in enumerate(SURFACES)
    ],
    where="test",
)


def sample_of(mask: object) -> Sample:
    mask = np.asarray(mask, np.uint8)
    return Sample(frame=np.zeros((*mask.shape, 3), np.uint8), mask=mask)


@given(arrays(np.uint8, (9, 13), elements=st.sampled_from([0, 1, 2, 255])))
def test_floes_are_the_connected_parts_of_each_ice_class(mask: np.ndarray):
    """Numbers of their own, as scipy's labelling of each class parts them."""
    floes = floes_of(sample_of(mask), CLASSES)
    assert floes.dtype == np.int32
    assert np.array_equal(floes > 0, (mask == 1) | (mask == 2))
    count = 0
    for index in (1, 2):
        parts, found = ndimage.label(mask == index)
        count += found
        pairs = np.unique(np.stack([parts[parts > 0], floes[parts > 0]]), axis=1)
        assert pairs.shape[1] == found
        assert len(set(pairs[1])) == found
    assert len(np.unique(floes[floes > 0])) == count


def test_a_gap_of_one_slanting_pixel_parts_two_floes():
    mask = np.full((6, 6), 2)
    np.fill_diagonal(mask, 0)
    floes = floes_of(sample_of(mask), CLASSES)
    assert floes[0, 5] != floes[5, 0]


def test_floes_of_different_ice_that_touch_are_apart():
    floes = floes_of(sample_of([[1, 1, 2, 2]]), CLASSES)
    assert floes.tolist() == [[1, 1, 2, 2]]


def test_a_mask_without_ice_has_no_floes():
    assert floes_of(sample_of([[0, 255]]), CLASSES).tolist() == [[0, 0]]


def test_a_given_map_is_kept_where_pixels_are_valid():
    given_map = np.array([[7, 7, 7, 300, 0]], np.int32)
    floes = floes_of(sample_of([[2, 255, 2, 2, 2]]), CLASSES, given_map)
    assert floes.tolist() == [[7, 0, 7, 300, 0]]
    assert floes.dtype == np.int32


@pytest.fixture
def with_instances(tiny: Path) -> Dataset:
    """The tiny dataset, whose pictures of floes nobody has drawn yet."""
    toml = tiny / "dataset.toml"
    said = toml.read_text()
    toml.write_text(said.replace("masks =", 'instances = "floes/{stem}.png"\nmasks ='))
    (tiny / "floes").mkdir()
    return read_dataset(tiny)


def draw(item: Item, image: Image.Image) -> None:
    assert item.instances is not None
    image.save(item.instances, "PNG")


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 40_000)])
def test_floes_are_read_from_8_and_16_bit_pictures(
    with_instances: Dataset, dtype: type, largest: int
):
    drawn = np.zeros((48, 64), dtype)
    drawn[3:9, 4:8] = largest
    item = with_instances.items[0]
    draw(item, Image.fromarray(drawn))
    read = read_instances(with_instances, item)
    assert read is not None
    assert read.dtype == np.int32
    assert np.array_equal(read, drawn)


def test_a_dataset_without_pictures_of_floes_has_none(tiny_dataset: Dataset):
    assert read_instances(tiny_dataset, tiny_dataset.items[0]) is None


def test_a_missing_picture_of_floes_is_named(with_instances: Dataset):
    with pytest.raises(
        ConfigError, match=r"day-1_0\.png: has no picture of its floes; .*floes/day-1_0\.png"
    ):
        read_instances(with_instances, with_instances.items[0])


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (Image.new("RGB", (64, 48)), "a PNG of kind RGB 64x48, 8-bit; expected an 8 or 16"),
        (Image.new("P", (64, 48)), "a PNG of kind P 64x48"),
        (Image.new("1", (64, 48)), "a PNG of kind 1 64x48, 1-bit"),
        (Image.new("LA", (64, 48)), "a PNG of kind LA 64x48"),
        (Image.new("L", (64, 40)), "is 40x64 .height x width.; expected its mask's 48x64"),
    ],
)
def test_a_picture_of_floes_of_another_kind_or_size_is_refused(
    with_instances: Dataset, image: Image.Image, told: str
):
    item = with_instances.items[0]
    draw(item, image)
    with pytest.raises(ConfigError, match=rf"floes/day-1_0\.png: {told}"):
        read_instances(with_instances, item)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_damaged_picture_of_floes_is_refused(with_instances: Dataset, keep: int):
    item = with_instances.items[0]
    draw(item, Image.effect_noise((64, 48), 50))
    assert item.instances is not None
    item.instances.write_bytes(item.instances.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"floes/day-1_0\.png: not a readable PNG"):
        read_instances(with_instances, item)


@pytest.mark.data
def test_the_real_masks_hold_hundreds_of_floes(agulhas: Dataset):
    item = agulhas.items[0]
    sample = read_sample(agulhas, item)
    floes = floes_of(sample, agulhas.class_map, read_instances(agulhas, item))
    assert floes.max() == ndimage.label(sample.mask == 1)[1]
    assert floes.max() > 100
