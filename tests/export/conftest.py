"""Runs and bundles that several files of tests read; torch is loaded when one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from edge.contract.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge.contract.classes import ClassMap
    from export.make import Made
    from train.runs import Run

    Bytes = NDArray[np.uint8]

SERIAL = 7


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, class_map: ClassMap) -> list[Run]:
    """Two of usual encoders and random parameters; read only."""
    from tests.export.small_runs import a_run, random_member

    folder = tmp_path_factory.mktemp("runs")
    return [a_run(folder / name, random_member(name), class_map) for name in ("unet", "pspnet")]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, class_map: ClassMap) -> list[Run]:
    """Small U-Net, PSPNet and Mask R-CNN that learnt drawn bays; read only."""
    from tests.export.small_runs import SMALL, learnt_run, one_thread, scenes

    folder = tmp_path_factory.mktemp("trained")
    with one_thread():
        drawn = scenes()
        return [learnt_run(folder / name, name, class_map, drawn) for name in SMALL]


@pytest.fixture(scope="session")
def frames(icecam_data: Path) -> list[Bytes]:
    """Real pictures as OpenCV reads them: ice, and open water in colour."""
    paths = sorted((icecam_data / "agulhas_floes" / "images").glob("*.jpg"))[:3]
    paths += sorted((icecam_data / "inland_water" / "images").glob("*.jpg"))[:2]
    return [cv2.imread(str(path)).astype(np.uint8) for path in paths]


@pytest.fixture(scope="session")
def small(frames: list[Bytes]) -> list[Bytes]:
    """The same at the runs' input size."""
    return [
        cv2.resize(frame, (160, 96), interpolation=cv2.INTER_AREA).astype(np.uint8)
        for frame in frames
    ]


@pytest.fixture(scope="session")
def made(
    runs: list[Run], frames: list[Bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Made, Bundle]:
    """A bundle of the random runs, float32 alone: random networks have no margins to round in."""
    from export.make import make
    from tests.export.small_runs import one_thread

    out = tmp_path_factory.mktemp("bundles") / "test-ice.icecam"
    with one_thread():
        made = make(runs, out, frames=frames, serial=SERIAL, float16=False)
    return made, open_bundle(out)


@pytest.fixture(scope="session")
def bundle(made: tuple[Made, Bundle]) -> Bundle:
    """The same, opened."""
    return made[1]


@pytest.fixture(scope="session")
def three(
    trained: list[Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Made, Bundle, list[str]]:
    """A whole bundle of the trained runs, and what was said while it was made."""
    from export.make import make
    from tests.export.small_runs import one_thread, unseen_frames

    out = tmp_path_factory.mktemp("three") / "three.icecam"
    said: list[str] = []
    with one_thread():
        made = make(trained, out, frames=unseen_frames(), serial=SERIAL, say=said.append)
    return made, open_bundle(out), said
