"""``python -m export check``, run as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edge.contract.bundle import open_bundle, write_bundle
from export.operators.tables import known_versions

REPOSITORY = Path(__file__).resolve().parents[3]
DEMO = REPOSITORY / "edge" / "demo" / "demo.icecam"
ALL = [version.name for version in known_versions()]


def save(path: Path, *nodes: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...] = ()) -> Path:
    """Write a graph from float32 `x` to `y`, both of 2x3."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in "xy")
    graph = helper.make_graph(list(nodes), "hand-made", [x], [y], list(constants))
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", "check", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=120
    )


@pytest.fixture
def bad_graph(tmp_path: Path) -> Path:
    """ScatterND as exporters write it, which releases before 10.9 refuse."""
    scatter = helper.make_node(
        "ScatterND", ["x", "index", "update"], ["y"], name="the ScatterND", reduction="none"
    )
    constants = (
        helper.make_tensor("index", TensorProto.INT64, [1, 1], [0]),
        helper.make_tensor("update", TensorProto.FLOAT, [1, 3], [0, 0, 0]),
    )
    return save(tmp_path / "scatter.onnx", scatter, constants=constants)


def test_the_demo_bundle_is_taken_by_every_version() -> None:
    said = check(DEMO)
    assert (said.returncode, said.stderr) == (0, "")
    rows = [line for line in said.stdout.splitlines() if "takes it" in line]
    assert [row.split("│")[1].strip() for row in rows] == ALL
    assert "refuses" not in said.stdout
    assert "ensemble.onnx: 4.6 MB" in said.stdout


def test_json_tells_versions_graphs_members_and_files() -> None:
    said = check(DEMO, "--json", "--tensorrt", "10.3", "--tensorrt", "10.13.3")
    told = json.loads(said.stdout)
    manifest = open_bundle(DEMO).manifest
    assert told["takes"] is True
    assert [(one["name"], one["table"]) for one in told["tensorrt"]] == [
        ("10.3", "10.1"),
        ("10.13", "10.13"),
    ]
    (graph,) = told["graphs"]
    assert (graph["name"], graph["precision"]) == ("full", "float32")
    assert graph["refused"] == {"10.3": [], "10.13": []}
    assert [one["name"] for one in told["members"]] == [one.name for one in manifest.members]
    assert {one["path"]: one["size_bytes"] for one in told["files"]} == {
        one.path: one.size for one in manifest.files
    }


def test_a_bare_graph_tells_what_fails_where_and_where_it_does_not(bad_graph: Path) -> None:
    said = check(bad_graph)
    assert said.returncode == 1
    assert "10.3, 10.7, 10.8: ScatterND 'the ScatterND': `reduction` none" in said.stdout
    assert "not the one graph: input 'x' is not uint8" in said.stdout
    assert check(bad_graph, "--tensorrt", "10.9").returncode == 0
    told = json.loads(check(bad_graph, "--json").stdout)
    assert told["takes"] is False
    assert told["graphs"][0]["refused"]["10.7"][0]["operator"] == "ScatterND"
    assert told["bundle"] is None


def test_what_tensorrt_would_compile_counts_not_what_onnx_runtime_runs(
    bad_graph: Path, tmp_path: Path
) -> None:
    demo = open_bundle(DEMO)
    fields = demo.manifest.model_dump(mode="json", by_alias=True, exclude={"files"})
    half = {**fields["graphs"][0], "name": "half", "file": "half.onnx", "precision": "float16"}
    files = {one.path: demo.read(one.path) for one in demo.manifest.files}
    bundle = tmp_path / "half.icecam"
    write_bundle(
        bundle,
        {**fields, "graphs": [*fields["graphs"], half]},
        {**files, "half.onnx": bad_graph.read_bytes()},
    )
    assert check(bundle).returncode == 1
    assert json.loads(check(bundle, "--json").stdout)["takes"] is False
    assert check(bundle, "--tensorrt", "10.9").returncode == 0


