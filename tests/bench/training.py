"""How quick training is beside bare PyTorch, whether the loader keeps up, and what memory it takes.

Everything is measured in one run, by turns, so that a busy machine slows all alike; the medians
count. Frames are drawn, 1920x1080, and trained on at the size asked for.

fit: our Lightning loop over bare PyTorch, images/s, same network, batches and loader. Bar: 0.95.
loader: batches alone, with full augmentation and a warm cache, one process, over the network
alone. Bar: 3.
memory: the peak of a process that trains on 1080p sources, at two sizes of dataset: it does not
grow.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from edge.contract.files import write_atomically
from train.data.dataset import read_dataset
from train.data.loader import Batch, Resized, training_batches
from train.fit.learner import WEIGHT_DECAY, Learner
from train.fit.losses import segmentation_loss
from train.fit.plan import Choice, Plan, Settings, quick_precision
from train.fit.trainer import GRADIENT_NORM, _quiet_lightning
from train.models.architectures import build_member

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.utils.data import DataLoader

    from edge.contract.frames import Size
    from train.models.members import Member

FIT_BAR, LOADER_BAR, GROWTH_BAR_MB, PEAK_BAR_MB = 0.95, 3.0, 64.0, 4096.0
NATIVE = (1080, 1920)
STREAMING_BYTES = 8 << 20
ROOT = Path(__file__).parents[2]
CLASSES = ("water", "ice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What is measured. size: (height, width); batches: of a turn; counts: images of a dataset.

    cpu_time: count the seconds of this process alone, not the clock's.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Images/s, medians over the repeats; ratios of them pair by pair, medians too."""

    fit: float
    bare: float
    network: float
    loader: float
    fit_over_bare: float
    loader_over_network: float


def draw_dataset(folder: Path, count: int) -> Path:
    """Write one 1080p frame with its mask, and links to it: each is decoded anew all the same."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    mask = cv2.resize(rng.integers(0, 2, (27, 48), np.uint8), NATIVE[::-1], interpolation=0)
    frame = cv2.resize(rng.integers(0, 100, (270, 480, 3), np.uint8), NATIVE[::-1])
    cv2.imwrite(str(folder / "images" / "a_0.jpg"), frame + mask[:, :, None] * np.uint8(100))
    cv2.imwrite(str(folder / "masks" / "a_0.png"), mask)
    for number in range(1, count):
        (folder / "images" / f"a_{number}.jpg").symlink_to("a_0.jpg")
        (folder / "masks" / f"a_{number}.png").symlink_to("a_0.png")
    classes = "".join(
        f'[[classes]]\nname = "{role}"\nrole = "{role}"\ncolour = [0, 0, 0]\nvalues = [{value}]\n'
        for value, role in enumerate(CLASSES)
    )
    (folder / "dataset.toml").write_text(
        'schema = "icecam.dataset/1"\nname = "drawn"\nimages = "images/*.jpg"\n'
        f"masks = \"masks/{{stem}}.png\"\ngroup = '^(a)_'\n{classes}[split]\n"
    )
    return folder


def loader_of(bench: Bench, folder: Path, *, cache_bytes: int = 256 << 20) -> DataLoader[Batch]:
    """Return the training batches of a dataset, fully augmented, in this process."""
    dataset = read_dataset(folder)
    samples = Resized(dataset, dataset.of("all"), bench.size, cache_bytes=cache_bytes)
    return training_batches(samples, seed=0, epoch=0, batch_size=bench.batch_size)


def member_of(bench: Bench) -> Member:
    """Return a fresh U-Net, the same each time."""
    torch.manual_seed(0)
    return build_member("unet", bench.encoder, classes=len(CLASSES))


class EpochClock(Callback):
    """Times an epoch from its start to the end of its last step."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._began = self.seconds = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        self._began = self._bench.now()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds = self._bench.now() - self._began


