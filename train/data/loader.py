"""From disk to batches. All randomness is a function of (seed, epoch, index)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from edge.contract.overlay import stretch
from edge.engine import resize
from train.data.augment import Strength, augment, augmentation
from train.data.dataset import Dataset, Item, Sample, read_sample
from train.data.floes import floes_of, read_instances

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge.contract.frames import Pixels, Size
    from edge.contract.masks import Mask

CACHE_BYTES = 256 << 20
"""What decoded samples may take in memory, shared out among the workers of a loader."""
PLACES = 3
"""How many windows are drawn for a crop; the one with the most valid pixels is taken."""
_NO_FLOES = np.zeros((0, 0), np.int32)


class Batch(NamedTuple):
    """What a member learns from; a single example has no first axis.

    frames: uint8 ``[B, 3, H, W]`` BGR; masks: uint8 ``[B, H, W]``; floes: int32 ``[B, H, W]``, an
    id for each floe, 0 = none; ``[B, 0, 0]`` where they were not asked for.
    """

    frames: Tensor
    masks: Tensor
    floes: Tensor


class View(NamedTuple):
    """A sample at the size that members take; not to be written to.

    frame: uint8 ``(H, W, 3)`` BGR; mask: uint8 ``(H, W)``; floes: int32 ``(H, W)`` or ``(0, 0)``.
    """

    frame: Pixels
    mask: Mask
    floes: npt.NDArray[np.int32]


class Draw(NamedTuple):
    """One use of one item."""

    epoch: int
    item: int


class Resized:
    """Samples at the size that members take; the first that fit are kept, the rest read anew."""

    def __init__(
        self,
        dataset: Dataset,
        items: Sequence[Item],
        size: Size,
        *,
        max_anisotropy: float = 1.2,
        floes: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Keep what to read; nothing is opened yet.

        size: (height, width); floes: tell them apart too; cache_bytes: for all workers together.
        """
        self.size = size
        self._dataset = dataset
        self._items = tuple(items)
        self._max_anisotropy = max_anisotropy
        self._floes = floes
        self._cache_bytes = cache_bytes
        self._kept: dict[int, View] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._items)

    def read(self, index: int) -> View:
        """Return a sample.

        Raises ConfigError where image or masks are damaged or the frame would be distorted.
        """
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        view = self._read(index)
        needed = sum(part.nbytes for part in view)
        if self._kept_bytes + needed <= self._cache_bytes // _workers():
            self._kept[index] = view
            self._kept_bytes += needed
        return view

    def _read(self, index: int) -> View:
        item = self._items[index]
        sample = read_sample(self._dataset, item)
        return View(
            resize(sample.frame, self.size, max_anisotropy=self._max_anisotropy),
            stretch(sample.mask, *self.size),
            self._read_floes(item, sample) if self._floes else _NO_FLOES,
        )

    def _read_floes(self, item: Item, sample: Sample) -> npt.NDArray[np.int32]:
        drawn = read_instances(self._dataset, item)
        native = floes_of(sample, self._dataset.class_map, drawn)
        fitted: npt.NDArray[np.int32] = stretch(native, *self.size)  # type: ignore[arg-type,assignment]  # any integers
        return fitted


class AsTheyAre(TorchDataset[Batch]):
    """Samples without augmentation, by index."""

    def __init__(self, samples: Resized) -> None:
        """Keep the samples."""
        self._samples = samples

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Batch:
        """Return a sample as tensors."""
        return _tensors(self._samples.read(index))


class Augmented(TorchDataset[Batch]):
    """Samples changed at random, by draw: the same (seed, epoch, index) gives the same pixels."""

    def __init__(
        self, samples: Resized, seed: int, *, strength: Strength = "full", crop: Size | None = None
    ) -> None:
        """Keep samples, seed, preset and crop (height, width), the whole where None.

        Raises ConfigError for an unknown preset or a crop larger than the samples.
        """
        if crop and (crop[0] > samples.size[0] or crop[1] > samples.size[1]):
            raise ConfigError(
                f"a crop of {crop[0]}x{crop[1]} (height x width)",
                expected=f"at most the frames' {samples.size[0]}x{samples.size[1]}",
            )
        self._samples = samples
        self._seed = seed
        self._change = augmentation(strength)
        self._crop = crop

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._samples)

    def __getitem__(self, draw: Draw) -> Batch:
        """Return an augmented sample as tensors."""
        rng = np.random.default_rng([self._seed, draw.epoch, draw.item])
        view = self._samples.read(draw.item)
        if self._crop:
            view = cut(view, self._crop, rng)
        return Batch(*augment(self._change, *_tensors(view), seed=int(rng.integers(1 << 63))))


