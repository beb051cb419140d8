"""What TensorRT's parser refuses of operators that it takes otherwise.

From the restrictions column of the operator tables and from the importer's source at 10.6
(ScatterND's attribute, tf_half_pixel_for_nn, most axes); where a release lifted one, its changelog
says since when. Only what a file can show, and what icecam's networks could meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from onnx import TensorProto

from export.operators.reading import attributes, constant_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from onnx import NodeProto

    from export.operators.reading import Reading
    from export.operators.tables import Release

    Restriction: TypeAlias = Callable[[NodeProto, Reading, Release], Iterator[str]]

TOPK_LIMIT = 3840
MOST_AXES = 8
_POOLED_RANKS = (4, 5)
_SAMPLED_RANK = 4
_RESIZE = {
    "mode": ("nearest", "nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    ),
    "nearest_mode": (
        "round_prefer_floor",
        "floor",
        "ceil",
        "round_prefer_floor",
        "round_prefer_ceil",
    ),
    "keep_aspect_ratio_policy": ("stretch", "stretch"),
    "antialias": (0, 0),
}
"""Attribute → its default, then what the parser takes."""


def restrictions(node: NodeProto, reading: Reading, release: Release) -> Iterator[str]:
    """Yield why a release refuses this node, though it takes the operator."""
    for name in (*node.input, *node.output):
        if (rank := reading.ranks.get(name, 0)) > MOST_AXES:
            yield f"a tensor of {rank} axes: expected at most {MOST_AXES}"
            break
    for rule in RESTRICTIONS.get(node.op_type, ()):
        yield from rule(node, reading, release)


def _input(node: NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _constant(index: int, name: str, *, before: Release | None = None) -> Restriction:
    """Demand that an input, where it is given, is a constant; up to a release, or always."""

    def rule(node: NodeProto, reading: Reading, release: Release) -> Iterator[str]:
        given = _input(node, index)
        held = before is None or release < before
        if held and given and given not in reading.constants:
            yield f"input `{name}` is computed in the graph: expected a constant"

    return rule


def _top_k(node: NodeProto, reading: Reading, _: Release) -> Iterator[str]:
    if attributes(node).get("sorted", 1) != 1:
        yield "`sorted` is 0: expected 1"
    values = constant_values(reading, _input(node, 1))
    if values is not None and int(values.max()) >= TOPK_LIMIT:
        yield f"K is {int(values.max())}: expected less than {TOPK_LIMIT}"


def _pool(node: NodeProto, reading: Reading, _: Release) -> Iterator[str]:
    rank = reading.ranks.get(_input(node, 0))
    if rank is not None and rank not in _POOLED_RANKS:
        yield f"pools a tensor of {rank} axes: expected 4 or 5 (2D or 3D)"
    dilations = attributes(node).get("dilations", [])
    if isinstance(dilations, list) and set(dilations) - {1}:
        yield f"`dilations` {dilations}: expected all ones"


def _first_output_alone(node: NodeProto, _: Reading, __: Release) -> Iterator[str]:
    if any(node.output[1:]):
        yield "has more than its first output: expected that one alone"


def _resize(node: NodeProto, reading: Reading, _: Release) -> Iterator[str]:
    given = attributes(node)
    for name, (default, *taken) in _RESIZE.items():
        value = given.get(name, default)
        if value not in taken and not (name == "nearest_mode" and given.get("mode") == "linear"):
            yield f"`{name}` {value}: expected {' or '.join(map(str, taken))}"
    if given.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        nearest = given.get("nearest_mode", "round_prefer_floor")
        if nearest != "round_prefer_floor":
            yield f"tf_half_pixel_for_nn with {nearest}: expected round_prefer_floor"
    axes, rank = given.get("axes"), reading.ranks.get(_input(node, 0))
    if axes is not None and rank is not None and axes != list(range(rank)):
        yield f"`axes` {axes}: expected every axis in order"


def _scatter_nd(node: NodeProto, _: Reading, release: Release) -> Iterator[str]:
    reduction = attributes(node).get("reduction")
    if reduction not in {None, "none"} or (reduction is not None and release < (10, 9)):
        yield f"`reduction` {reduction}: expected none of it"


def _pow(node: NodeProto, reading: Reading, release: Release) -> Iterator[str]:
    base, exponent = (reading.types.get(_input(node, index)) for index in (0, 1))
    if release < (10, 8) and base is not None and exponent is not None and base != exponent:
        kind = TensorProto.DataType.Name(exponent)
        yield f"an exponent of {kind}: expected the base's type before TensorRT 10.8"


def _grid_sample(node: NodeProto, reading: Reading, _: Release) -> Iterator[str]:
    rank = reading.ranks.get(_input(node, 0))
    if rank is not None and rank != _SAMPLED_RANK:
        yield f"samples a tensor of {rank} axes: expected {_SAMPLED_RANK}"


REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)

RESTRICTIONS: Mapping[str, tuple[Restriction, ...]] = {
    **dict.fromkeys(REDUCTIONS, (_constant(1, "axes"),)),
    "AveragePool": (_pool,),
    "BatchNormalization": (_first_output_alone,),
    "CumSum": (_constant(1, "axis"),),
    "GridSample": (_grid_sample,),
    "LayerNormalization": (_first_output_alone,),
    "LpPool": (_pool,),
    "MaxPool": (_pool, _first_output_alone),
    "OneHot": (_constant(1, "depth"),),
    "Pad": (_constant(3, "axes", before=(10, 4)),),
    "Pow": (_pow,),
    "Resize": (_resize,),
    "ScatterND": (_scatter_nd,),
    "Squeeze": (_constant(1, "axes"),),
    "TopK": (_top_k,),
    "Unsqueeze": (_constant(1, "axes"),),
}
