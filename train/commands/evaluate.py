"""``python -m train evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.contract.errors import ConfigError
from train.commands.arguments import DatasetPath, share_the_cores

if TYPE_CHECKING:
    from rich.console import Console

    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Evaluation, Side
    from train.predict import Predictor


def evaluate(
    predictor: Annotated[
        Path, typer.Argument(help="A run folder, or a bundle (.icecam).", show_default=False)
    ],
    dataset: DatasetPath,
    *,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(help="A folder for frame | truth | prediction pictures.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Beside it: regression on colour and row.")
    ] = False,
) -> None:
    """Measure a run or a bundle on a dataset: IoU, pixel accuracy, error of the ice fraction.

    Example: python -m train evaluate runs/unet data --baseline
    """
    share_the_cores()
    from rich.console import Console

    from train.data.dataset import read_dataset
    from train.evaluate.baselines import fit_baseline
    from train.evaluate.evaluation import refuse_another_map, table_of, write_json
    from train.predict import open_predictor

    side, read = _side(split), read_dataset(dataset)
    console = Console()
    with open_predictor(predictor) as opened:
        refuse_another_map(opened, read)
        predictors = [opened, fit_baseline(read)] if baseline else [opened]
        found = [
            _evaluated(one, read, side, overlays if one is opened else None, console)
            for one in predictors
        ]
    console.print(table_of(found))
    if json_file:
        write_json(json_file, found)


def _evaluated(
    predictor: Predictor, dataset: Dataset, side: Side, overlays: Path | None, console: Console
) -> Evaluation:
    from train.evaluate.evaluation import evaluate as evaluate_predictor
    from train.progress import counting

    with counting(console, predictor.name) as progress:
        return evaluate_predictor(
            predictor, dataset, split=side, overlays=overlays, progress=progress
        )


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
