"""The static check: a clean graph has no finding, and each broken rule gives one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from export.static_check import findings

if TYPE_CHECKING:
    from collections.abc import Sequence

UINT8, FLOAT, HALF, INT64 = (
    TensorProto.UINT8,
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT64,
)
SHAPE = (1, 4, 6, 3)


def value(
    name: str, kind: int = UINT8, shape: Sequence[int | str] | None = SHAPE
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"to {target}", to=kind)


def node(kind: str, sources: Sequence[str], target: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, sources, [target], name=kind.lower(), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    constants: Sequence[onnx.TensorProto] = (),
    opsets: Sequence[tuple[str, int]] = (("", 20),),
) -> onnx.ModelProto:
    """A model; by default from uint8 `frame` to uint8 `mask`, both of SHAPE."""
    graph = helper.make_graph(
        list(nodes),
        "hand-built",
        [value("frame")] if inputs is None else list(inputs),
        [value("mask")] if outputs is None else list(outputs),
        list(constants),
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=10
    )


FIRST = cast("frame", "float", FLOAT)
ROUND = node("Round", ["float"], "rounded")
LAST = cast("rounded", "mask", UINT8)
CLEAN = (FIRST, ROUND, LAST)


def test_a_clean_graph_has_no_finding() -> None:
    clean = model(CLEAN)
    onnx.checker.check_model(clean, full_check=True)
    assert findings(clean) == []


def test_a_graph_that_is_half_precision_inside_has_no_finding() -> None:
    half = (cast("frame", "float", HALF), ROUND, LAST)
    assert findings(model(half)) == []


def test_a_second_input_that_is_not_bytes_is_found() -> None:
    nodes = (FIRST, node("Add", ["float", "offset"], "rounded"), LAST)
    found = findings(model(nodes, inputs=[value("frame"), value("offset", FLOAT)]))
    assert found == ["input 'offset' is not uint8"]


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def test_two_opsets_or_a_foreign_domain_are_found() -> None:
    found = only(findings(model(CLEAN, opsets=[("", 20), ("com.microsoft", 1)])))
    assert "com.microsoft" in found
    assert "expected one" in found
    assert "opsets" in only(findings(model(CLEAN, opsets=[("", 20), ("", 19)])))


def test_control_flow_is_found() -> None:
    branch = helper.make_graph(
        [cast("float", "in_branch", FLOAT)], "b", [], [value("in_branch", FLOAT)]
    )
    condition = helper.make_tensor("condition", TensorProto.BOOL, [], [1])
    nodes = (
        FIRST,
        node("If", ["condition"], "rounded", then_branch=branch, else_branch=branch),
        LAST,
    )
    found = findings(model(nodes, constants=[condition]))
    assert any("If has no static form" in one for one in found)


def test_an_operator_whose_output_depends_on_the_data_is_found() -> None:
    nodes = (
        *CLEAN,
        node("NonZero", ["float"], "where"),
        node("ReduceMax", ["where"], "spare", keepdims=0),
    )
    found = findings(model(nodes, outputs=[value("mask")]))
    assert any("NonZero has no static form" in one for one in found)


def test_a_loop_is_found() -> None:
    scalar: list[int] = []
    body = helper.make_graph(
        [node("Identity", ["go"], "on")],
        "body",
        [value("turn", INT64, scalar), value("go", TensorProto.BOOL, scalar), value("x", FLOAT)],
        [value("on", TensorProto.BOOL, scalar), value("x", FLOAT)],
    )
    constants = [
        helper.make_tensor("turns", INT64, [], [2]),
        helper.make_tensor("start", TensorProto.BOOL, [], [1]),
    ]
    nodes = (FIRST, node("Loop", ["turns", "start", "float"], "rounded", body=body), LAST)
    assert any(
        "Loop has no static form" in one for one in findings(model(nodes, constants=constants))
    )


@pytest.mark.parametrize("operator", ["Scan", "NonMaxSuppression"])
def test_other_operators_without_a_static_form_are_found_by_name(operator: str) -> None:
    nodes = (*CLEAN, node(operator, ["float"], "spare"))
    assert any(f"{operator} has no static form" in one for one in findings(model(nodes)))


def test_a_dimension_that_is_only_named_is_found_on_input_and_output() -> None:
    shape = ("batch", 4, 6, 3)
    found = findings(
        model(CLEAN, inputs=[value("frame", UINT8, shape)], outputs=[value("mask", UINT8, shape)])
    )
    assert {one.split(":")[0] for one in found} >= {"tensor 'frame'", "tensor 'mask'"}
    assert all("batch" in one for one in found)


def test_an_empty_dimension_is_found() -> None:
    shape = (1, 0, 6, 3)
    found = findings(
        model(CLEAN, inputs=[value("frame", UINT8, shape)], outputs=[value("mask", UINT8, shape)])
    )
    assert found


def test_a_shape_that_is_only_known_when_it_runs_is_found() -> None:
    nodes = (
        FIRST,
        node("Reshape", ["float", "size"], "rounded"),
        LAST,
    )
    found = findings(model(nodes, inputs=[value("frame"), value("size", INT64, [4])]))
    assert any("'rounded'" in one for one in found)


def test_a_tensor_that_shape_inference_knows_nothing_of_is_found() -> None:
    nodes = (FIRST, node("Unheard", ["float"], "odd"), node("Round", ["odd"], "rounded"), LAST)
    found = findings(model(nodes))
    assert any("'odd'" in one for one in found)


def test_bytes_transposed_before_they_are_cast_are_found() -> None:
    nodes = (
        node("Transpose", ["frame"], "turned", perm=[0, 3, 1, 2]),
        cast("turned", "float", FLOAT),
        ROUND,
        LAST,
    )
    turned = value("mask", UINT8, (1, 3, 4, 6))
    found = findings(model(nodes, outputs=[turned]))
    assert any("'turned' is uint8 inside the graph" in one for one in found)
    assert any("input 'frame' goes to Transpose" in one for one in found)


def test_bytes_cast_to_integers_first_are_found() -> None:
    nodes = (cast("frame", "whole", INT64), cast("whole", "float", FLOAT), ROUND, LAST)
    assert "input 'frame' goes to Cast: expected a Cast to float" in only(findings(model(nodes)))


def test_a_second_use_of_the_input_beside_its_cast_is_found() -> None:
    nodes = (*CLEAN, node("Shape", ["frame"], "size"))
    assert any("input 'frame' goes to Shape" in one for one in findings(model(nodes)))


def test_a_byte_constant_is_found() -> None:
    table = helper.make_tensor("table", UINT8, [2], [1, 2])
    nodes = (
        FIRST,
        cast("table", "as_float", FLOAT),
        node("ReduceSum", ["as_float"], "sum"),
        node("Add", ["float", "sum"], "rounded"),
        LAST,
    )
    assert "constant 'table' is uint8" in only(findings(model(nodes, constants=[table])))


def test_an_output_cast_from_integers_is_found() -> None:
    nodes = (
        FIRST,
        node("ArgMax", ["float"], "best", axis=3, keepdims=1),
        cast("best", "mask", UINT8),
    )
    found = findings(model(nodes, outputs=[value("mask", UINT8, (1, 4, 6, 1))]))
    assert "output 'mask' is cast from INT64: expected float" in only(found)


def test_an_output_that_is_not_bytes_is_found() -> None:
    found = findings(
        model((FIRST, node("Round", ["float"], "mask")), outputs=[value("mask", FLOAT)])
    )
    assert "output 'mask' is not uint8" in only(found)


def test_an_output_made_by_something_else_than_a_cast_is_found() -> None:
    nodes = (
        FIRST,
        ROUND,
        cast("rounded", "bytes", UINT8),
        node("Identity", ["bytes"], "mask"),
    )
    found = findings(model(nodes))
    assert any("output 'mask' is not made by a Cast" in one for one in found)
    assert any("'bytes' is uint8 inside the graph" in one for one in found)


def test_an_output_that_is_used_again_inside_is_found() -> None:
    nodes = (*CLEAN, cast("mask", "again", FLOAT), node("Sqrt", ["again"], "spare"))
    assert "output 'mask' is also used inside the graph" in only(findings(model(nodes)))


def test_an_input_that_is_handed_through_as_output_is_found() -> None:
    assert findings(model((), outputs=[value("frame")]))


def test_every_broken_rule_is_told_at_once() -> None:
    nodes = (
        node("Transpose", ["frame"], "turned", perm=[0, 3, 1, 2]),
        cast("turned", "whole", INT64),
        cast("whole", "mask", UINT8),
    )
    found = findings(
        model(nodes, outputs=[value("mask", UINT8, (1, 3, 4, 6))], opsets=[("", 20), ("x", 1)])
    )
    assert len(found) == 4
