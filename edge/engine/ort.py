"""ONNX Runtime on the CPU: runs everywhere, and gives the answers others are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from edge.contract.errors import EngineError
from edge.engine import INPUT, OUTPUTS, Answer

if TYPE_CHECKING:
    from edge.contract.frames import Pixels

_ERRORS_ONLY = 3


class OrtBackend:
    """One graph in an ONNX Runtime session."""

    def __init__(self, onnx: bytes, *, where: str, as_written: bool = False) -> None:
        """Load a graph from its bytes. Raises EngineError where ONNX Runtime refuses it.

        as_written: each node runs by itself, slower: nothing is fused, no rounding left out.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                onnx, options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # noqa: BLE001 - onnxruntime raises its own, undocumented
            raise EngineError(
                f"{where}: ONNX Runtime {onnxruntime.__version__} refuses the graph "
                f"({_first_line(problem)})"
            ) from None
        names = tuple(output.name for output in self._session.get_outputs())
        if names != OUTPUTS:
            raise EngineError(f"{where}: outputs are {names}", expected=f"{OUTPUTS}")

    def run(self, frame: Pixels) -> Answer:
        """Answer one uint8 ``(height, width, 3)`` BGR frame. Raises EngineError."""
        try:
            mask, confidence, members = self._session.run(OUTPUTS, {INPUT: frame[np.newaxis]})
        except Exception as problem:  # noqa: BLE001 - onnxruntime raises its own, undocumented
            raise EngineError(f"ONNX Runtime failed on a frame ({_first_line(problem)})") from None
        return Answer(mask=mask[0], confidence=confidence[0], member_masks=members)

    def close(self) -> None:
        """Let the session go."""
        self.__dict__.pop("_session", None)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0]
