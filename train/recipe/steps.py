"""A recipe as fits in order: what must be trained, from what, into which folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from train.data.dataset import read_dataset
from train.data.splits import groups_of, hold_out, keep_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from train.data.dataset import Dataset
    from train.fit.plan import Choice, Settings
    from train.recipe.file import Recipe, RecipeMember

ENSEMBLE = "ensemble"
Splitting = Literal["own", "all", "hold-out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A dataset and how it is split, as a process of its own can open it.

    splitting: as the dataset says, nothing held back, or ``group`` held out.
    """

    path: Path
    data: Path | None
    splitting: Splitting = "own"
    group: str = ""
    validation_share: float = 0.25

    def open(self) -> Dataset:
        """Read it. Raises ConfigError."""
        dataset = read_dataset(self.path, data=self.data)
        if self.splitting == "hold-out":
            return hold_out(dataset, self.group, validation_share=self.validation_share)
        if self.splitting == "all":
            return keep_all(dataset, validation_share=self.validation_share)
        return dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """One fit. label: for people; start: the run folder of the stage before."""

    label: str
    name: str
    source: Source
    choice: Choice
    settings: Settings
    out: Path
    start: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Training without some images, to be judged on them. name: the group that is held out."""

    name: str
    source: Source
    folder: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a recipe reads and writes. stages: the dataset.toml of each stage but the last."""

    dataset: Path
    data: Path | None
    stages: dict[str, Path]
    out: Path


def folds_of(recipe: Recipe, places: Places) -> tuple[Fold, ...]:
    """Return the folds: one for each group, or the dataset's own split alone."""
    folder = places.out / "folds"
    if recipe.evaluation.hold_out == "test-split":
        source = Source(path=places.dataset, data=places.data)
        return (Fold(name="test", source=source, folder=folder / "test"),)
    return tuple(
        Fold(
            name=group,
            source=Source(
                path=places.dataset,
                data=places.data,
                splitting="hold-out",
                group=group,
                validation_share=recipe.evaluation.validation_share,
            ),
            folder=folder / group,
        )
        for group in groups_of(read_dataset(places.dataset, data=places.data))
    )


def final_source(recipe: Recipe, places: Places) -> Source:
    """Return what the bundle's members are trained on: every group, or the dataset's own split."""
    if recipe.evaluation.hold_out == "test-split":
        return Source(path=places.dataset, data=places.data)
    return Source(
        path=places.dataset,
        data=places.data,
        splitting="all",
        validation_share=recipe.evaluation.validation_share,
    )


def fits_of(recipe: Recipe, places: Places, folds: tuple[Fold, ...]) -> Iterator[list[Fit]]:
    """Yield fits, level by level: those of one level need none of each other."""
    deepest = max(len(recipe.stages_of(member)) for member in recipe.member)
    for depth in range(deepest - 1):
        yield [
            _before(recipe, places, member, depth)
            for member in recipe.member
            if depth < len(recipe.stages_of(member)) - 1
        ]
    last = [
        _last(recipe, places, member, fold.source, fold.folder, f"without {fold.name}")
        for fold in folds
        for member in recipe.member
    ]
    if recipe.evaluation.hold_out == "each-group":
        source = final_source(recipe, places)
        last += [
            _last(recipe, places, member, source, places.out / "final", "on all groups")
            for member in ensemble_of(recipe)
        ]
    yield last


def final_folder(recipe: Recipe, places: Places) -> Path:
    """Return where the bundle's members lie."""
    kept = recipe.evaluation.hold_out == "test-split"
    return places.out / "folds" / "test" if kept else places.out / "final"


def ensemble_of(recipe: Recipe) -> tuple[RecipeMember, ...]:
    """Return the members that decide together."""
    return tuple(member for member in recipe.member if not member.compared_with)


def _before(recipe: Recipe, places: Places, member: RecipeMember, depth: int) -> Fit:
    stage = recipe.stages_of(member)[depth]
    return Fit(
        label=f"{member.name}, {stage.name}",
        name=member.name,
        source=Source(path=places.stages[stage.name], data=places.data),
        choice=recipe.choice_of(member),
        settings=recipe.settings_of(member, stage),
        out=_stage_folder(recipe, places, member, depth),
        start=_stage_folder(recipe, places, member, depth - 1) if depth else None,
    )


def _last(
    recipe: Recipe, places: Places, member: RecipeMember, source: Source, folder: Path, what: str
) -> Fit:
    stages = recipe.stages_of(member)
    return Fit(
        label=f"{member.name}, {stages[-1].name} {what}",
        name=member.name,
        source=source,
        choice=recipe.choice_of(member),
        settings=recipe.settings_of(member, stages[-1]),
        out=folder / member.name,
        start=_stage_folder(recipe, places, member, len(stages) - 2) if len(stages) > 1 else None,
    )


def _stage_folder(recipe: Recipe, places: Places, member: RecipeMember, depth: int) -> Path:
    stage = recipe.stages_of(member)[depth]
    return places.out / "stages" / f"{member.name}-{depth + 1}-{stage.name}"
