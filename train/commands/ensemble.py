"""``python -m train ensemble``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.contract.errors import ConfigError
from edge.contract.files import make_folder, write_atomically
from train.commands.arguments import share_the_cores

if TYPE_CHECKING:
    from train.ensemble.report import Report


def ensemble(  # noqa: PLR0913 - each is an option
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file: ensemble.toml.")],
    data: Annotated[
        Path | None,
        typer.Option(help="The dataset they were trained on, where it is not where it was."),
    ] = None,
    hold_out: Annotated[
        str, typer.Option(help="The group that fit held out, where the runs don't say.")
    ] = "",
    validation_share: Annotated[
        float, typer.Option(help="As fit was told: of each other group, what validates.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help="Which pixels are looked at.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Weigh runs against each other, and find how sure each may be, on validation images.

    A temperature for each member and the weights are fitted by the log score; both are kept only
    where they do better than none and equal ones on images left out.

    Example: python -m train ensemble runs/unet runs/pspnet -o ensemble.toml
    """
    share_the_cores()

    from rich.console import Console

    from train.ensemble.weigh_runs import weigh_runs
    from train.runs import read_run

    if json_file:
        make_folder(json_file.parent, what="the folder of --json")
    console = Console(soft_wrap=True)
    report = weigh_runs(
        [read_run(run) for run in runs],
        out,
        data=data,
        group=hold_out,
        validation_share=validation_share,
        seed=seed,
        console=console,
    )
    if json_file:
        _write_figures(json_file, report, kept=out)


def _write_figures(path: Path, report: Report, *, kept: Path) -> None:
    try:
        write_atomically(path, json.dumps(report.as_plain(), indent=1).encode())
    except OSError as problem:
        raise ConfigError(
            f"{path}: cannot be written ({problem.strerror})",
            expected="room for a file there",
            then=f"The ensemble was written, with the same figures: {kept}.",
        ) from None
