"""The wheel, not the checkout: what a station installs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*build, str(REPOSITORY)], check=True)
    (found,) = folder.glob("icecam-*.whl")
    return found


@pytest.fixture(scope="module")
def station(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare virtual environment with the station installed; returns its bin folder."""
    folder = tmp_path_factory.mktemp("station")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin" / "pip"), "install", "--quiet"]
    subprocess.run([*install, f"{wheel}[station]"], check=True)
    return folder / "bin"


def test_the_wheel_holds_unit_demo_bundle_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"edge/systemd/icecam.service", "edge/demo/demo.icecam", "edge/py.typed"} <= names
    assert any(name.startswith("edge/demo/frames/") for name in names)
    assert any(name.startswith("train/datasets/") for name in names)
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.timeout(600)
def test_a_bare_station_segments_a_picture_without_torch(station: Path, tmp_path: Path) -> None:
    frames = REPOSITORY / "edge" / "demo" / "frames"
    picture = min(frames.iterdir())
    done = subprocess.run(
        [station / "icecam", "once", picture, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "mask.png").exists()
    listed = subprocess.run(
        [station / "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.lower()
    assert "torch" not in listed
    assert "opencv-python-headless==" in listed


@pytest.mark.broker
@pytest.mark.timeout(600)
def test_a_bare_station_runs_the_demo(station: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [station / "icecam", "demo"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    left = {path.name for path in (tmp_path / "build" / "demo").iterdir()}
    assert left == {"coverage.json", "mask.png", "overlay.png", "health.json"}
