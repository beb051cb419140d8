"""A whole recipe: stages, members, ensemble, evaluation, bundle. Finished parts are kept."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from edge.contract.errors import ConfigError
from train.data.dataset import DATA_FOLDER
from train.recipe.judge import ensemble_file, figures_file, judge, pool_folds, weigh
from train.recipe.prepare import prepare
from train.recipe.report import print_report, write_report
from train.recipe.steps import ENSEMBLE, final_folder, final_source, fits_of, folds_of
from train.recipe.work import do_fits

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from train.fit.plan import Hardware
    from train.recipe.file import Recipe
    from train.recipe.steps import Fit, Fold, Places
    from train.runs import Run


def run_recipe(
    path: Path,
    *,
    out: Path,
    data: Path | None,
    jobs: int,
    hardware: Hardware,
    console: Console,
) -> Path:
    """Do what a recipe says, and return its bundle. Run again, it goes on where it stopped.

    out: gets data/ (what was drawn), stages/, folds/, final/, evaluation/, results.md, plots/
    and NAME.icecam. Raises ConfigError before anything is trained where the recipe, a dataset, an
    architecture or an encoder is wrong, and where ``out`` holds another recipe's work.
    """
    recipe, places = prepare(path, out, data, console)
    folds = folds_of(recipe, places)
    _train(recipe, places, folds, jobs=jobs, hardware=hardware, console=console)
    pooled = pool_folds(out, [judge(recipe, fold, console) for fold in folds])
    write_report(out, recipe, pooled)
    print_report(console, recipe, pooled)
    return _bundle(recipe, places, console)


def _train(
    recipe: Recipe,
    places: Places,
    folds: tuple[Fold, ...],
    *,
    jobs: int,
    hardware: Hardware,
    console: Console,
) -> None:
    levels = list(fits_of(recipe, places, folds))
    total = sum(map(len, levels))
    began, finished = time.monotonic(), 0

    def done(fit: Fit, run: Run, seconds: float) -> None:
        nonlocal finished
        finished += 1
        took = f"{seconds / 60:.1f} min" if seconds else "kept"
        console.print(
            f"[{finished}/{total}] {fit.label}: validation mIoU "
            f"{run.file.training.validation_miou:.3f} ({took}; "
            f"{(time.monotonic() - began) / 60:.0f} min so far)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    for level in levels:
        do_fits(level, jobs=jobs, hardware=hardware, console=console, done=done)


def _bundle(recipe: Recipe, places: Places, console: Console) -> Path:
    """Write the bundle, with what the folds measured in its manifest.

    In a process of its own: train may not import export.
    """
    out, folder = places.out / f"{recipe.name}.icecam", final_folder(recipe, places)
    weigh(recipe, folder, final_source(recipe, places).open(), console)
    if out.exists():
        console.print(f"{out} is there already", highlight=False)
        return out
    command = [sys.executable, "-m", "export", "make", str(ensemble_file(folder))]
    command += ["--data", str(places.dataset), "-o", str(out)]
    command += ["--metrics", str(figures_file(places.out, ENSEMBLE))]
    environment = dict(os.environ)
    if places.data is not None:
        environment[DATA_FOLDER] = str(places.data.absolute())
    made = subprocess.run(command, env=environment, check=False)  # noqa: S603 - our own program
    if made.returncode:
        raise ConfigError(
            f"{out}: the bundle could not be made",
            then="What was trained and measured is kept: run the recipe again, or the export by "
            f"itself, with other options: {shlex.join(['python', *command[1:]])}",
        )
    return out
