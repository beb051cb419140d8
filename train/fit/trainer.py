"""Fit one member to a dataset: from a ``dataset.toml`` to a run folder."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer

from edge.contract.errors import ConfigError
from edge.engine import resize
from train.data.dataset import check
from train.data.loader import Resized, training_batches, validation_batches
from train.fit.display import Display, print_summary
from train.fit.keeper import Keeper, WholeCheckpoints, read_state
from train.fit.learner import PLAN, Learner
from train.fit.plan import Plan, digest, quick_precision, refuse_another_plan
from train.models.architectures import build_member, settle
from train.progress import counting
from train.runs import STATE, Training, check_name, refuse_finished, write_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

    from edge.contract.frames import Pixels, Size
    from train.data.dataset import Dataset
    from train.fit.plan import Precision
    from train.models.architectures import Member
    from train.runs import Run

GRADIENT_NORM = 1.0
_LIGHTNING_SAYS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists.*",
    ".*LeafSpec.*is deprecated.*",
)


def fit(  # noqa: PLR0913 - each is a fact of the run, named at the call
    dataset: Dataset,
    *,
    architecture: str,
    out: Path,
    input_size: Size,
    epochs: int,
    batch_size: int = 8,
    learning_rate: float = 3e-3,
    precision: Precision | None = None,
    seed: int = 0,
    encoder: str = "",
    options: Mapping[str, Any] | None = None,
    max_anisotropy: float = 1.2,
    workers: int = 0,
    name: str = "",
    console: Console | None = None,
) -> Run:
    """Train a member on the train split, keep the best epoch by validation mIoU, write the run.

    input_size: (height, width); precision: the quickest of this machine where None; name: the
    folder's where empty; workers: processes that decode.
    An ``out`` that an interrupted fit left is gone on with, under the same plan. On one machine
    the same seed gives the same parameters (on a GPU: nearly).

    Raises ConfigError: an unknown architecture, encoder or option, a size the member cannot take,
    a dataset with defects, a finished run or other files in ``out``, a loss that is not finite.
    """
    chosen, settings = settle(architecture, encoder, options)
    plan = Plan(
        architecture=architecture,
        encoder=chosen,
        options=settings.model_dump(mode="json"),
        input_size=input_size,
        max_anisotropy=max_anisotropy,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=precision or quick_precision(),
        seed=seed,
        dataset=dataset.name,
        data=digest(dataset),
    )
    plan.check()
    check_name(name or out.name)
    member = _new_member(plan, dataset)
    keeper = Keeper(_state_of(out, plan))
    _check_data(dataset, plan, console)
    out.mkdir(parents=True, exist_ok=True)
    display = Display(console, keeper, epochs) if console else None
    _train(Learner(member, plan, dataset.class_map.names), dataset, keeper, display, workers)
    run = _finish(out, name or out.name, member, dataset, plan, keeper)
    if display and console:
        print_summary(console, run, keeper.best, images_per_s=display.images_per_s)
    return run


def _new_member(plan: Plan, dataset: Dataset) -> Member:
    torch.manual_seed(plan.seed)
    member = build_member(
        plan.architecture, plan.encoder, classes=len(dataset.class_map), options=plan.options
    )
    member.check_size(plan.input_size)
    return member


def _check_data(dataset: Dataset, plan: Plan, console: Console | None) -> None:
    def fits(frame: Pixels) -> None:
        resize(frame, plan.input_size, max_anisotropy=plan.max_anisotropy)

    with counting(console, f"checking {dataset.name}") as progress:
        check(dataset, fits=fits, progress=progress)


def _finish(
    out: Path, name: str, member: Member, dataset: Dataset, plan: Plan, keeper: Keeper
) -> Run:
    """Write the run of the best epoch, and only then let the state go."""
    member.load_state_dict(keeper.best_parameters)
    run = write_run(
        out,
        member.cpu().eval(),
        name=name,
        class_map=dataset.class_map,
        input_size=plan.input_size,
        max_anisotropy=plan.max_anisotropy,
        training=_summary(plan, dataset, keeper),
        metrics={"epochs": [asdict(epoch) for epoch in keeper.history]},
    )
    keeper.state.unlink(missing_ok=True)
    return run


def _state_of(out: Path, plan: Plan) -> Path:
    """Return where the state is kept, after refusing a folder that is not this run's.

    What a kill in the middle of writing left behind is removed.
    """
    refuse_finished(out)
    state = out / STATE
    for half_written in out.glob(f".{STATE}.*.part"):
        half_written.unlink()
    if state.exists():
        refuse_another_plan(str(state), plan, read_state(state).get(PLAN))
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: holds other files", expected="a new or an empty folder")
    return state


def _train(
    learner: Learner, dataset: Dataset, keeper: Keeper, display: Display | None, workers: int
) -> None:
    plan = learner.plan
    state = read_state(keeper.state) if keeper.state.exists() else {"epoch": -1}
    splits = {
        split: Resized(
            dataset,
            dataset.of(split),
            plan.input_size,
            max_anisotropy=plan.max_anisotropy,
        )
        for split in ("train", "validation")
    }
    callbacks: list[Callback] = [keeper, display] if display else [keeper]
    with _quiet_lightning():
        trainer = Trainer(
            max_epochs=plan.epochs,
            devices=1,
            precision=plan.precision,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            gradient_clip_val=GRADIENT_NORM,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            learner,
            training_batches(
                splits["train"],
                seed=plan.seed,
                epoch=int(state["epoch"]) + 1,
                batch_size=plan.batch_size,
                workers=workers,
            ),
            validation_batches(splits["validation"], batch_size=plan.batch_size, workers=workers),
            ckpt_path=keeper.state if keeper.state.exists() else None,
            weights_only=True,
        )


def _summary(plan: Plan, dataset: Dataset, keeper: Keeper) -> Training:
    return Training(
        dataset=plan.dataset,
        seed=plan.seed,
        epochs=plan.epochs,
        images=len(dataset.of("train")),
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        precision=plan.precision,
        best_epoch=keeper.best.epoch,
        validation_miou=keeper.best.miou,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's advice and its loggers' lines; hand Ctrl-C back as what it is."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    on_interrupt = signal.getsignal(signal.SIGINT)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _LIGHTNING_SAYS:
                warnings.filterwarnings("ignore", message)
            yield
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
