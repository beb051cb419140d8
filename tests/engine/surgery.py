"""The demo's graph, changed as a mistake would change it: inputs, outputs, parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from edge.engine import Answer
from edge.engine.golden import GoldenAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.contract.frames import Pixels

    Change = Callable[[onnx.ModelProto], None]

HEADS = tuple(f"members.{member}.network.segmentation_head.0" for member in (0, 1))
"""The last layers of the demo's two members: a convolution that gives a channel per class."""


def parameters(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return a copy of a graph's parameters."""
    (found,) = (one for one in model.graph.initializer if one.name == name)
    return numpy_helper.to_array(found).copy()


def set_parameters(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """Replace a graph's parameters in place."""
    (found,) = (one for one in model.graph.initializer if one.name == name)
    assert list(found.dims) == list(values.shape)
    found.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def swap_classes(model: onnx.ModelProto, first: int, second: int, *, heads: Sequence[str]) -> None:
    """Let the last layers answer one class for another."""
    for head in heads:
        for name in (f"{head}.weight", f"{head}.bias"):
            values = parameters(model, name)
            values[[first, second]] = values[[second, first]]
            set_parameters(model, name, values)


def swap_colours(model: onnx.ModelProto) -> None:
    """Leave out what turns blue, green, red into red, green, blue."""
    (split,) = (node for node in model.graph.node if node.op_type == "Split")
    (concat,) = (n for n in model.graph.node if sorted(n.input) == sorted(split.output))
    colours = list(concat.input)
    assert colours == list(split.output)[::-1]
    concat.input[:] = colours[::-1]


def normalise(model: onnx.ModelProto, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let the members' common normalisation be another."""
    for name, values in (("members.0.mean", mean), ("members.0.std", std)):
        set_parameters(model, name, np.reshape(values, (1, 3, 1, 1)))


def not_a_number(model: onnx.ModelProto, name: str) -> None:
    """Let one number among some parameters be none."""
    values = parameters(model, name)
    values.flat[0] = np.nan
    set_parameters(model, name, values)


def lose_class(model: onnx.ModelProto, index: int) -> None:
    """Let no member ever answer a class."""
    for head in HEADS:
        values = parameters(model, f"{head}.bias")
        values[index] -= 100
        set_parameters(model, f"{head}.bias", values)


def golden_of(model: onnx.ModelProto, frame: Pixels) -> GoldenAnswer:
    """Return what a graph answers, and its margin: from the probabilities before the decision."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    (decision,) = (node for node in model.graph.node if node.op_type == "ReduceMax")
    probabilities = decision.input[0]
    watched.graph.output.append(onnx.ValueInfoProto(name=probabilities))
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = ["mask", "confidence", "member_masks", probabilities]
    mask, confidence, members, mean = session.run(names, {"frame": frame[np.newaxis]})
    best = np.sort(mean[0], axis=0)
    return GoldenAnswer(
        answer=Answer(mask=mask[0], confidence=confidence[0], member_masks=members),
        margin=(best[-1] - best[-2]).astype(np.float16),
    )
