"""Float16 where ONNX Runtime would not round by itself, and constants that two halves share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.float16 import convert, with_rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def answer(model: onnx.ModelProto, **given: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[NDArray[np.float32]] = session.run(None, given)
    return found


def graph(
    nodes: list[onnx.NodeProto],
    given: list[onnx.ValueInfoProto],
    wanted: list[onnx.ValueInfoProto],
    **constants: NDArray[np.float32] | NDArray[np.float16],
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "small",
        given,
        wanted,
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_cast_to_float16_rounds_and_overflows_too() -> None:
    model = graph(
        [
            helper.make_node("Cast", ["x"], ["half"], "half", to=FLOAT16),
            helper.make_node("Mul", ["half", "hundredth"], ["small"], "small"),
            helper.make_node("Cast", ["small"], ["y"], "wide", to=FLOAT),
        ],
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info("y", FLOAT, [2])],
        hundredth=np.array(0.01, np.float16),
    )
    x = np.array([70000, 2049], np.float32)  # float16 ends at 65504; its steps are 2 from 2048 on
    (found,) = answer(with_rounding(model), x=x)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16) * np.float16(0.01)
    assert np.isinf(found[0])
    assert found[1] == expected[1]
    assert found[1] != pytest.approx(20.49, abs=1e-3)  # what float32 gives


def bytes_in_and_out() -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    uint8 = TensorProto.UINT8
    return (
        [helper.make_node("Cast", ["frame"], ["x"], "in", to=FLOAT)],
        [
            helper.make_node("Clip", ["z", "zero", "most"], ["clipped"], "clipped"),
            helper.make_node("Cast", ["clipped"], ["y"], "out", to=uint8),
        ],
    )


def test_a_constant_that_both_halves_use_keeps_its_float32_value() -> None:
    """1/3 in float16 is 0.33325: times 255 * 3000, that is 60 too little."""
    first, last = bytes_in_and_out()
    model = graph(
        [
            *first,
            helper.make_node("Mul", ["x", "third"], ["layer"], "layer"),
            helper.make_node("Mul", ["x", "third"], ["decision"], "decision"),
            helper.make_node("Mul", ["layer", "nothing"], ["gone"], "gone"),
            helper.make_node("Add", ["decision", "gone"], ["z"], "z"),
            *last,
        ],
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1])],
        third=np.array(1 / 3, np.float32),
        nothing=np.array(0, np.float32),
        zero=np.array(0, np.float32),
        most=np.array(255, np.float32),
    )
    half = convert(model, kept={"decision", "z", "clipped"})
    constants = {one.name: numpy_helper.to_array(one) for one in half.graph.initializer}
    (decides,) = (node for node in half.graph.node if node.name == "decision")
    (layer,) = (node for node in half.graph.node if node.name == "layer")
    assert constants[decides.input[1]] == np.float32(1 / 3)
    assert constants[layer.input[1]] == np.float16(1 / 3)
    assert {constants[name].dtype.name for name in (decides.input[1], layer.input[1])} == {
        "float32",
        "float16",
    }
