"""A whole recipe: stages, members, ensemble, evaluation, bundle. Finished parts are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edge.contract.boundary import read_toml
from edge.contract.errors import ConfigError
from edge.contract.files import make_folder, write_atomically
from train.data.check import check_layout
from train.data.dataset import DATA_FOLDER, DATASET, read_dataset
from train.ensemble.weigh_runs import weigh_runs
from train.evaluate.baselines import OtsuBaseline, fit_baseline
from train.evaluate.evaluation import evaluate, pool
from train.evaluate.record import read_evaluation, write_json
from train.predict import Predictor, open_predictor
from train.progress import counting
from train.recipe.file import find_dataset, read_recipe
from train.recipe.report import ENSEMBLE, print_report, write_report
from train.recipe.steps import (
    Places,
    ensemble_of,
    final_folder,
    final_source,
    fits_of,
    folds_of,
)
from train.recipe.work import do_fits
from train.runs import read_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Evaluation
    from train.fit.plan import Hardware
    from train.recipe.file import Drawn, Recipe
    from train.recipe.steps import Fit, Fold
    from train.runs import Run

Opened = Callable[[], AbstractContextManager[Predictor]]
RECIPE = "recipe.toml"
ENSEMBLE_FILE = "ensemble.toml"


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
    recipe = read_recipe(path)
    bundle = out / f"{recipe.name}.icecam"
    _keep_recipe(path, out)
    places = _places(recipe, path, out, data, console)
    folds = folds_of(recipe, places)
    _check(recipe, places, console)
    _train(recipe, places, folds, jobs=jobs, hardware=hardware, console=console)
    judged = [_judge(recipe, fold, console) for fold in folds]
    pooled = _pooled(judged)
    for name, found in pooled.items():
        write_json(_kept(out, name), [found])
    write_report(out, recipe.name, pooled)
    print_report(console, pooled)
    _bundle(recipe, places, bundle, console)
    return bundle


def _keep_recipe(path: Path, out: Path) -> None:
    """Note the recipe in its folder, or refuse the folder of another one."""
    kept = out / RECIPE
    make_folder(out, what="the recipe's folder")
    if not kept.exists():
        if any(out.iterdir()):
            raise ConfigError(f"{out}: holds other files", expected="a new or an empty folder")
        write_atomically(kept, path.read_bytes())
        return
    before = read_toml(kept, what="a recipe")
    now = read_toml(path, what="a recipe")
    differ = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if differ:
        raise ConfigError(
            f"{out}: was begun by another recipe ({', '.join(differ)} differ)",
            expected=f"what {kept} says, to go on with it, or a new folder",
            then="Nothing was changed.",
        )


def _places(recipe: Recipe, path: Path, out: Path, data: Path | None, console: Console) -> Places:
    stages = {}
    for stage in recipe.stage[:-1]:
        if stage.drawn is not None:
            stages[stage.name] = _draw(out / "data" / stage.name, stage.drawn, console)
        elif stage.dataset is not None:
            stages[stage.name] = find_dataset(stage.dataset, recipe=path, data=data)
    dataset = find_dataset(recipe.dataset, recipe=path, data=data)
    return Places(dataset=dataset, data=data, stages=stages, out=out)


def _draw(folder: Path, drawn: Drawn, console: Console) -> Path:
    from train.synth.write import write_dataset  # noqa: PLC0415 - only where scenes are drawn

    dataset = folder / DATASET
    if not dataset.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with counting(console, "drawing scenes") as progress:
            write_dataset(
                folder,
                count=drawn.count,
                seed=drawn.seed,
                size=(drawn.height, drawn.width),
                sequence_length=drawn.sequence,
                progress=None if progress is None else lambda done: progress(done, drawn.count),
            )
    return dataset


def _check(recipe: Recipe, places: Places, console: Console) -> None:
    """Refuse what would fail after hours: every dataset, network and encoder is tried first."""
    from train.fit.trainer import check_data, check_member  # noqa: PLC0415 - loads torch

    for member in recipe.member:
        choice = recipe.choice_of(member)
        for stage in recipe.stages_of(member):
            dataset = read_dataset(places.stages.get(stage.name, places.dataset), data=places.data)
            check_member(dataset, choice, recipe.settings_of(member, stage))
    choice = recipe.choice_of(recipe.member[0])
    check_data(final_source(recipe, places).open(), choice, console=console)
    for path in places.stages.values():
        check_data(read_dataset(path, data=places.data), choice, console=console)
    for fold in folds_of(recipe, places):
        check_layout(fold.source.open(), needed=("train", "validation", "test"))


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
        )

    for level in levels:
        do_fits(level, jobs=jobs, hardware=hardware, console=console, done=done)


def _judge(recipe: Recipe, fold: Fold, console: Console) -> dict[str, Evaluation]:
    """Measure ensemble, members and baselines on the images that a fold holds out."""
    dataset = fold.source.open()
    _weigh(recipe, fold.folder, dataset, console)
    found: dict[str, Evaluation] = {}
    for name, opened in _predictors(recipe, fold, dataset):
        kept = _kept(fold.folder, name)
        if not kept.exists():
            with opened() as predictor:
                _measure(predictor, name, dataset, kept, console)
        found[name] = read_evaluation(kept)
    return found


def _predictors(recipe: Recipe, fold: Fold, dataset: Dataset) -> Iterator[tuple[str, Opened]]:
    yield ENSEMBLE, partial(open_predictor, fold.folder / ENSEMBLE_FILE)
    for member in recipe.member:
        yield member.name, partial(open_predictor, fold.folder / member.name)
    if "otsu" in recipe.evaluation.baselines:
        yield "Otsu", lambda: nullcontext(OtsuBaseline(dataset.class_map))
    if "colour" in recipe.evaluation.baselines:
        yield "colour and row", lambda: nullcontext(fit_baseline(dataset))


def _kept(folder: Path, predictor: str) -> Path:
    """Return where a predictor's figures are kept."""
    place = folder / "evaluation"
    place.mkdir(exist_ok=True)
    return place / f"{predictor.replace(' ', '-')}.json"


