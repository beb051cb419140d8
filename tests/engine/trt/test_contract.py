"""The code and the doubles against real releases of TensorRT's Python bindings.

The bindings import over stand-ins for TensorRT's libraries: names, enums and signatures are real,
nothing can be built.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import places
from tests.doubles.uses import OTHER, Known, scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.doubles.places import Binding
    from tests.doubles.uses import Use
    from tests.engine.trt.conftest import TrtEnv

DECLARED = {
    "trt": "module",
    "parser": "OnnxParser",
    "network": "INetworkDefinition",
    "engine": "ICudaEngine",
    "config": "IBuilderConfig",
    "logger": OTHER,  # a logger of ours, handed on
    "severity": OTHER,  # compared, no more
    "listening_logger": OTHER,
    "_monitor": OTHER,  # a progress monitor of ours
    "_give_timings": "ITimingCache",
}
"""What is typed ``Any`` in our code, by the name of the parameter or function: TensorRT's class."""

THROUGH = frozenset({"checked"})

OPTIONAL: Mapping[str, str] = {}
"""What some release lacks, and why the code may ask for it all the same."""

BUILD_AND_RUN = {
    "Builder.build_serialized_network",
    "IBuilderConfig.progress_monitor",
    "IBuilderConfig.set_timing_cache",
    "ICudaEngine.get_tensor_shape",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_tensor_address",
    "MemoryPoolType.WORKSPACE",
    "OnnxParser.parse",
    "ParserError.node_name",
    "Runtime.deserialize_cuda_engine",
}
"""What a scan of our code must find, or it is blind."""


def bindings() -> list[Any]:
    why = "no wheel for this Python"
    return [
        pytest.param(
            one,
            id=one.version,
            marks=[] if one.available else pytest.mark.skip(f"{one.version}: {why}"),
        )
        for one in places.BINDINGS
    ]


def binding_env(binding: Binding) -> dict[str, str]:
    folders = [str(binding.folder), str(places.REPOSITORY)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "LD_LIBRARY_PATH": str(places.NVINFER),
    }


