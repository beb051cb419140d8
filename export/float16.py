"""float32 → float16: the networks' layers in half the bytes, decisions and geometry as they were.

Kept in float32: what comes after the members' last layers (softmax, mean, argmax), what Mask R-CNN
does with boxes, and every node that took or gave values near the end of float16's range on the
frames that were tried. The conversion itself is ONNX Runtime's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edge.contract.errors import BundleError
from edge.engine import INPUT
from edge.engine.certify import Bars, judge
from edge.engine.ort import OrtBackend
from export.to_onnx import require_static

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels
    from edge.engine.certify import Verdict
    from edge.engine.golden import GoldenAnswer

LARGEST = 65504.0
"""Of float16 (IEEE 754)."""
SAFETY = 8
"""How many times larger than on the frames tried a value may become."""
SMALLEST = 1e-7
"""What is nearer to 0 becomes this: float16's own smallest is 6e-8."""

FLOAT16_BARS = Bars(
    mask=0.995,
    members=0.97,
    confidence=0.0,
    class_iou=0.0,
    coverage_difference=0.002,
    close_call=0.05,
    clear_disagreements=True,
)
"""What the float16 graph must reach in ONNX Runtime against torch's float32, to be in a bundle."""

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_BETWEEN_LAYERS = frozenset({"Relu", "Clip", "HardSwish", "LeakyRelu"})
"""What is part of a layer where it takes a layer's result."""
_ONE = "one to multiply by"
_GEOMETRY = frozenset({"RoiAlign", "TopK"})


def to_float16(model: onnx.ModelProto, frames: Sequence[Pixels]) -> onnx.ModelProto:
    """Return the graph with float16 inside; uint8 in and out stay as they are.

    frames: uint8 BGR of the graph's size, on which to see how large values become.
    """
    kept = decisions(model) | boxes(model)
    kept |= overflowing(model, frames, among={node.name for node in model.graph.node} - kept)
    return convert(model, kept)


