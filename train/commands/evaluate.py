"""``python -m train evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.contract.errors import ConfigError
from edge.contract.files import make_folder
from train.commands.arguments import DatasetPath, share_the_cores

if TYPE_CHECKING:
    from rich.console import Console

    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Evaluation, Side
    from train.predict import Predictor


def evaluate(  # noqa: PLR0913 - each is an option
    predictor: Annotated[
        Path, typer.Argument(help="A run, an ensemble or a bundle (.icecam).", show_default=False)
    ],
    dataset: DatasetPath,
    *,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    held_out: Annotated[
        str, typer.Option("--hold-out", help="A group: measure on all its images, and on no other.")
    ] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(help="A folder for frame | truth | prediction pictures.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="A folder for plots: calibration, confusion, ice fraction.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Beside it: Otsu, and regression on colour and row.")
    ] = False,
) -> None:
    """Measure on a dataset: IoU, outlines, calibration, error of the ice fraction.

    Example: python -m train evaluate runs/unet data --baseline
    """
    share_the_cores()
    from rich.console import Console

    from train.evaluate.baselines import fit_baselines
    from train.evaluate.evaluation import refuse_another_map
    from train.evaluate.plots import write_plots
    from train.evaluate.record import write_json
    from train.evaluate.table import table_of
    from train.predict import open_predictor

    side, read = _images(dataset, split, held_out)
    _make_folders(json_file, overlays, plots)
    console = Console()
    with open_predictor(predictor) as opened:
        refuse_another_map(opened, read)
        _warn_of_seen(opened, read, side, console)
        predictors = [opened, *(fit_baselines(read) if baseline else ())]
        found = [
            _evaluated(one, read, side, overlays if one is opened else None, console)
            for one in predictors
        ]
    console.print(table_of(found))
    if json_file:
        write_json(json_file, found)
    if plots:
        write_plots(plots, found)


def _make_folders(json_file: Path | None, overlays: Path | None, plots: Path | None) -> None:
    """Find out that something cannot be written before minutes are spent on measuring it."""
    wanted = {
        "the folder of --json": json_file and json_file.parent,
        "the overlays' folder": overlays,
        "the plots' folder": plots,
    }
    for what, folder in wanted.items():
        if folder:
            make_folder(folder, what=what)


def _evaluated(
    predictor: Predictor, dataset: Dataset, side: Side, overlays: Path | None, console: Console
) -> Evaluation:
    from train.evaluate.evaluation import evaluate as evaluate_predictor
    from train.progress import counting

    with counting(console, predictor.name) as progress:
        return evaluate_predictor(
            predictor, dataset, split=side, overlays=overlays, progress=progress
        )


def _warn_of_seen(predictor: Predictor, dataset: Dataset, side: Side, console: Console) -> None:
    """Say where figures would flatter: on images that trained the predictor or chose its epoch."""
    from train.predict import EnsemblePredictor
    from train.runs import images_seen

    if not isinstance(predictor, EnsemblePredictor):
        return
    names = {item.stem for item in dataset.of(side)}
    for run in predictor.runs:
        seen = names & images_seen(run) if run.file.training.dataset == dataset.name else set()
        if seen:
            console.print(
                f"[yellow]warning:[/yellow] {run.name} was trained or chosen on {len(seen)} of "
                f"these {len(names)} images: the figures flatter it"
            )


def _images(path: Path, split: str, held_out: str) -> tuple[Side, Dataset]:
    from train.data.dataset import read_dataset
    from train.data.splits import hold_out

    side = _side(split)
    if not held_out:
        return side, read_dataset(path)
    if side != "test":
        raise ConfigError(
            f"--hold-out {held_out} with --split {split}",
            expected="one of them",
            then="A group that is held out is the test split.",
        )
    return side, hold_out(read_dataset(path), held_out)


def _side(text: str) -> Side:
    sides: dict[str, Side] = {
        "train": "train",
        "validation": "validation",
        "test": "test",
        "all": "all",
    }
    if text not in sides:
        raise ConfigError(f"--split {text}", expected=f"one of {', '.join(sides)}")
    return sides[text]
