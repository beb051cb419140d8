"""``python -m train fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edge.contract.boundary import parse
from edge.contract.errors import ConfigError
from train.commands.arguments import DatasetPath, share_the_cores, size_of

_MEMBER = "The member"
_START = "What it begins with"
_TRAINING = "Training"
_MACHINE = "The machine"


def fit(  # noqa: PLR0913 - each is an option
    dataset: DatasetPath,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The run folder: new, or of an interrupted fit.")
    ],
    name: Annotated[str, typer.Option(help="Else the folder's.", rich_help_panel=_MEMBER)] = "",
    architecture: Annotated[
        str,
        typer.Option(
            help="unet (the default), pspnet, psp-densenet, deeplabv3plus, upernet or maskrcnn.",
            rich_help_panel=_MEMBER,
        ),
    ] = "",
    encoder: Annotated[
        str,
        typer.Option(
            help="Of segmentation-models-pytorch, or tu- and timm's name.", rich_help_panel=_MEMBER
        ),
    ] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE of the architecture, such as decoder_channels=64,32,24,16,8.",
            rich_help_panel=_MEMBER,
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH that the member sees.", rich_help_panel=_MEMBER)
    ] = "224x384",
    max_anisotropy: Annotated[
        float,
        typer.Option(help="How far frames may be distorted to that size.", rich_help_panel=_MEMBER),
    ] = 1.2,
    encoder_parameters: Annotated[
        str,
        typer.Option(
            help="none, a set that the library has, such as imagenet, or a .safetensors file.",
            rich_help_panel=_START,
        ),
    ] = "none",
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A run trained on other data: its network goes on. Other classes: a new head.",
            rich_help_panel=_START,
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="A part that keeps its parameters: encoder, decoder or head.",
            rich_help_panel=_START,
        ),
    ] = None,
    hold_out: Annotated[
        str,
        typer.Option(
            help="Keep this group for testing, whatever the dataset's own split says.",
            rich_help_panel=_TRAINING,
        ),
    ] = "",
    validation_share: Annotated[
        float,
        typer.Option(
            help="With --hold-out: the share of the rest that validates.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0.25,
    epochs: Annotated[
        int, typer.Option(help="How often it sees every image.", rich_help_panel=_TRAINING)
    ] = 30,
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after so many epochs without a better one; 0: never.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0,
    batch: Annotated[int, typer.Option(help="Images per step.", rich_help_panel=_TRAINING)] = 8,
    learning_rate: Annotated[
        float, typer.Option("--lr", help="The cycle's highest.", rich_help_panel=_TRAINING)
    ] = 3e-3,
    class_balance: Annotated[
        str,
        typer.Option(
            help="none, or median: rare classes count for more.", rich_help_panel=_TRAINING
        ),
    ] = "none",
    augmentation: Annotated[
        str,
        typer.Option(
            help="light, none, or full: weather, night and view too, for long training.",
            rich_help_panel=_TRAINING,
        ),
    ] = "light",
    crop: Annotated[
        str,
        typer.Option(
            help="HEIGHTxWIDTH of random windows of the frame; all of it by default.",
            rich_help_panel=_TRAINING,
        ),
    ] = "",
    precision: Annotated[
        str,
        typer.Option(
            help="32-true, bf16-mixed, 16-mixed, or auto: the quickest of this machine.",
            rich_help_panel=_TRAINING,
        ),
    ] = "auto",
    seed: Annotated[
        int,
        typer.Option(help="The same seed gives the same parameters.", rich_help_panel=_TRAINING),
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="Processes that decode images; 0: none.", rich_help_panel=_MACHINE
        ),
    ] = 0,
    accelerator: Annotated[
        str, typer.Option(help="auto, gpu, cpu: Lightning's words.", rich_help_panel=_MACHINE)
    ] = "auto",
    devices: Annotated[
        str, typer.Option(help="How many of them, or auto for all.", rich_help_panel=_MACHINE)
    ] = "1",
    nodes: Annotated[int, typer.Option(help="Machines.", rich_help_panel=_MACHINE)] = 1,
    strategy: Annotated[
        str, typer.Option(help="auto, ddp …: Lightning's words.", rich_help_panel=_MACHINE)
    ] = "auto",
) -> None:
    """Train one member, and keep its best epoch.

    Interrupted? The same command goes on after the last whole epoch.

    From scratch: python -m train fit data --architecture pspnet -o runs/pspnet

    In stages, each from the one before: python -m train fit floes --from runs/water -o runs/floes
    """
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch,
        "learning_rate": learning_rate,
        "class_balance": class_balance,
        "augmentation": augmentation,
        "crop": size_of(crop, "--crop") if crop else None,
        "precision": precision,
        "frozen": tuple(freeze or ()),
        "seed": seed,
    }
    height, width = size_of(size)
    choice = {
        **_network(architecture, encoder, _options(option or []), start),
        "encoder_parameters": encoder_parameters,
        "height": height,
        "width": width,
        "max_anisotropy": max_anisotropy,
    }
    if start is not None and encoder_parameters != "none":
        raise ConfigError(
            "--from and --encoder-parameters together", expected="one of them: a run brings both"
        )
    share_the_cores()

    from rich.console import Console

    from train.data.dataset import read_dataset
    from train.data.splits import hold_out as held_out
    from train.fit.plan import Choice, Hardware, Settings
    from train.fit.trainer import fit as fit_member

    data = read_dataset(dataset)
    fit_member(
        held_out(data, hold_out, validation_share=validation_share) if hold_out else data,
        parse(Choice, choice, where="options"),
        parse(Settings, settings, where="options"),
        out=out,
        name=name,
        start=start,
        hardware=Hardware(
            accelerator=accelerator,
            devices=int(devices) if devices.isdigit() else devices,
            nodes=nodes,
            strategy=strategy,
            workers=workers,
        ),
        console=Console(),
    )


def _network(
    architecture: str, encoder: str, options: dict[str, Any], start: Path | None
) -> dict[str, Any]:
    """Return the network that was named, or else the one that the run has which it begins with."""
    if start is not None and not (architecture or encoder or options):
        from train.runs import read_run

        file = read_run(start).file
        return {"architecture": file.architecture, "encoder": file.encoder, "options": file.options}
    return {"architecture": architecture or "unet", "encoder": encoder, "options": options}


def _options(pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"--option {pair}", expected="KEY=VALUE")
        options[key] = value.split(",") if "," in value else value
    return options
