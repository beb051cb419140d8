"""A module of torch → an ONNX file that every engine takes: static, slim, checked."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import onnxslim
import torch

from edge.contract.errors import BundleError
from edge.engine import INPUT, OUTPUTS
from export.static_check import findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from torch import nn

    from edge.contract.frames import Size

OPSET = 20


def to_onnx(graph: nn.Module, size: Size) -> onnx.ModelProto:
    """Export a graph over frames uint8 ``[1, height, width, 3]``, float32 inside.

    Raises BundleError where it breaks a rule of ``static_check``, with every finding.
    """
    example = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with _quiet(), _named_refusal():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
        if program is None:
            raise BundleError("torch gave no ONNX program")
        model: onnx.ModelProto = onnxslim.slim(program.model_proto)
    _part_outputs(model)
    require_static(model)
    return model


def _part_outputs(model: onnx.ModelProto) -> None:
    """Let no output be a copy of another, in place: each ends in a Cast of its own.

    The exporter makes one of two that are always the same, such as the mask of an ensemble of one
    and that member's own.
    """
    outputs = {value.name for value in model.graph.output}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Identity" and outputs.issuperset((*node.input, *node.output)):
            name, copied = node.output[0], made_by[node.input[0]]
            node.CopyFrom(copied)
            node.name, node.output[0] = f"{copied.name}_{name}", name


def require_static(model: onnx.ModelProto) -> None:
    """Raise BundleError where a graph breaks a rule that every engine has."""
    problems = findings(model)
    if problems:
        raise BundleError("the graph breaks rules of the bundle:\n  " + "\n  ".join(problems))


@contextmanager
def _named_refusal() -> Iterator[None]:
    """Turn what the exporter raises for what ONNX cannot express into a BundleError."""
    try:
        yield
    except torch.onnx.OnnxExporterError as problem:
        cause: BaseException = problem
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise BundleError(
            f"torch cannot export a member ({str(cause).strip().splitlines()[0]})",
            expected="operators of ONNX, in shapes that do not depend on what is seen",
            then="Nothing was written; another encoder or architecture may do.",
        ) from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own insides from the user."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
