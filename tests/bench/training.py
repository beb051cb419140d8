"""How quick training is beside bare PyTorch, whether the loader keeps up, and what memory it takes.

Rates are measured in one run, by turns, so that a busy machine slows all alike; the medians count.
Frames are drawn, 1920x1080, and trained on at the size asked for.

fit: our Lightning loop over bare PyTorch, images/s, same network, batches and loader. Bar: 0.95.
loader: batches alone, with full augmentation and a warm cache, one process, over the network
alone. Bar: 3.
streamed: the same where nothing is kept, so that every image is read and decoded (the files
themselves are in the system's memory). This is the loader of a first epoch, and of all that the
cache does not hold. No bar.
memory: the peak of a process that fits a member, from the check of the data to the run's files,
with the cache that fit has, to two datasets that both overflow it. It does not grow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback

from edge.contract.files import write_atomically
from tests.bench.memory import peak_mb
from tests.train.copies import write_copies
from train.data.dataset import read_dataset
from train.data.loader import CACHE_BYTES, Batch, Resized, training_batches
from train.fit.learner import WEIGHT_DECAY, Learner
from train.fit.losses import segmentation_loss
from train.fit.plan import Choice, Hardware, Plan, Settings, quick_precision
from train.fit.trainer import GRADIENT_NORM, fit, quiet_lightning, trainer_of
from train.models.architectures import build_member

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.utils.data import DataLoader

    from edge.contract.frames import Size
    from train.data.dataset import Dataset
    from train.models.members import Member

FIT_BAR, LOADER_BAR, GROWTH_BAR_MB, PEAK_BAR_MB = 0.95, 3.0, 64.0, 4096.0
BYTES_PER_PIXEL = 4
"""Of what the cache keeps: three of the frame, one of the mask."""
BEYOND = (1.05, 1.6)
"""How many times the cache the two datasets are."""
EPOCHS = 2
"""Of a fit whose memory is measured: only the second has both splits in the cache as it trains."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What is measured. size: (height, width); batches: of a turn.

    counts: training images of the two datasets, which have as many for validation; cpu_time:
    count the seconds of this process alone, not the clock's.
    """

    encoder: str
    size: Size
    batch_size: int
    batches: int
    repeats: int
    counts: tuple[int, int]
    cpu_time: bool

    def now(self) -> float:
        """Return seconds from some moment on."""
        return time.process_time() if self.cpu_time else time.perf_counter()

    @property
    def cached(self) -> int:
        """How many images of a split the cache of ``fit`` holds."""
        return CACHE_BYTES // (BYTES_PER_PIXEL * self.size[0] * self.size[1])

    @property
    def choice(self) -> Choice:
        """The network, as ``fit`` takes it."""
        return Choice(encoder=self.encoder, height=self.size[0], width=self.size[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Images/s, medians over the repeats; ratios of them pair by pair, medians too."""

    fit: float
    bare: float
    network: float
    loader: float
    streamed: float
    fit_over_bare: float
    loader_over_network: float
    streamed_over_network: float


def batches_of(
    bench: Bench, dataset: Dataset, *, cache_bytes: int = CACHE_BYTES
) -> DataLoader[Batch]:
    """Return the training batches of a dataset, fully augmented, in this process."""
    samples = Resized(dataset, dataset.of("train"), bench.size, cache_bytes=cache_bytes)
    return training_batches(samples, seed=0, epoch=0, batch_size=bench.batch_size)


def member_of(bench: Bench, dataset: Dataset) -> Member:
    """Return a fresh U-Net, the same each time."""
    torch.manual_seed(0)
    return build_member("unet", bench.encoder, class_map=dataset.class_map)


