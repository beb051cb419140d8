from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch

from edge.contract.errors import ConfigError
from tests.train.copies import write_copies
from train.data.loader import (
    Augmented,
    Draw,
    Resized,
    Shuffle,
    View,
    cut,
    training_batches,
    validation_batches,
)

if TYPE_CHECKING:
    from train.data.dataset import Dataset

REPOSITORY = Path(__file__).parents[3]
ICE = 2
VIEW_BYTES = 24 * 32 * 4


def samples_of(dataset: Dataset, **changes: object) -> Resized:
    return Resized(dataset, dataset.of("all"), (24, 32), **changes)  # type: ignore[arg-type]


def test_an_epoch_draws_every_image_once_in_its_own_order():
    orders = []
    for epoch in (0, 1):
        shuffle = Shuffle(50, seed=9, epoch=epoch)
        draws = list(shuffle)
        assert {draw.epoch for draw in draws} == {epoch}
        assert sorted(draw.item for draw in draws) == list(range(50))
        assert list(shuffle) == draws
        orders.append([draw.item for draw in draws])
    assert orders[0] != orders[1]


def test_batches_are_a_function_of_seed_and_epoch(tiny_dataset: Dataset):
    def first_batch(epoch: int, workers: int = 0, seed: int = 1) -> list[torch.Tensor]:
        batches = training_batches(
            samples_of(tiny_dataset, floes=True),
            seed=seed,
            epoch=epoch,
            batch_size=4,
            workers=workers,
            crop=(16, 24),
        )
        batch = next(iter(batches))
        assert (batch.frames.shape, batch.frames.dtype) == ((4, 3, 16, 24), torch.uint8)
        assert (batch.masks.shape, batch.masks.dtype) == ((4, 16, 24), torch.uint8)
        assert (batch.floes.shape, batch.floes.dtype) == ((4, 16, 24), torch.int32)
        return list(batch)

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    third = first_batch(3)
    torch.manual_seed(99)
    assert same(third, first_batch(3))
    assert same(third, first_batch(3, workers=1))
    assert not same(third, first_batch(4))
    assert not same(third, first_batch(3, seed=2))


def test_frames_are_averaged_down_and_masks_keep_their_values(tiny_dataset: Dataset):
    view = samples_of(tiny_dataset).read(0)
    native = cv2.imread(str(tiny_dataset.items[0].image))
    assert native is not None
    assert np.abs(view.frame - native.reshape(24, 2, 32, 2, 3).mean((1, 3))).max() <= 0.5
    assert set(np.unique(view.mask)) <= {0, 1, 2, 255}


def test_validation_is_in_order_whole_and_as_it_is(tiny_dataset: Dataset):
    samples = samples_of(tiny_dataset)
    (batch,) = validation_batches(samples, batch_size=6)
    assert batch.floes.shape == (6, 0, 0)
    for index in range(6):
        view = samples.read(index)
        assert np.array_equal(batch.frames[index].permute(1, 2, 0), view.frame)
        assert np.array_equal(batch.masks[index], view.mask)


def test_a_worker_process_hands_over_batches_without_floes(tiny_dataset: Dataset):
    (batch,) = validation_batches(samples_of(tiny_dataset), batch_size=6, workers=1)
    assert (batch.floes.shape, batch.floes.dtype) == ((6, 0, 0), torch.int32)


def test_floes_are_where_the_ice_is(tiny_dataset: Dataset):
    samples = samples_of(tiny_dataset, floes=True)
    for epoch in range(5):
        (batch,) = training_batches(samples, seed=0, epoch=epoch, batch_size=6)
        assert torch.equal(batch.floes > 0, batch.masks == ICE)


def test_a_crop_is_a_window_of_its_frame(tiny_dataset: Dataset):
    samples = samples_of(tiny_dataset)
    whole = samples.read(0).frame
    cropped = Augmented(samples, 7, strength="none", crop=(10, 12))
    places = set()
    for epoch in range(12):
        batch = cropped[Draw(epoch, 0)]
        window = batch.frames.permute(1, 2, 0).numpy()
        found = [
            (top, left)
            for top in range(15)
            for left in range(21)
            if np.array_equal(whole[top : top + 10, left : left + 12], window)
        ]
        assert len(found) == 1
        places.add(found[0])
        top, left = found[0]
        expected = samples.read(0).mask[top : top + 10, left : left + 12]
        assert np.array_equal(batch.masks, expected)
    assert len(places) > 6


def test_a_crop_of_the_whole_frame_is_the_frame(tiny_dataset: Dataset):
    samples = samples_of(tiny_dataset)
    batch = Augmented(samples, 7, strength="none", crop=(24, 32))[Draw(0, 0)]
    assert np.array_equal(batch.masks, samples.read(0).mask)


def test_of_three_places_the_most_valid_is_cut():
    """Windows 1 wide on a ramp of 0..99 % validity: the mean of the best of three is 3/4."""
    mask = np.where(np.arange(100)[:, None] < np.arange(100), 0, 255).astype(np.uint8)
    floes = np.tile(np.arange(100, dtype=np.int32), (100, 1))
    view = View(np.zeros((100, 100, 3), np.uint8), mask, floes)
    rng = np.random.default_rng(0)
    windows = [cut(view, (100, 1), rng) for _ in range(400)]
    assert {window.floes.shape for window in windows} == {(100, 1)}
    for window in windows:
        assert (window.mask == 0).sum() == window.floes[0, 0]
    assert np.mean([(window.mask == 0).mean() for window in windows]) == pytest.approx(
        0.75, abs=0.04
    )


@pytest.mark.parametrize("crop", [(25, 32), (24, 33)])
def test_a_crop_larger_than_the_frames_is_refused(tiny_dataset: Dataset, crop: tuple[int, int]):
    with pytest.raises(ConfigError, match=r"a crop of .* expected at most the frames' 24x32"):
        training_batches(samples_of(tiny_dataset), seed=0, epoch=0, batch_size=2, crop=crop)


def test_the_first_samples_that_fit_are_kept_and_the_others_read_anew(tiny_dataset: Dataset):
    samples = samples_of(tiny_dataset, cache_bytes=2 * VIEW_BYTES)
    first = [samples.read(index) for index in range(4)]
    for item in tiny_dataset.items:
        item.image.unlink()
    assert samples.read(0) is first[0]
    assert samples.read(1) is first[1]
    with pytest.raises(ConfigError, match="cannot be read"):
        samples.read(2)


def test_workers_share_the_memory_among_them(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.data.loader.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    samples = samples_of(tiny_dataset, cache_bytes=2 * VIEW_BYTES)
    first = samples.read(0)
    assert samples.read(0) is first
    second = samples.read(1)
    assert samples.read(1) is not second


def test_draws_are_plain_values():
    assert Draw(epoch=1, item=2) == (1, 2)


PEAK = """
import sys
from pathlib import Path
from tests.bench.memory import peak_mb
from train.data.dataset import read_dataset
from train.data.loader import Resized, training_batches
dataset = read_dataset(Path(sys.argv[1]))
samples = Resized(dataset, dataset.of("all"), (384, 640), cache_bytes=8 << 20)
assert len(samples) == int(sys.argv[2])
for batch in training_batches(samples, seed=0, epoch=0, batch_size=4):
    pass
print(peak_mb())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path):
    """Four times the 1080p frames: unbounded, the cache alone would take 71 MB more."""
    peaks_mb = []
    for count in (24, 96):
        folder = write_copies(tmp_path / str(count), count)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder), str(count)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks_mb.append(float(done.stdout))
    assert max(peaks_mb) < 1500
    assert peaks_mb[1] - peaks_mb[0] < 35
