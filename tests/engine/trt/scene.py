"""A bundle with a float16 graph and a fallback, its engines on the doubles, and who makes them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from edge.contract.bundle import Bundle, open_bundle
from edge.engine import graph_of
from edge.engine.golden import read_golden
from edge.engine.trt.cache import EngineCache
from edge.engine.trt.certified import Certified, Maker
from edge.engine.trt.device import Device
from tests.doubles import places
from tests.engine.bundles import answer_file, arrays_of, changed

if TYPE_CHECKING:
    from pathlib import Path

    from edge.engine.trt.build import Progress
    from tests.engine.trt.conftest import TrtEnv

FULL, FALLBACK = "full-fp16", "fallback"
"""The graphs that TensorRT is to compile, best first."""

DEVICE = Device(
    tensorrt="10.3.0",
    name="Double of a GPU",
    compute_capability="8.7",
    l4t="",
    integrated=False,
    memory_bytes=8 << 30,
)
"""What the doubles are, where nothing else is asked for."""

HEAD = """
import json, sys
import numpy as np
from pathlib import Path
from edge.contract.bundle import open_bundle
from edge.contract.errors import EngineError
from edge.engine import graph_of, open_engine
from edge.engine.golden import read_golden

bundle, cache, name = open_bundle(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
frames = [read_golden(bundle, case, graph_of(bundle, name))[0] for case in bundle.manifest.golden]

def opened():
    return open_engine(bundle, backend="trt", graph=name, cache=cache)

def error_of(call, *arguments):
    try:
        call(*arguments)
    except EngineError as problem:
        return str(problem)

def tell(value):
    print(json.dumps(value), flush=True)
"""


@pytest.fixture(scope="session")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo's members: full, full-fp16, and a fallback of the first alone; two golden frames."""
    from export.float16 import to_float16

    demo = open_bundle(demo_bundle)
    whole = demo.manifest.graphs[0]
    cases = demo.manifest.golden[:2]
    model = onnx.load_from_string(demo.read(whole.file))
    half = to_float16(model, [read_golden(demo, case, whole)[0] for case in cases])
    full = whole.model_dump()
    fallback = {**full, "name": FALLBACK, "file": "fallback.onnx"}
    fallback |= {"members": full["members"][:1], "weights": (1.0,)}
    answers = {f"golden/{n}-fallback.npz": _alone(demo, case) for n, case in enumerate(cases)}
    golden = [
        {**case.model_dump(), "answers": {FALLBACK: answer}}
        for case, answer in zip(cases, answers, strict=True)
    ]
    return changed(
        demo,
        tmp_path_factory.mktemp("bundle") / "ice.icecam",
        {
            "ensemble.fp16.onnx": half.SerializeToString(),
            "fallback.onnx": _first_member(model),
            **answers,
        },
        graphs=[
            full,
            {**full, "name": FULL, "file": "ensemble.fp16.onnx", "precision": "float16"},
            fallback,
        ],
        golden=golden,
    )


def _first_member(model: onnx.ModelProto) -> bytes:
    """The same graph with the first member's decision as its mask; the confidence stays."""
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    casts = {node.output[0]: node for node in graph.node}
    members = casts["member_masks"].input[0]
    graph.node.remove(casts["mask"])
    graph.node.remove(casts["member_masks"])
    ends = {"zero": 0, "one": 1}
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in ends.items()
    )
    graph.node.append(helper.make_node("Slice", [members, "zero", "one", "zero"], ["first"], "cut"))
    graph.node.extend(
        helper.make_node("Cast", ["first"], [name], name, to=TensorProto.UINT8)
        for name in ("mask", "member_masks")
    )
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    return bytes(alone.SerializeToString())


def _alone(demo: Bundle, case: Any) -> bytes:  # noqa: ANN401 - a golden case
    arrays = arrays_of(demo.read(case.answer))
    arrays["mask"] = arrays["member_masks"][0]
    arrays["member_masks"] = arrays["member_masks"][:1]
    return answer_file(**arrays)


class Workshop:
    """Makes engines in a folder; their children find the doubles, with the faults asked for."""

    def __init__(self, trt_env: TrtEnv, folder: Path, bundle: Bundle) -> None:
        self._trt_env = trt_env
        self.bundle = bundle
        self.folder = folder
        self.said: list[str] = []
        self.steps: list[Progress] = []
        self.maker = Maker(cache=EngineCache(folder), say=self.said.append, heed=self.steps.append)

    def make(
        self,
        *faults: str,
        graph: str = FULL,
        bundle: Bundle | None = None,
        device: Device = DEVICE,
        rebuild: bool = False,
        **settings: str | int,
    ) -> Certified:
        """Do what the station does for a graph."""
        del self.said[:], self.steps[:]
        bundle = bundle or self.bundle
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._trt_env(*faults, **settings).items():
                patch.setenv(name, value)
            return self.maker.make(bundle, graph_of(bundle, graph), device, rebuild=rebuild)

    @property
    def builds(self) -> int:
        """How many builds the last ``make`` began, as their outermost phase tells."""
        return sum(1 for step in self.steps if not step.parent and not step.step)

    def kept(self) -> dict[str, tuple[bytes, int]]:
        """Plans and records that may be loaded: content and time of change."""
        return {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.folder.glob("*.*")
            if path.suffix in {".plan", ".json"} and path.is_file() and not path.is_symlink()
        }

    def left(self, folder: str) -> list[str]:
        """Names of what lies in ``unfinished`` or ``quarantine``."""
        return sorted(path.name for path in (self.folder / folder).iterdir())

    def run(
        self, code: str, *faults: str, graph: str = FULL, **settings: str | int
    ) -> subprocess.CompletedProcess[str]:
        """Run code after HEAD in a process of its own, to its end."""
        arguments = [self.bundle.path, self.folder, graph]
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", HEAD + code, *arguments],
            env=self._trt_env(*faults, **settings),
            cwd=places.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def told(self, code: str, *faults: str, **settings: str | int) -> Any:  # noqa: ANN401 - JSON
        """Return what code told, of several the last."""
        ended = self.run(code, *faults, **settings)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def engines(
    prepared_doubles: None,  # noqa: ARG001 - needed first
    bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with both certified engines, to be copied."""
    folder = tmp_path_factory.mktemp("engines") / "engines"

    def env(*_: str, **__: str | int) -> dict[str, str]:
        return places.search_paths()

    workshop = Workshop(env, folder, bundle)
    for graph in (FULL, FALLBACK):
        workshop.make(graph=graph)
    return folder


@pytest.fixture
def workshop(trt_env: TrtEnv, bundle: Bundle, tmp_path: Path) -> Workshop:
    """Nothing was made yet."""
    return Workshop(trt_env, tmp_path / "engines", bundle)


@pytest.fixture
def stocked(trt_env: TrtEnv, bundle: Bundle, engines: Path, tmp_path: Path) -> Workshop:
    """Both engines lie here."""
    folder = tmp_path / "engines"
    shutil.copytree(engines, folder)
    return Workshop(trt_env, folder, bundle)