def convert(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Return the graph with float16 inside, but for the nodes named in ``kept``.

    Raises BundleError where what comes out breaks a rule of ``static_check`` or of ONNX.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    _part_constants(whole.graph, kept)
    half = float16.convert_float_to_float16(
        whole,
        min_positive_val=SMALLEST,
        max_finite_val=LARGEST,
        keep_io_types=True,
        op_block_list=[],
        node_block_list=sorted(kept),
    )
    wrapped = OnnxModel(half)
    wrapped.topological_sort()
    result = cast("onnx.ModelProto", wrapped.model)
    del result.graph.value_info[:]
    _drop_round_trips(result)
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise BundleError(
            f"the float16 graph is not valid ONNX ({str(problem).splitlines()[0]})"
        ) from None
    require_static(result)
    return result


def _part_constants(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Give, in place, what stays float32 constants of its own, where layers use the same ones.

    The conversion would round such a constant for both.
    """
    floats = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    halved = {name for node in graph.node if node.name not in kept for name in node.input}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if node.name in kept and name in halved and name in floats:
                own = f"{name} of {node.name}"
                copied = graph.initializer.add()
                copied.CopyFrom(floats[name])
                copied.name = node.input[position] = own


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Take out, in place, casts from float32 to float16 and back.

    The conversion lays them between any two nodes that stay float32, where they would only round.
    """
    graph = model.graph
    kinds = _element_types(model)
    made_by = {name: node for node in graph.node for name in node.output}
    instead: dict[str, str] = {}
    for back in graph.node:
        there = made_by.get(back.input[0]) if _casts(back, TensorProto.FLOAT) else None
        if there is not None and _casts(there, TensorProto.FLOAT16):
            source = there.input[0]
            if kinds.get(source) == TensorProto.FLOAT:
                instead[back.output[0]] = source
    for node in graph.node:
        for position, name in enumerate(node.input):
            while name in instead:
                name = instead[name]  # noqa: PLW2901 - one round trip may follow another
            node.input[position] = name
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Take out, in place, casts whose result nobody uses any more."""
    while True:
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in graph.output}
        unused = [n for n in graph.node if n.op_type == "Cast" and not used.intersection(n.output)]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _casts(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


def decisions(model: onnx.ModelProto) -> set[str]:
    """Return the nodes after the members' last layers: none of them leads to a layer any more."""
    weights = {one.name for one in model.graph.initializer}
    needed: set[str] = set()
    after: set[str] = set()
    for node in reversed(model.graph.node):
        if _is_layer(node, weights) or needed.intersection(node.output):
            needed.update(node.input)
        else:
            after.add(node.name)
    return after


def boxes(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that work with boxes: the first that sorts, and all after it but layers."""
    weights = {one.name for one in model.graph.initializer}
    derived: set[str] = set()
    from_layers: set[str] = set()
    found: set[str] = set()
    for node in model.graph.node:
        between = node.op_type in _BETWEEN_LAYERS and node.input[0] in from_layers
        if _is_layer(node, weights) or between:
            from_layers.update(node.output)
        if node.op_type in _GEOMETRY or derived.intersection(node.input):
            derived.update(node.output)
            if not from_layers.issuperset(node.output):
                found.add(node.name)
    return found


def _is_layer(node: onnx.NodeProto, weights: Collection[str]) -> bool:
    if node.op_type in _LAYERS:
        return True
    return node.op_type == "MatMul" and any(name in weights for name in node.input)


def overflowing(
    model: onnx.ModelProto, frames: Sequence[Pixels], *, among: Collection[str]
) -> set[str]:
    """Return the nodes that take or give what float16 may not hold, weights too, of those named."""
    limit = LARGEST / SAFETY
    touched = {
        name
        for node in model.graph.node
        if node.name in among
        for name in (*node.input, *node.output)
    }
    watched = {node.name for node in model.graph.node if touched.intersection(node.output)}
    values = largest_values(model, frames, watched)
    large = {
        name
        for node in model.graph.node
        if values.get(node.name, 0) > limit
        for name in node.output
    }
    large |= {
        one.name
        for one in model.graph.initializer
        if one.data_type == TensorProto.FLOAT
        and float(np.abs(numpy_helper.to_array(one)).max(initial=0)) > limit
    }
    return {
        node.name
        for node in model.graph.node
        if node.name in among and large.intersection((*node.input, *node.output))
    }


def largest_values(
    model: onnx.ModelProto,
    frames: Sequence[Pixels],
    among: Collection[str],
    *,
    as_written: bool = False,
) -> dict[str, float]:
    """Return the largest magnitude that each node gave on any frame, infinite where not a number.

    Of nodes that give floats alone, in the graph's order. as_written: with no optimisation, which
    may leave out a rounding.
    """
    watched = onnx.shape_inference.infer_shapes(model)
    kinds = _element_types(watched)
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16}
    nodes = [
        node
        for node in watched.graph.node
        if node.name in among and kinds.get(node.output[0]) in floats
    ]
    _watch(watched.graph, {node.output[0]: kinds[node.output[0]] for node in nodes})
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), _options(as_written), providers=["CPUExecutionProvider"]
    )
    extremes = np.array(
        [session.run(None, {INPUT: frame[np.newaxis]}) for frame in frames], np.float32
    )
    magnitudes = np.abs(extremes).max(axis=0).reshape(len(nodes), 2).max(axis=1)
    return {
        node.name: math.inf if math.isnan(value) else value
        for node, value in zip(nodes, magnitudes.tolist(), strict=True)
    }


def _float16_nodes(model: onnx.ModelProto) -> set[str]:
    kinds = _element_types(model)
    return {n.name for n in model.graph.node if kinds.get(n.output[0]) == TensorProto.FLOAT16}


def _watch(graph: onnx.GraphProto, kinds: Mapping[str, int]) -> None:
    """Let a graph give the least and the greatest of some tensors, in their order, and no more.

    Each is looked at as soon as it is there: kept until the end, they would take gigabytes.
    """
    nodes = list(graph.node)
    del graph.node[:], graph.output[:]
    for node in nodes:
        graph.node.append(node)
        for tensor in kinds.keys() & set(node.output):
            watched = tensor
            if kinds[tensor] == TensorProto.FLOAT16:
                watched = f"{tensor} widened to watch"
                graph.node.append(_cast(tensor, watched, TensorProto.FLOAT))
            for reduce in ("ReduceMin", "ReduceMax"):
                name = f"{reduce} of {tensor}"
                graph.node.append(helper.make_node(reduce, [watched], [name], name, keepdims=0))
                graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))


def _options(as_written: bool) -> onnxruntime.SessionOptions:  # noqa: FBT001 - the only one
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_DISABLE_ALL if as_written else level.ORT_ENABLE_EXTENDED
    )
    options.enable_cpu_mem_arena = False  # it keeps what the largest of all nodes wanted
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # as the nodes stand
    return options


def require_equal(
    half: onnx.ModelProto,
    frames: Sequence[Pixels],
    answers: Sequence[GoldenAnswer],
    class_map: Classes,
    *,
    where: str,
) -> Verdict:
    """Run frames through the float16 graph in ONNX Runtime and compare with float32's answers.

    Each result is rounded as an engine does (``with_rounding``). Raises BundleError where it falls
    short, with the operator that overflowed where one did.
    """
    half = with_rounding(half)
    backend = OrtBackend(half.SerializeToString(), where=where, as_written=True)
    verdict = judge(
        ((backend.run(frame), stored, 0.0) for frame, stored in zip(frames, answers, strict=True)),
        class_map,
        FLOAT16_BARS,
    )
    if not verdict.passed:
        raise BundleError(
            f"{where}: float16 does not answer as float32: {'; '.join(verdict.shortfalls)}; "
            + first_overflow(half, frames),
            then="Nothing was written; --float32-only leaves the float16 graph out.",
        )
    return verdict


def with_rounding(half: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 graph in which each float16 result is rounded, in ONNX Runtime too.

    Its CPU computes most float16 nodes in float32 and hands that on from node to node, so that
    nothing is rounded and nothing overflows. It also leaves out casts there and back that stand
    beside each other, but not those between two products, where a graph runs as it is written.
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(half)
    kinds = _element_types(half)
    nodes = list(rounded.graph.node)
    del rounded.graph.node[:]
    rounded.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), _ONE))
    for node in nodes:
        halves = [name for name in node.output if kinds.get(name) == TensorProto.FLOAT16]
        rounded.graph.node.append(node)
        if halves:
            renamed = [f"{name} exact" if name in halves else name for name in node.output]
            rounded.graph.node[-1].output[:] = renamed
            rounded.graph.node.extend(step for name in halves for step in _rounding(name))
    return rounded


def _rounding(tensor: str) -> Iterator[onnx.NodeProto]:
    half = f"{tensor} rounded"
    for source, target in ((f"{tensor} exact", half), (half, tensor)):
        wide, product = f"{source} widened", f"{source} once"
        yield _cast(source, wide, TensorProto.FLOAT)
        yield helper.make_node("Mul", [wide, _ONE], [product], product)
        yield _cast(product, target, TensorProto.FLOAT16)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"cast to {target}", to=kind)


def first_overflow(half: onnx.ModelProto, frames: Sequence[Pixels]) -> str:
    """Name the first node whose result float16 cannot hold on one of the frames."""
    everything = {node.name for node in half.graph.node}
    values = largest_values(half, frames, everything, as_written=True)
    kinds = {node.name: node.op_type for node in half.graph.node}
    halves = _float16_nodes(half)
    for name, value in values.items():
        if not math.isfinite(value) or (name in halves and value > LARGEST):
            return f"{kinds[name]} {name!r} overflowed float16 (largest {LARGEST:.0f})"
    return "no operator overflowed"
