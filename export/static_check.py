"""What a graph must be so that every engine takes it, read from the ONNX file alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

if TYPE_CHECKING:
    from collections.abc import Iterator

UINT8 = TensorProto.UINT8
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
REFUSED_OPERATORS = frozenset({"If", "Loop", "Scan", "NonZero", "NonMaxSuppression"})


def findings(model: onnx.ModelProto) -> list[str]:
    """Return what is wrong with a graph, one sentence each; nothing where all rules hold.

    The rules: one opset, no control flow or data-dependent shape, every dimension static, uint8
    only as the graph's input (its one kind of consumer casts it to float) and as its outputs (each
    made by a cast from float).
    """
    return [*graph_findings(model), *engine_findings(with_shapes(model))]


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with what shape inference knows of its inner tensors."""
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def graph_findings(model: onnx.ModelProto) -> list[str]:
    """Return what breaks the rules of the one graph alone: one opset, bytes in, bytes out."""
    return [*_opsets(model), *_not_bytes(model.graph)]


def engine_findings(model: onnx.ModelProto) -> list[str]:
    """Return what every TensorRT version refuses of a model that went through ``with_shapes``."""
    graph = model.graph
    types = {value.name: value.type.tensor_type for value in _values(graph)}
    return [
        *_operators(graph),
        *_dynamic(graph, types),
        *_inner_uint8(graph, types),
        *_rim(graph, types),
    ]


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _opsets(model: onnx.ModelProto) -> Iterator[str]:
    domains = {opset.domain for opset in model.opset_import}
    if domains - {"", "ai.onnx"} or len(model.opset_import) != 1:
        yield f"opsets of {sorted(domains)}: expected one, of the standard domain"


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        if node.op_type in REFUSED_OPERATORS:
            yield f"node {node.name!r}: {node.op_type} has no static form"


def _dynamic(graph: onnx.GraphProto, types: dict[str, onnx.TypeProto.Tensor]) -> Iterator[str]:
    made = {name for node in graph.node for name in node.output if name}
    shapeless = {name for name, tensor in types.items() if not tensor.HasField("shape")}
    for name in sorted(shapeless | (made - types.keys())):
        yield f"tensor {name!r}: its shape is not known before it runs"
    for name, tensor in types.items():
        if name in shapeless:
            continue
        if any(axis.dim_value <= 0 for axis in tensor.shape.dim):
            sizes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
            yield f"tensor {name!r}: dynamic or empty shape {sizes}"


def _inner_uint8(graph: onnx.GraphProto, types: dict[str, onnx.TypeProto.Tensor]) -> Iterator[str]:
    rim = {value.name for value in (*graph.input, *graph.output)}
    constants = {constant.name for constant in graph.initializer if constant.data_type == UINT8}
    for name in sorted(constants):
        yield f"constant {name!r} is uint8"
    for name, tensor in types.items():
        if tensor.elem_type == UINT8 and name not in rim:
            yield f"tensor {name!r} is uint8 inside the graph"


def _not_bytes(graph: onnx.GraphProto) -> Iterator[str]:
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.type.tensor_type.elem_type != UINT8:
                yield f"{what} {value.name!r} is not uint8"


def _rim(graph: onnx.GraphProto, types: dict[str, onnx.TypeProto.Tensor]) -> Iterator[str]:
    for value in graph.input:
        yield from _input(value.name, graph, types)
    for value in graph.output:
        yield from _output(value.name, graph, types)


def _input(
    name: str, graph: onnx.GraphProto, types: dict[str, onnx.TypeProto.Tensor]
) -> Iterator[str]:
    if types[name].elem_type != UINT8:
        return
    consumers = [node for node in graph.node if name in node.input]
    if len(consumers) > 1:
        yield f"input {name!r} has {len(consumers)} consumers: expected one"
    for node in consumers:
        if not _casts_to(node, FLOATS):
            yield f"input {name!r} goes to {node.op_type}: expected a Cast to float first"


def _output(
    name: str, graph: onnx.GraphProto, types: dict[str, onnx.TypeProto.Tensor]
) -> Iterator[str]:
    if types[name].elem_type != UINT8:
        return
    node = next((node for node in graph.node if name in node.output), None)
    source = types.get(node.input[0]) if node is not None else None
    if node is None or node.op_type != "Cast" or source is None:
        yield f"output {name!r} is not made by a Cast"
    elif source.elem_type not in FLOATS:
        kind = TensorProto.DataType.Name(source.elem_type)
        yield f"output {name!r} is cast from {kind}: expected float"
    elif any(name in other.input for other in graph.node):
        yield f"output {name!r} is also used inside the graph"


def _casts_to(node: onnx.NodeProto, kinds: frozenset[int]) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i in kinds for attribute in node.attribute
    )
