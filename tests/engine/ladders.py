"""Ladders for tests: on the demo's bundle, with engines that were made once; TensorRT a double."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.bundle import Bundle, open_bundle
from edge.engine import open_engine
from edge.engine.ladder import Ladder, Wanted
from tests.doubles.inherited import InheritedDoubles
from tests.engine.fallbacks import with_fallback
from tests.stations import make_engines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.contract.frames import Pixels
    from edge.engine import Answer


FRAME = np.random.default_rng(5).integers(0, 256, (540, 960, 3), np.uint8)
WORKSPACE_BYTES = 1 << 28


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> InheritedDoubles:
    return InheritedDoubles(monkeypatch)


@contextlib.contextmanager
def ladder(
    bundle: Bundle, cache: Path, wanted: Wanted = "auto", *, start: bool = True
) -> Iterator[Ladder]:
    with contextlib.closing(
        Ladder(bundle, wanted, cache=cache, workspace_bytes=WORKSPACE_BYTES)
    ) as made:
        if start:
            made.start()
        yield made


def made(ladder: Ladder) -> Ladder:
    """Wait until no engine is being made any more."""
    assert ladder._making is not None
    ladder._making.join(60)
    assert not ladder._making.is_alive()
    return ladder


@pytest.fixture(scope="module")
def compiled(demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's certified engine, made once."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        InheritedDoubles(patch)
        make_engines(demo, folder)
    return folder / "engines"


@pytest.fixture
def engines(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(compiled, tmp_path / "engines"))


def expected(bundle: Bundle, frame: Pixels, graph: str = "") -> Answer:
    """What ONNX Runtime answers, in this process."""
    with open_engine(bundle, graph=graph) as engine:
        return engine.segment(frame).answer


def alike(found: Answer, wanted: Answer) -> bool:
    return all(
        np.array_equal(getattr(found, name), getattr(wanted, name))
        for name in ("mask", "confidence", "member_masks")
    )


@pytest.fixture
def whole(demo: Bundle, tmp_path: Path) -> Bundle:
    """A bundle whose full ensemble and fallback TensorRT both gets right."""
    return with_fallback(demo, tmp_path / "whole.icecam", demo.read("ensemble.onnx"))
