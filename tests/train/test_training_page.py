"""What docs/training.md shows works, at a small size."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from train.data.dataset import read_dataset
from train.models.architectures import ARCHITECTURES

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
SMALL = {
    "augmentations": ["--size", "48x64"],
    "fit": ["--epochs", "1", "--batch", "2", "--size", "48x64", "--encoder", "tu-test_resnet"],
    "ensemble": [],
    "evaluate": [],
    "recipe": [],
    "make": ["--float32-only"],  # after one epoch every decision is a close call
}
"""What makes each command quick; the last of two equal options counts."""
DEEP = ["--option", "encoder_depth=3", "--option", "decoder_channels=8,8,8"]


def test_the_dataset_of_the_page_can_be_read(tmp_path: Path):
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "dataset.toml").write_text(toml)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "2026-01-07_noon.jpg").touch()
    (item,) = read_dataset(tmp_path).items
    assert (item.group, item.split) == ("2026-01-07", "validation")


def test_the_page_lists_every_architecture_and_its_encoder():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w-]+) \|", PAGE, flags=re.MULTILINE)
    assert dict(rows) == {name: row.default_encoder for name, row in ARCHITECTURES.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_work_in_their_order(tiny: Path, tmp_path: Path):
    tiny.rename(tmp_path / "data")
    water = (tmp_path / "data" / "dataset.toml").read_text().replace('name = "tiny"', 'name = "w"')
    (tmp_path / "data" / "water.toml").write_text(water)
    commands = re.findall(r"^    python (-m .+)$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 12
    for command in commands:
        if " recipe " in command:
            continue  # tests/train/recipe has its own
        words = shlex.split(
            command.replace("2026-02-11", "day-3").replace(" water ", " data/water.toml ")
        )
        name = words[2]
        extra = [*SMALL[name], *(DEEP if "unet" in words else [])]
        if "--from" in words:
            extra = [word for word in extra if word not in {"--encoder", "tu-test_resnet"}]
        done = subprocess.run(
            [sys.executable, *words, *extra],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if name == "fit" and "runs/unet" in words:
            pspnet = ["-o", "runs/pspnet", "--architecture", "pspnet"]
            done = subprocess.run(
                [sys.executable, *words[:4], *pspnet, *SMALL["fit"]], cwd=tmp_path, check=False
            )
            assert done.returncode == 0
    assert (tmp_path / "ice.icecam").exists()
    assert (tmp_path / "plots" / "reliability.png").exists()
