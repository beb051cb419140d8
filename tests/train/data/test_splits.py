from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from edge.contract.errors import ConfigError
from train.data.dataset import read_dataset
from train.data.splits import groups_of, hold_out, keep_all

if TYPE_CHECKING:
    from pathlib import Path

    from train.data.dataset import Dataset


def of_groups(folder: Path, sizes: dict[str, int]) -> Dataset:
    """A dataset of so many (empty) images in each group."""
    (folder / "images").mkdir(parents=True)
    for group, count in sizes.items():
        for number in range(count):
            (folder / "images" / f"{group}_{number:03}.png").touch()
    (folder / "dataset.toml").write_text(
        'schema = "icecam.dataset/1"\nname = "many"\nimages = "images/*.png"\n'
        'masks = "masks/{stem}.png"\ngroup = "^(.+)_"\nsplit = {}\n'
        'classes = [{name="a",role="ice",colour=[0,0,0],values=[0]},'
        '{name="b",role="water",colour=[0,0,0],values=[1]}]\n'
    )
    return read_dataset(folder)


def splits(dataset: Dataset) -> Counter[str | None]:
    return Counter(item.split for item in dataset.items)


def test_the_group_that_is_held_out_is_the_test_split_and_nothing_else_is(tmp_path: Path):
    dataset = hold_out(of_groups(tmp_path, {"a": 8, "b": 4, "c": 8}), "b")
    assert {item.group for item in dataset.of("test")} == {"b"}
    assert splits(dataset) == {"test": 4, "validation": 4, "train": 12}


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ({"a": 2, "b": 2}, 0.9, {"test": 2, "validation": 1, "train": 1}),
        ({"a": 1, "b": 1, "c": 1}, 0.25, {"test": 1, "validation": 1, "train": 1}),
        ({"a": 1, "b": 10}, 0.01, {"test": 1, "validation": 1, "train": 9}),
    ],
)
def test_one_image_at_least_validates_and_one_at_least_trains(
    tmp_path: Path, sizes: dict[str, int], share: float, expected: dict[str, int]
):
    assert splits(hold_out(of_groups(tmp_path, sizes), "a", validation_share=share)) == expected


def test_what_validates_is_spread_over_the_names(tmp_path: Path):
    dataset = keep_all(of_groups(tmp_path, {"a": 50, "b": 50}), validation_share=0.2)
    chosen = [index for index, item in enumerate(dataset.items) if item.split == "validation"]
    assert chosen == list(range(2, 100, 5))
    assert not dataset.of("test")


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path: Path, share: float):
    dataset = of_groups(tmp_path, {"a": 4, "b": 4})
    for split in (
        lambda: hold_out(dataset, "a", validation_share=share),
        lambda: keep_all(dataset, validation_share=share),
    ):
        with pytest.raises(ConfigError, match="more than 0, less than 1"):
            split()


def test_a_group_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    dataset = of_groups(tmp_path, {"a": 1, "b": 1})
    assert groups_of(dataset) == ("a", "b")
    with pytest.raises(ConfigError, match="cannot hold out 'z'; the groups are a, b"):
        hold_out(dataset, "z")


def test_an_only_group_cannot_be_held_out(tmp_path: Path):
    with pytest.raises(ConfigError, match="and at least one other"):
        hold_out(of_groups(tmp_path, {"a": 5}), "a")
