"""``python -m export``: from trained runs to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.console import run_app
from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.runs import Run

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
def make(  # noqa: PLR0913, PLR0917 - each is an option
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders of `python -m train fit`, or one ensemble.toml."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle: NAME.icecam")],
    data: Annotated[
        Path | None,
        typer.Option(help="A dataset: golden frames from its validation images, metrics on test."),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(help="Or a folder of pictures for the golden frames; no metrics then."),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            help="Figures of `train evaluate --json` for the manifest, not measured anew."
        ),
    ] = None,
    without: Annotated[
        list[str],
        typer.Option(
            "--without",
            metavar="MEMBER",
            help="What the fallback does without; by default members that see floes.",
        ),
    ] = [],  # noqa: B006 - typer's way to say none
    bundle_id: Annotated[str, typer.Option("--id", help="By default the file's name.")] = "",
    serial: Annotated[
        int | None,
        typer.Option(min=0, help="Never goes down on a station. By default the time in seconds."),
    ] = None,
    *,
    float32_only: Annotated[
        bool,
        typer.Option(help="Leave out the float16 graphs, which TensorRT compiles."),
    ] = False,
) -> None:
    """Build one graph of all runs, check it against torch, and write a bundle.

    Runs weigh the same; an ensemble.toml of `python -m train ensemble` says what each weighs and
    its temperature. The bundle gets the graph in float32 for ONNX Runtime and in float16 for
    TensorRT, and a fallback that does without some members: a station runs it where a TensorRT
    refuses one of them. Nothing is written unless ONNX Runtime agrees with torch on at least
    99.9 % of the pixels of every frame together, and wherever the decision is clear; float16 on
    99.5 %.

    Example: [bold]python -m export make ensemble.toml --data scenes -o ice.icecam[/bold]
    """
    from rich.console import Console

    from export.frames import choose_frames
    from export.make import make as command
    from export.metrics import read_metrics
    from train.data.dataset import read_dataset

    console = Console(highlight=False, soft_wrap=True)
    dataset = None if data is None else read_dataset(data)
    measurable = dataset is not None and bool(dataset.of("test"))
    members, weights, temperatures = _members(runs)
    held_out = None if metrics is None else read_metrics(metrics, members)
    if dataset is not None and not measurable and held_out is None:
        console.print(f"{dataset.name} holds no test group back: the bundle gets no metrics")
    made = command(
        members,
        out,
        weights=weights,
        temperatures=temperatures,
        frames=choose_frames(dataset, frames),
        without=without,
        float16=not float32_only,
        held_out=held_out,
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
        + ("" if made.float16 is None else f"; float16: {made.float16.describe()}")
    )
    for member, count in made.unresolved.items():
        console.print(
            f"{member}: {count} overlaps of floes left unresolved on {made.frames} frames"
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


@app.command()
def keygen(
    out: Annotated[Path, typer.Option("--out", "-o", help="NAME: writes NAME.key and NAME.pub.")],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Protect the private key with what this file holds.")
    ] = None,
    *,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Or with a passphrase that is asked for.")
    ] = False,
) -> None:
    """Make a key pair: the private key signs bundles, stations trust the public one.

    Files that are there are never replaced.

    Example: [bold]python -m export keygen -o harbour --passphrase[/bold]
    """
    from edge.signing import read_passphrase
    from export.commands.keygen import ask_passphrase
    from export.commands.keygen import keygen as command

    if passphrase and passphrase_file is not None:
        raise ConfigError("--passphrase beside --passphrase-file", expected="one of them")
    secret = None if passphrase_file is None else read_passphrase(passphrase_file)
    command(out, ask_passphrase() if passphrase else secret)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle, NAME.icecam.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="A private key of keygen, NAME.key.")],
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Holds the key's passphrase; otherwise a terminal asks for it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here instead of in place.")
    ] = None,
) -> None:
    """Sign a bundle, so that stations which trust the key run it.

    Every file of the bundle is checked first. What another key signed keeps that signature: sign
    with the old key and the new one while stations change over.

    Example: [bold]python -m export sign ice.icecam --key harbour.key[/bold]
    """
    from export.commands.sign import sign as command

    command(bundle, key, passphrase_file, out)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle, NAME.icecam, or a bare NAME.onnx.")],
    tensorrt: Annotated[
        list[str] | None,
        typer.Option(metavar="VERSION", help="Such as 10.3; may be repeated. By default all."),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was found for a program.")
    ] = False,
) -> None:
    """Say which TensorRT versions take a bundle's graphs, and what would fail where.

    Operators and element types are held against each version's table, and what no version takes
    is named too. Nothing runs: `icecam check` does that. Exit status 1 unless every version takes
    the first graph.

    Example: [bold]python -m export check ice.icecam --tensorrt 10.3 --tensorrt 10.16[/bold]
    """
    from export.commands.check import check as command

    if not command(bundle, tensorrt or [], as_json=as_json):
        raise typer.Exit(1)


def _members(
    paths: list[Path],
) -> tuple[Sequence[Run], Sequence[float] | None, Sequence[float] | None]:
    """Return runs, weights and temperatures, None for equal ones. Raises ConfigError."""
    from train.ensembles import ENSEMBLE_ENDING, read_ensemble
    from train.runs import read_run

    files = [path for path in paths if path.suffix == ENSEMBLE_ENDING and not path.is_dir()]
    if not files:
        return [read_run(path) for path in paths], None, None
    if len(paths) > 1:
        raise ConfigError(
            f"{files[0]} beside {len(paths) - 1} more",
            expected="run folders, or one ensemble.toml alone",
            then="Nothing was written.",
        )
    ensemble = read_ensemble(files[0])
    return ensemble.runs, ensemble.weights, ensemble.temperatures


if __name__ == "__main__":
    run_app(app)
