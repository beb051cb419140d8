"""The digest: what it notices of a dataset that was changed, and what it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from train.data.dataset import read_dataset
from train.data.splits import hold_out
from train.fit.plan import digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def corrected(tiny: Path) -> None:
    mask = Image.open(tiny / "masks" / "day-1_0.png")
    mask.paste(10, (0, 0, 30, 30))
    mask.save(tiny / "masks" / "day-1_0.png")


def saved_anew(tiny: Path) -> None:
    with (tiny / "images" / "day-3_1.png").open("ab") as file:
        file.write(b"\0")


def without_a_mask(tiny: Path) -> None:
    (tiny / "masks" / "day-1_0.png").unlink()


def said(old: str, new: str) -> Callable[[Path], None]:
    def change(tiny: Path) -> None:
        toml = tiny / "dataset.toml"
        assert old in toml.read_text()
        toml.write_text(toml.read_text().replace(old, new))

    return change


GROUP = "group = "


@pytest.mark.parametrize(
    "change",
    [
        corrected,
        saved_anew,
        without_a_mask,
        said("values = [10, 11]", "values = [10]"),
        said(GROUP, f"ignore = 254\n{GROUP}"),
        said('role = "other"', 'role = "water"'),
        said('test = ["day-3"]', "test = []"),
    ],
)
def test_a_change_of_images_masks_or_their_meaning_is_noticed(
    tiny: Path, change: Callable[[Path], None]
):
    before = digest(read_dataset(tiny))
    change(tiny)
    assert digest(read_dataset(tiny)) != before


@pytest.mark.parametrize(
    "change", [said("[0, 0, 128]", "[1, 2, 3]"), said('fr = "glace"', 'fr = "banquise"')]
)
def test_colours_and_labels_are_for_people(tiny: Path, change: Callable[[Path], None]):
    before = digest(read_dataset(tiny))
    change(tiny)
    assert digest(read_dataset(tiny)) == before


def test_another_split_has_another_digest_and_the_same_has_the_same(tiny: Path):
    dataset = read_dataset(tiny)
    assert digest(hold_out(dataset, "day-1")) != digest(hold_out(dataset, "day-2"))
    assert digest(hold_out(dataset, "day-1")) == digest(hold_out(read_dataset(tiny), "day-1"))


def test_the_floes_of_a_dataset_count_too(tiny: Path):
    said(GROUP, f'instances = "floes/{{stem}}.png"\n{GROUP}')(tiny)
    (tiny / "floes").mkdir()
    before = digest(read_dataset(tiny))
    Image.new("L", (64, 48)).save(tiny / "floes" / "day-1_0.png")
    assert digest(read_dataset(tiny)) != before
