"""Runs that don't fit together, and runs that are damaged: named, and nothing is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import cv2
import pytest

from edge.contract.bundle import open_bundle
from edge.contract.classes import Classes, ClassMap
from edge.contract.errors import ConfigError
from export.commands.make import _members
from export.make import make
from tests.export.small_runs import a_run, noise, one_thread, small_member
from train.runs import MODEL, RUN, STATE, Run, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, class_map: ClassMap) -> list[Run]:
    """Small ones of random parameters; read only."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        a_run(folder / name, small_member(name, class_map), class_map)
        for name in ("unet", "pspnet")
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert cv2.imwrite(str(folder / "a.png"), noise()[0])
    return folder


def other_classes(class_map: ClassMap, change: str) -> ClassMap:
    surfaces = [one.model_dump() for one in class_map.root]
    if change == "name":
        surfaces[2]["name"] = "floe"
    elif change == "role":
        surfaces[0]["role"] = "water"
    else:
        surfaces[1]["name"], surfaces[2]["name"] = surfaces[2]["name"], surfaces[1]["name"]
    return ClassMap.model_validate(surfaces)


@pytest.mark.parametrize("change", ["name", "role", "order"])
def test_runs_whose_classes_differ_are_refused_and_nothing_is_written(
    tmp_path: Path, runs: list[Run], class_map: ClassMap, change: str
) -> None:
    other = a_run(
        tmp_path / "run",
        small_member("unet", class_map),
        other_classes(class_map, change),
        name="other",
    )
    out = tmp_path / "out.icecam"
    with pytest.raises(ConfigError, match=r"class maps differ: run 'unet' has .* run 'other' has"):
        make([runs[0], other], out, frames=noise())
    assert not out.exists()


def test_colours_and_labels_that_differ_are_no_obstacle_to_going_on(
    tmp_path: Path, runs: list[Run], class_map: ClassMap
) -> None:
    surfaces = [{**one.model_dump(), "colour": (1, 2, 3)} for one in class_map.root]
    painted = a_run(
        tmp_path / "a",
        small_member("unet", class_map),
        ClassMap.model_validate(surfaces),
        name="painted",
    )
    wider = a_run(
        tmp_path / "b",
        small_member("unet", class_map),
        class_map,
        name="wider",
        input_size=(96, 192),
    )
    # Past the classes: it is the third run's size that is refused.
    with pytest.raises(
        ConfigError, match=r"input sizes differ: .*\(96, 160\), run 'wider' \(96, 1"
    ):
        make([runs[0], painted, wider], tmp_path / "out.icecam", frames=noise())
    assert not (tmp_path / "out.icecam").exists()


def test_two_runs_of_one_name_are_refused_and_nothing_is_written(
    runs: list[Run], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="two runs are named 'unet'"):
        make([*runs, runs[0]], tmp_path / "out.icecam", frames=noise())
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_parameters_were_changed_is_refused(tmp_path: Path, runs: list[Run]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[0].folder, copy)
    model = copy / "model.safetensors"
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    changed = Run(folder=copy, file=runs[0].file)
    with pytest.raises(ConfigError, match="sha256"):
        make([changed], tmp_path / "out.icecam", frames=noise())
    assert not (tmp_path / "out.icecam").exists()


