"""Operator tables of TensorRT's versions, and small graphs that break one rule each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.contract.errors import ConfigError
from export.operators.refusals import Refusal, refusals
from export.operators.tables import find_version, known_versions, operator_table

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
FLOAT, HALF, DOUBLE, UINT8, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.UINT8,
    TensorProto.INT64,
    TensorProto.BOOL,
)
SHAPE = (1, 2, 8, 8)
OLDEST, NEWEST = "10.3", "11.4"
ALL = [version.name for version in known_versions()]


def value(
    name: str, kind: int = FLOAT, shape: Sequence[int | str] | None = SHAPE
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, values: object, kind: type[np.generic] = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def node(
    kind: str, sources: Sequence[str], targets: Sequence[str] = ("y",), **attributes: object
) -> onnx.NodeProto:
    return helper.make_node(kind, sources, targets, name=f"the {kind}", **attributes)


def model(
    *nodes: onnx.NodeProto,
    x: onnx.ValueInfoProto | None = None,
    more: Sequence[onnx.ValueInfoProto] = (),
    y: onnx.ValueInfoProto | None = None,
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = 20,
) -> onnx.ModelProto:
    """A graph from `x` to `y`, both float32 of SHAPE unless told otherwise."""
    graph = helper.make_graph(
        list(nodes), "hand-made", [x or value("x"), *more], [y or value("y")], list(constants)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def only(found: list[Refusal]) -> Refusal:
    assert len(found) == 1, found
    return found[0]


def refusing(one: onnx.ModelProto) -> list[str]:
    """The versions that refuse a graph."""
    return [version for version in ALL if refusals(one, version)]


# The tables


def test_every_version_that_icecam_supports_is_there_oldest_first() -> None:
    assert {"10.3", "10.7", "10.9", "10.12", "10.13", "10.16", "11.0", "11.4"} <= set(ALL)
    assert ALL[0] == OLDEST
    assert sorted(ALL, key=lambda name: tuple(map(int, name.split(".")))) == ALL


def test_a_table_that_stands_for_a_version_is_never_newer_than_it() -> None:
    for version in known_versions():
        assert tuple(map(int, version.table.split("."))) <= version.release


@pytest.mark.parametrize("version", ALL)
def test_tables_say_what_the_networks_were_built_on(version: str) -> None:
    table = operator_table(find_version(version).table)
    assert table["TopK"] == {"FP32", "FP16", "BF16", "INT32", "INT64"}
    assert table["RoiAlign"] == {"FP32", "FP16"}
    assert table["Trilu"] == {"FP32", "FP16", "BF16", "INT32", "INT64", "BOOL"}
    assert table["MatMul"] == {"FP32", "FP16", "BF16"}
    assert table["Unique"] is None
    assert "Unheard" not in table
    bytes_taken = {name for name, types in table.items() if types and "UINT8" in types}
    assert bytes_taken == {"Cast", "CastLike"}


def test_tables_change_where_the_releases_did() -> None:
    assert operator_table("10.1")["STFT"] is None
    assert operator_table("10.6")["STFT"] == {"FP32"}
    assert "INT64" not in (operator_table("10.9")["Pow"] or ())
    assert "INT64" in (operator_table("10.12")["Pow"] or ())
    assert "Attention" not in operator_table("10.13")
    assert "Attention" in operator_table("10.15")
    assert "Swish" not in operator_table("10.15")
    assert "Swish" in operator_table("11.0")


def test_every_row_is_an_operator_a_release_and_types() -> None:
    text = (REPOSITORY / "export" / "operators" / "operators.tsv").read_text(encoding="utf-8")
    rows = list(csv.reader((t for t in text.splitlines() if t[0] != "#"), delimiter="\t"))[1:]
    kinds = {"FP32", "FP16", "BF16", "FP8", "FP4", "INT64", "INT32", "INT8", "INT4", "UINT8"}
    assert len(rows) > 200
    assert len({(row[0], row[1]) for row in rows}) == len(rows)
    for operator, since, types in rows:
        assert operator.isalnum()
        assert since in {"10.1", "10.6", "10.8", "10.12", "10.15", "11.0"}
        assert types in {"-", "?"} or set(types.split()) <= kinds | {"BOOL"}


@pytest.mark.parametrize(
    ("written", "name", "table"),
    [
        ("10.3", "10.3", "10.1"),
        ("10.3.0", "10.3", "10.1"),
        ("10.5", "10.5", "10.1"),
        ("10.13.3.9", "10.13", "10.13"),
        ("10.14", "10.14", "10.13"),
        ("11", "11.0", "11.0"),
        ("12.1", "12.1", "11.0"),
    ],
)
def test_a_version_is_held_against_the_newest_table_that_is_not_newer(
    written: str, name: str, table: str
) -> None:
    found = find_version(written)
    assert (found.name, found.table) == (name, table)


@pytest.mark.parametrize("written", ["8.6.1", "10.2", "10", "9"])
def test_versions_older_than_icecam_supports_are_refused_by_name(written: str) -> None:
    with pytest.raises(ConfigError, match=rf"TensorRT {written}; expected 10\.3 or newer"):
        find_version(written)


@pytest.mark.parametrize("written", ["", "ten", "10.x", "v10.3", "10.3.", "-10.3", "10.3-rc1"])
def test_what_is_no_version_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="expected a version such as"):
        find_version(written)


# Operators and types


def test_a_plain_graph_is_taken_by_all_in_either_precision() -> None:
    whole = model(node("Relu", ["x"]))
    half = model(node("Relu", ["x"]), x=value("x", HALF), y=value("y", HALF))
    for one in (whole, half):
        onnx.checker.check_model(one, full_check=True)
        assert refusing(one) == []


def test_a_made_up_operator_is_named() -> None:
    one = model(node("Unheard", ["x"]))
    assert refusing(one) == ALL
    found = only(refusals(one, OLDEST))
    assert (found.operator, found.node) == ("Unheard", "the Unheard")
    assert "does not know" in found.why


def test_an_operator_of_another_domain_is_not_taken_for_its_namesake() -> None:
    one = model(node("Relu", ["x"], domain="com.example"))
    one.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "com.example::Relu" in {found.operator for found in refusals(one, NEWEST)}
    same = model(node("Relu", ["x"], domain="ai.onnx"))
    same.opset_import[0].domain = "ai.onnx"
    assert refusing(same) == []


def test_an_unsupported_operator_is_named() -> None:
    one = model(node("Det", ["x"]), y=value("y", FLOAT, (1, 2)))
    assert "Det" in {refusal.operator for refusal in refusals(one, NEWEST)}
    assert refusing(one) == ALL


def test_an_operator_of_a_later_version_is_refused_before_it_alone() -> None:
    one = model(node("Swish", ["x"]), opset=24)
    refused = refusing(one)
    assert refused == [version for version in ALL if not version.startswith("11")]
    assert {"Swish", ""} == {refusal.operator for refusal in refusals(one, "10.13")}
    assert only(refusals(one, "10.16")).operator == "Swish"


def test_an_opset_newer_than_the_parser_is_found() -> None:
    one = model(node("Relu", ["x"]), opset=22)
    assert refusing(one) == ["10.3"]
    assert only(refusals(one, "10.3")).why == "opset 22: expected 9 to 20"
    assert refusing(model(node("Relu", ["x"]), opset=8)) == ALL


def test_double_is_named_with_its_tensor() -> None:
    one = model(node("Relu", ["x"]), x=value("x", DOUBLE), y=value("y", DOUBLE))
    found = only(refusals(one, NEWEST))
    assert (found.operator, found.tensor, found.type) == ("Relu", "x", "DOUBLE")
    assert refusing(one) == ALL


def test_a_double_constant_and_a_cast_to_double_are_found() -> None:
    nodes = (
        node("Cast", ["x"], ["wide"], to=DOUBLE),
        node("Add", ["wide", "offset"], ["sum"]),
        node("Cast", ["sum"], ["y"], to=FLOAT),
    )
    found = refusals(model(*nodes, constants=[constant("offset", 1.5, np.float64)]), NEWEST)
    assert {(one.operator, one.type) for one in found} == {("Cast", "DOUBLE"), ("Add", "DOUBLE")}


@pytest.mark.parametrize(
    "made",
    [
        node("Constant", [], ["wide"], value=constant("", [1.5], np.float64)),
        node("ConstantOfShape", ["size"], ["wide"], value=constant("", [1.5], np.float64)),
        node("EyeLike", ["square"], ["wide"], dtype=DOUBLE),
        node("OneHot", ["index", "depth", "off_on"], ["wide"]),
        node("Where", ["condition", "off_on", "off_on"], ["wide"]),
        node("CastLike", ["x", "off_on"], ["wide"]),
    ],
    ids=lambda made: made.op_type,
)
def test_what_makes_doubles_out_of_other_types_is_found(made: onnx.NodeProto) -> None:
    constants = [
        constant("size", [3]),
        constant("square", np.zeros((2, 2)), np.float32),
        constant("index", [0, 1]),
        constant("depth", 2),
        constant("off_on", [0, 1], np.float64),
        constant("condition", [True, False], np.bool_),
    ]
    one = model(made, node("Cast", ["wide"], ["narrow"], to=FLOAT), constants=constants)
    found = [refusal for refusal in refusals(one, NEWEST) if refusal.type == "DOUBLE"]
    assert {refusal.operator for refusal in found} == {made.op_type, "Cast"}


def test_int64_is_refused_where_the_table_lacks_it_and_only_there() -> None:
    x, y = value("x", INT64, (4, 8)), value("y", INT64, (4, 8))
    softmaxed = model(node("Ceil", ["x"]), x=x, y=y)
    assert only(refusals(softmaxed, NEWEST)).type == "INT64"
    assert refusing(model(node("Add", ["x", "x"]), x=x, y=y)) == []


def test_int64_bases_of_pow_are_taken_from_10_12_on() -> None:
    one = model(node("Pow", ["x", "x"]), x=value("x", INT64), y=value("y", INT64))
    assert refusing(one) == ["10.3", "10.7", "10.8", "10.9"]


def test_indices_shapes_and_conditions_are_not_held_against_the_data_s_types() -> None:
    nodes = (
        node("Gather", ["x", "index"], ["gathered"], axis=2),
        node("Resize", ["gathered", "", "", "size"], ["large"], mode="linear"),
        node("ReduceMax", ["large", "axes"], ["highest"]),
        node("Greater", ["large", "highest"], ["mask"]),
        node("Where", ["mask", "large", "highest"], ["y"]),
    )
    constants = [
        constant("index", [0, 1]),
        constant("size", [1, 2, 16, 16]),
        constant("axes", [2]),
    ]
    one = model(*nodes, y=value("y", FLOAT, (1, 2, 16, 16)), constants=constants)
    onnx.checker.check_model(one, full_check=True)
    assert refusing(one) == []


def test_a_boolean_is_refused_where_numbers_are_asked() -> None:
    one = model(node("Abs", ["x"]), x=value("x", BOOL), y=value("y", BOOL))
    assert only(refusals(one, NEWEST)).type == "BOOL"


def test_a_reason_is_told_once_with_the_number_of_nodes() -> None:
    nodes = [helper.make_node("Unheard", ["x"], [f"y{n}"], name=f"odd {n}") for n in range(3)]
    found = [one for one in refusals(model(*nodes, y=value("y0")), NEWEST) if one.operator]
    assert (only(found).node, only(found).count) == ("odd 0", 3)
    assert only(found).describe().startswith("Unheard 'odd 0' and 2 more: ")


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    one = model(helper.make_node("Unheard", ["x"], ["y"]))
    assert only(refusals(one, NEWEST)).node == "y"


# What no version takes


def test_bytes_inside_are_found_by_table_and_by_rule() -> None:
    nodes = (
        node("Transpose", ["x"], ["turned"], perm=[0, 1, 3, 2]),
        node("Cast", ["turned"], ["y"], to=FLOAT),
    )
    found = refusals(model(*nodes, x=value("x", UINT8)), NEWEST)
    assert ("Transpose", "UINT8") in {(one.operator, one.type) for one in found}
    assert any("'turned' is uint8 inside the graph" in one.why for one in found)


def test_bytes_at_the_rim_beside_a_cast_are_taken() -> None:
    nodes = (
        node("Cast", ["x"], ["float"], to=FLOAT),
        node("Round", ["float"], ["whole"]),
        node("Cast", ["whole"], ["y"], to=UINT8),
    )
    assert refusing(model(*nodes, x=value("x", UINT8), y=value("y", UINT8))) == []


def test_a_data_dependent_operator_is_refused_though_tables_list_it() -> None:
    assert operator_table("11.0")["NonZero"]
    one = model(node("NonZero", ["x"]), y=value("y", INT64, (4, "found")))
    assert any("NonZero has no static form" in found.why for found in refusals(one, NEWEST))
    assert refusing(one) == ALL


def test_a_dynamic_dimension_is_refused_by_every_version() -> None:
    shape = ("batch", 2, 8, 8)
    one = model(node("Relu", ["x"]), x=value("x", FLOAT, shape), y=value("y", FLOAT, shape))
    assert refusing(one) == ALL
    assert all("batch" in found.why for found in refusals(one, NEWEST))


# Restrictions of operators that are taken otherwise


def top_k(limit: int, **attributes: object) -> onnx.ModelProto:
    return model(
        node("TopK", ["x", "k"], ["y", "where"], **attributes),
        x=value("x", FLOAT, (1, 9000)),
        y=value("y", FLOAT, (1, limit)),
        constants=[constant("k", [limit])],
    )


def test_top_k_is_taken_below_3840() -> None:
    assert refusing(top_k(3839)) == []
    assert refusing(top_k(3840)) == ALL
    assert only(refusals(top_k(4000), OLDEST)).why == "K is 4000: expected less than 3840"


def test_top_k_in_no_order_is_refused() -> None:
    assert "`sorted` is 0" in only(refusals(top_k(10, sorted=0), NEWEST)).why


@pytest.mark.parametrize(
    ("operator", "name", "sources"),
    [
        ("ReduceMax", "axes", ["x", "given"]),
        ("ReduceMean", "axes", ["x", "given"]),
        ("CumSum", "axis", ["x", "given"]),
        ("Squeeze", "axes", ["x", "given"]),
        ("Unsqueeze", "axes", ["x", "given"]),
    ],
)
def test_axes_must_be_constants(operator: str, name: str, sources: list[str]) -> None:
    shape = [] if operator == "CumSum" else [1]
    computed = model(node(operator, sources), more=[value("given", INT64, shape)])
    assert any(
        found.why == f"input `{name}` is computed in the graph: expected a constant"
        for found in refusals(computed, NEWEST)
    )
    fixed = model(node(operator, sources), constants=[constant("given", np.zeros(shape))])
    assert not [found for found in refusals(fixed, NEWEST) if "constant" in found.why]


def test_a_constant_node_is_as_good_as_an_initializer() -> None:
    for given in ({"value_ints": [2]}, {"value": constant("", [2])}):
        nodes = (node("Constant", [], ["axes"], **given), node("ReduceMax", ["x", "axes"]))
        assert refusing(model(*nodes, y=value("y", FLOAT, (1, 2, 1, 8)))) == []


def test_axes_of_pad_must_be_constants_before_10_4_alone() -> None:
    one = model(
        node("Pad", ["x", "pads", "", "axes"]),
        more=[value("axes", INT64, [1])],
        y=value("y", FLOAT, (1, 2, 8, 10)),
        constants=[constant("pads", [1, 1])],
    )
    stated = {
        version: [found.why for found in refusals(one, version) if "`axes`" in found.why]
        for version in ALL
    }
    assert [version for version, whys in stated.items() if whys] == ["10.3"]


def test_squeeze_of_a_static_shape_may_leave_its_axes_out() -> None:
    assert refusing(model(node("Squeeze", ["x"]), y=value("y", FLOAT, (2, 8, 8)))) == []


def test_tensors_have_at_most_eight_axes() -> None:
    for axes, versions in ((8, []), (9, ALL)):
        shape = [1] * axes
        one = model(
            node("Reshape", ["x", "shape"], ["flat"]),
            node("Neg", ["flat"]),
            x=value("x", FLOAT, [1]),
            y=value("y", FLOAT, shape),
            constants=[constant("shape", shape)],
        )
        assert refusing(one) == versions
    assert {found.why for found in refusals(one, NEWEST)} == {
        "a tensor of 9 axes: expected at most 8"
    }


def test_a_reduction_of_scatter_nd_is_refused_even_none_before_10_9() -> None:
    def scatter(**attributes: object) -> onnx.ModelProto:
        return model(
            node("ScatterND", ["x", "index", "update"], **attributes),
            constants=[
                constant("index", [[0]]),
                constant("update", np.zeros((1, *SHAPE[1:])), np.float32),
            ],
        )

    assert refusing(scatter()) == []
    assert refusing(scatter(reduction="none")) == ["10.3", "10.7", "10.8"]
    assert refusing(scatter(reduction="add")) == ALL


def test_integer_exponents_of_floats_are_refused_before_10_8() -> None:
    one = model(node("Pow", ["x", "two"]), constants=[constant("two", 2)])
    assert refusing(one) == ["10.3", "10.7"]
    same = model(node("Pow", ["x", "two"]), constants=[constant("two", 2, np.float32)])
    assert refusing(same) == []


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"mode": "cubic"}, "`mode` cubic"),
        ({"antialias": 1, "mode": "linear"}, "`antialias` 1"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "`keep_aspect_ratio_policy` not_larger"),
        ({"coordinate_transformation_mode": "half_pixel_symmetric"}, "half_pixel_symmetric"),
        (
            {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
            "tf_half_pixel_for_nn with floor",
        ),
        ({"axes": [3, 2, 1, 0]}, "`axes` [3, 2, 1, 0]"),
    ],
)
def test_modes_of_resize_that_the_parser_lacks_are_named(
    attributes: dict[str, object], why: str
) -> None:
    one = model(
        node("Resize", ["x", "", "", "size"], **attributes), constants=[constant("size", SHAPE)]
    )
    assert why in only(refusals(one, NEWEST)).why
    assert refusing(one) == ALL


def test_resize_by_nearest_and_by_linear_is_taken() -> None:
    for attributes in (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "linear", "axes": [0, 1, 2, 3]},
    ):
        one = model(
            node("Resize", ["x", "", "", "size"], **attributes),
            constants=[constant("size", SHAPE)],
        )
        assert refusing(one) == []


def test_pooling_is_2d_or_3d_without_dilations_or_indices() -> None:
    flat = model(
        node("AveragePool", ["x"], kernel_shape=[2]),
        x=value("x", FLOAT, (1, 2, 8)),
        y=value("y", FLOAT, (1, 2, 7)),
    )
    assert "3 axes" in only(refusals(flat, NEWEST)).why
    wide = model(
        node("MaxPool", ["x"], kernel_shape=[2, 2], dilations=[2, 2]),
        y=value("y", FLOAT, (1, 2, 6, 6)),
    )
    assert "`dilations` [2, 2]" in only(refusals(wide, NEWEST)).why
    indexed = model(
        node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2, 2]),
        y=value("y", FLOAT, (1, 2, 7, 7)),
    )
    assert "more than its first output" in only(refusals(indexed, NEWEST)).why
    plain = model(
        node("MaxPool", ["x"], kernel_shape=[2, 2], dilations=[1, 1]),
        y=value("y", FLOAT, (1, 2, 7, 7)),
    )
    assert refusing(plain) == []


def test_grid_sample_takes_four_axes() -> None:
    one = model(
        node("GridSample", ["x", "grid"]),
        x=value("x", FLOAT, (1, 2, 4, 8, 8)),
        more=[value("grid", FLOAT, (1, 4, 8, 8, 3))],
        y=value("y", FLOAT, (1, 2, 4, 8, 8)),
    )
    assert any("5 axes: expected 4" in found.why for found in refusals(one, NEWEST))
