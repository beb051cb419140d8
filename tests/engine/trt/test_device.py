"""What TensorRT and GPU are here; what is missing is named, with where to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.engine.trt import device
from edge.engine.trt.device import Device, l4t
from tests.doubles import places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.engine.trt.conftest import TrtEnv

ASK = """
import sys
from pathlib import Path
from edge.contract.errors import EngineError
from edge.engine.trt import device
device.NVIDIA_RELEASE = Path(sys.argv[1])
device.l4t.__defaults__ = (device.NVIDIA_RELEASE,)
try:
    found = device.find_device()
    print(found.describe(), found.integrated, found.memory_bytes)
except EngineError as problem:
    print(problem)
"""

JETPACK_6_2 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
JETPACK_6_0 = "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic, EABI: aarch64"
JETPACK_5 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64"
JETPACK_7 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64"


def asked(env: Mapping[str, str], release: Path | str = "/nowhere") -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", ASK, str(release)],
        env=dict(env),
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def on_paths(env: Mapping[str, str], name: str, keep: list[Path]) -> dict[str, str]:
    """The same environment with these folders alone on a path."""
    return {**env, name: ":".join(map(str, keep))}


def test_the_device_is_described_with_all_that_an_engine_is_tied_to(
    trt_env: TrtEnv, tmp_path: Path
) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text(JETPACK_6_2 + "\n")
    env = trt_env(version="10.7.0", capability="8.7", name="Orin", integrated=1, memory=10**9)
    assert asked(env, release) == (
        "TensorRT 10.7.0, Orin (compute 8.7, L4T 36.4.3) True 1000000000"
    )
    assert asked(trt_env(capability="9.0", name="H100", memory=10**9)) == (
        "TensorRT 10.3.0, H100 (compute 9.0) False 1000000000"
    )


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (JETPACK_6_2, "36.4.3"),
        (JETPACK_6_0, "36.3.0"),
        (JETPACK_5, "35.4.1"),
        (JETPACK_7, "38.2.0"),
        ("", ""),
        ("something else\n", ""),
        ("\xff\xfe\x00", ""),
    ],
)
def test_the_version_of_jetson_s_linux_is_read_from_nvidia_s_file(
    tmp_path: Path, text: str, version: str
) -> None:
    (tmp_path / "release").write_bytes(text.encode("latin-1"))
    assert l4t(tmp_path / "release") == version


def test_elsewhere_there_is_no_version_of_jetson_s_linux(tmp_path: Path) -> None:
    assert l4t(tmp_path / "release") == ""
    assert l4t(tmp_path) == ""  # a folder


@pytest.mark.parametrize(
    ("release", "advice"),
    [
        ("", "expected pip install 'icecam[tensorrt]' on a workstation with an NVIDIA GPU; on a"),
        (JETPACK_6_2, "expected JetPack's own: sudo apt install nvidia-jetpack, and a venv made"),
        (JETPACK_6_0, "JetPack 6.1 or later: this Jetson has L4T 36.3.0 (JetPack 6.0, TensorRT 8"),
        (JETPACK_5, "JetPack 6.1 or later: this Jetson has L4T 35.4.1 (JetPack 5, TensorRT 8, Py"),
        (JETPACK_7, "expected JetPack's own: sudo apt install nvidia-jetpack, and a venv made"),
    ],
)
def test_where_there_is_no_tensorrt_it_says_what_to_install_on_this_machine(
    trt_env: TrtEnv, tmp_path: Path, release: str, advice: str
) -> None:
    (tmp_path / "release").write_text(release)
    env = on_paths(trt_env(), "PYTHONPATH", [places.PYCUDA])
    said = asked(env, tmp_path / "release")
    assert said.startswith("no TensorRT for this Python (No module named 'tensorrt')")
    assert advice in said


@pytest.mark.parametrize(
    ("version", "lacks"),
    [
        ("8.6.1", "ICudaEngine.device_memory_size_v2, IProgressMonitor.step_complete, "),
        ("10.0.1", "ICudaEngine.device_memory_size_v2"),
    ],
)
def test_an_older_tensorrt_is_refused_by_name_with_what_it_lacks(
    trt_env: TrtEnv, tmp_path: Path, version: str, lacks: str
) -> None:
    said = asked(trt_env(version=version))
    assert said.startswith(f"TensorRT {version} lacks {lacks}")
    assert "expected TensorRT 10.3 or later; pip install 'icecam[tensorrt]' on a work" in said
    (tmp_path / "release").write_text(JETPACK_6_0)
    on_jetson = asked(trt_env(version=version), tmp_path / "release")
    assert "expected TensorRT 10.3 or later; JetPack 6.1 or later: this Jetson has L4T" in on_jetson


def test_where_there_is_no_pycuda_it_says_where_it_is_had_from(trt_env: TrtEnv) -> None:
    said = asked(on_paths(trt_env(), "PYTHONPATH", [places.MODULES]))
    assert said.startswith("no pycuda, or no CUDA driver for it (No module named 'pycuda')")
    assert "pip install 'icecam[jetson]' there (icecam[tensorrt] on a workstation)" in said


def test_where_there_is_no_gpu_it_says_what_the_driver_said(trt_env: TrtEnv) -> None:
    said = asked(trt_env(devices=0))
    assert said == (
        "the CUDA driver does not start (cuInit failed: no CUDA-capable device is detected); "
        "expected an NVIDIA GPU that works"
    )


def test_neither_tensorrt_nor_pycuda_is_loaded_before_somebody_asks() -> None:
    code = (
        "import sys, edge.engine.trt.certified, edge.engine.trt.worker, export.trt;"
        "print(sorted({'tensorrt', 'pycuda'} & sys.modules.keys()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "[]"


def test_a_device_is_told_in_a_few_words() -> None:
    found = Device(
        tensorrt="10.3.0",
        name="Orin",
        compute_capability="8.7",
        l4t="36.4.3",
        integrated=True,
        memory_bytes=1,
    )
    assert found.describe() == "TensorRT 10.3.0, Orin (compute 8.7, L4T 36.4.3)"
    assert Path("/etc/nv_tegra_release") == device.NVIDIA_RELEASE