@pytest.mark.parametrize("role", ["ice", "water"])
def test_classes_without_ice_or_water_are_refused_before_anything_is_built(
    tmp_path: Path, class_map: ClassMap, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    surfaces = [one.model_dump() for one in class_map.root]
    for surface in surfaces:
        surface["role"] = "other" if surface["role"] == role else surface["role"]
    classes = Classes.model_validate(surfaces)
    run = a_run(tmp_path / "run", small_member("unet", classes), classes, name="first-stage")
    monkeypatch.setattr("export.make.Networks", lambda *_: pytest.fail("built"))
    out = tmp_path / "out.icecam"
    with pytest.raises(ConfigError, match=f"run 'first-stage' has .*none of the role '{role}'"):
        make([run], out, frames=noise())
    assert not out.exists()


def test_an_ensemble_file_stands_alone_on_the_command_line(runs: list[Run], tmp_path: Path) -> None:
    (tmp_path / "e.toml").touch()
    with pytest.raises(ConfigError, match=r"e\.toml beside 1 more; expected run folders, or one"):
        _members([runs[0].folder, tmp_path / "e.toml"])


def test_a_fallback_without_a_member_that_is_none_names_those_there_are(
    runs: list[Run], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"--without 'vnet': no such member; expected one of unet, pspnet"
    ):
        make(runs, tmp_path / "new" / "out.icecam", frames=noise(), without=["unet", "vnet"])
    assert list(tmp_path.iterdir()) == []


def test_a_fallback_without_any_member_is_refused(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a fallback without any member; expected at least one"):
        make(runs, tmp_path / "new" / "out.icecam", frames=noise(), without=["unet", "pspnet"])
    assert list(tmp_path.iterdir()) == []


def without_its_end(folder: Path) -> str:
    (folder / RUN).unlink()
    (folder / STATE).write_bytes(b"epoch 3")
    return "this run is not finished"


def without_anything(folder: Path) -> str:
    for path in folder.iterdir():
        path.unlink()
    return "run.toml"


def without_a_model(folder: Path) -> str:
    (folder / MODEL).unlink()
    return "model.safetensors: "


def with_half_a_model(folder: Path) -> str:
    raw = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(raw[: len(raw) // 2])
    return "model.safetensors: its sha256 is"


def with_half_a_toml(folder: Path) -> str:
    raw = (folder / RUN).read_text()
    (folder / RUN).write_text(raw[: len(raw) // 2])
    return "run.toml"


@pytest.mark.parametrize(
    "damage",
    [without_its_end, without_anything, without_a_model, with_half_a_model, with_half_a_toml],
    ids=lambda damage: damage.__name__,
)
def test_a_half_written_run_is_named_and_nothing_is_written(
    runs: list[Run], tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[0].folder, copy)
    said = damage(copy)
    out = tmp_path / "out.icecam"
    with pytest.raises(ConfigError) as caught:
        make([runs[1], read_run(copy)], out, frames=noise())
    assert said in str(caught.value)
    assert str(copy) in str(caught.value)
    assert not out.exists()


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_the_command_makes_a_bundle_whose_fallback_does_without_a_member(
    runs: list[Run], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.icecam"
    folders = [run.folder for run in runs]
    ended = export(
        "make", *folders, "--frames", pictures, "--without", "unet", "--float32-only", "-o", out
    )
    assert ended.returncode == 0, ended.stderr
    assert "building one graph of 2 members at 96x160 (full)" in ended.stdout
    assert "building one graph of 1 members at 96x160 (fallback)" in ended.stdout
    graphs = open_bundle(out).manifest.graphs
    assert [(graph.name, graph.members) for graph in graphs] == [
        ("full", ("unet", "pspnet")),
        ("fallback", ("pspnet",)),
    ]


def refused(ended: subprocess.CompletedProcess[str], said: str) -> None:
    assert ended.returncode == 2
    assert f"error: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_names_what_does_not_fit_and_leaves_with_status_2(
    tmp_path: Path, runs: list[Run], pictures: Path, class_map: ClassMap
) -> None:
    classes = other_classes(class_map, "name")
    other = a_run(tmp_path / "run", small_member("unet", classes), classes, name="other")
    out = tmp_path / "out.icecam"
    ended = export("make", runs[0].folder, other.folder, "--frames", pictures, "-o", out)
    refused(ended, "class maps differ: run 'unet' has")
    ended = export("make", runs[0].folder, "--frames", pictures, "--without", "maskrcnn", "-o", out)
    refused(ended, "--without 'maskrcnn': no such member; expected one of unet")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "pictures"}
