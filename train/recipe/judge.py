"""Members weighed, and everything measured on the images that a fold holds out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from train.ensemble.weigh_runs import weigh_runs
from train.evaluate.baselines import OtsuBaseline, fit_baseline
from train.evaluate.evaluation import evaluate, pool
from train.evaluate.record import read_evaluation, write_json
from train.predict import Predictor, open_predictor
from train.progress import counting
from train.recipe.steps import ENSEMBLE, ensemble_of
from train.runs import read_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Evaluation
    from train.recipe.file import Recipe
    from train.recipe.steps import Fold

Opened = Callable[[], AbstractContextManager[Predictor]]


def weigh(recipe: Recipe, folder: Path, dataset: Dataset, console: Console) -> None:
    """Weigh the members of a folder on the dataset's validation split, once."""
    file = ensemble_file(folder)
    if not file.exists():
        console.print(f"weighing the ensemble of {folder}", highlight=False)
        runs = [read_run(folder / member.name) for member in ensemble_of(recipe)]
        weigh_runs(runs, file, dataset=dataset, console=console)


def judge(recipe: Recipe, fold: Fold, console: Console) -> dict[str, Evaluation]:
    """Measure the ensemble, members and baselines on the images that a fold holds out."""
    dataset = fold.source.open()
    weigh(recipe, fold.folder, dataset, console)
    (fold.folder / "evaluation").mkdir(exist_ok=True)
    found: dict[str, Evaluation] = {}
    for name, opened in _predictors(recipe, fold, dataset):
        kept = figures_file(fold.folder, name)
        if not kept.exists():
            with opened() as predictor, counting(console, f"measuring {name}") as progress:
                measured = evaluate(predictor, dataset, split="test", progress=progress)
            write_json(kept, [replace(measured, predictor=name)])
        found[name] = read_evaluation(kept)
    return found


def pool_folds(out: Path, judged: Sequence[dict[str, Evaluation]]) -> dict[str, Evaluation]:
    """Join each predictor's folds, and keep the figures in ``out``."""
    (out / "evaluation").mkdir(exist_ok=True)
    pooled = {name: pool([fold[name] for fold in judged]) for name in judged[0]}
    for name, found in pooled.items():
        write_json(figures_file(out, name), [found])
    return pooled


def ensemble_file(folder: Path) -> Path:
    """Return where the ensemble's weights lie."""
    return folder / f"{ENSEMBLE}.toml"


def figures_file(folder: Path, predictor: str) -> Path:
    """Return where a predictor's figures lie."""
    return folder / "evaluation" / f"{predictor.replace(' ', '-')}.json"


def _predictors(recipe: Recipe, fold: Fold, dataset: Dataset) -> Iterator[tuple[str, Opened]]:
    yield ENSEMBLE, partial(open_predictor, ensemble_file(fold.folder))
    for member in recipe.member:
        yield member.name, partial(open_predictor, fold.folder / member.name)
    if "otsu" in recipe.evaluation.baselines:
        yield "Otsu", lambda: nullcontext(OtsuBaseline(dataset.class_map))
    if "colour" in recipe.evaluation.baselines:
        yield "colour and row", lambda: nullcontext(fit_baseline(dataset))
