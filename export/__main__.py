"""``python -m export``: from trained runs to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.console import run_app
from edge.contract.errors import ConfigError

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
        typer.Option("--float32-only", help="Leave out the float16 graphs, made for TensorRT."),
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
    from export.commands.make import Wish
    from export.commands.make import make as command

    command(
        Wish(
            runs=tuple(runs),
            out=out,
            data=data,
            frames=frames,
            metrics=metrics,
            without=tuple(without),
            float16=not float32_only,
            bundle_id=bundle_id,
            serial=serial,
        )
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
    what it would compile for the full ensemble.

    Example: [bold]python -m export check ice.icecam --tensorrt 10.3 --tensorrt 10.16[/bold]
    """
    from export.commands.check import check as command

    if not command(bundle, tensorrt or [], as_json=as_json):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_app(app)
