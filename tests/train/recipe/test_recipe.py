from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from edge.contract.bundle import open_bundle
from edge.contract.errors import ConfigError
from train.evaluate.record import read_evaluation
from train.fit.plan import Hardware
from train.recipe.file import Recipe, find_dataset, read_recipe
from train.recipe.run import run_recipe
from train.runs import read_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.contract.classes import ClassMap
    from train.evaluate.evaluation import Evaluation

REPOSITORY = Path(__file__).parents[3]
SHIPPED = REPOSITORY / "train" / "recipes"
TINY_RECIPE = """
schema = "icecam.recipe/1"
name = "tiny"
dataset = "tiny"
input = { height = 48, width = 64, max_anisotropy = 1.5 }
settings = { batch_size = 2, epochs = 2, augmentation = "light", seed = 3 }

[[stage]]
name = "drawn"
drawn = { count = 8, height = 96, width = 160, sequence = 2 }
epochs = 1

[[stage]]
name = "ice"
learning_rate = 1e-2

[[member]]
name = "unet"
architecture = "unet"
encoder = "tu-test_resnet"
options = { encoder_depth = 3, decoder_channels = [8, 8, 8] }

[[member]]
name = "pspnet"
architecture = "pspnet"
encoder = "tu-test_resnet"
options = { psp_out_channels = 8 }
settings = { batch_size = 1 }

[[member]]
name = "scratch"
architecture = "unet"
encoder = "tu-test_resnet"
options = { encoder_depth = 3, decoder_channels = [8, 8, 8] }
stages = ["ice"]
compared_with = "unet"
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe of seconds, on the dataset ``tiny`` (three days)."""
    path = tmp_path / "tiny-recipe.toml"
    path.write_text(TINY_RECIPE)
    return path


def run(path: Path, out: Path, data: Path, *, jobs: int = 1) -> str:
    told = io.StringIO()
    run_recipe(
        path,
        out=out,
        data=data,
        jobs=jobs,
        hardware=Hardware(accelerator="cpu"),
        console=Console(file=told, width=160),
    )
    return told.getvalue()


@pytest.mark.slow
def test_a_recipe_ends_in_a_bundle_measured_on_days_it_was_not_trained_on(
    recipe_file: Path, tiny: Path, tmp_path: Path
):
    out = tmp_path / "out"
    told = run(recipe_file, out, tiny.parent)
    manifest = open_bundle(out / "tiny.icecam").manifest
    assert [member.name for member in manifest.members] == ["unet", "pspnet"]
    assert manifest.metrics is not None
    assert manifest.metrics.images == 6
    pooled = read_pooled(out)
    assert set(pooled) == {"ensemble", "unet", "pspnet", "scratch", "Otsu", "colour and row"}
    assert manifest.metrics.miou == pytest.approx(pooled["ensemble"].scores.miou)
    for found in pooled.values():
        assert [image.group for image in found.images] == ["day-1"] * 2 + ["day-2"] * 2 + [
            "day-3"
        ] * 2
    for day in ("day-1", "day-2", "day-3"):
        training = read_run(out / "folds" / day / "unet").file.training
        assert training.held_out == day
        assert training.started_from.startswith("synth")
        assert training.batch_size == 2
        assert read_run(out / "folds" / day / "pspnet").file.training.batch_size == 1
        assert read_run(out / "folds" / day / "scratch").file.training.started_from == ""
    assert not (out / "final" / "scratch").exists()
    assert (out / "plots" / "reliability.png").stat().st_size > 1000
    results = (out / "results.md").read_text()
    assert f"{pooled['unet'].scores.miou:.3f}" in results
    assert "| Otsu |" in results
    assert "mIoU of scratch minus unet: " in results
    assert "mIoU" in told


@pytest.mark.slow
def test_what_is_done_is_kept_when_a_recipe_is_run_again(
    recipe_file: Path, tiny: Path, tmp_path: Path
):
    out = tmp_path / "out"
    run(recipe_file, out, tiny.parent)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    (out / "tiny.icecam").unlink()
    told = run(recipe_file, out, tiny.parent)
    assert told.count("(kept") == len(before)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert (out / "tiny.icecam").exists()


