"""The workstation's command line: python -m train synth | fit | … | recipe."""

from __future__ import annotations

import typer

from edge.console import run_app
from train.commands.augmentations import augmentations
from train.commands.ensemble import ensemble
from train.commands.evaluate import evaluate
from train.commands.fit import fit
from train.commands.recipe import recipe
from train.commands.synth import synth

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

All of it, for several members, with an ensemble and a bundle at the end:

    python -m train recipe train/recipes/floes-cpu.toml --out build/floes

`--debug` anywhere shows the traceback of an error.
""",
)

for command in (synth, augmentations, fit, ensemble, evaluate, recipe):
    app.command()(command)

if __name__ == "__main__":
    run_app(app)
