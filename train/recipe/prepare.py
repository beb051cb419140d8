"""Before hours are spent: the folder, the datasets, the networks, and the scenes to draw."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from edge.contract.boundary import read_toml
from edge.contract.errors import ConfigError
from edge.contract.files import make_folder, write_atomically
from train.data.check import check_split
from train.data.dataset import DATASET, read_dataset
from train.progress import counting
from train.recipe.file import find_dataset, read_recipe
from train.recipe.steps import Places, Source, final_source, folds_of

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from train.recipe.file import Drawn, Recipe

RECIPE = "recipe.toml"


def prepare(path: Path, out: Path, data: Path | None, console: Console) -> tuple[Recipe, Places]:
    """Read a recipe, refuse what would fail after hours, note it in ``out``, draw its scenes.

    Every dataset is opened, and every network and encoder tried. Raises ConfigError.
    """
    recipe = read_recipe(path)
    _refuse_another(path, out)
    places = Places(
        dataset=find_dataset(recipe.dataset, recipe=path, data=data),
        data=data,
        stages={
            stage.name: out / "data" / stage.name / DATASET
            if stage.dataset is None
            else find_dataset(stage.dataset, recipe=path, data=data)
            for stage in recipe.stage[:-1]
        },
        out=out,
    )
    _check(recipe, places, console)
    make_folder(out, what="the recipe's folder")
    write_atomically(out / RECIPE, path.read_bytes())
    for stage in recipe.stage[:-1]:
        if stage.drawn is not None:
            _draw(places.stages[stage.name], stage.drawn, console)
    return recipe, places


def _refuse_another(path: Path, out: Path) -> None:
    """Refuse a folder of another recipe, or of anything else."""
    kept = out / RECIPE
    if not kept.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out}: holds other files", expected="a new or an empty folder")
        return
    before, now = (read_toml(file, what="a recipe") for file in (kept, path))
    differ = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if differ:
        raise ConfigError(
            f"{out}: was begun by another recipe ({', '.join(differ)} differ)",
            expected=f"what {kept} says, to go on with it, or a new folder",
            then="Nothing was changed.",
        )


def _check(recipe: Recipe, places: Places, console: Console) -> None:
    from train.fit.begin import check_member  # noqa: PLC0415 - loads torch
    from train.fit.trainer import check_data  # noqa: PLC0415 - the same

    dataset = final_source(recipe, places).open()
    for member in recipe.member:
        for stage in recipe.stages_of(member):
            given = stage.dataset and Source(path=places.stages[stage.name], data=places.data)
            check_member(
                given.open() if given else dataset,
                recipe.choice_of(member),
                recipe.settings_of(member, stage),
            )
    choice = recipe.choice_of(recipe.member[0])
    counts = check_data(dataset, choice, console=console)
    for fold in folds_of(recipe, places):
        check_split(fold.source.open(), counts, needed=("train", "validation", "test"))
    for stage in recipe.stage[:-1]:
        if stage.dataset is not None:
            found = read_dataset(places.stages[stage.name], data=places.data)
            check_data(found, choice, console=console)


def _draw(dataset: Path, drawn: Drawn, console: Console) -> None:
    from train.synth.write import write_dataset  # noqa: PLC0415 - only where scenes are drawn

    if dataset.exists():
        return
    shutil.rmtree(dataset.parent, ignore_errors=True)
    with counting(console, "drawing scenes") as progress:
        write_dataset(
            dataset.parent,
            count=drawn.count,
            seed=drawn.seed,
            size=(drawn.height, drawn.width),
            sequence_length=drawn.sequence,
            progress=None if progress is None else lambda done: progress(done, drawn.count),
        )
