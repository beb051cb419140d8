"""Figures as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from train.evaluate.bootstrap import intervals, paired_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.evaluate.bootstrap import Interval
    from train.evaluate.evaluation import Evaluation

CAUTION = "In brackets: 95 % bootstrap over images; for other days and places it is too narrow."


def table_of(evaluations: Sequence[Evaluation]) -> Table:
    """Return a column per evaluation, all of the same images, and a row per figure.

    Where there are several, the last row says how far the first is above each of the others.
    """
    first = evaluations[0]
    some_unknown = _some_unknown(evaluations)
    columns = [_column(evaluation, some_unknown=some_unknown) for evaluation in evaluations]
    ends = {f"IoU {first.class_map.names[-1]}", "pixel accuracy", "boundary mIoU"}
    ends |= {"calibration error", list(columns[0])[-1]}
    if len(evaluations) > 1:
        above = [paired_difference(first, other) for other in evaluations[1:]]
        cells = ["", *(signed(one.value, one.interval) for one in above)]
        for column, cell in zip(columns, cells, strict=True):
            column[f"mIoU: {first.predictor} minus this"] = cell
    table = Table(title=_title(first), caption=CAUTION if len(first.images) > 1 else None)
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(evaluation.predictor, justify="right")
    for row in columns[0]:
        style = "bold" if row == "mIoU" else None
        table.add_row(
            row, *(column[row] for column in columns), style=style, end_section=row in ends
        )
    return table


def _title(evaluation: Evaluation) -> str:
    groups = evaluation.groups
    of = f" of {groups[0]}" if len(groups) == 1 else f" of {len(groups)} groups" if groups else ""
    count = len(evaluation.images)
    images = f"{count} image{'' if count == 1 else 's'}"
    return f"{evaluation.dataset}, {evaluation.split}: {images}{of}"


def _some_unknown(evaluations: Sequence[Evaluation]) -> bool:
    """Whether an image has no ice fraction for one of them: then their errors are of fewer."""
    return any(len(one.errors) < len(one.images) for one in evaluations)


def _column(evaluation: Evaluation, *, some_unknown: bool) -> dict[str, str]:
    found, around = evaluation, intervals(evaluation)
    names = found.class_map.names
    rows = {f"IoU {name}": three(found.iou[name], around.iou[name]) for name in names}
    rows["mIoU"] = three(found.scores.miou, around.miou)
    rows["pixel accuracy"] = three(found.scores.pixel_accuracy, around.pixel_accuracy)
    rows |= {
        f"boundary IoU {name}": three(found.boundary_iou[name], around.boundary_iou[name])
        for name in names
    }
    rows["boundary mIoU"] = three(found.boundary_miou, around.boundary_miou)
    rows["calibration error"] = three(found.ece, None)
    rows["ice fraction: MAE"] = three(found.ice_fraction_mae, around.ice_fraction_mae)
    rows["ice fraction: bias"] = signed(found.ice_fraction_bias, around.ice_fraction_bias)
    if some_unknown:
        rows["ice fraction: images"] = str(len(found.errors))
    if any(image.ice_area for image in found.images):
        mae, bias = found.ice_area_fraction_mae, found.ice_area_fraction_bias
        rows["ice by ground area: MAE"] = three(mae, around.ice_area_fraction_mae)
        rows["ice by ground area: bias"] = signed(bias, around.ice_area_fraction_bias)
    return rows


def three(value: float | None, interval: Interval | None) -> str:
    """Return a fraction to three places, with its interval where there is one."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({interval.low:.3f}–{interval.high:.3f})" if interval else "")


def signed(value: float | None, interval: Interval | None) -> str:
    """Return a difference to three places, with its sign and its interval."""
    if value is None:
        return "–"
    return f"{value:+.3f}" + (f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval else "")
