"""A graph as the checks read it: nodes, element types, ranks, constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

STANDARD = ("", "ai.onnx")
"""The names of the standard domain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is known of a graph before it runs.

    types: tensor name → onnx.TensorProto.DataType. ranks: tensor name → number of axes. A tensor
    that shape inference knows nothing of is in neither. constants: initializers and the outputs of
    Constant nodes. opset: of the standard domain, 0 where the model names none.
    """

    nodes: tuple[onnx.NodeProto, ...]
    types: Mapping[str, int]
    ranks: Mapping[str, int]
    constants: Mapping[str, onnx.TensorProto]
    opset: int


def read_graph(model: onnx.ModelProto) -> Reading:
    """Gather what is known of a model with inferred shapes. Subgraphs are not entered."""
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    tensors = {value.name: value.type.tensor_type for value in values}
    constants = dict(_constants(graph))
    return Reading(
        nodes=tuple(graph.node),
        types={
            **{name: tensor.data_type for name, tensor in constants.items()},
            **{name: tensor.elem_type for name, tensor in tensors.items() if tensor.elem_type},
        },
        ranks={
            **{name: len(tensor.dims) for name, tensor in constants.items()},
            **{
                name: len(tensor.shape.dim)
                for name, tensor in tensors.items()
                if tensor.HasField("shape")
            },
        },
        constants=constants,
        opset=max((one.version for one in model.opset_import if one.domain in STANDARD), default=0),
    )


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """Return a node's attributes by name: numbers, lists, and text as str."""
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in given.items()
    }


def constant_values(reading: Reading, name: str) -> NDArray[np.generic] | None:
    """Return a constant's values, or None where the tensor is computed, absent or kept outside."""
    constant = reading.constants.get(name)
    if constant is None or constant.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(constant)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    overridable = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in overridable:
            yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            for one in node.attribute:
                value = helper.get_attribute_value(one)
                if isinstance(value, onnx.TensorProto):
                    yield node.output[0], value
                elif one.name in {"value_int", "value_ints"}:
                    yield node.output[0], numpy_helper.from_array(np.asarray(value, np.int64))
                elif one.name in {"value_float", "value_floats"}:
                    yield node.output[0], numpy_helper.from_array(np.asarray(value, np.float32))
