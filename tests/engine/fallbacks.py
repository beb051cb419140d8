"""Bundles of several graphs: the demo's whole ensemble, and a fallback that is its first member."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from edge.contract.bundle import Bundle, Graph
from tests.engine.bundles import answer_file, arrays_of, changed

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Manifest


def _graphs(bundle: Bundle, *names: str) -> tuple[dict[str, Any], ...]:
    """Graphs as a manifest lists them: full, full-fp16, fallback, fallback-fp16."""
    members = {"full": ("unet", "pspnet"), "fallback": ("unet",)}
    return tuple(
        {
            "name": name,
            "file": bundle.manifest.graphs[0].file if name == "full" else f"{name}.onnx",
            "precision": "float16" if name.endswith("-fp16") else "float32",
            "members": members[name.removesuffix("-fp16")],
            "weights": (0.5, 0.5) if name.startswith("full") else (1.0,),
        }
        for name in names
    )


def _lone_member(full: bytes) -> bytes:
    """Return the demo's graph so that it answers what its first member does."""
    model = onnx.load_from_string(full)
    kept = [node for node in model.graph.node if not {"mask", "member_masks"} & {*node.output}]
    (last,) = (node for node in model.graph.node if "member_masks" in node.output)
    model.graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
    kept += [helper.make_node("Gather", [last.input[0], "first"], ["alone"], axis=0)]
    for name in ("mask", "member_masks"):
        kept += [helper.make_node("Cast", ["alone"], [name], to=TensorProto.UINT8)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    (output,) = (one for one in model.graph.output if one.name == "member_masks")
    output.type.tensor_type.shape.dim[0].dim_value = 1
    return bytes(model.SerializeToString())


def with_fallback(demo: Bundle, path: Path, full_fp16: bytes) -> Bundle:
    """Write a bundle whose graph full-fp16 is this one; its fallback is right."""
    files = {
        "full-fp16.onnx": full_fp16,
        "fallback-fp16.onnx": _lone_member(demo.read("ensemble.onnx")),
    }
    golden = []
    for number, case in enumerate(demo.manifest.golden):
        stored = arrays_of(demo.read(case.answer))
        alone = stored["member_masks"][:1]
        name = f"golden/{number}.fallback.npz"
        files[name] = answer_file(**{**stored, "mask": alone[0], "member_masks": alone})
        golden.append({**case.model_dump(), "answers": {"fallback-fp16": name}})
    return changed(
        demo, path, files, golden=golden, graphs=_graphs(demo, "full", "full-fp16", "fallback-fp16")
    )


def listing(demo: Bundle, *names: str) -> Manifest:
    """Return the demo's manifest with these graphs: full, full-fp16, fallback, fallback-fp16."""
    return demo.manifest.model_copy(
        update={"graphs": tuple(Graph.model_validate(one) for one in _graphs(demo, *names))}
    )
