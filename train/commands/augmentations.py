"""``python -m train augmentations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.contract.errors import ConfigError
from train.commands.arguments import DatasetPath, share_the_cores, size_of


def augmentations(  # noqa: PLR0913 - each is an option
    dataset: DatasetPath,
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="A .png file to write.")],
    augmentation: Annotated[str, typer.Option(help="light, full or none.")] = "light",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the frames.")] = "224x384",
    crop: Annotated[str, typer.Option(help="HEIGHTxWIDTH of random windows; all if empty.")] = "",
    max_anisotropy: Annotated[float, typer.Option(help="How far frames may be distorted.")] = 1.2,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same sheet.")] = 0,
) -> None:
    """Show what training sees: a sheet of augmented frames, every other one with its mask.

    Example: python -m train augmentations data -o sheet.png
    """
    share_the_cores()
    from edge.contract.files import write_atomically
    from train.data.augment import strength_of
    from train.data.check import check_layout
    from train.data.dataset import read_dataset
    from train.data.sheet import contact_sheet

    read = read_dataset(dataset)
    check_layout(read, needed=("train",))
    picture = contact_sheet(
        read,
        size=size_of(size),
        strength=strength_of(augmentation),
        crop=size_of(crop, "--crop") if crop else None,
        seed=seed,
        max_anisotropy=max_anisotropy,
    )
    try:
        write_atomically(out, picture)
    except OSError as problem:
        raise ConfigError(f"{out}: cannot be written ({problem.strerror})") from None
    typer.echo(f"{out}: training frames as the network sees them")
