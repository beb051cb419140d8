"""The unit, as systemd itself reads it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[1] / "systemd" / "icecam.service"
TAKES_THE_GPU_OR_CAMERAS_AWAY = ("PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute")


def verify(folder: Path, text: str) -> str:
    """Return what systemd-analyze says of a unit whose program exists."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.fail("systemd-analyze is missing: apt-get install systemd")
    program = folder / "icecam"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = folder / "icecam.service"
    unit.write_text(text.replace("/opt/icecam/bin/icecam", str(program)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    assert verify(tmp_path, UNIT.read_text()) == ""


def test_a_misspelt_key_would_be_noticed_though_systemd_exits_with_0(tmp_path: Path) -> None:
    assert "Restar" in verify(tmp_path, UNIT.read_text().replace("Restart=", "Restar="))


def test_the_unit_leaves_gpu_and_cameras_and_never_gives_up() -> None:
    lines = UNIT.read_text().splitlines()
    options = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    assert not set(TAKES_THE_GPU_OR_CAMERAS_AWAY) & set(options)
    assert options["Restart"] == "always"
    assert options["StartLimitIntervalSec"] == "0"
