"""Child processes in which TensorRT is a double, and pycuda is real on the libcuda double."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.doubles import places
from tests.doubles.child import Child
from tests.engine.trt.scene import bundle, engines, stocked, workshop  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {
    "version": "ICECAM_TRT_DOUBLE_VERSION",
    "devices": "ICECAM_CUDA_DOUBLE_DEVICES",
    "memory": "ICECAM_CUDA_DOUBLE_MEMORY",
    "capability": "ICECAM_CUDA_DOUBLE_CAPABILITY",
    "name": "ICECAM_CUDA_DOUBLE_NAME",
    "integrated": "ICECAM_CUDA_DOUBLE_INTEGRATED",
}


class TrtEnv(Protocol):
    def __call__(self, *faults: str, **settings: str | int) -> dict[str, str]: ...


@pytest.fixture(scope="session")
def prepared_doubles() -> None:
    """Fail, loudly, where the doubles were not built."""
    missing = ", ".join(path.name for path in places.missing())
    if missing:
        pytest.fail(f"not prepared: {missing}. Run `make doubles`, then the tests.", pytrace=False)


@pytest.fixture
def cuda_report_path(tmp_path: Path) -> Path:
    return tmp_path / "cuda-report.jsonl"


@pytest.fixture
def trt_env(prepared_doubles: None, cuda_report_path: Path) -> TrtEnv:  # noqa: ARG001 - needed first
    """Give the environment of child processes: ``trt_env("slow=2", version="10.7.0")``.

    Positional: faults of the TensorRT double; named: settings of the doubles (see SETTINGS).
    """

    def make(*faults: str, **settings: str | int) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if "_DOUBLE" not in name}
        return {
            **inherited,
            **places.search_paths(),
            "ICECAM_TRT_DOUBLE": ",".join(faults),
            "ICECAM_CUDA_DOUBLE_REPORT": str(cuda_report_path),
            **{SETTINGS[name]: str(value) for name, value in settings.items()},
        }

    return make


class CudaReport(Protocol):
    def __call__(self) -> list[dict[str, Any]]: ...


@pytest.fixture
def cuda_report(cuda_report_path: Path) -> CudaReport:
    """Read what each child process that used CUDA and ended by itself reported, in that order."""

    def read() -> list[dict[str, Any]]:
        if not cuda_report_path.exists():
            return []
        return [json.loads(line) for line in cuda_report_path.read_text().splitlines()]

    return read


@pytest.fixture
def child(trt_env: TrtEnv, tmp_path: Path) -> Child:
    return Child(trt_env, tmp_path)
