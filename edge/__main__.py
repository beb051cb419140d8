"""The ``icecam`` command: what a station and those who watch it can do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edge import __version__
from edge.console import run_app

DEMO = Path(__file__).parent / "demo"
DEMO_BUNDLE = DEMO / "demo.icecam"

app = typer.Typer(
    name="icecam",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Any command takes --debug: errors are then shown with their traceback.",
)

Config = Annotated[Path, typer.Option("--config", "-c", help="The station's station.toml.")]
BundleFile = Annotated[
    Path, typer.Option("--bundle", "-b", help="The bundle to run; by default the demo's.")
]


@app.callback(invoke_without_command=True)
def _icecam(
    *, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Ice camera stations: pictures in, ice masks and ice coverage out, on the spot and over MQTT.

    Try it: [bold]icecam demo[/bold], or on a picture of your own [bold]icecam once IMAGE[/bold].
    """
    if version:
        typer.echo(f"icecam {__version__}")
        raise typer.Exit


@app.command()
def once(
    picture: Annotated[Path, typer.Argument(help="A JPEG, PNG, TIFF, BMP or WebP file.")],
    bundle: BundleFile = DEMO_BUNDLE,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write coverage.json, mask.png and overlay.png here."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Segment one picture and say how much of the water surface is ice.

    Nothing is written unless -o names a folder. The demo bundle has only ever seen drawn scenes:
    for real ice, give a bundle trained on pictures like yours.
    """
    from edge.commands.once import once as command

    command(picture, bundle, out, as_json=as_json)


@app.command()
def run(config: Config) -> None:
    """Run a station: capture on schedule, segment, publish over MQTT, until told to stop.

    Observations wait on disk (station.state_dir) while the broker is away. SIGTERM or Ctrl-C ends
    it cleanly.
    """
    from edge.config import read_config
    from edge.daemon import Daemon

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    Daemon(read_config(config)).run()


@app.command()
def check(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Check a station.toml and all it names."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", help="Check a bundle file alone."),
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEY.pub",
            help="With --bundle: a key that may sign it; may be given more than once.",
        ),
    ] = None,
) -> None:
    """Try what a station needs before it is needed: config, bundle, cameras, broker.

    The bundle's golden frames are run on this machine and compared with the answers stored in it.
    Every finding is shown; the exit status is 1 where one is bad.
    """
    from edge.commands.check import check_bundle, check_station
    from edge.contract.errors import ConfigError

    if (config is None) == (bundle is None):
        raise ConfigError("nothing to check", expected="either --config or --bundle")
    if trust and bundle is None:
        raise ConfigError(
            "--trust beside --config", expected="bundle.trusted_keys in the station.toml"
        )
    if bundle is not None:
        well = check_bundle(bundle, trust or [])
    elif config is not None:
        well = check_station(config)
    raise typer.Exit(0 if well else 1)


@app.command()
def bench(
    bundle: BundleFile = DEMO_BUNDLE,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where compiled engines lie; by default those of export.trt."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Frames to time on each rung.")] = 20,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time what can run a bundle on this machine, and say how equal each is to its golden frames.

    The rungs are those of a station: TensorRT engines that were compiled here (python -m
    export.trt BUNDLE), then ONNX Runtime. Exit status 1 where one of them does not answer as it
    should.
    """
    from edge.commands.bench import bench as command

    if not command(bundle, cache, repeats=repeats, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def watch(
    broker: Annotated[str, typer.Argument(help="Such as mqtt://127.0.0.1:1883")],
    station: Annotated[str, typer.Option(help="Only this station.")] = "+",
    count: Annotated[
        int | None,
        typer.Option(help="Stop after so many new observations."),
    ] = None,
) -> None:
    """Show what stations publish: a live table in a terminal, a line per message in a pipe."""
    from edge.commands.watch import watch as command
    from edge.config import broker_address
    from edge.contract.boundary import shown
    from edge.contract.errors import ConfigError

    try:
        address = broker_address(broker)
    except ValueError as problem:
        raise ConfigError(f"broker {shown(broker)}: {problem}") from None
    command(address, station=station, count=count)


@app.command()
def demo(
    frames: Annotated[Path, typer.Option(help="A folder of pictures.")] = DEMO / "frames",
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to leave the results.")] = Path(
        "build/demo"
    ),
    cycles: Annotated[int, typer.Option(min=1, help="How many pictures to observe.")] = 5,
) -> None:
    """See the whole path on this machine: station → broker → subscriber, in half a minute.

    Starts a private mosquitto on a free loopback port and a real station over the pictures, and
    writes what a subscriber received: coverage.json, mask.png, overlay.png, health.json.
    """
    from edge.commands.demo import demo as command

    command(frames, DEMO_BUNDLE, out, cycles=cycles)


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
