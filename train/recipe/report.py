"""What a recipe found, for people: a table on the terminal, ``results.md`` and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from edge.contract.files import write_atomically
from train.evaluate.bootstrap import intervals, paired_difference
from train.evaluate.plots import write_plots
from train.evaluate.table import CAUTION, signed, three
from train.recipe.steps import ENSEMBLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from train.evaluate.evaluation import Evaluation
    from train.recipe.file import Recipe


SHOWN = ("predictor", "mIoU", "ice fraction: MAE", "mIoU: ensemble minus this")
"""What fits on a terminal; ``results.md`` has the rest."""

Row = dict[str, str]


def write_report(out: Path, recipe: Recipe, pooled: dict[str, Evaluation]) -> None:
    """Write ``results.md`` and ``plots/`` into a recipe's folder."""
    write_plots(out / "plots", list(pooled.values()))
    lines = [f"# {recipe.name}", "", _what(pooled), "", *_markdown(_rows(pooled)), "", CAUTION, ""]
    compared = [f"- {line}" for line in _compared(recipe, pooled)]
    write_atomically(out / "results.md", "\n".join([*lines, *compared, ""]).encode())


def print_report(console: Console, recipe: Recipe, pooled: dict[str, Evaluation]) -> None:
    """Print what matters most of it."""
    rows = _rows(pooled)
    table = Table(title=_what(pooled), caption=CAUTION)
    for position, column in enumerate(SHOWN):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        style = "bold" if row["predictor"] == ENSEMBLE else None
        table.add_row(*(row[column] for column in SHOWN), style=style)
    console.print(table)
    for line in _compared(recipe, pooled):
        console.print(line, highlight=False)


def _compared(recipe: Recipe, pooled: dict[str, Evaluation]) -> Iterator[str]:
    """Say how far each member is above the one that it is there to be compared with."""
    for member in recipe.member:
        if member.compared_with:
            above = paired_difference(pooled[member.name], pooled[member.compared_with])
            said = signed(above.value, above.interval)
            yield f"mIoU of {member.name} minus {member.compared_with}: {said}"


def _rows(pooled: dict[str, Evaluation]) -> list[Row]:
    ensemble = pooled[ENSEMBLE]
    return [_row(name, found, ensemble) for name, found in pooled.items()]


def _row(name: str, found: Evaluation, ensemble: Evaluation) -> Row:
    around, known = intervals(found), len(found.errors)
    row = {"predictor": name, "mIoU": three(found.scores.miou, around.miou)}
    row |= {f"IoU {label}": three(iou, None) for label, iou in found.iou.items()}
    row |= {
        "boundary mIoU": three(found.boundary_miou, None),
        "calibration error": three(found.ece, None),
        "ice fraction: MAE": three(found.ice_fraction_mae, around.ice_fraction_mae)
        + ("" if known == len(found.images) else f" of {known} images"),
        "bias": signed(found.ice_fraction_bias, None),
    }
    if any(image.ice_area for image in found.images):
        row["by ground area: MAE"] = three(found.ice_area_fraction_mae, None)
        row["its bias"] = signed(found.ice_area_fraction_bias, None)
    if name == ENSEMBLE:
        return {**row, "mIoU: ensemble minus this": ""}
    above = paired_difference(ensemble, found)
    return {**row, "mIoU: ensemble minus this": signed(above.value, above.interval)}


def _what(pooled: dict[str, Evaluation]) -> str:
    ensemble = pooled[ENSEMBLE]
    groups = ensemble.groups
    how = (
        f"each of {len(groups)} groups held out in turn"
        if ensemble.split == "cross-validation" and len(groups) > 1
        else "the test split"
    )
    return f"{ensemble.dataset}: {len(ensemble.images)} images, {how}, at the labels' own size"


def _markdown(rows: Sequence[Row]) -> list[str]:
    columns = list(rows[0])
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
    ]