def with_second_graph(graph: Path, out: Path, *, first: bool) -> Path:
    """The demo bundle with another graph before or after its own, and a count of suppressions."""
    demo = open_bundle(DEMO)
    fields = demo.manifest.model_dump(mode="json", by_alias=True)
    fields["members"][0]["unresolved"] = 7
    second = {**fields["graphs"][0], "name": "other", "file": "other.onnx"}
    fields["graphs"] = [second, *fields["graphs"]] if first else [*fields["graphs"], second]
    files = {one.path: demo.read(one.path) for one in demo.manifest.files}
    del fields["files"]
    write_bundle(out, fields, {**files, "other.onnx": graph.read_bytes()})
    return out


def test_only_the_first_graph_decides_the_exit_status(bad_graph: Path, tmp_path: Path) -> None:
    later = check(with_second_graph(bad_graph, tmp_path / "later.icecam", first=False))
    assert later.returncode == 0
    assert "other: 10.3, 10.7, 10.8: ScatterND" in later.stdout
    assert "7 suppressions of overlapping instances left undecided" in later.stdout
    earlier = check(with_second_graph(bad_graph, tmp_path / "earlier.icecam", first=True))
    assert earlier.returncode == 1


def test_many_reasons_are_cut_short_for_people_and_whole_in_json(tmp_path: Path) -> None:
    nodes = [helper.make_node(f"Odd{n}", ["x"], [f"y{n}" if n else "y"]) for n in range(30)]
    path = save(tmp_path / "odd.onnx", *nodes)
    said = check(path, "--tensorrt", "11.4")
    assert "reasons more; --json lists them all" in said.stdout
    assert said.stdout.count("the parser does not know") < 30
    refused = json.loads(check(path, "--json", "--tensorrt", "11.4").stdout)["graphs"][0]["refused"]
    assert len([one for one in refused["11.4"] if one["operator"]]) == 30


def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a graph")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    foreign = helper.make_node("Relu", ["x"], ["y"], domain="com.example")
    stray = save(tmp_path / "stray.onnx", foreign)
    cut = tmp_path / "cut.icecam"
    shutil.copyfile(DEMO, cut)
    with cut.open("r+b") as file:
        file.truncate(DEMO.stat().st_size // 2)
    for path, expected in (
        (tmp_path / "none.icecam", "No such file"),
        (tmp_path / "none.onnx", "No such file"),
        (tmp_path, "cannot be read"),
        (text, "holds no graph"),
        (empty, "holds no graph"),
        (stray, "cannot be inferred"),
        (cut, str(cut)),
    ):
        said = check(path)
        assert said.returncode == 1
        assert said.stdout == ""
        assert said.stderr.count("\n") == 1, said.stderr
        assert said.stderr.startswith("error: ")
        assert expected in said.stderr


def test_a_bundle_whose_graph_is_no_graph_is_named(tmp_path: Path) -> None:
    graph = tmp_path / "text.onnx"
    graph.write_text("not a graph")
    said = check(with_second_graph(graph, tmp_path / "odd.icecam", first=True))
    assert said.returncode == 1
    assert "other.onnx: holds no graph" in said.stderr


def test_a_changed_byte_is_found_before_anything_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "changed.icecam"
    shutil.copyfile(DEMO, path)
    with tarfile.open(DEMO) as tar:
        offset = tar.getmember("ensemble.onnx").offset_data + 1000
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    said = check(path)
    assert said.returncode == 1
    assert "ensemble.onnx is damaged" in said.stderr


def test_an_old_version_is_a_usage_error() -> None:
    said = check(DEMO, "--tensorrt", "8.6.1")
    assert (said.returncode, said.stdout) == (2, "")
    assert "TensorRT 8.6.1; expected 10.3 or newer" in said.stderr


def test_the_command_loads_neither_torch_nor_train_nor_an_engine(bad_graph: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from export.commands.check import check\n"
        f"check(Path({str(bad_graph)!r}), [], as_json=True)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    loaded = {module.partition(".")[0] for module in said.stderr.split()}
    assert "onnx" in loaded
    assert not loaded & {"torch", "train", "onnxruntime", "tensorrt", "pycuda", "cv2"}
