"""``python -m train synth``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from train.commands.arguments import size_of


def synth(
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="A new or an empty folder.")],
    count: Annotated[int, typer.Option(help="How many scenes.")] = 300,
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the pictures.")] = "360x640",
    sequence: Annotated[int, typer.Option(help="Scenes of one camera pose.")] = 8,
) -> None:
    """Draw a dataset of synthetic scenes: pictures, masks and the truth.

    Example: python -m train synth -o data --count 300 --seed 7
    """
    from rich.console import Console

    from train.progress import counting
    from train.synth.write import write_dataset

    pixels = size_of(size)
    with counting(Console(), "drawing scenes") as progress:
        write_dataset(
            out,
            count=count,
            seed=seed,
            size=pixels,
            sequence_length=sequence,
            progress=None if progress is None else lambda done: progress(done, count),
        )
    typer.echo(f"{out}: {count} scenes; next: python -m train fit {out} -o runs/unet")
