"""The layers of the design: who may import whom, and what a light start must not load."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("edge", "train", "export")
HEAVY = ("torch", "tensorrt", "pycuda", "onnxruntime", "cv2")
OF_EDGE_FOR_TRAIN = ("contract", "quality", "geometry", "engine", "console")
PAHO = ("edge/link.py", "edge/publish.py", "edge/subscriber.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """A module that a file names. ``late``: only inside a function or for type checkers."""

    module: str
    late: bool


def imports(source: str, *, folder: str = "") -> set[Import]:
    """Every import in a file, wherever it stands; `from a import b` names `a.b`."""
    return set(_imports(ast.parse(source), folder, late=False))


def _imports(node: ast.AST, folder: str, *, late: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            yield from (Import(module=name.name, late=late) for name in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            parents = folder.split("/")[: len(folder.split("/")) + 1 - level] if level else []
            base = ".".join([*parents, *([module] if module else [])])
            yield from (Import(module=f"{base}.{name.name}", late=late) for name in names)
        case ast.Call(
            func=ast.Attribute(attr="import_module" | "run_module")
            | ast.Name(id="__import__" | "import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            yield Import(module=module, late=late)
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            for child in node.body:
                yield from _imports(child, folder, late=True)
            for child in node.orelse:
                yield from _imports(child, folder, late=late)
            return
    inner = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, folder, late=inner)


def names(module: str, package: str) -> bool:
    """Whether a module is a package or lies in it."""
    return module == package or module.startswith(f"{package}.")


def broken_rules(path: str, source: str) -> list[str]:
    """What a file imports that its place forbids, one sentence each."""
    folder = path.rpartition("/")[0]
    found = imports(source, folder=folder)
    return [
        *(f"{path} imports {one.module}" for one in found if not _allowed(path, one)),
        *_video_captures(path, source),
    ]


def _allowed(path: str, one: Import) -> bool:  # noqa: PLR0911 - one rule of the design each
    module, top = one.module, one.module.partition(".")[0]
    if path.startswith("edge/") and top in {"train", "export"}:
        return False
    if path.startswith("train/") and top == "export":
        return False
    if path.startswith("train/") and top == "edge":
        below = module.split(".")[1]
        return below in OF_EDGE_FOR_TRAIN or below.startswith("__version__")
    if path.startswith("edge/contract/"):
        return _pure(path, one)
    if top in {"tomllib", "tomli"}:
        return False
    if top in {"tensorrt", "pycuda"}:
        return path == "edge/engine/trt/device.py" and one.late
    if top == "onnxruntime":
        return path == "edge/engine/ort.py" or path.startswith("export/")
    return top != "paho" or path in PAHO


def _pure(path: str, one: Import) -> bool:
    top = one.module.partition(".")[0]
    if top in {"tomllib", "tomli"}:
        return path == "edge/contract/boundary.py"
    if top == "edge":
        return names(one.module, "edge.contract")
    return top in sys.stdlib_module_names | {"numpy", "pydantic"} or (top == "PIL" and one.late)


def _video_captures(path: str, source: str) -> Iterator[str]:
    if path.startswith("edge/camera/"):
        return
    for node in ast.walk(ast.parse(source)):
        named = node.attr if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.ImportFrom) and node.module == "cv2":
            named = next((name.name for name in node.names if name.name == "VideoCapture"), None)
        if named == "VideoCapture":
            yield f"{path} opens a camera by cv2.VideoCapture"


def reached(start: str, sources: Mapping[str, str]) -> set[str]:
    """The modules a file loads, through files of ours too; never what only type checkers read."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        for module in _loaded(sources[path], path.rpartition("/")[0]):
            seen.add(module)
            ours = {file for file in _files(module) if file in sources and file not in seen}
            seen |= ours
            waiting += ours
    return {module for module in seen if not module.endswith(".py")}


def _files(module: str) -> Iterator[str]:
    """Where a module and the packages around it may lie; its last part may also be a name."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        base = "/".join(parts[:depth])
        yield from (f"{base}.py", f"{base}/__init__.py")


def _loaded(source: str, folder: str) -> set[str]:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(
                    node, field, [one for one in block if not _for_types_only(one)] or [ast.Pass()]
                )
    return {one.module for one in _imports(tree, folder, late=False)}


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def all_sources() -> dict[str, str]:
    """Every Python file of ours, by its path from the repository's root."""
    return {
        path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
        for part in PARTS
        for path in sorted((REPOSITORY / part).rglob("*.py"))
    }


