"""ensemble.toml: it reads back as it was written, and holds its runs to their word."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from edge.contract.errors import ConfigError
from train.ensembles import (
    Ensemble,
    Weighing,
    common_input,
    read_ensemble,
    require_alike,
    write_ensemble,
)
from train.runs import Run, read_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from train.data.dataset import Dataset

WEIGHING = Weighing(
    weights=(0.7, 0.3), temperatures=(1.5, 0.8), how_weighed="fitted", how_calibrated="fitted"
)


@pytest.fixture
def written(tiny_run: Run, tiny_pspnet: Run, tmp_path: Path) -> Ensemble:
    return write_ensemble(tmp_path / "new" / "two.toml", [tiny_run, tiny_pspnet], WEIGHING)


def test_an_ensemble_reads_back_as_it_was_written(written: Ensemble):
    read = read_ensemble(written.path)
    assert read.file == written.file
    assert [run.file for run in read.runs] == [run.file for run in written.runs]
    assert (read.weights, read.temperatures) == ((0.7, 0.3), (1.5, 0.8))
    assert (read.name, read.file.weighed, read.file.calibrated) == ("two", "fitted", "fitted")
    assert read.class_map.names == ("sky", "water", "ice")


def test_file_and_runs_may_move_together(written: Ensemble, tmp_path: Path):
    """The paths in it are relative, with forward slashes."""
    assert [member.run for member in written.file.members] == ["../run", "../pspnet"]
    for name in ("new", "run", "pspnet"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert read_ensemble(tmp_path / "elsewhere" / "new" / "two.toml").weights == (0.7, 0.3)


def test_a_run_that_was_trained_anew_since_is_refused_by_name(
    written: Ensemble, tiny_dataset: Dataset, make_tiny_run: Callable[..., Run], tmp_path: Path
):
    shutil.rmtree(tmp_path / "run")
    make_tiny_run(tmp_path / "other", tiny_dataset, architecture="pspnet")
    shutil.move(tmp_path / "other", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"two\.toml: run 'run' was changed since .*pspnet.*unet"):
        read_ensemble(written.path)


def test_parameters_that_were_changed_since_are_refused_though_the_run_agrees(
    written: Ensemble, tmp_path: Path
):
    """Whoever replaces model.safetensors and its hash in run.toml still has another model."""
    toml = tmp_path / "run" / "run.toml"
    sha256 = read_run(tmp_path / "pspnet").file.model_sha256
    shutil.copy(tmp_path / "pspnet" / "model.safetensors", toml.parent)
    toml.write_text(toml.read_text().replace(written.file.members[0].model_sha256, sha256))
    with pytest.raises(ConfigError, match=f"model {sha256[:12]}.*expected 'run', unet, model"):
        read_ensemble(written.path)


def test_a_run_that_is_gone_is_refused_by_its_folder(written: Ensemble, tmp_path: Path):
    shutil.rmtree(tmp_path / "pspnet")
    with pytest.raises(ConfigError, match=r"pspnet/run\.toml: cannot be read"):
        read_ensemble(written.path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("icecam.ensemble/1", "icecam.ensemble/2", "schema: expected 'icecam.ensemble/1'"),
        ("weight = 0.7", "weight = 0.0", r"members\[0\]\.weight: expected greater than 0"),
        ("weight = 0.7", "wight = 0.7", r"members\[0\]\.wight: unknown key; did you mean 'weight'"),
        ("temperature = 0.8", "temperature = -1", r"members\[1\]\.temperature: expected greater"),
        ('weighed = "fitted"', 'weighed = "best"', "weighed: expected 'fitted' or 'equal'"),
        ("[[members]]", "[[members]", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_the_path_to_the_field(
    written: Ensemble, old: str, new: str, told: str
):
    text = written.path.read_text()
    assert old in text
    written.path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=told):
        read_ensemble(written.path)


def test_runs_that_do_not_fit_together_are_refused_and_nothing_is_written(
    tiny_run: Run,
    tiny_dataset: Dataset,
    make_tiny_run: Callable[..., Run],
    tmp_path: Path,
):
    wide = make_tiny_run(tmp_path / "wide", tiny_dataset, size=(48, 96))
    out = tmp_path / "e.toml"
    for runs, told in (
        ([tiny_run, tiny_run], "two runs are named 'run'"),
        ([tiny_run, wide], r"input sizes differ: run 'run' \(48, 64\), run 'wide' \(48, 96\)"),
    ):
        with pytest.raises(ConfigError, match=told):
            write_ensemble(out, runs, WEIGHING)
    assert not out.exists()
    require_alike([tiny_run])


def test_a_file_that_cannot_be_written_is_a_named_error(tiny_run: Run, tmp_path: Path):
    weighing = Weighing(
        weights=(1.0,), temperatures=(1.0,), how_weighed="equal", how_calibrated="none"
    )
    (tmp_path / "e.toml").mkdir()
    with pytest.raises(ConfigError, match=r"e\.toml: cannot be written \(Is a directory\)"):
        write_ensemble(tmp_path / "e.toml", [tiny_run], weighing)
    assert not list(tmp_path.glob(".e.toml*"))


def test_the_strictest_member_decides_how_far_frames_may_be_distorted(
    tiny_run: Run, tiny_pspnet: Run, tmp_path: Path
):
    toml = tmp_path / "pspnet" / "run.toml"
    toml.write_text(toml.read_text().replace("max_anisotropy = 1.2", "max_anisotropy = 1.05"))
    assert common_input([tiny_run, read_run(tiny_pspnet.folder)]) == ((48, 64), 1.05)
