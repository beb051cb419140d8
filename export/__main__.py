"""``python -m export``: from trained runs to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.console import run_app

app = typer.Typer(
    name="python -m export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Any command takes --debug: errors are then shown with their traceback.",
)


@app.callback()
def _export() -> None:
    """Turn trained runs into a bundle that stations run."""


@app.command()
def make(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `python -m train fit`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle: NAME.icecam")],
    data: Annotated[
        Path | None,
        typer.Option(help="A dataset: golden frames from its validation images, metrics on test."),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(help="Or a folder of pictures for the golden frames; no metrics then."),
    ] = None,
    bundle_id: Annotated[str, typer.Option("--id", help="By default the file's name.")] = "",
    serial: Annotated[
        int | None,
        typer.Option(min=0, help="Never goes down on a station. By default the time in seconds."),
    ] = None,
) -> None:
    """Build one graph of all runs, check it against torch, and write a bundle.

    The members weigh the same. Nothing is written unless ONNX Runtime agrees with torch on at least
    99.9 % of the pixels of every frame together, and wherever the decision is clear.

    Example: [bold]python -m export make runs/unet runs/pspnet --data scenes -o ice.icecam[/bold]
    """
    from rich.console import Console

    from export.make import choose_frames
    from export.make import make as command
    from train.data.dataset import read_dataset
    from train.runs import read_run

    console = Console(highlight=False, soft_wrap=True)
    dataset = None if data is None else read_dataset(data)
    measurable = dataset is not None and bool(dataset.of("test"))
    if dataset is not None and not measurable:
        console.print(f"{dataset.name} holds no test group back: the bundle gets no metrics")
    made = command(
        [read_run(run) for run in runs],
        out,
        frames=choose_frames(dataset, frames),
        held_out_on=dataset if measurable else None,
        bundle_id=bundle_id,
        serial=serial,
        say=console.print,
    )
    manifest = made.manifest
    console.print(
        f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): bundle {manifest.id}, serial "
        f"{manifest.serial}; ONNX Runtime and torch agree on {made.agreement:.3%} of the pixels of "
        f"{made.frames} frames"
    )
    if manifest.metrics is not None:
        console.print(
            f"held out ({manifest.metrics.images} images of {manifest.metrics.dataset}): mIoU "
            f"{manifest.metrics.miou:.3f}"
        )
    if made.unseen:
        console.print(
            f"[yellow]warning:[/yellow] no golden frame shows {', '.join(made.unseen)}: give "
            "frames that do, or nobody notices on the station when such a class is lost"
        )


if __name__ == "__main__":
    run_app(app)
