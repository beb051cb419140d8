"""From runs to an ``ensemble.toml``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.contract.errors import ConfigError
from edge.contract.files import make_folder
from train.data.splits import VALIDATION_SHARE
from train.ensemble.pixels import draw_pixels
from train.ensemble.report import choose
from train.ensemble.validation import dataset_of, require_one_split, was_trained_on
from train.ensembles import require_alike, write_ensemble
from train.fit.plan import digest
from train.progress import counting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from train.data.dataset import Dataset
    from train.ensemble.report import Report
    from train.runs import Run


def weigh_runs(  # noqa: PLR0913 - each is a fact of the ensemble, named at the call
    runs: Sequence[Run],
    out: Path,
    *,
    dataset: Dataset | None = None,
    data: Path | None = None,
    group: str = "",
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
    console: Console | None = None,
) -> Report:
    """Find weights and temperatures on validation images and write them to ``out``.

    dataset: split as the runs were trained on it; else it is found by ``dataset_of`` from data,
    group and validation_share. Raises ConfigError where runs and data do not fit together, or
    ``out`` cannot be written; no file is written then.
    """
    if out.suffix != ".toml":
        raise ConfigError(f"--out {out}", expected="a file that ends in .toml")
    require_alike(runs)
    require_one_split(runs)
    if dataset is None:
        dataset = dataset_of(runs, data, group=group, validation_share=validation_share)
    if console and not was_trained_on(runs, dataset):
        _warn_of_another_split(console, runs, dataset)
    make_folder(out.parent, what="the ensemble's folder")
    with counting(console, f"{len(runs)} members on validation images") as progress:
        pixels = draw_pixels(runs, dataset, seed=seed, progress=progress)
    with counting(console, "weighing, with images left out") as progress:
        report = choose(pixels, [run.name for run in runs], progress=progress)
    write_ensemble(
        out,
        runs,
        report.chosen.weighing,
        validation={
            "dataset": dataset.name,
            "data": digest(dataset),
            "images": report.images,
            "pixels": report.pixels,
            "seed": seed,
        },
        figures=report.as_plain(),
    )
    if console:
        _tell(console, report, out)
    return report


def _warn_of_another_split(console: Console, runs: Sequence[Run], dataset: Dataset) -> None:
    said = "were trained on another split of" if runs[0].file.training.data else "may have seen"
    console.print(
        f"[yellow]warning:[/yellow] the runs {said} {dataset.name}: where its validation images "
        "trained them, the weights favour what learnt those by heart"
    )


def _tell(console: Console, report: Report, out: Path) -> None:
    console.print(report.table())
    diversity = report.diversity
    if diversity.disagreement is not None:
        correlation = diversity.error_correlation
        said = "" if correlation is None else f"; their errors correlate {correlation:.2f}"
        console.print(f"members disagree on {diversity.disagreement:.1%} of the pixels{said}")
    console.print(report.verdict())
    console.print(f"wrote {out}; next: python -m export make {out} --data DATASET -o F.icecam")