def printed(*command: str | Path, env: Mapping[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@functools.cache
def api(binding: Binding) -> dict[str, Any]:
    script = places.SOURCES / "describe.py"
    found = json.loads(printed(script, "tensorrt_bindings", env=binding_env(binding)))
    assert isinstance(found, dict)
    return found


def our_files() -> Iterator[Path]:
    yield from sorted((places.REPOSITORY / "edge" / "engine" / "trt").glob("*.py"))
    yield places.REPOSITORY / "export" / "trt.py"


def our_uses(api: Mapping[str, Any]) -> dict[str, list[Use]]:
    known = Known(declared=DECLARED, returns=api["returns"], through=THROUGH)
    return {
        path.name: scan(path.read_text(encoding="utf-8"), known).uses
        for path in our_files()
        if path.exists()
    }


def complaints(use: Use, api: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a use, by one release's API."""
    name, _, member = use.path.partition(".")
    if use.path in OPTIONAL or use.path == "__version__" or member.startswith("Severity"):
        return
    where = f"line {use.line}: {use.path}"
    known = {**api["functions"], **api["enums"], **api["classes"]}
    if name not in known or (member and not has_member(known[name], member)):
        yield f"{where} does not exist"
    elif use.positional is not None and name not in api["enums"]:
        overloads = api["functions"].get(name) or api["classes"][name].get(member or "__init__")
        if not any(fits(use, names) for names in overloads or []):
            yield f"{where} takes {overloads}, is given {use.positional} and {use.keywords}"


def has_member(members: Mapping[str, Any], member: str) -> bool:
    return member in members or member in {"__init__", "__members__", "name", "value"}


def fits(use: Use, names: list[str]) -> bool:
    """Whether a call may be meant for an overload with parameters of these names."""
    left = names[use.positional or 0 :]
    return (use.positional or 0) <= len(names) and set(use.keywords) <= set(left)


@pytest.fixture(scope="module", autouse=True)
def _prepared(prepared_doubles: None) -> None:
    """Everything here reads real bindings."""


@pytest.mark.parametrize("binding", bindings())
def test_every_name_that_our_code_uses_exists_in_the_release(binding: Binding) -> None:
    release = api(binding)
    assert release["version"].startswith(binding.version.partition(".post")[0])
    uses = our_uses(release)
    found = [(file, use) for file in uses for use in uses[file]]
    assert [f"{file} {one}" for file, use in found for one in complaints(use, release)] == []


def test_the_scan_of_our_code_sees_how_it_builds_and_runs() -> None:
    newest = next(one for one in reversed(places.BINDINGS) if one.available)
    seen = {use.path for uses in our_uses(api(newest)).values() for use in uses}
    assert seen >= BUILD_AND_RUN


@pytest.mark.parametrize("path", list(our_files()), ids=lambda path: path.name)
def test_what_our_code_leaves_untyped_is_declared_here(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    source = path.read_text(encoding="utf-8")
    if not re.search(r"load_tensorrt|trt: ModuleType|import tensorrt", source):
        return  # sees nothing of TensorRT's
    assert scan(source, Known(declared=DECLARED, returns={})).undeclared == []


@pytest.mark.parametrize(
    "source",
    [
        "import tensorrt as trt\ntrt.Buidler",
        "import tensorrt\ntensorrt.BuilderFlag.FP17",
        "trt = load_tensorrt()\ntrt.Builder(logger, 3)",
        "trt = load_tensorrt()\nbuilder = trt.Builder(l)\nbuilder.create_networks()",
        "trt = load_tensorrt()\ntrt.Builder(l).create_network(flag=1)",
        "trt = load_tensorrt()\nn = trt.Builder(l).create_network(1)\nn.get_input(0).shapes",
        "trt = load_tensorrt()\nc = trt.Builder(l).create_builder_config()\nc.progress = None",
        "def f(parser: Any):\n    error = parser.get_error(0)\n    return error.node_nam()",
        "def f(config: Any, p):\n    config.set_memory_pool_limit(p, size=1)",
        "def f(network: Any):\n    return [t.nam for t in [network.get_input(i) for i in x]]",
        "class A:\n    def f(self, trt):\n        self.r = trt.Runtime(l)\n"  # noqa: ISC004
        "    def __init__(self):\n        self.r.deserialize_engine",
        "def f(engine: Any):\n    x = engine.create_execution_context()\n"  # noqa: ISC004
        "    checked(x.execute_async_v3, stream=0)",
        "trt = load_tensorrt()\nclass M(trt.ProgressMonitor): pass",
    ],
)
@pytest.mark.parametrize("binding", bindings())
def test_a_name_that_does_not_exist_is_found(binding: Binding, source: str) -> None:
    release = api(binding)
    known = Known(declared=DECLARED, returns=release["returns"], through=THROUGH)
    uses = scan(source, known).uses
    assert [one for use in uses for one in complaints(use, release)] != []


def test_a_parameter_of_unknown_type_is_found() -> None:
    source = "def f(thing: Any, config: Any) -> Any: ..."
    found = scan(source, Known(declared=DECLARED, returns={}))
    assert found.undeclared == ["thing (line 1)", "f (line 1)"]


@pytest.mark.parametrize(
    "source",
    [
        "import tensorrt as trt\n1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)",
        "trt = load_tensorrt()\ntrt.ILogger.__init__(self)\ntrt.Builder(logger=l)",
        "def f(config: Any, c):\n    config.set_timing_cache(c, ignore_mismatch=False)",
    ],
)
@pytest.mark.parametrize("binding", bindings())
def test_a_name_that_exists_is_not_found(binding: Binding, source: str) -> None:
    release = api(binding)
    uses = scan(source, Known(declared=DECLARED, returns=release["returns"])).uses
    assert uses
    assert [one for use in uses for one in complaints(use, release)] == []


OUR_CLASSES = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from edge.engine.trt.build import _monitor, _Phases
from edge.engine.trt.device import listening_logger, load_tensorrt

trt = load_tensorrt()
logger = listening_logger(trt)
logger.log(trt.ILogger.ERROR, "no memory")
told = []
monitor = _monitor(trt, _Phases(lambda progress: told.append(progress) or False))
monitor.phase_start("Building", None, 2)
assert monitor.step_complete("Building", 0) is False
monitor.phase_finish("Building")
assert isinstance(monitor, trt.IProgressMonitor) and isinstance(logger, trt.ILogger)
trt.init_libnvinfer_plugins(logger, "")
try:
    trt.Builder(logger)
except TypeError as error:
    assert "factory function returned nullptr" in str(error)  # not: incompatible arguments
print(logger.said, len(told))
"""


@pytest.mark.parametrize("binding", bindings())
def test_our_logger_and_monitor_are_taken_by_the_release(binding: Binding) -> None:
    assert printed("-c", OUR_CLASSES, env=binding_env(binding)).split()[:2] == ["['no", "memory']"]


def describe_double(binding: Binding, trt_env: TrtEnv) -> dict[str, Any]:
    version = ".".join(binding.version.split(".")[:3])
    script = places.SOURCES / "describe.py"
    found = json.loads(printed(script, "tensorrt", env=trt_env(version=version)))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("binding", bindings())
def test_the_double_offers_nothing_that_the_release_does_not(
    binding: Binding, trt_env: TrtEnv
) -> None:
    real, double = api(binding), describe_double(binding, trt_env)
    assert len(double["classes"]) >= 15
    assert list(surplus(double, real)) == []


def surplus(double: Mapping[str, Any], real: Mapping[str, Any]) -> Iterator[str]:
    """What a double has beyond the real module: names, values, members, parameters."""
    for kind in ("functions", "enums", "classes"):
        yield from (f"{kind}: {name}" for name in double[kind].keys() - real[kind].keys())
    for name, members in double["enums"].items():
        values = real["enums"].get(name, {})
        yield from (f"{name}.{key}" for key in members if members[key] != values.get(key))
    for name, parameters in double["functions"].items():
        if parameters[0] not in real["functions"].get(name, []):
            yield f"{name}({parameters[0]})"
    for name, members in double["classes"].items():
        for member, overloads in members.items():
            if member != "__init__" or real["classes"].get(name, {}).get("__init__"):
                yield from _surplus_member(f"{name}.{member}", overloads, real["classes"])


def _surplus_member(
    path: str, overloads: list[list[str]] | None, classes: Mapping[str, Any]
) -> Iterator[str]:
    name, _, member = path.partition(".")
    known = classes.get(name, {})
    if member not in known or (overloads is None) != (known[member] is None):
        yield path
    elif overloads is not None and overloads[0] not in known[member]:
        yield f"{path}({overloads[0]}), not {known[member]}"


def test_a_double_with_something_more_is_found() -> None:
    real = {
        "functions": {"f": [["a"]]},
        "enums": {"E": {"A": 0}},
        "classes": {"C": {"__init__": [["a"]], "m": [["x"], ["x", "y"]], "p": None}},
    }
    double = {
        "functions": {"f": [["b"]], "g": [[]]},
        "enums": {"E": {"A": 1}},
        "classes": {"C": {"__init__": [["a"]], "m": [["y"]], "p": [[]], "q": None}, "D": {}},
    }
    assert sorted(surplus(double, real)) == [
        "C.m(['y']), not [['x'], ['x', 'y']]",
        "C.p",
        "C.q",
        "E.A",
        "classes: D",
        "f(['b'])",
        "functions: g",
        "g([])",
    ]
    assert list(surplus(real, real)) == []
