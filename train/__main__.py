"""The workstation's command line: python -m train synth | fit | evaluate."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.console import run_app
from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from edge.contract.frames import Size
    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Evaluation, Side
    from train.fit.plan import Precision
    from train.predict import Predictor

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Data and models for icecam, on the workstation.

From nothing to figures, without a real image:

    python -m train synth -o data --count 300

    python -m train fit data --architecture unet -o runs/unet

    python -m train evaluate runs/unet data

`--debug` anywhere shows the traceback of an error.
""",
)

_DATASET = typer.Argument(help="A folder with a dataset.toml, or such a file.", show_default=False)


@app.command()
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

    pixels = _size(size)
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


@app.command()
def fit(  # noqa: PLR0913 - each is an option
    dataset: Annotated[Path, _DATASET],
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
    pixels, options = _size(size), _options(option or [])
    _share_the_cores()

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


@app.command()
def evaluate(
    predictor: Annotated[
        Path, typer.Argument(help="A run folder, or a bundle (.icecam).", show_default=False)
    ],
    dataset: Annotated[Path, _DATASET],
    *,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(help="A folder for frame | truth | prediction pictures.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Beside it: regression on colour and row.")
    ] = False,
) -> None:
    """Measure a run or a bundle on a dataset: IoU, pixel accuracy, error of the ice fraction.

    Example: python -m train evaluate runs/unet data --baseline
    """
    _share_the_cores()
    from rich.console import Console

    from train.data.dataset import read_dataset
    from train.evaluate.baselines import fit_baseline
    from train.evaluate.evaluation import refuse_another_map, table_of, write_json
    from train.predict import open_predictor

    side, read = _side(split), read_dataset(dataset)
    console = Console()
    with open_predictor(predictor) as opened:
        refuse_another_map(opened, read)
        predictors = [opened, fit_baseline(read)] if baseline else [opened]
        found = [
            _evaluated(one, read, side, overlays if one is opened else None, console)
            for one in predictors
        ]
    console.print(table_of(found))
    if json_file:
        write_json(json_file, found)


def _evaluated(
    predictor: Predictor, dataset: Dataset, side: Side, overlays: Path | None, console: Console
) -> Evaluation:
    from train.evaluate.evaluation import evaluate as evaluate_predictor
    from train.progress import counting

    with counting(console, predictor.name) as progress:
        return evaluate_predictor(
            predictor, dataset, split=side, overlays=overlays, progress=progress
        )


def _share_the_cores() -> None:
    """Let idle OpenMP threads sleep: on a busy machine, spinning ones cost most of its time.

    Said before torch is loaded, or it is not heard.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _size(text: str) -> Size:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise ConfigError(f"--size {text}", expected="HEIGHTxWIDTH, such as 224x384")
    return int(found[1]), int(found[2])


def _side(text: str) -> Side:
    sides: dict[str, Side] = {
        "train": "train",
        "validation": "validation",
        "test": "test",
        "all": "all",
    }
    if text not in sides:
        raise ConfigError(f"--split {text}", expected=f"one of {', '.join(sides)}")
    return sides[text]


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


if __name__ == "__main__":
    run_app(app)
