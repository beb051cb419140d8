"""How a fit looks to the one who waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from rich.console import Console

    from train.fit.keeper import Epoch, Keeper
    from train.runs import Run

_SMOOTHING = 0.9


class Display(Callback):
    """One bar over all epochs; a line for each epoch that is the best so far.

    Where the console is no terminal there is no bar, and every epoch has its line.
    """

    def __init__(self, console: Console, keeper: Keeper, epochs: int) -> None:
        """Show on ``console`` what ``keeper`` notes."""
        self._console = console
        self._keeper = keeper
        self._epochs = epochs
        self._loss: float | None = None
        self._began_s = 0.0
        self._images = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting")

    @property
    def images_per_s(self) -> float:
        """Training images per second of wall time, validation included."""
        return self._images / max(time.monotonic() - self._began_s, 1e-9)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar where the run stands."""
        del pl_module
        per_epoch = int(trainer.num_training_batches)
        done = trainer.current_epoch
        if done:
            best = self._keeper.best
            self._console.print(f"going on after epoch {done} (best {_brief(best)})")
        self._bar.update(self._task, total=self._epochs * per_epoch, completed=done * per_epoch)
        self._bar.start()
        self._began_s = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's
        batch: Any,  # noqa: ANN401 - Lightning's
        batch_idx: int,
    ) -> None:
        """Advance the bar."""
        del pl_module, batch_idx
        self._images += len(batch[0])
        loss = float(outputs["loss"])
        self._loss = loss if self._loss is None else _blend(self._loss, loss)
        best = f" · best {_brief(self._keeper.best)}" if self._keeper.history else ""
        said = f"epoch {trainer.current_epoch + 1}/{self._epochs} · loss {self._loss:.3f}{best}"
        self._bar.update(self._task, advance=1, description=said)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what an epoch reached (after the keeper has noted it)."""
        del trainer, pl_module
        epoch = self._keeper.history[-1]
        is_best = epoch is self._keeper.best
        if is_best or not self._console.is_terminal:
            star = " *" if is_best else ""
            self._console.print(
                f"epoch {epoch.epoch:>3}/{self._epochs}  loss {epoch.loss:.3f}  "
                f"mIoU {epoch.miou:.3f}  accuracy {epoch.pixel_accuracy:.3f}{star}",
                highlight=False,
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        del trainer, pl_module
        self._bar.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away, and say what an interruption leaves."""
        del trainer, pl_module
        self._bar.stop()
        kept = len(self._keeper.history)
        if isinstance(exception, KeyboardInterrupt) and kept:
            self._console.print(f"interrupted; run the same fit to go on after epoch {kept}")


def print_summary(console: Console, run: Run, best: Epoch, *, images_per_s: float) -> None:
    """Print what a fit made, and what to do next."""
    training = run.file.training
    height, width = run.input_size
    ious = "  ".join(
        f"{name} {'–' if iou is None else f'{iou:.3f}'}" for name, iou in best.iou.items()
    )
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row(
        "member",
        f"{run.architecture} with {run.encoder}, {run.file.parameters:,} parameters, "
        f"{height}x{width}",
    )
    table.add_row(
        "training",
        f"{training.images} images of {training.dataset}, {training.epochs} epochs, "
        f"{images_per_s:.1f} images/s",
    )
    table.add_row("validation", f"mIoU {best.miou:.3f} at epoch {best.epoch}  ({ious})")
    table.add_row("run", str(run.folder))
    console.print(table)


def _brief(epoch: Epoch) -> str:
    return f"mIoU {epoch.miou:.3f} at {epoch.epoch}"


def _blend(average: float, value: float) -> float:
    return _SMOOTHING * average + (1 - _SMOOTHING) * value