@pytest.mark.slow
def test_a_killed_recipe_goes_on_to_the_same_end(recipe_file: Path, tiny: Path, tmp_path: Path):
    """SIGKILL in the middle of the folds, two fits side by side: nothing is left running."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "train", "recipe", str(recipe_file), "--out", str(killed)]
    process = subprocess.Popen(
        [*command, "--data", str(tiny.parent), "--jobs", "2", "--accelerator", "cpu"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: any(killed.glob("folds/*/*/run.toml")))
    children = {int(pid) for pid in children_of(process.pid)}
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert not (killed / "results.md").exists()
    for out in (killed, whole):
        run(recipe_file, out, tiny.parent, jobs=2)
    figures = [
        {name: found.scores.miou for name, found in read_pooled(out).items()}
        for out in (killed, whole)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


def read_pooled(out: Path) -> dict[str, Evaluation]:
    found = [read_evaluation(path) for path in sorted((out / "evaluation").glob("*.json"))]
    return {one.predictor: one for one in found}


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("epochs = 1", "epoch = 1"), "stage[0].epoch: "),
        (('architecture = "pspnet"', 'architecture = "pspnett"'), "unknown architecture 'pspnett'"),
        (("learning_rate = 1e-2", "learning_rate = -1"), "stage[1].learning_rate: "),
        (('dataset = "tiny"', 'dataset = "huge"'), "no dataset 'huge'"),
        (('stages = ["ice"]', 'stages = ["snow", "ice"]'), "expected stages of drawn, ice"),
        (('stages = ["ice"]', 'stages = ["drawn"]'), "ice among them"),
        (('name = "pspnet"\n', 'name = "unet"\n'), "repeated unet"),
        (("drawn = {", 'dataset = "tiny"\ndrawn = {'), "expected either dataset or drawn"),
        (("learning_rate = 1e-2", 'dataset = "tiny"'), "the recipe's dataset"),
        (('encoder = "tu-test_resnet"', 'encoder = "tu-nothing"'), "tu-nothing"),
        (('name = "pspnet"\n', 'name = "evaluation"\n'), "that the recipe's files do not have"),
        (('compared_with = "unet"', 'compared_with = "vnet"'), "compared_with no other member"),
        (("height = 48,", "height = 50,"), "multiples of 8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_trained(
    recipe_file: Path, tiny: Path, tmp_path: Path, change: tuple[str, str], told: str
):
    assert change[0] in TINY_RECIPE
    recipe_file.write_text(TINY_RECIPE.replace(*change, 1))
    with pytest.raises(ConfigError) as caught:
        run(recipe_file, tmp_path / "out", tiny.parent)
    assert told in str(caught.value)
    assert not list((tmp_path / "out").rglob("run.toml"))
    assert not list((tmp_path / "out").rglob("state.ckpt"))


def test_a_class_that_one_fold_never_sees_is_told_before_anything_is_trained(
    recipe_file: Path, tiny: Path, tmp_path: Path
):
    """Sky on one day only: without that day, nothing teaches it."""
    for mask in (tiny / "masks").glob("day-[13]_*.png"):
        values = np.array(Image.open(mask))
        Image.fromarray(np.where(values == 0, 10, values).astype(np.uint8)).save(mask)
    with pytest.raises(ConfigError, match="no training mask holds 'sky'"):
        run(recipe_file, tmp_path / "out", tiny.parent)
    assert not (tmp_path / "out").exists()


def test_a_mended_recipe_may_go_on_in_the_folder_where_it_was_refused(
    recipe_file: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Reached(Exception):  # noqa: N818 - not an error
        pass

    def train(*_: object, **__: object) -> None:
        raise Reached

    recipe_file.write_text(TINY_RECIPE.replace("tu-test_resnet", "tu-nothing", 1))
    with pytest.raises(ConfigError, match="tu-nothing"):
        run(recipe_file, tmp_path / "out", tiny.parent)
    recipe_file.write_text(TINY_RECIPE)
    monkeypatch.setattr("train.recipe.run.do_fits", train)
    with pytest.raises(Reached):
        run(recipe_file, tmp_path / "out", tiny.parent)


def test_a_damaged_image_is_told_before_anything_is_trained(
    recipe_file: Path, tiny: Path, tmp_path: Path
):
    image = tiny / "images" / "day-3_1.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"day-3_1\.png"):
        run(recipe_file, tmp_path / "out", tiny.parent)
    assert not list((tmp_path / "out").rglob("state.ckpt"))


def test_another_recipe_does_not_go_on_in_the_same_folder(
    recipe_file: Path, tiny: Path, tmp_path: Path
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.toml").write_text(TINY_RECIPE.replace("seed = 3", "seed = 4"))
    with pytest.raises(ConfigError, match=r"begun by another recipe \(settings differ\)"):
        run(recipe_file, out, tiny.parent)


def test_other_files_are_not_mixed_with_a_recipe(recipe_file: Path, tiny: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds other files"):
        run(recipe_file, tmp_path, tiny.parent)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_icecam_can_be_followed(path: Path, class_map: ClassMap):
    """Their datasets are known, and every member is one that can be built."""
    from train.models.architectures import build_member

    recipe: Recipe = read_recipe(path)
    names = [recipe.dataset, *(stage.dataset for stage in recipe.stage if stage.dataset)]
    for name in names:
        assert find_dataset(name, recipe=path, data=None).is_file()
    for member in recipe.member:
        choice = recipe.choice_of(member)
        build_member(
            choice.architecture,
            choice.encoder,
            class_map=class_map,
            options=choice.options,
        ).check_size(choice.size)


def test_a_dataset_of_ones_own_goes_before_those_that_come_along(tmp_path: Path, tiny: Path):
    recipe = tmp_path / "recipe.toml"
    mine = tmp_path / "data" / "agulhas_floes"
    shutil.copytree(tiny, mine)
    found = find_dataset("agulhas_floes", recipe=recipe, data=tmp_path / "data")
    assert found == mine / "dataset.toml"
