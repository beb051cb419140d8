"""``python -m train fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.contract.errors import ConfigError
from train.commands.arguments import DatasetPath, share_the_cores, size_of

if TYPE_CHECKING:
    from train.fit.plan import Precision


def fit(  # noqa: PLR0913 - each is an option
    dataset: DatasetPath,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The run folder: new, or of an interrupted fit.")
    ],
    architecture: Annotated[str, typer.Option(help="unet or pspnet.")] = "unet",
    encoder: Annotated[
        str, typer.Option(help="Of segmentation-models-pytorch, or tu- and timm's name.")
    ] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of the architecture, such as decoder_channels=64,32,24,16,8."),
    ] = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH that the member sees.")] = "224x384",
    max_anisotropy: Annotated[
        float, typer.Option(help="How far frames may be distorted to that size.")
    ] = 1.2,
    epochs: Annotated[int, typer.Option(help="How often it sees every image.")] = 30,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 8,
    learning_rate: Annotated[float, typer.Option("--lr", help="The cycle's highest.")] = 3e-3,
    precision: Annotated[
        str, typer.Option(help="32-true, bf16-mixed, or auto: the quickest of this machine.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same parameters.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0: none.")] = 0,
    name: Annotated[str, typer.Option(help="The member's name; else the folder's.")] = "",
) -> None:
    """Train one member, and keep its best epoch.

    Interrupted? The same command goes on after the last whole epoch.

    Example: python -m train fit data --architecture pspnet -o runs/pspnet
    """
    pixels, options = size_of(size), _options(option or [])
    share_the_cores()

    from rich.console import Console

    from train.data.dataset import read_dataset
    from train.fit.trainer import fit as fit_member

    fit_member(
        read_dataset(dataset),
        architecture=architecture,
        encoder=encoder,
        options=options,
        input_size=pixels,
        max_anisotropy=max_anisotropy,
        epochs=epochs,
        batch_size=batch,
        learning_rate=learning_rate,
        precision=_precision(precision),
        seed=seed,
        workers=workers,
        out=out,
        name=name,
        console=Console(),
    )


def _precision(text: str) -> Precision | None:
    known: dict[str, Precision | None] = {
        "auto": None,
        "32-true": "32-true",
        "bf16-mixed": "bf16-mixed",
    }
    if text not in known:
        raise ConfigError(f"--precision {text}", expected=f"one of {', '.join(known)}")
    return known[text]


def _options(pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"--option {pair}", expected="KEY=VALUE")
        options[key] = value.split(",") if "," in value else value
    return options
