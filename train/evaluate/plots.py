"""Plots for people, as PNG: calibration, confusion, ice fraction."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.contract.files import make_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from train.evaluate.evaluation import Evaluation

DPI = 130
SIDE_INCHES = 4.6
INK, FAINT = "#222222", "#b9bec6"
COLOURS = (
    *("#1f5fa8", "#d9731a", "#3b8a4f", "#8a4fa3", "#b03a48"),
    *("#5b6770", "#0b9aa2", "#b58a00", "#7b4b2a", "#d45c9a"),
)
MARKERS = "osD^vPX<>*"
_DARK = 0.55
"""A share above which a cell is dark enough for light figures."""


def write_plots(folder: Path, evaluations: Sequence[Evaluation]) -> tuple[Path, ...]:
    """Write the plots that the evaluations, all of the same images, have figures for.

    Returns the files: ``confusion.png``; ``reliability.png`` where a predictor knows its
    confidence; ``ice_fraction.png`` where a fraction is known. Raises ConfigError, OSError.
    """
    make_folder(folder, what="the plots' folder")
    drawn = {
        "confusion.png": draw_confusion(evaluations),
        "reliability.png": draw_reliability(evaluations),
        "ice_fraction.png": draw_ice_fraction(evaluations),
    }
    for name, figure in drawn.items():
        if figure:
            write_atomically(folder / name, _png(figure))
    return tuple(folder / name for name, figure in drawn.items() if figure)


def draw_confusion(evaluations: Sequence[Evaluation]) -> Figure:
    """Draw a matrix per predictor: of each true class, the share that was called what."""
    figure, panels = _figure(columns=len(evaluations))
    for axes, evaluation in zip(panels, evaluations, strict=True):
        counts = evaluation.confusion
        rows = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
        names, places = evaluation.class_map.names, range(len(counts))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            said = f"{share:.1%}" if rows[row, 0] else "none"
            light = "white" if share > _DARK else INK
            axes.text(column, row, said, ha="center", va="center", color=light, fontsize=11)
        axes.set_xticks(places, names)
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(f"{evaluation.predictor}: mIoU {evaluation.scores.miou:.3f}", fontsize=11)
    figure.suptitle(f"{_of(evaluations)}: share of each true class", fontsize=11)
    return figure


def draw_reliability(evaluations: Sequence[Evaluation]) -> Figure | None:
    """Draw how often each predictor is right, by its confidence; None where none has any."""
    known = [(e, e.reliability) for e in evaluations]
    if not any(reliability for _, reliability in known):
        return None
    figure, (axes,) = _figure(columns=1)
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1, label="perfect")
    for position, (evaluation, reliability) in enumerate(known):
        if reliability:
            label = f"{evaluation.predictor}: error {evaluation.ece:.3f}"
            axes.plot(*reliability.curve, **_look(position), label=label, linewidth=1.6)
    _unit_square(axes)
    axes.set(xlabel="confidence", ylabel="share that is right")
    axes.set_title(f"{_of(evaluations)}: calibration", fontsize=11)
    _name_them(axes)
    return figure


def draw_ice_fraction(evaluations: Sequence[Evaluation]) -> Figure | None:
    """Draw each image's ice fraction, predicted against true; None where it is known for none."""
    if not any(evaluation.errors for evaluation in evaluations):
        return None
    figure, (axes,) = _figure(columns=1)
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
    for position, evaluation in enumerate(evaluations):
        points = [
            (i.ice.true, i.ice.predicted) for i in evaluation.images if i.ice.error is not None
        ]
        if points:
            label = f"{evaluation.predictor}: mean absolute error {evaluation.ice_fraction_mae:.3f}"
            axes.plot(*zip(*points, strict=True), **_look(position), label=label, linestyle="")
    _unit_square(axes)
    axes.set(xlabel="true ice fraction", ylabel="predicted ice fraction")
    axes.set_title(f"{_of(evaluations)}: ice fraction by image", fontsize=11)
    _name_them(axes)
    return figure


def _figure(*, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load, needed only here

    figure = Figure(
        figsize=(SIDE_INCHES * columns + 0.4, SIDE_INCHES), dpi=DPI, layout="constrained"
    )
    panels = figure.subplots(1, columns, squeeze=False)
    return figure, list(panels[0])


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(visible=True, color="#e8eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_them(axes: Axes) -> None:
    """Put the legend below, where no point can be."""
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.16))


def _look(position: int) -> dict[str, Any]:
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[position % len(MARKERS)],
        "markersize": 5,
    }


def _of(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    return f"{first.dataset}, {first.split}"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return file.getvalue()
