"""icecam check on a station: which engine would serve, and how it did; TensorRT is a double."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from edge.contract.bundle import open_bundle
from tests.doubles.inherited import InheritedDoubles
from tests.engine.bundles import changed
from tests.engine.fallbacks import with_fallback
from tests.engine.surgery import HEADS, swap_classes
from tests.stations import a_station, icecam, make_engines

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> InheritedDoubles:
    return InheritedDoubles(monkeypatch)


@pytest.fixture
def config(tmp_path: Path, demo_bundle: Path, broker: Broker) -> Path:
    """A station.toml with which all is well: a bundle, a camera with a picture, a broker."""
    shutil.copy(Path(demo_bundle).parent / "frames" / "2025-12-02T14-30-00.jpg", tmp_path)
    shutil.copy(demo_bundle, tmp_path / "b.icecam")
    return a_station(tmp_path, "b.icecam", url=broker.url, more="allow_unsigned = true")


def serving(said: str) -> str:
    (line,) = [line for line in said.splitlines() if "what serves now: " in line]
    return line.partition("now: ")[2]


def engine_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line[2:].startswith("engine")]


def test_without_tensorrt_onnx_runtime_is_what_serves(config: Path) -> None:
    done = icecam("check", "--config", config)
    assert done.returncode == 0, done.stdout
    assert engine_lines(done.stdout) == ["✓ engine: graph full on ONNX Runtime, on the CPU"]
    assert not (config.parent / "state").exists()


def test_an_engine_that_is_not_built_yet_is_named_with_the_command_that_builds_it(
    config: Path, double: InheritedDoubles
) -> None:
    del double
    before = sorted(config.parent.rglob("*"))
    done = icecam("check", "--config", config)
    assert done.returncode == 0, done.stdout
    (line,) = engine_lines(done.stdout)
    assert line.startswith("✓ engine of graph full (TensorRT 10.3.0, ")
    assert "none was built yet" in line
    assert serving(done.stdout) == "graph full on ONNX Runtime, degraded: onnxruntime"
    command = line.partition("or now: ")[2]
    bundle, engines = config.parent / "b.icecam", config.parent / "state" / "engines"
    assert command == f"python -m export.trt {bundle} --cache {engines}"
    assert sorted(config.parent.rglob("*")) == before


def test_a_certified_engine_is_shown_with_its_figures(
    config: Path, double: InheritedDoubles
) -> None:
    del double
    make_engines(open_bundle(config.parent / "b.icecam"), config.parent / "state")
    done = icecam("check", "--config", config)
    assert done.returncode == 0, done.stdout
    (line,) = engine_lines(done.stdout)
    assert "certified" in line
    assert "on 4 golden frames: agreement 100.000% of the mask, least IoU" in line
    assert "ice fraction within 0.0000" in line
    assert serving(done.stdout) == "graph full on TensorRT"


@pytest.mark.parametrize("full", ["right", "laid aside"])
def test_the_engines_are_shown_down_to_the_first_that_is_certified(
    config: Path, double: InheritedDoubles, full: str
) -> None:
    del double
    path = config.parent / "b.icecam"
    demo = open_bundle(path)
    graph = onnx.load_from_string(demo.read("ensemble.onnx"))
    if full == "laid aside":
        swap_classes(graph, 1, 2, heads=HEADS)
    make_engines(with_fallback(demo, path, graph.SerializeToString()), config.parent / "state")
    done = icecam("check", "--config", config)
    lines = engine_lines(done.stdout)
    assert lines[0].startswith(f"{'✓' if full == 'right' else '✗'} engine of graph full-fp16 (")
    if full == "right":
        assert len(lines) == 1
        assert (done.returncode, serving(done.stdout)) == (0, "graph full-fp16 on TensorRT")
    else:
        assert "not equal" in lines[0]
        (fallback,) = lines[1:]
        assert fallback.startswith("✓ engine of graph fallback-fp16 (")
        assert "certified" in fallback
        assert done.returncode == 1
        assert serving(done.stdout) == "graph fallback-fp16 on TensorRT, degraded: fallback"


def test_an_engine_that_was_laid_aside_is_a_finding_with_its_figures(
    config: Path, double: InheritedDoubles
) -> None:
    double.ask("lose-class=2")
    make_engines(open_bundle(config.parent / "b.icecam"), config.parent / "state")
    done = icecam("check", "--config", config)
    assert done.returncode == 1
    (line,) = engine_lines(done.stdout)
    assert line.startswith("✗ engine of graph full (TensorRT 10.3.0, ")
    assert "IoU of ice 0.000, at least 0.97 wanted" in line
    assert "the next rung serves" in line
    assert serving(done.stdout) == "graph full on ONNX Runtime, degraded: onnxruntime"
    assert done.stdout.count("✗") == 1


def test_an_engine_certified_on_another_bundle_is_not_shown_as_certified(
    config: Path, double: InheritedDoubles
) -> None:
    del double
    path = config.parent / "b.icecam"
    demo = open_bundle(path)
    make_engines(demo, config.parent / "state")
    changed(demo, path, {}, serial=demo.manifest.serial + 1)
    done = icecam("check", "--config", config)
    assert done.returncode == 0, done.stdout
    (line,) = engine_lines(done.stdout)
    assert "certified on another bundle" in line
    assert "before it serves" in line


def test_an_engine_of_another_tensorrt_is_named_as_such(
    config: Path, double: InheritedDoubles
) -> None:
    make_engines(open_bundle(config.parent / "b.icecam"), config.parent / "state")
    double.ask(version="10.7.0")
    done = icecam("check", "--config", config)
    assert done.returncode == 0, done.stdout
    (line,) = engine_lines(done.stdout)
    assert "tensorrt 10.3.0 → 10.7.0; the station builds it as it runs" in line


def test_a_machine_without_a_gpu_is_a_finding(
    config: Path, double: InheritedDoubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    del double
    monkeypatch.setenv("ICECAM_CUDA_DOUBLE_DEVICES", "0")
    done = icecam("check", "--config", config)
    assert done.returncode == 1
    assert done.stdout.count("✗") == 1
    assert "GPU" in done.stdout.partition("✗")[2].splitlines()[0]


def test_trt_without_tensorrt_is_a_finding_that_says_what_to_install(config: Path) -> None:
    config.write_text(config.read_text() + '[engine]\nbackend = "trt"\n')
    done = icecam("check", "--config", config)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "✗" in line]
    assert "no TensorRT for this Python" in line
    assert "JetPack 6.1" in line
    assert serving(done.stdout) == "graph full on ONNX Runtime, degraded: onnxruntime"
    assert not (config.parent / "state").exists()


def test_an_engines_folder_that_others_can_open_is_a_finding(
    config: Path, double: InheritedDoubles
) -> None:
    del double
    engines = config.parent / "state" / "engines"
    engines.mkdir(parents=True)
    engines.chmod(0o755)
    done = icecam("check", "--config", config)
    assert done.returncode == 1
    assert f"the engines' folder {engines} is open to others" in done.stdout
    assert sys.executable not in done.stdout  # no traceback


def test_root_checks_the_engines_of_a_station_s_user(
    config: Path, double: InheritedDoubles
) -> None:
    if os.geteuid():
        pytest.skip("NOT ROOT: cannot give a folder to another user")
    del double
    make_engines(open_bundle(config.parent / "b.icecam"), config.parent / "state")
    engines = config.parent / "state" / "engines"
    for path in (engines, *engines.rglob("*")):
        os.chown(path, 12345, 12345)
    done = icecam("check", "--config", config)
    assert done.returncode == 0, done.stdout
    (line,) = engine_lines(done.stdout)
    assert "certified" in line
