"""What docs/deployment.md shows works, with doubles of TensorRT and libcuda, at a small size."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.config import BundleSection, EngineSection
from edge.contract.boundary import parse, read_toml
from edge.contract.bundle import open_bundle
from edge.engine.certify import COMPILED
from export.float16 import FLOAT16_BARS
from tests.doubles import places
from tests.train.conftest import write_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
TINY = ["--epochs", "1", "--batch", "2", "--size", "48x64", "--encoder", "tu-test_resnet"]
NEED_TENSORRT = ("export.trt", "edge")
DEEP = ["--option", "encoder_depth=3", "--option", "decoder_channels=8,8,8"]


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **places.search_paths()} if words[1] in NEED_TENSORRT else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commands() -> Iterator[list[str]]:
    """The page's commands, as arguments of Python, but for those of another machine."""
    for line in re.findall(r"^    ((?:python|icecam) .+)$", PAGE, flags=re.MULTILINE):
        program, *words = shlex.split(line)
        if "--on" in words or "/etc/icecam/station.toml" in words:
            continue  # tests/export/remote; tests/commands/test_check.py
        yield words if program == "python" else ["-m", "edge", *words]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny").rename(tmp_path / "data")
    run(tmp_path, "-m", "train", "fit", "data", "-o", "runs/unet", *TINY, *DEEP)
    run(tmp_path, "-m", "train", "ensemble", "runs/unet", "-o", "ensemble.toml")
    said = {}
    for words in commands():
        # a network of one epoch decides by a hair: the page says so
        extra = ["--float32-only"] if words[2] == "make" else []
        said[" ".join(words[1:3])] = run(tmp_path, *words, *extra)
    assert list(said) == [
        "export keygen",
        "export make",
        "export check",
        "export sign",
        "export.trt ice.icecam",
        "edge bench",
    ]
    assert open_bundle(tmp_path / "ice.icecam").signature is not None
    assert "certified" in said["export.trt ice.icecam"]
    assert "on trt: certified" in said["edge bench"]


def test_the_station_toml_of_the_page_has_keys_that_there_are(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "part.toml").write_text(text)
    part = read_toml(tmp_path / "part.toml", what="the page's")
    assert parse(BundleSection, part["bundle"], where="page").trusted_keys
    assert parse(EngineSection, part["engine"], where="page").backend == "auto"


def test_the_bars_of_the_page_are_those_of_the_code() -> None:
    assert f"at least {COMPILED.mask:.0%}".replace("%", " %") in PAGE
    assert f"IoU at least {COMPILED.class_iou:g}" in PAGE
    assert f"at least {COMPILED.members:.0%}".replace("%", " %") in PAGE
    assert f"within {COMPILED.coverage_difference:g}" in PAGE
    assert f"within {COMPILED.close_call:g}" in PAGE
    assert f"{FLOAT16_BARS.mask:.1%}".replace("%", " %") in PAGE
    assert f"ice fraction within {FLOAT16_BARS.coverage_difference:g}" in PAGE
