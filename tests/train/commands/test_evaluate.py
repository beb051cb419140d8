from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from edge.contract.errors import ConfigError
from train.commands.evaluate import _warn_of_seen, evaluate
from train.predict import open_predictor

if TYPE_CHECKING:
    from pathlib import Path

    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Side
    from train.runs import Run


@pytest.mark.parametrize(
    ("side", "told"),
    [("train", "on 1 of these 2 images"), ("validation", "on 2 of these 2"), ("test", "")],
)
def test_figures_on_images_that_were_seen_come_with_a_warning(
    tiny_run: Run, tiny_dataset: Dataset, side: Side, told: str
):
    seen = {"train": ["day-1_0"], "validation": ["day-2_0", "day-2_1"]}
    (tiny_run.folder / "metrics.json").write_text(json.dumps({"images": seen}))
    console = Console(file=io.StringIO(), width=200)
    with open_predictor(tiny_run.folder) as predictor:
        _warn_of_seen(predictor, tiny_dataset, side, console)
    said = console.file.getvalue()
    assert told in said
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("option", "place"),
    [("--json", "inside/f.json"), ("--plots", "inside"), ("--overlays", "inside")],
)
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    option: str, place: str, tiny: Path, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
):
    def opened(_: Path) -> None:
        raise AssertionError

    monkeypatch.setattr("train.predict.open_predictor", opened)
    app = typer.Typer()
    app.command()(evaluate)
    said = [str(tiny_run.folder), str(tiny), option, str(tiny / "dataset.toml" / place)]
    ended = CliRunner().invoke(app, said)
    assert isinstance(ended.exception, ConfigError)
    assert "dataset.toml/inside cannot be made (Not a directory)" in str(ended.exception)
