"""From runs to an ensemble.toml: which images weigh, what is written, what people are told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from train.commands.ensemble import ensemble
from train.data.dataset import read_dataset, read_sample
from train.data.splits import hold_out, keep_all
from train.ensemble.pixels import draw_pixels
from train.ensemble.report import best_choice
from train.ensemble.validation import dataset_of, require_one_split
from train.ensemble.weigh_runs import weigh_runs
from train.ensembles import read_ensemble
from train.fit.plan import digest
from train.runs import Run, load_member

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from train.data.dataset import Dataset

    Make = Callable[..., Run]


def trained_on(run: Run, dataset: Dataset, *, source: str = "", held_out: str = "") -> Run:
    """A run that says it was trained on a dataset as it is split now."""
    training = run.file.training.model_copy(
        update={
            "source": source or str(dataset.source),
            "data": digest(dataset),
            "held_out": held_out,
        }
    )
    return replace(run, file=run.file.model_copy(update={"training": training}))


@pytest.fixture
def runs(tiny_run: Run, tiny_pspnet: Run, tiny_dataset: Dataset) -> list[Run]:
    return [trained_on(run, tiny_dataset) for run in (tiny_run, tiny_pspnet)]


def test_the_sample_holds_what_each_member_says_of_pixels_with_a_class(
    runs: list[Run], tiny_dataset: Dataset
):
    """48x64 frames at the runs' own size: every valid pixel is taken, the masked rim is not."""
    found = draw_pixels(runs, tiny_dataset)
    samples = [read_sample(tiny_dataset, item) for item in tiny_dataset.of("validation")]
    valid = [sample.mask != 255 for sample in samples]
    assert found.images == ("day-2_0", "day-2_1")
    assert np.bincount(found.image).tolist() == [int(one.sum()) for one in valid]
    expected = np.concatenate(
        [sample.mask[one] for sample, one in zip(samples, valid, strict=True)]
    )
    assert np.array_equal(found.truth.numpy(), expected)
    for run, output in zip(runs, found.outputs, strict=True):
        member = load_member(run)
        frames = torch.tensor(np.stack([s.frame.transpose(2, 0, 1) for s in samples])).float()
        with torch.inference_mode():
            logits = member(frames)
        masks = [torch.tensor(one) for one in valid]
        wanted = torch.cat([one[:, v] for one, v in zip(logits, masks, strict=True)], dim=1)
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)


def test_a_sample_is_bounded_even_and_the_same_for_one_seed(
    runs: list[Run], tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.ensemble.pixels.MOST_PER_IMAGE", 92)
    first, again, other = (draw_pixels(runs[:1], tiny_dataset, seed=one) for one in (1, 1, 2))
    assert np.bincount(first.image).tolist() == [92, 92]
    assert torch.equal(first.outputs[0], again.outputs[0])
    assert not torch.equal(first.outputs[0], other.outputs[0])
    # Rows 0 to 11 of 46 valid ones are sky: an even sample has 24 of 92 there, give or take one.
    assert abs(int((first.truth[:92] == 0).sum()) - 24) <= 1


def test_the_file_says_what_was_found_and_opens_again(
    runs: list[Run], tiny_dataset: Dataset, tmp_path: Path
):
    out = tmp_path / "made" / "both.toml"
    report = weigh_runs(runs, out, dataset=tiny_dataset)
    read = read_ensemble(out)
    assert read.name == "both"
    assert [member.run for member in read.file.members] == ["../run", "../pspnet"]
    assert read.weights == report.chosen.weighing.weights
    assert read.temperatures == report.chosen.weighing.temperatures
    assert (read.file.weighed, read.file.calibrated) == report.choice
    assert read.file.validation["images"] == 2
    assert read.file.validation["data"] == digest(tiny_dataset)
    assert {"candidates", "members", "pairs", "verdict", "best_member"} <= read.file.figures.keys()
    assert sum(one["chosen"] for one in read.file.figures["candidates"]) == 1


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((4.0, 3.0, 4.0, 2.0), ("fitted", "fitted")),
        ((4.0, 3.0, 1.0, 3.5), ("equal", "fitted")),
        ((4.0, 5.0, 3.9, 6.0), ("fitted", "none")),
        ((4.0, 5.0, 4.1, 2.0), ("equal", "none")),
        ((4.0, 4.0, 4.0, 4.0), ("equal", "none")),
    ],
)
def test_what_does_no_better_on_images_left_out_is_not_taken(
    losses: tuple[float, ...], expected: tuple[str, str]
):
    choices = [("equal", "none"), ("equal", "fitted"), ("fitted", "none"), ("fitted", "fitted")]
    assert best_choice(dict(zip(choices, losses, strict=True))) == expected  # type: ignore[arg-type]


def test_with_one_image_the_weights_stay_equal_and_the_file_says_why(
    runs: list[Run], tiny_dataset: Dataset, tmp_path: Path
):
    kept = [item for item in tiny_dataset.items if item.stem != "day-2_1"]
    one = replace(tiny_dataset, items=tuple(kept))
    report = weigh_runs(runs, tmp_path / "e.toml", dataset=one)
    assert report.choice == ("equal", "none")
    assert read_ensemble(tmp_path / "e.toml").weights == (0.5, 0.5)
    assert "one image alone" in report.verdict()


