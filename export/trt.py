"""``python -m export.trt``: a bundle's graph → an FP16 TensorRT engine, proven equal.

Runs on a Jetson too: loads neither torch nor train.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.console import run_app
from edge.contract.errors import EngineError, IcecamError
from edge.engine.ladder import to_compile
from edge.engine.trt.build import MIB
from edge.engine.trt.cache import EngineCache, default_folder
from edge.engine.trt.certified import WORKSPACE_BYTES, Maker, NotEqualError
from edge.signing import Trust, describe_signature, open_trusted, read_public_key
from export.events import display

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.contract.bundle import Bundle, Graph
    from edge.engine.trt.device import Device
    from export.events import Tell

app = typer.Typer(
    name="python -m export.trt",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is wanted of the build, here or elsewhere. cache: of the machine that builds."""

    bundle: Path
    cache: Path | None
    workspace_mib: int
    trust: tuple[Path, ...]
    rebuild: bool


@app.command(epilog="Takes --debug too: errors are then shown with their traceback.")
def trt(  # noqa: PLR0913, PLR0917 - each is an option
    bundle: Annotated[Path, typer.Argument(help="The bundle, NAME.icecam.")],
    on: Annotated[
        str,
        typer.Option(metavar="USER@HOST", help="Build on this machine over ssh, instead of here."),
    ] = "",
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the engine is kept on the machine that builds: a station looks in "
            "STATE_DIR/engines. By default ~/.cache/icecam/engines.",
        ),
    ] = None,
    workspace: Annotated[
        int,
        typer.Option(
            min=64,
            metavar="MIB",
            help="Memory to try kernels with; halved, and halved again, where it is too much.",
        ),
    ] = WORKSPACE_BYTES // MIB,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEY.pub",
            help="Public keys, one of which must have signed the bundle; without any, it is built "
            "signed or not.",
        ),
    ] = None,
    python: Annotated[
        str, typer.Option(metavar="PROGRAM", help="With --on: the Python there that has icecam.")
    ] = "python3",
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --on: an ssh configuration file.")
    ] = None,
    *,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build although a certified engine lies there.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event.")
    ] = False,
) -> None:
    """Compile a bundle with TensorRT for a GPU, in float16, and prove the engine equal.

    An engine is for the machine that built it alone. So run this on the Jetson,
    or on a workstation with [bold]--on[/bold]: that copies the bundle by scp, builds
    there, and brings the verdict back. It takes minutes. A station does the same
    by itself when it starts.

    The bundle's golden frames are then run through the engine and compared with
    the answers stored beside them. An engine that differs is laid aside, and the
    one of before stays; where TensorRT refuses a member of the ensemble, the
    fallback without it is built. The exit status is 0 only where the full ensemble
    was certified.

    As in:

      python -m export.trt ice.icecam

      python -m export.trt ice.icecam --on admin@salluit-01 --python /opt/icecam/bin/python
    """
    wish = Wish(
        bundle=bundle,
        cache=cache,
        workspace_mib=workspace,
        trust=tuple(trust or ()),
        rebuild=rebuild,
    )
    with display(as_json=as_json) as tell:
        try:
            status = _there(wish, on, python, ssh_config, tell) if on else _here(wish, tell)
        except IcecamError as error:
            if not as_json:
                raise
            tell({"event": "error", "message": str(error), "exit_code": error.exit_code})
            status = error.exit_code
    raise typer.Exit(status)


def _here(wish: Wish, tell: Tell) -> int:
    trust = Trust(keys=tuple(map(read_public_key, wish.trust)), allow_unsigned=not wish.trust)
    bundle = open_trusted(wish.bundle, trust)
    tell({"event": "say", "text": f"{bundle.manifest.id}: {describe_signature(bundle)}"})
    maker = Maker(
        cache=EngineCache(wish.cache or default_folder()),
        workspace_bytes=wish.workspace_mib * MIB,
        say=lambda text: tell({"event": "say", "text": text}),
        heed=lambda step: tell({"event": "progress", **asdict(step)}),
    )
    device = maker.device()
    tell({"event": "say", "text": device.describe()})
    full = bundle.manifest.graphs[0]
    for graph in to_compile(bundle.manifest):
        if graph.precision != "float16":
            text = f"graph {graph.name!r} has no float16 form: its engine is float32"
            tell({"event": "say", "text": text})
        if _made(maker, bundle, graph, device, wish, tell):
            whole = graph.members == full.members
            tell({"event": "verdict", "serves": graph.name, "full": whole})
            return 0 if whole else 1
    tell({"event": "verdict", "serves": None, "full": False})
    return 1


def _made(
    maker: Maker, bundle: Bundle, graph: Graph, device: Device, wish: Wish, tell: Tell
) -> bool:
    """Make one graph's engine and tell how it went; whether it may serve."""
    try:
        made = maker.make(bundle, graph, device, rebuild=wish.rebuild)
    except EngineError as problem:
        verdict = problem.certification if isinstance(problem, NotEqualError) else None
        tell(
            {
                "event": "refused",
                "graph": graph.name,
                "message": str(problem),
                "certification": verdict.model_dump(mode="json") if verdict else None,
            }
        )
        return False
    tell(
        {
            "event": "engine",
            "graph": graph.name,
            "found": made.found,
            "plan": str(maker.cache.plan(made.sidecar.origin)),
            "engine": made.sidecar.model_dump(mode="json", by_alias=True),
        }
    )
    return True


def _there(wish: Wish, on: str, python: str, ssh_config: Path | None, tell: Tell) -> int:
    from export.remote import Remote, run_there  # noqa: PLC0415 - only where it is wanted

    remote = Remote(destination=on, python=python, ssh_config=ssh_config)
    return run_there(remote, wish.bundle, list(_arguments(wish)), heed=tell)


def _arguments(wish: Wish) -> Iterator[str | Path]:
    """Yield the options again, for the machine that builds; a Path is a file of this one."""
    yield from ("--workspace", str(wish.workspace_mib))
    if wish.cache is not None:
        yield from ("--cache", str(wish.cache))
    for key in wish.trust:
        yield from ("--trust", key)
    if wish.rebuild:
        yield "--rebuild"


if __name__ == "__main__":
    run_app(app)
