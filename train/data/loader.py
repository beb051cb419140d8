"""From disk to batches. All randomness is a function of (seed, epoch, index)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from edge.contract.overlay import stretch
from edge.engine import resize
from train.data.augment import augment
from train.data.dataset import Dataset, Item, read_sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge.contract.frames import Pixels, Size
    from edge.contract.masks import Mask

CACHE_BYTES = 1 << 30
Batch = tuple[Tensor, Tensor]
"""frames uint8 ``[B, 3, H, W]`` BGR; masks uint8 ``[B, H, W]``."""


class Draw(NamedTuple):
    """One use of one item."""

    epoch: int
    item: int


class Resized:
    """Samples at the size that members take, decoded once where all of them fit in memory."""

    def __init__(
        self, dataset: Dataset, items: Sequence[Item], size: Size, *, max_anisotropy: float = 1.2
    ) -> None:
        """Keep what to read; nothing is opened yet. size: (height, width)."""
        self._dataset = dataset
        self._items = tuple(items)
        self._size = size
        self._max_anisotropy = max_anisotropy
        fits = len(self._items) * size[0] * size[1] * 4 <= CACHE_BYTES
        self._kept: dict[int, tuple[Pixels, Mask]] | None = {} if fits else None

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._items)

    def read(self, index: int) -> tuple[Pixels, Mask]:
        """Return frame uint8 ``(H, W, 3)`` BGR and mask uint8 ``(H, W)``; not to be written to.

        Raises ConfigError where image or mask are damaged or the frame would be distorted.
        """
        if self._kept is None:
            return self._read(index)
        if index not in self._kept:
            self._kept[index] = self._read(index)
        return self._kept[index]

    def _read(self, index: int) -> tuple[Pixels, Mask]:
        sample = read_sample(self._dataset, self._items[index])
        frame = resize(sample.frame, self._size, max_anisotropy=self._max_anisotropy)
        return frame, stretch(sample.mask, *self._size)


class AsTheyAre(TorchDataset[Batch]):
    """Samples without augmentation, by index."""

    def __init__(self, samples: Resized) -> None:
        """Keep the samples."""
        self._samples = samples

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Batch:
        """Return frame and mask as tensors."""
        return _tensors(*self._samples.read(index))


class Augmented(TorchDataset[Batch]):
    """Samples changed at random, by draw: the same (seed, epoch, index) gives the same pixels."""

    def __init__(self, samples: Resized, seed: int) -> None:
        """Keep the samples and the seed."""
        self._samples = samples
        self._seed = seed

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._samples)

    def __getitem__(self, draw: Draw) -> Batch:
        """Return an augmented frame and its mask as tensors."""
        rng = np.random.default_rng([self._seed, draw.epoch, draw.item])
        return _tensors(*augment(*self._samples.read(draw.item), rng))


class Shuffle(Sampler[Draw]):
    """All samples once per epoch, in an order that (seed, epoch) decides.

    The draws carry their epoch, so that worker processes need no state.
    """

    def __init__(self, count: int, *, seed: int, epoch: int) -> None:
        """Begin at ``epoch``; Lightning calls ``set_epoch`` before each one."""
        self._count = count
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        """Return how many draws an epoch has."""
        return self._count

    def __iter__(self) -> Iterator[Draw]:
        """Yield the draws of the current epoch."""
        rng = np.random.default_rng([self._seed, self._epoch])
        for index in rng.permutation(self._count):
            yield Draw(self._epoch, int(index))

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch (from 0)."""
        self._epoch = epoch


def training_batches(
    samples: Resized, *, seed: int, epoch: int, batch_size: int, workers: int = 0
) -> DataLoader[Batch]:
    """Return shuffled, augmented batches, from ``epoch`` on.

    A last batch that is not full is left out, unless it is the only one: batch normalisation
    does badly on a few images.
    """
    return DataLoader(
        Augmented(samples, seed),
        batch_size=batch_size,
        sampler=Shuffle(len(samples), seed=seed, epoch=epoch),
        drop_last=len(samples) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def validation_batches(samples: Resized, *, batch_size: int, workers: int = 0) -> DataLoader[Batch]:
    """Return batches in order, without augmentation."""
    return DataLoader(
        AsTheyAre(samples),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def _tensors(frame: Pixels, mask: Mask) -> Batch:
    channels_first = np.ascontiguousarray(frame.transpose(2, 0, 1))
    return torch.from_numpy(channels_first), torch.from_numpy(mask)
