"""Small ONNX graphs from ``frame``, uint8 ``(1, 4, 6, 3)``: one that TensorRT takes, others not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import onnx

FRAME: npt.NDArray[np.uint8] = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3) * 3


def _graph(*nodes: onnx.NodeProto, outputs: Mapping[str, int]) -> bytes:
    """A graph from ``frame``, uint8 (1, 4, 6, 3), to outputs of (1, 4, 6) by name and type."""
    made = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, 4, 6, 3))],
        [helper.make_tensor_value_info(name, kind, (1, 4, 6)) for name, kind in outputs.items()],
        [
            helper.make_tensor("axes", TensorProto.INT64, [1], [3]),
            helper.make_tensor("hundred", TensorProto.FLOAT, [], [100.0]),
            helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        ],
    )
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(made, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())


def _node(kind: str, given: str, made: str, **attributes: list[int] | int) -> onnx.NodeProto:
    made_node = helper.make_node(kind, given.split(), [made], name=f"{kind} of {made}")
    made_node.attribute.extend(helper.make_attribute(*one) for one in attributes.items())
    return made_node


def small() -> bytes:
    """Class: the brightest channel in hundreds; confidence: how dark it is."""
    uint8 = TensorProto.UINT8
    return _graph(
        _node("Cast", "frame", "light", to=TensorProto.FLOAT),
        _node("ReduceMax", "light axes", "brightest", keepdims=0),
        _node("Div", "brightest hundred", "share"),
        _node("Floor", "share", "class"),
        _node("Cast", "class", "mask", to=uint8),
        _node("Sub", "white brightest", "dark"),
        _node("Cast", "dark", "confidence", to=uint8),
        outputs={"mask": uint8, "confidence": uint8},
    )


def inner_uint8() -> bytes:
    """A uint8 tensor that is neither input nor output."""
    uint8, real = TensorProto.UINT8, TensorProto.FLOAT
    return _graph(
        _node("Transpose", "frame", "turned", perm=[0, 1, 2, 3]),
        _node("Cast", "turned", "light", to=real),
        _node("ReduceMax", "light axes", "brightest", keepdims=0),
        _node("Cast", "brightest", "mask", to=uint8),
        outputs={"mask": uint8},
    )


def unknown_operator() -> bytes:
    """An operator that nobody knows."""
    return _graph(
        _node("Thaw", "frame", "mask"),
        outputs={"mask": TensorProto.UINT8},
    )


def integers_to_uint8() -> bytes:
    """An output cast to uint8 from integers."""
    return _graph(
        _node("Cast", "frame", "light", to=TensorProto.FLOAT),
        _node("ArgMax", "light", "class", axis=3, keepdims=0),
        _node("Cast", "class", "mask", to=TensorProto.UINT8),
        outputs={"mask": TensorProto.UINT8},
    )