def fit_seconds(bench: Bench, batches: DataLoader[Batch]) -> float:
    """Train one epoch as ``train.fit`` does and return how long its steps took."""
    plan = Plan(
        choice=Choice(encoder=bench.encoder, height=bench.size[0], width=bench.size[1]),
        settings=Settings(epochs=1, batch_size=bench.batch_size, precision=quick_precision()),
        dataset="drawn",
        data="",
        classes="",
    )
    clock = EpochClock(bench)
    with _quiet_lightning():
        warnings.filterwarnings("ignore", ".*no `val_dataloader`.*")
        Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            precision=plan.settings.precision,  # type: ignore[arg-type]  # settled: no longer auto
            callbacks=[clock],
            gradient_clip_val=GRADIENT_NORM,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        ).fit(Learner(member_of(bench), plan, CLASSES), batches)
    return clock.seconds


def bare_seconds(bench: Bench, batches: Iterable[Batch]) -> float:
    """Train one epoch as a script of a few lines would, and return how long it took."""
    member = member_of(bench).to(memory_format=torch.channels_last).train()
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
    """Measure the four by turns; the first turn warms up and does not count."""
    batches = loader_of(bench, draw_dataset(folder, bench.batches * bench.batch_size))
    held = list(batches)
    turns = [
        (
            fit_seconds(bench, batches),
            bare_seconds(bench, batches),
            bare_seconds(bench, held),
            loader_seconds(bench, batches),
        )
        for _ in range(bench.repeats + 1)
    ][1:]
    images = bench.batches * bench.batch_size
    fit, bare, network, loader = (images / median(times) for times in zip(*turns, strict=True))
    return Rates(
        fit=fit,
        bare=bare,
        network=network,
        loader=loader,
        fit_over_bare=median(turn[1] / turn[0] for turn in turns),
        loader_over_network=median(turn[2] / turn[3] for turn in turns),
    )


def peak_mb(bench: Bench, folder: Path, count: int) -> float:
    """Return the peak memory (MB, resident) of a process that trains on ``count`` images."""
    draw_dataset(folder, count)
    command = [sys.executable, "-m", "tests.bench.training", "--peak-of", str(folder)]
    command += ["--encoder", bench.encoder, "--size", *map(str, bench.size)]
    command += ["--batch", str(bench.batch_size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def report(bench: Bench) -> dict[str, object]:
    """Measure everything, print it as a table and return it."""
    with tempfile.TemporaryDirectory() as folder:
        rates = measure_rates(bench, Path(folder) / "rates")
        peaks = [peak_mb(bench, Path(folder) / str(n), n) for n in bench.counts]
    size = "x".join(map(str, bench.size))
    print(f"U-Net, {bench.encoder}, {size}, batches of {bench.batch_size}, {quick_precision()},")
    clock = "CPU time" if bench.cpu_time else "wall time"
    print(f"{torch.get_num_threads()} thread(s), {clock}, medians of {bench.repeats} turns\n")
    for name in ("fit", "bare", "network", "loader"):
        print(f"  {name:<22}{getattr(rates, name):8.1f} images/s")
    print(f"  {'fit / bare':<22}{rates.fit_over_bare:8.3f} (bar {FIT_BAR})")
    print(f"  {'loader / network':<22}{rates.loader_over_network:8.2f} (bar {LOADER_BAR})")
    for count, peak in zip(bench.counts, peaks, strict=True):
        print(f"  {f'peak, {count} images':<22}{peak:8.0f} MB (bar {PEAK_BAR_MB:.0f})")
    growth = peaks[1] - peaks[0]
    print(f"  {'growth':<22}{growth:8.0f} MB (bar {GROWTH_BAR_MB:.0f})")
    passed = (
        rates.fit_over_bare >= FIT_BAR
        and rates.loader_over_network >= LOADER_BAR
        and growth <= GROWTH_BAR_MB
        and max(peaks) <= PEAK_BAR_MB
    )
    print("all bars are met" if passed else "A BAR IS NOT MET")
    facts = {"threads": torch.get_num_threads(), "precision": quick_precision()}
    return {**facts, **asdict(bench), **asdict(rates), "peaks_mb": peaks, "passed": passed}


def main() -> None:
    """Run from the command line."""
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
    parser.add_argument("--images", type=int, nargs=2, default=(32, 96), help="of the two datasets")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use too")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
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
        fit_seconds(bench, loader_of(bench, chosen.peak_of, cache_bytes=STREAMING_BYTES))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    figures = report(bench)
    if chosen.json:
        write_atomically(chosen.json, json.dumps(figures, indent=2).encode())
    sys.exit(0 if figures["passed"] else 1)


if __name__ == "__main__":
    main()
