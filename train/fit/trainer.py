"""Fit one member to a dataset: from a ``dataset.toml`` to a run folder."""

from __future__ import annotations

import logging
import shutil
import signal
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from edge.contract.errors import ConfigError
from edge.contract.files import make_folder
from edge.engine import refuse_distortion
from train.data.check import check, pixels_of
from train.data.loader import Resized, training_batches, validation_batches
from train.fit.begin import begin, lineage, settled_plan
from train.fit.display import Display, print_summary
from train.fit.keeper import Keeper, WholeCheckpoints, read_state
from train.fit.learner import PLAN, Learner
from train.fit.losses import median_balance
from train.fit.plan import Hardware, Plan, refuse_another_plan
from train.progress import counting
from train.runs import (
    METRICS,
    MODEL,
    RUN,
    STATE,
    Training,
    check_name,
    read_run,
    refuse_finished,
    write_run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from lightning.pytorch import Callback
    from rich.console import Console

    from edge.contract.frames import Pixels
    from train.data.check import Counts
    from train.data.dataset import Dataset
    from train.fit.begin import Began
    from train.fit.plan import Choice, Settings
    from train.models.members import Member
    from train.runs import Run

GRADIENT_NORM = 1.0
WRITTEN = (STATE, MODEL, METRICS, RUN)
STATE_COPIES = 4
"""What a state holds of each parameter: itself, AdamW's two moments, the best epoch's."""
_LIGHTNING_SAYS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists.*",
    ".*LeafSpec.*is deprecated.*",
)


def fit(  # noqa: PLR0913 - each is a fact of the run, named at the call
    dataset: Dataset,
    choice: Choice,
    settings: Settings,
    *,
    out: Path,
    name: str = "",
    start: Path | None = None,
    hardware: Hardware | None = None,
    console: Console | None = None,
) -> Run:
    """Train a member on the train split, keep the best epoch by validation mIoU, write the run.

    name: the folder's where empty; start: a run whose parameters it begins with: the head is made
    anew where its classes differ. An ``out`` that an interrupted fit left is gone on with, under
    the same plan. On one machine the same seed gives the same parameters (on a GPU: nearly).

    Raises ConfigError: an unknown architecture, encoder or option, encoder parameters that cannot
    be had, a size the member cannot take, a dataset with defects, a start of another network, a
    finished run or other files in ``out``, no room for the state, a loss that is not finite.
    """
    plan = settled_plan(dataset, choice, settings, start)
    check_name(name or out.name)
    began = begin(plan, dataset, start)
    keeper = Keeper(_state_of(out, plan), patience=plan.settings.patience)
    _require_room(keeper.state, began.member)
    trainer_of(plan.settings, hardware or Hardware())
    counts = check_data(dataset, plan.choice, console=console)
    make_folder(out, what="the run's folder")
    console = console if rank_zero_only.rank == 0 else None  # type: ignore[attr-defined]  # set by Lightning
    display = Display(console, keeper, plan.settings.epochs) if console else None
    learner = Learner(
        began.member,
        plan,
        dataset.class_map.names,
        balance=_balance(plan, pixels_of(dataset, counts, "train")),
    )
    trainer = _train(learner, dataset, keeper, display, hardware or Hardware())
    if trainer.is_global_zero:
        _finish(out, name or out.name, began, dataset, plan, keeper)
    trainer.strategy.barrier()
    run = read_run(out)
    if display and console:
        print_summary(console, run, keeper.best, images_per_s=display.images_per_s)
    return run


def check_data(dataset: Dataset, choice: Choice, *, console: Console | None = None) -> Counts:
    """Open every image and mask, and raise one ConfigError that lists what ``fit`` would refuse.

    Returns how many pixels of each class every mask holds.
    """

    def fits(frame: Pixels) -> None:
        shape = frame.shape[0], frame.shape[1]
        refuse_distortion(shape, choice.size, max_anisotropy=choice.max_anisotropy)

    with counting(console, f"checking {dataset.name}") as progress:
        return check(dataset, fits=fits, progress=progress)


def _balance(plan: Plan, pixels: npt.NDArray[np.int64]) -> torch.Tensor | None:
    if plan.settings.class_balance == "none":
        return None
    return torch.from_numpy(median_balance(pixels))


def _require_room(state: Path, member: Member) -> None:
    """Refuse, before hours are spent, a disk that cannot hold two states beside each other."""
    place = next(folder for folder in state.absolute().parents if folder.is_dir())
    states = 1 if state.exists() else 2
    needed = states * STATE_COPIES * 4 * member.parameter_count
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ConfigError(
            f"{state.parent}: {free / 1e6:.0f} MB of room on its disk",
            expected=f"at least {needed / 1e6:.0f} MB, for the state of {member.architecture}",
            then="Nothing was trained; what was kept before is whole.",
        )