def _measure(
    predictor: Predictor, name: str, dataset: Dataset, kept: Path, console: Console
) -> None:
    with counting(console, f"measuring {name}") as progress:
        found = evaluate(predictor, dataset, split="test", progress=progress)
    write_json(kept, [replace(found, predictor=name)])


def _pooled(judged: Sequence[dict[str, Evaluation]]) -> dict[str, Evaluation]:
    """Join each predictor's folds."""
    return {name: pool([fold[name] for fold in judged]) for name in judged[0]}


def _weigh(recipe: Recipe, folder: Path, dataset: Dataset, console: Console) -> None:
    """Weigh the members of a folder on the dataset's validation split, once."""
    if (folder / ENSEMBLE_FILE).exists():
        return
    console.print(f"weighing the members of {folder}", highlight=False)
    runs = [read_run(folder / member.name) for member in ensemble_of(recipe)]
    weigh_runs(runs, folder / ENSEMBLE_FILE, dataset=dataset, console=console)


def _bundle(recipe: Recipe, places: Places, out: Path, console: Console) -> None:
    """Write the bundle, with what the folds measured in its manifest.

    In a process of its own: train may not import export.
    """
    folder = final_folder(recipe, places)
    _weigh(recipe, folder, final_source(recipe, places).open(), console)
    if out.exists():
        console.print(f"{out} is there already", highlight=False)
        return
    command = [sys.executable, "-m", "export", "make", str(folder / ENSEMBLE_FILE)]
    command += ["--data", str(places.dataset), "--metrics", str(_kept(places.out, ENSEMBLE))]
    environment = dict(os.environ)
    if places.data is not None:
        environment[DATA_FOLDER] = str(places.data.absolute())
    made = subprocess.run([*command, "-o", str(out)], env=environment, check=False)  # noqa: S603 - our own program
    if made.returncode:
        raise ConfigError(
            f"{out}: the bundle could not be made",
            then="What was trained and measured is kept: run the recipe again.",
        )
