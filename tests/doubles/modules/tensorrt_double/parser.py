"""A network and the parser that fills it: what TensorRT refuses in an ONNX graph, in part."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorrt_double import plugins
from tensorrt_double.binding import BUFFER, available, bound, present
from tensorrt_double.enums import ErrorCode, NetworkDefinitionCreationFlag, data_type
from tensorrt_double.settings import VERSION, fault
from tensorrt_double.values import ILogger, ITensor, complain

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAG = NetworkDefinitionCreationFlag


@present
class INetworkDefinition:
    """A graph. Made by a Builder, filled by an OnnxParser."""

    name: str

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._onnx = b""
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self.name = "Unnamed Network 0"

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @bound(index=int)
    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    @bound(index=int)
    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    @available(since=(10,))
    @bound(flag=_FLAG)
    def get_flag(self, flag: Any) -> bool:  # noqa: ANN401 - an enum
        return bool(self._flags >> int(flag) & 1)

    def _is_strongly_typed(self) -> bool:
        return VERSION >= (11,) or (VERSION >= (10,) and self.get_flag(_FLAG.STRONGLY_TYPED))


@present
@dataclass(frozen=True, kw_only=True)
class ParserError:
    """What the parser refuses, and at which node (-1: no node)."""

    _code: Any
    _desc: str
    _node: int = -1
    _name: str = ""
    _operator: str = ""

    def code(self) -> Any:  # noqa: ANN401 - an enum
        return self._code

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return self._node

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 1

    def func(self) -> str:
        return "parseNode" if self._node >= 0 else "parse"

    @available(since=(10,))
    def node_name(self) -> str:
        return self._name

    @available(since=(10,))
    def node_operator(self) -> str:
        return self._operator


class OnnxParser:
    """Fills a network from ONNX."""

    @bound(network=INetworkDefinition, logger=ILogger)
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._logger = logger
        self._errors: list[ParserError] = []

    @bound(model=BUFFER, path=str)
    def parse(self, model: bytes, path: str | None = None) -> bool:  # noqa: ARG002 - of weights
        content = bytes(memoryview(model))
        self._errors = list(_refusals(content))
        for error in self._errors:
            complain(self._logger, f"In node {error.node()}: {error.desc()}")
        if not self._errors:
            self._fill(content)
        return not self._errors

    @bound(model=str)
    def parse_from_file(self, model: str) -> bool:
        try:
            content = Path(model).read_bytes()
        except OSError:
            complain(self._logger, f"Could not open file {model}")
            return False
        return bool(self.parse(content))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    @bound(index=int)
    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors = []

    def _fill(self, content: bytes) -> None:
        graph = _graph(content)
        network = self._network
        network._onnx = content
        network._inputs = [_tensor(one) for one in graph.inputs]
        network._outputs = [_tensor(one) for one in graph.outputs]


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """Types by tensor name; the proto's inputs without what is a constant."""

    nodes: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    types: dict[str, int] = field(default_factory=dict)


def _graph(content: bytes) -> _Graph:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
    constants = {one.name: one.data_type for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in constants]
    declared = (*inputs, *graph.output, *graph.value_info)
    types = {one.name: one.type.tensor_type.elem_type for one in declared}
    return _Graph(
        nodes=list(graph.node),
        inputs=inputs,
        outputs=list(graph.output),
        types={**constants, **types},
    )


def _tensor(value: Any) -> ITensor:  # noqa: ANN401 - onnx's own
    from onnx import helper

    kind = value.type.tensor_type
    shape = tuple(one.dim_value if one.HasField("dim_value") else -1 for one in kind.shape.dim)
    return ITensor(
        value.name, shape, data_type(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    )


def _refusals(content: bytes) -> Iterator[ParserError]:
    from google.protobuf.message import DecodeError

    try:
        graph = _graph(content)
    except DecodeError:
        yield ParserError(
            _code=ErrorCode.MODEL_DESERIALIZE_FAILED, _desc="Failed to parse the ONNX model."
        )
        return
    for index, node in enumerate(graph.nodes):
        refused = _refused(graph, node, first=index == 0)
        if refused is not None:
            code, desc = refused
            yield ParserError(
                _code=code, _desc=desc, _node=index, _name=node.name, _operator=node.op_type
            )


def _refused(graph: _Graph, node: Any, *, first: bool) -> tuple[Any, str] | None:  # noqa: ANN401
    """What TensorRT would say of a node, if anything: this double knows three reasons."""
    from onnx import TensorProto, defs

    if first and fault("parse-error"):
        return ErrorCode.UNSUPPORTED_NODE, "Assertion failed: the double refuses this node"
    if not defs.has(node.op_type, node.domain):
        return ErrorCode.UNSUPPORTED_NODE, f"No importer registered for op: {node.op_type}."
    if node.op_type == "RoiAlign" and not plugins.registered():
        return (
            ErrorCode.UNSUPPORTED_NODE,
            "Plugin not found, are the plugin name, version, and namespace correct?",
        )
    around = {graph.types.get(name) for name in (*node.input, *node.output)}
    if TensorProto.UINT8 in around and (node.op_type != "Cast" or not _at_the_rim(graph, node)):
        code = getattr(ErrorCode, "UNSUPPORTED_NODE_DATATYPE", ErrorCode.UNSUPPORTED_NODE)
        return code, f"Found unsupported datatype (2) when importing {node.op_type}: UINT8"
    return None


def _at_the_rim(graph: _Graph, node: Any) -> bool:  # noqa: ANN401 - onnx's own
    """Whether a node's uint8 tensors are inputs or outputs of the graph, beside a float."""
    from onnx import TensorProto

    rim = {one.name for one in (*graph.inputs, *graph.outputs)}
    names = (*node.input, *node.output)
    small = [name for name in names if graph.types.get(name) == TensorProto.UINT8]
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16}
    others = {graph.types.get(name) for name in names if name not in small}
    return set(small) <= rim and len(small) == 1 and others <= floats