def _finish(
    out: Path, name: str, began: Began, dataset: Dataset, plan: Plan, keeper: Keeper
) -> None:
    """Write the run of the best epoch, and only then let the state go."""
    began.member.load_state_dict(keeper.best_parameters)
    try:
        write_run(
            out,
            began.member.cpu().eval(),
            name=name,
            class_map=dataset.class_map,
            input_size=plan.choice.size,
            max_anisotropy=plan.choice.max_anisotropy,
            training=_summary(began, plan, dataset, keeper),
            metrics={
                "epochs": [asdict(epoch) for epoch in keeper.history],
                "images": {
                    split: [item.stem for item in dataset.of(split)]
                    for split in ("train", "validation")
                },
            },
        )
    except OSError as problem:
        raise ConfigError(
            f"{out}: the run could not be written ({problem.strerror})",
            then="The trained state is kept: make room and run the same fit again.",
        ) from None
    keeper.state.unlink(missing_ok=True)


def _state_of(out: Path, plan: Plan) -> Path:
    """Return where the state is kept, after refusing a folder that is not this run's.

    What a kill in the middle of writing left behind is removed.
    """
    refuse_finished(out)
    state = out / STATE
    ours = {path for name in WRITTEN for path in out.glob(f".{name}.*.part")}
    if state.exists():
        refuse_another_plan(str(state), plan, read_state(state).get(PLAN))
    elif out.is_dir() and not set(out.iterdir()) <= ours:
        raise ConfigError(f"{out}: holds other files", expected="a new or an empty folder")
    for half_written in ours:
        half_written.unlink()
    return state


def trainer_of(
    settings: Settings, hardware: Hardware, *, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """Return Lightning's trainer as every fit uses it. settings: with no precision left open.

    Raises ConfigError where this machine has not what ``hardware`` asks for.
    """
    try:
        with quiet_lightning():
            return Trainer(
                max_epochs=settings.epochs,
                accelerator=hardware.accelerator,
                devices=hardware.devices,
                num_nodes=hardware.nodes,
                strategy=hardware.strategy,
                precision=settings.precision,  # type: ignore[arg-type]  # settled: no longer auto
                callbacks=list(callbacks),
                plugins=[WholeCheckpoints()],
                gradient_clip_val=GRADIENT_NORM,
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
    except (MisconfigurationException, ImportError, ValueError, TypeError) as problem:
        raise ConfigError(
            f"accelerator {hardware.accelerator}, devices {hardware.devices}, strategy "
            f"{hardware.strategy}, precision {settings.precision}: "
            f"{str(problem).splitlines()[0]}",
            expected="what this machine has",
            then="Nothing was trained.",
        ) from problem


def _train(
    learner: Learner,
    dataset: Dataset,
    keeper: Keeper,
    display: Display | None,
    hardware: Hardware,
) -> Trainer:
    plan, settings = learner.plan, learner.plan.settings
    state = read_state(keeper.state) if keeper.state.exists() else {"epoch": -1}
    splits = {
        split: Resized(
            dataset,
            dataset.of(split),
            plan.choice.size,
            max_anisotropy=plan.choice.max_anisotropy,
            floes=learner.member.kind == "floes",
        )
        for split in ("train", "validation")
    }
    trainer = trainer_of(settings, hardware, callbacks=[keeper, display] if display else [keeper])
    with quiet_lightning():
        trainer.fit(
            learner,
            training_batches(
                splits["train"],
                seed=settings.seed,
                epoch=int(state["epoch"]) + 1,
                batch_size=settings.batch_size,
                workers=hardware.workers,
                augmentation=settings.augmentation,
                crop=settings.crop,
                processes=trainer.world_size,
            ),
            validation_batches(
                splits["validation"],
                batch_size=settings.batch_size,
                workers=hardware.workers,
                processes=trainer.world_size,
            ),
            ckpt_path=keeper.state if keeper.state.exists() else None,
            weights_only=True,
        )
    return trainer


def _summary(began: Began, plan: Plan, dataset: Dataset, keeper: Keeper) -> Training:
    settings = plan.settings
    stopped = len(keeper.history)
    return Training(
        dataset=plan.dataset,
        source=str(dataset.source),
        data=plan.data,
        held_out=" ".join(g for g, split in dataset.held_back.items() if split == "test"),
        seed=settings.seed,
        epochs=settings.epochs,
        images=len(dataset.of("train")),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        precision=settings.precision,
        class_balance=settings.class_balance,
        augmentation=settings.augmentation,
        crop=settings.crop,
        frozen=settings.frozen,
        encoder_parameters=began.encoder_parameters,
        started_from="" if began.start is None else lineage(began.start),
        made_anew=began.made_anew,
        best_epoch=keeper.best.epoch,
        stopped_after=stopped if stopped < settings.epochs else None,
        validation_miou=keeper.best.miou,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
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
