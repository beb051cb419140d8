"""What would fail where: a graph held against a TensorRT version's operator table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from export.operators.reading import STANDARD, read_graph
from export.operators.restrictions import restrictions
from export.operators.tables import find_version, operator_table
from export.static_check import engine_findings, with_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from export.operators.reading import Reading
    from export.operators.tables import Version

TABLE_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
}
"""Element types that the tables name otherwise than ONNX does."""

_DATA = {
    "Cast": frozenset({"T1", "T2"}),
    "CastLike": frozenset({"T1", "T2"}),
    "Constant": frozenset({"T"}),
    "ConstantOfShape": frozenset({"T2"}),
    "EyeLike": frozenset({"T2"}),
    "OneHot": frozenset({"T3"}),
    "Where": frozenset({"T"}),
}
"""Which of an operator's type variables the tables speak of, where it isn't the first input's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One reason why a version refuses a graph.

    node: the first node it holds for, ``count``: of how many. tensor and type: what is refused of
    it, where that is a tensor's element type. Empty where the reason is the whole graph's.
    """

    why: str
    operator: str = ""
    node: str = ""
    tensor: str = ""
    type: str = ""
    count: int = 1

    def describe(self) -> str:
        """Return the reason as one sentence."""
        if not self.operator:
            return self.why
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        what = f"{self.tensor!r} is {self.type}, " if self.type else ""
        return f"{self.operator} {self.node!r}{more}: {what}{self.why}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """A graph that was read once, to be held against many versions."""

    reading: Reading
    findings: tuple[str, ...]


def examine(model: onnx.ModelProto) -> Examined:
    """Read a graph, and find what every version refuses."""
    whole = with_shapes(model)
    return Examined(reading=read_graph(whole), findings=tuple(engine_findings(whole)))


def refusals(model: onnx.ModelProto, version: str) -> list[Refusal]:
    """Return why a TensorRT version such as ``10.3`` would refuse a graph; nothing if it takes it.

    Raises ConfigError for a version that icecam does not support.
    """
    return refusals_of(examine(model), find_version(version))


def refusals_of(examined: Examined, version: Version) -> list[Refusal]:
    """Return the reasons, each once, with the number of nodes it holds for."""
    everywhere = (Refusal(why=finding) for finding in examined.findings)
    reading = examined.reading
    found = (one for node in reading.nodes for one in _of_node(node, reading, version))
    return _once([*everywhere, *_opset(reading, version), *found])


def _once(found: Iterable[Refusal]) -> list[Refusal]:
    first: dict[tuple[str, str, str], Refusal] = {}
    for one in found:
        key = one.operator, one.type, one.why
        seen = first.get(key)
        first[key] = one if seen is None else replace(seen, count=seen.count + 1)
    return list(first.values())


def _opset(reading: Reading, version: Version) -> Iterator[Refusal]:
    oldest, newest = version.opsets
    if not oldest <= reading.opset <= newest:
        yield Refusal(why=f"opset {reading.opset}: expected {oldest} to {newest}")


def _of_node(node: onnx.NodeProto, reading: Reading, version: Version) -> Iterator[Refusal]:
    name = node.name or next(iter(node.output), "")
    standard = node.domain in STANDARD
    operator = node.op_type if standard else f"{node.domain}::{node.op_type}"
    table = operator_table(version.table)
    if operator not in table:
        yield Refusal(operator=operator, node=name, why="an operator that the parser does not know")
        return
    taken = table[operator]
    if taken is None:
        yield Refusal(operator=operator, node=name, why="an operator that is not supported")
        return
    yield from _of_types(node, reading, name, taken)
    for why in restrictions(node, reading, version.release):
        yield Refusal(operator=operator, node=name, why=why)


def _of_types(
    node: onnx.NodeProto, reading: Reading, name: str, taken: frozenset[str]
) -> Iterator[Refusal]:
    refused: dict[str, str] = {}
    for tensor in _data_tensors(node, reading.opset):
        kind = reading.types.get(tensor)
        if kind is not None and taken and type_name(kind) not in taken:
            refused.setdefault(type_name(kind), tensor)
    for kind_name, tensor in refused.items():
        yield Refusal(
            operator=node.op_type,
            node=name,
            tensor=tensor,
            type=kind_name,
            why=f"takes {', '.join(sorted(taken))}",
        )


def type_name(kind: int) -> str:
    """Return an element type as the tables call it."""
    return TABLE_NAMES.get(kind) or TensorProto.DataType.Name(kind)


def _data_tensors(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """Yield the inputs and outputs whose type the tables speak of, not indices or shapes."""
    try:
        schema = onnx.defs.get_schema(node.op_type, max(opset, 1), "")
    except onnx.defs.SchemaError:
        yield from (name for name in node.input[:1] if name)
        return
    first = {schema.inputs[0].type_str} if schema.inputs else set()
    data = _DATA.get(node.op_type, frozenset(first))
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            if name and formal and formal[min(index, len(formal) - 1)].type_str in data:
                yield name