def test_the_runs_own_split_is_found_again(tiny_dataset: Dataset, runs: list[Run]):
    run = runs[0]
    assert digest(dataset_of([run], validation_share=0.25)) == digest(tiny_dataset)
    held = hold_out(tiny_dataset, "day-1", validation_share=0.5)
    found = dataset_of([trained_on(run, held, held_out="day-1")], validation_share=0.5)
    assert found.items == held.items
    everything = keep_all(tiny_dataset, validation_share=0.25)
    found = dataset_of([trained_on(run, everything)], validation_share=0.25)
    assert found.items == everything.items


def test_a_dataset_that_is_gone_or_changed_is_asked_for(
    tiny: Path, tiny_run: Run, runs: list[Run], tiny_dataset: Dataset
):
    with pytest.raises(ConfigError, match="does not say where its dataset is; expected --data"):
        dataset_of([tiny_run], validation_share=0.25)
    moved = trained_on(tiny_run, tiny_dataset, source=str(tiny.parent / "gone" / "dataset.toml"))
    with pytest.raises(ConfigError, match=r"gone/dataset\.toml.*expected --data DATASET"):
        dataset_of([moved], validation_share=0.25)
    (tiny / "images" / "day-1_0.png").unlink()
    with pytest.raises(ConfigError, match="not the images and splits that run 'run' was"):
        dataset_of(runs, validation_share=0.25)
    assert len(dataset_of(runs, tiny, validation_share=0.25).items) == 5


def test_runs_of_different_splits_are_refused_by_name(tiny_dataset: Dataset, runs: list[Run]):
    other = trained_on(runs[1], hold_out(tiny_dataset, "day-1"), held_out="day-1")
    with pytest.raises(ConfigError, match=r"'run' tiny \(.*\); 'pspnet' tiny \(.*\) without day-1"):
        require_one_split([runs[0], other])
    require_one_split(runs)


def test_other_classes_are_refused_and_nothing_is_written(
    tiny_dataset: Dataset, runs: list[Run], tmp_path: Path
):
    surfaces = [one.model_dump() for one in tiny_dataset.class_map.root]
    surfaces[0]["name"] = "land"
    other = replace(tiny_dataset, class_map=Classes.model_validate(surfaces))
    with pytest.raises(ConfigError, match=r"0 sky \(other\).*expected those of tiny: 0 land"):
        weigh_runs(runs, tmp_path / "e.toml", dataset=other)
    assert not (tmp_path / "e.toml").exists()


def test_runs_of_another_split_are_weighed_with_a_warning(
    runs: list[Run], tiny_dataset: Dataset, tmp_path: Path
):
    console = Console(record=True, width=200)
    other = hold_out(tiny_dataset, "day-1")
    weigh_runs(runs, tmp_path / "e.toml", dataset=other, console=console)
    assert "warning: the runs were trained on another split of tiny" in console.export_text()


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    option: str, tiny: Path, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def measured(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("train.ensemble.weigh_runs.draw_pixels", measured)
    app = typer.Typer()
    app.command()(ensemble)
    places = {"-o": tmp_path / "e.toml", "--json": tmp_path / "f.json"}
    places[option] = tiny / "dataset.toml" / "inside" / places[option].name
    options = [text for name, path in places.items() for text in (name, str(path))]
    ended = CliRunner().invoke(app, [str(tiny_run.folder), "--data", str(tiny), *options])
    assert isinstance(ended.exception, ConfigError)
    assert "dataset.toml/inside cannot be made (Not a directory)" in str(ended.exception)


def test_figures_that_cannot_be_written_leave_the_ensemble(
    tiny: Path, tiny_run: Run, tmp_path: Path
):
    app = typer.Typer()
    app.command()(ensemble)
    out, taken = tmp_path / "e.toml", tmp_path / "f.json"
    taken.mkdir()
    options = ["--data", str(tiny), "-o", str(out), "--json", str(taken)]
    ended = CliRunner().invoke(app, [str(tiny_run.folder), *options])
    assert isinstance(ended.exception, ConfigError)
    assert (
        f"cannot be written (Is a directory); expected room for a file there. The ensemble was "
        f"written, with the same figures: {out}" in str(ended.exception)
    )
    assert read_ensemble(out).weights == (1.0,)


def test_the_command_line_tells_and_writes(
    tiny: Path, tiny_run: Run, tiny_pspnet: Run, tmp_path: Path
):
    app = typer.Typer()
    app.command()(ensemble)
    out, figures = tmp_path / "ensemble.toml", tmp_path / "figures.json"
    arguments = [str(tiny_run.folder), str(tiny_pspnet.folder), "-o", str(out)]
    ended = CliRunner().invoke(app, [*arguments, "--data", str(tiny), "--json", str(figures)])
    assert ended.exit_code == 0, ended.output
    assert "warning: the runs may have seen tiny" in ended.output
    for said in ("equal weights", "fitted weights, T", "left out", "members disagree"):
        assert said in ended.output
    plain = json.loads(figures.read_text())
    assert _without_none(plain) == read_ensemble(out).file.figures
    assert read_dataset(tiny).name == read_ensemble(out).file.validation["dataset"]


def _without_none(plain: Any) -> Any:  # noqa: ANN401 - JSON of any depth
    if isinstance(plain, dict):
        return {key: _without_none(value) for key, value in plain.items() if value is not None}
    if isinstance(plain, list):
        return [_without_none(value) for value in plain]
    return plain