@pytest.mark.parametrize("path", all_sources())
def test_every_file_imports_only_what_its_layer_may(path: str) -> None:
    assert broken_rules(path, all_sources()[path]) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("edge/station.py", "import train"),
        ("edge/station.py", "from train.runs import Run"),
        ("edge/station.py", "def f():\n    import export.make"),
        ("edge/station.py", "from importlib import import_module\nimport_module('train.runs')"),
        ("edge/station.py", "__import__('export')"),
        ("edge/engine/ort.py", "from ...train import runs"),
        ("edge/station.py", "if TYPE_CHECKING:\n    from train.runs import Run"),
        ("train/fit.py", "import export.graph"),
        ("train/fit.py", "from edge.camera import capture"),
        ("train/fit.py", "from edge.outbox import Outbox"),
        ("train/fit.py", "from edge import daemon"),
        ("train/fit.py", "def f():\n    from edge.subscriber import Subscriber"),
        ("edge/contract/masks.py", "import cv2"),
        ("edge/contract/masks.py", "from PIL import Image"),
        ("edge/contract/masks.py", "import rich"),
        ("edge/contract/masks.py", "def f():\n    import typing_extensions"),
        ("edge/contract/masks.py", "from edge.geometry import region_mask"),
        ("edge/contract/masks.py", "from edge import __version__"),
        ("edge/contract/masks.py", "import tomllib"),
        ("edge/config.py", "import tomllib"),
        ("train/toml.py", "import tomli"),
        ("edge/engine/__init__.py", "import onnxruntime"),
        ("edge/engine/__init__.py", "def f():\n    from onnxruntime import InferenceSession"),
        ("train/evaluate.py", "import onnxruntime"),
        ("edge/daemon.py", "from paho.mqtt.client import Client"),
        ("edge/commands/watch.py", "def f():\n    import paho.mqtt.client"),
        ("edge/engine/ort.py", "import tensorrt"),
        ("edge/engine/worker.py", "def f():\n    import pycuda.driver"),
        ("export/trt.py", "from tensorrt import Builder"),
        ("edge/engine/ladder.py", "def f():\n    import tensorrt"),
        ("edge/engine/trt/run.py", "def f():\n    import pycuda.driver"),
        ("edge/engine/trt/device.py", "import tensorrt"),
        ("edge/engine/trt/device.py", "from pycuda import driver"),
        ("edge/commands/bench.py", "import pycuda.driver"),
        ("edge/engine/certify.py", "import onnxruntime"),
        ("edge/engine/trt/certified.py", "from export.trt import build"),
        ("edge/engine/trt/worker.py", "import onnxruntime"),
        ("edge/station.py", "import cv2\ncv2.VideoCapture(0)"),
        ("train/synth/view.py", "from cv2 import VideoCapture"),
    ],
)
def test_each_rule_finds_a_file_that_breaks_it(path: str, source: str) -> None:
    assert len(broken_rules(path, source)) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("edge/contract/masks.py", "def f():\n    from PIL import Image"),
        ("edge/contract/masks.py", "if TYPE_CHECKING:\n    from PIL import Image"),
        (
            "edge/contract/masks.py",
            "import io\nimport numpy.typing\nfrom edge.contract import files",
        ),
        ("edge/contract/boundary.py", "import tomllib"),
        ("edge/engine/ort.py", "import onnxruntime"),
        ("edge/engine/trt/device.py", "def f():\n    import tensorrt, pycuda.driver"),
        ("edge/camera/stream.py", "import cv2\ncv2.VideoCapture(0)"),
        ("edge/publish.py", "from paho.mqtt.client import Client"),
        (
            "train/fit.py",
            "import torch\nfrom edge.engine import resize\nfrom edge import __version__",
        ),
        (
            "export/make.py",
            "import onnxruntime\nfrom train.runs import Run\nfrom edge import engine",
        ),
        ("edge/station.py", "from edge.trainer import x\nimport exporter"),
    ],
)
def test_what_a_layer_may_import_is_not_found(path: str, source: str) -> None:
    assert broken_rules(path, source) == []


def test_export_s_init_is_empty() -> None:
    assert (REPOSITORY / "export" / "__init__.py").read_bytes() == b""


def test_what_the_station_compiles_engines_with_loads_neither_torch_nor_train() -> None:
    loaded = reached("export/trt.py", all_sources())
    assert "edge.engine.trt.certified.Maker" in loaded
    assert not [module for module in loaded if names(module, "torch") or names(module, "train")]


@pytest.mark.parametrize(
    "sources",
    [
        {"export/trt.py": "import torch"},
        {"export/trt.py": "from export.graph import x", "export/graph.py": "import torch.nn"},
        {
            "export/trt.py": "from edge.engine import x",
            "edge/engine/__init__.py": "def f():\n    from train import runs",
        },
        {
            "export/trt.py": "import export.a",
            "export/__init__.py": "import torch",
            "export/a.py": "",
        },
    ],
)
def test_torch_is_found_however_far_away_it_is_imported(sources: dict[str, str]) -> None:
    loaded = reached("export/trt.py", sources)
    assert [module for module in loaded if names(module, "torch") or names(module, "train")]


def test_what_only_type_checkers_read_is_not_loaded() -> None:
    source = "import io\nif TYPE_CHECKING:\n    import torch"
    assert reached("a.py", {"a.py": source}) == {"io"}


def loaded_by(*command: str) -> set[str]:
    """Top-level packages that a real program imports, by the interpreter's own account."""
    ended = subprocess.run(
        command,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", ended.stderr, re.MULTILINE)
    return {module.partition(".")[0] for module in lines}


def test_the_command_line_starts_without_torch_engines_or_opencv() -> None:
    program = Path(sys.executable).with_name("icecam")
    loaded = loaded_by(str(program), "--help")
    assert "edge" in loaded
    assert not loaded.intersection(HEAVY)


def test_importing_edge_and_its_main_module_loads_none_of_them_either() -> None:
    code = "import sys, edge, edge.__main__; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert "edge.__main__" in said
    assert not {module.partition(".")[0] for module in said}.intersection(HEAVY)


def test_the_daemon_and_what_makes_its_engines_load_none_of_them() -> None:
    """Rule: the daemon never decodes a picture nor runs a model; its children do."""
    modules = "edge.daemon, edge.engine.ladder, edge.engine.trt.certified, edge.engine.trt.cache"
    code = f"import sys, {modules}; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert "edge.engine.trt.run" not in said
    assert not {module.partition(".")[0] for module in said}.intersection(HEAVY)


def test_the_probe_of_real_programs_sees_what_is_loaded() -> None:
    assert {"cv2", "numpy"} <= loaded_by(sys.executable, "-c", "import cv2")
