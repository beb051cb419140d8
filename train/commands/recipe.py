"""``python -m train recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from train.commands.arguments import share_the_cores


def recipe(
    file: Annotated[
        Path,
        typer.Argument(help="Such as train/recipes/floes-cpu.toml.", show_default=False),
    ],
    *,
    out: Annotated[Path, typer.Option(help="A new folder, or that of an interrupted recipe.")],
    data: Annotated[
        Path | None,
        typer.Option(help="The folder that holds the datasets; else ICECAM_DATA."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Fits side by side, each on its share of the cores.")
    ] = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that decode images, for each fit.")
    ] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, gpu, cpu: Lightning's words.")] = "auto",
) -> None:
    """Do a whole recipe: stages, members, ensemble, evaluation, and a bundle at the end.

    Every group of images is held out in turn, and the members judged on it; the bundle's members
    are then trained on all groups. Interrupted? The same command goes on.

    Example: python -m train recipe train/recipes/floes-cpu.toml --data data --out build/floes
    """
    share_the_cores()

    from rich.console import Console

    from train.fit.plan import Hardware
    from train.recipe.run import run_recipe

    run_recipe(
        file,
        out=out,
        data=data,
        jobs=jobs,
        hardware=Hardware(
            accelerator=accelerator,
            workers=workers,
        ),
        console=Console(),
    )
