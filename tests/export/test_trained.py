"""Every semantic architecture: trained a little, exported, and the same in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from export.frames import choose_frames
from export.make import make
from tests.train.conftest import write_tiny
from train.data.dataset import read_dataset
from train.fit.plan import Choice, Hardware, Settings
from train.fit.trainer import fit
from train.models.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from pathlib import Path

SEMANTIC = [name for name, row in ARCHITECTURES.items() if row.kind == "surfaces"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SEMANTIC)
def test_a_trained_run_is_exported_and_says_the_same(architecture: str, tmp_path: Path) -> None:
    dataset = read_dataset(write_tiny(tmp_path / "tiny"))
    run = fit(
        dataset,
        Choice(architecture=architecture, height=96, width=128),
        Settings(epochs=2, batch_size=2, seed=4),
        out=tmp_path / architecture,
        hardware=Hardware(accelerator="cpu"),
    )
    assert run.file.training.best_epoch is not None
    frames = choose_frames(dataset, None)
    # In float32: after two epochs decisions are close calls, which float16 rounds otherwise.
    made = make([run], tmp_path / "out.icecam", frames=frames, float16=False)
    assert made.agreement >= 0.999
    assert (tmp_path / "out.icecam").is_file()