class Shuffle(Sampler[Draw]):
    """All samples once per epoch, in an order that (seed, epoch) decides.

    The draws carry their epoch, so that worker processes need no state. Where several processes
    train one member, each draws its share of the same order; the first few are drawn twice where
    the shares would differ in length.
    """

    def __init__(self, count: int, *, seed: int, epoch: int, processes: int = 1) -> None:
        """Begin at ``epoch``; Lightning calls ``set_epoch`` before each one."""
        self._count = count
        self._seed = seed
        self._epoch = epoch
        self._processes = processes

    def __len__(self) -> int:
        """Return how many draws an epoch has in this process."""
        return (self._count + self._processes - 1) // self._processes

    def __iter__(self) -> Iterator[Draw]:
        """Yield the draws of the current epoch."""
        rng = np.random.default_rng([self._seed, self._epoch])
        order = np.resize(rng.permutation(self._count), len(self) * self._processes)
        for index in order[_rank() :: self._processes]:
            yield Draw(self._epoch, int(index))

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch (from 0)."""
        self._epoch = epoch


class InOrder(Sampler[int]):
    """This process's share of all samples, each in one process alone."""

    def __init__(self, count: int, *, processes: int = 1) -> None:
        """Share out ``count`` samples."""
        self._count = count
        self._processes = processes

    def __len__(self) -> int:
        """Return how many samples this process has."""
        return len(self._indices())

    def __iter__(self) -> Iterator[int]:
        """Yield their indices."""
        return iter(self._indices())

    def _indices(self) -> range:
        return range(_rank(), self._count, self._processes)


def training_batches(  # noqa: PLR0913 - each is a fact of the batches, named at the call
    samples: Resized,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    workers: int = 0,
    augmentation: Strength = "full",
    crop: Size | None = None,
    processes: int = 1,
) -> DataLoader[Batch]:
    """Return shuffled, augmented batches, from ``epoch`` on.

    A last batch that is not full is left out, unless it is the only one: batch normalisation
    does badly on a few images. augmentation: a preset; crop: (height, width) of the random
    windows that are seen, the whole where None; processes: how many train one member, each on its
    share. Raises ConfigError where augmentation or crop cannot be.
    """
    return DataLoader(
        Augmented(samples, seed, strength=augmentation, crop=crop),
        batch_size=batch_size,
        sampler=Shuffle(len(samples), seed=seed, epoch=epoch, processes=processes),
        drop_last=len(samples) >= batch_size * processes,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def validation_batches(
    samples: Resized, *, batch_size: int, workers: int = 0, processes: int = 1
) -> DataLoader[Batch]:
    """Return batches in order, without augmentation."""
    return DataLoader(
        AsTheyAre(samples),
        batch_size=batch_size,
        sampler=InOrder(len(samples), processes=processes),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def cut(view: View, crop: Size, rng: np.random.Generator) -> View:
    """Return a window of ``crop`` (height, width): of a few places the most valid one."""
    height, width = crop
    spare = view.mask.shape[0] - height, view.mask.shape[1] - width
    places = rng.integers(0, np.add(spare, 1), (PLACES, 2))
    windows = [np.s_[top : top + height, left : left + width] for top, left in places]
    best = max(windows, key=lambda window: np.count_nonzero(view.mask[window] != NOT_VALID))
    floes = view.floes[best] if view.floes.size else view.floes
    return View(view.frame[best], view.mask[best], floes)


def _rank() -> int:
    """Return which of several processes this is, 0 where one trains alone."""
    known = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_rank()) if known else 0


def _workers() -> int:
    worker = get_worker_info()
    return worker.num_workers if worker else 1


def _tensors(view: View) -> Batch:
    frame, mask, floes = view
    channels_first = np.ascontiguousarray(frame.transpose(2, 0, 1))
    return Batch(
        torch.from_numpy(channels_first),
        torch.from_numpy(np.ascontiguousarray(mask)),
        torch.from_numpy(np.ascontiguousarray(floes)),
    )