class EpochClock(Callback):
    """Times an epoch from its start to the end of its last step."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._began = self.seconds = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        self._began = self._bench.now()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds = self._bench.now() - self._began


def fit_seconds(bench: Bench, dataset: Dataset, batches: DataLoader[Batch]) -> float:
    """Train one epoch as ``train.fit`` does and return how long its steps took."""
    settings = Settings(epochs=1, batch_size=bench.batch_size, precision=quick_precision())
    plan = Plan(choice=bench.choice, settings=settings, dataset="copies", data="", classes="")
    learner = Learner(member_of(bench, dataset), plan, dataset.class_map.names)
    clock = EpochClock(bench)
    trainer = trainer_of(settings, Hardware(accelerator="cpu"), callbacks=[clock])
    with quiet_lightning():
        warnings.filterwarnings("ignore", ".*no `val_dataloader`.*")
        trainer.fit(learner, batches)
    return clock.seconds


def bare_seconds(bench: Bench, dataset: Dataset, batches: Iterable[Batch]) -> float:
    """Train one epoch as a script of a few lines would, and return how long it took."""
    member = member_of(bench, dataset).to(memory_format=torch.channels_last).train()
    settings = Settings()
    optimizer = torch.optim.AdamW(
        member.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
    )
    half = quick_precision() == "bf16-mixed"
    began = bench.now()
    for batch in batches:
        frames = batch.frames.float().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            logits = member(frames)
            loss = segmentation_loss(logits.float(), batch.masks.long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(member.parameters(), GRADIENT_NORM)
        optimizer.step()
        loss.item()
    return bench.now() - began


def loader_seconds(bench: Bench, batches: DataLoader[Batch]) -> float:
    """Return how long the batches of an epoch take, if nobody trains."""
    began = bench.now()
    for _ in batches:
        pass
    return bench.now() - began


def measure_rates(bench: Bench, folder: Path) -> Rates:
    """Measure the five by turns; the first turn warms up and does not count."""
    images = bench.batches * bench.batch_size
    dataset = read_dataset(write_copies(folder, images))
    batches, streamed = batches_of(bench, dataset), batches_of(bench, dataset, cache_bytes=0)
    held = list(batches)
    turns = [
        (
            fit_seconds(bench, dataset, batches),
            bare_seconds(bench, dataset, batches),
            bare_seconds(bench, dataset, held),
            loader_seconds(bench, batches),
            loader_seconds(bench, streamed),
        )
        for _ in range(bench.repeats + 1)
    ][1:]
    names = ("fit", "bare", "network", "loader", "streamed")
    each = (images / median(times) for times in zip(*turns, strict=True))
    return Rates(
        **dict(zip(names, each, strict=True)),
        fit_over_bare=median(turn[1] / turn[0] for turn in turns),
        loader_over_network=median(turn[2] / turn[3] for turn in turns),
        streamed_over_network=median(turn[2] / turn[4] for turn in turns),
    )


def fit_whole(bench: Bench, folder: Path) -> None:
    """Fit a member to the dataset in a folder, with all that comes before and after."""
    settings = Settings(epochs=EPOCHS, batch_size=bench.batch_size)
    fit(read_dataset(folder), bench.choice, settings, out=folder / "run")


def peak_of_fit_mb(bench: Bench, folder: Path, count: int) -> float:
    """Return the peak memory (MB, resident) of a process that fits to ``count`` images."""
    write_copies(folder, count, validation=count)
    command = [sys.executable, "-m", "tests.bench.training", "--peak-of", str(folder)]
    command += ["--encoder", bench.encoder, "--size", *map(str, bench.size)]
    command += ["--batch", str(bench.batch_size), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def report(bench: Bench) -> dict[str, object]:
    """Measure everything, print it as a table and return it."""
    with tempfile.TemporaryDirectory() as folder:
        rates = measure_rates(bench, Path(folder) / "rates")
        peaks = [peak_of_fit_mb(bench, Path(folder) / str(n), n) for n in bench.counts]
    print_rates(bench, rates)
    print_peaks(bench, peaks)
    passed = (
        rates.fit_over_bare >= FIT_BAR
        and rates.loader_over_network >= LOADER_BAR
        and min(bench.counts) > bench.cached
        and peaks[1] - peaks[0] <= GROWTH_BAR_MB
        and max(peaks) <= PEAK_BAR_MB
    )
    print("all bars are met" if passed else "A BAR IS NOT MET")
    facts = {"threads": torch.get_num_threads(), "precision": quick_precision()}
    return {**facts, **asdict(bench), **asdict(rates), "peaks_mb": peaks, "passed": passed}


def print_rates(bench: Bench, rates: Rates) -> None:
    """Print what was measured how, and how quick it was."""
    size = "x".join(map(str, bench.size))
    clock = "CPU time" if bench.cpu_time else "wall time"
    print(f"U-Net, {bench.encoder}, {size}, batches of {bench.batch_size}, {quick_precision()},")
    print(f"{torch.get_num_threads()} thread(s), {clock}, medians of {bench.repeats} turns\n")
    for label, rate in (
        ("fit", rates.fit),
        ("bare", rates.bare),
        ("network", rates.network),
        ("loader, warm cache", rates.loader),
        ("loader, streamed 1080p", rates.streamed),
    ):
        print(f"  {label:<26}{rate:8.1f} images/s")
    print(f"  {'fit / bare':<26}{rates.fit_over_bare:8.3f} (bar {FIT_BAR})")
    print(f"  {'loader / network, warm':<26}{rates.loader_over_network:8.2f} (bar {LOADER_BAR})")
    print(f"  {'loader / network, streamed':<26}{rates.streamed_over_network:8.2f} (no bar)")


def print_peaks(bench: Bench, peaks: Sequence[float]) -> None:
    """Print what memory fit took, and whether the datasets overflowed its cache."""
    for count, peak in zip(bench.counts, peaks, strict=True):
        print(f"  {f'peak of fit, 2 x {count}':<26}{peak:8.0f} MB (bar {PEAK_BAR_MB:.0f})")
    growth = peaks[1] - peaks[0]
    print(f"  {'growth':<26}{growth:8.0f} MB (bar {GROWTH_BAR_MB:.0f})")
    filled = "overflow" if min(bench.counts) > bench.cached else "DO NOT FILL"
    print(f"  both {filled} the cache, which holds {bench.cached} images of each split")


def main() -> None:
    """Run from the command line."""
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    bench = Bench(
        encoder=chosen.encoder,
        size=tuple(chosen.size),
        batch_size=chosen.batch,
        batches=chosen.batches,
        repeats=chosen.repeats,
        counts=tuple(chosen.images),
        cpu_time=chosen.cpu_time,
    )
    if chosen.peak_of:
        fit_whole(bench, chosen.peak_of)
        print(peak_mb())
        return
    if not any(bench.counts):
        bench = replace(bench, counts=tuple(round(bench.cached * times) for times in BEYOND))
    figures = report(bench)
    if chosen.json:
        write_atomically(chosen.json, json.dumps(figures, indent=2).encode())
    sys.exit(0 if figures["passed"] else 1)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m tests.bench.training --json training.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoder", default="tu-mobilenetv4_conv_small_050")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 384), help="height and width")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch (default 8)")
    parser.add_argument("--batches", type=int, default=6, help="of a turn (default 6)")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count (default 7)")
    parser.add_argument(
        "--images",
        type=int,
        nargs=2,
        default=(0, 0),
        help="for training, of the two datasets, and as many for validation "
        "(default 0 0: beyond what the cache holds)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use too")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
