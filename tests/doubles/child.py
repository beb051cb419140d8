"""Code in a process of its own, in which TensorRT and libcuda are doubles."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.doubles import places
from tests.doubles.graphs import small

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.trt.conftest import TrtEnv

HEAD = """
import json, os, pathlib, sys, threading
import numpy as np
from tests.doubles.rehearsal import *
onnx = pathlib.Path(sys.argv[1]).read_bytes()
def tell(value):
    print(json.dumps(value), flush=True)
"""


class Child:
    """Runs code in a process where TensorRT and libcuda are doubles."""

    def __init__(self, trt_env: TrtEnv, folder: Path) -> None:
        self._trt_env = trt_env
        self.onnx = folder / "graph.onnx"
        self.onnx.write_bytes(small())

    def run(self, code: str, *faults: str, **settings: str | int) -> Any:  # noqa: ANN401 - JSON
        """Return what the code told, of several the last."""
        ended = self.end(code, *faults, **settings)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    def end(
        self,
        code: str,
        *faults: str,
        head: str = HEAD,
        timeout: float = 60,
        **settings: str | int,
    ) -> subprocess.CompletedProcess[str]:
        """Run code to its end, whatever that is."""
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", head + code, self.onnx],
            env=self._trt_env(*faults, **settings),
            cwd=places.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
