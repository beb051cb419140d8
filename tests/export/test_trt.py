"""``python -m export.trt`` as it is called, on doubles of TensorRT and libcuda."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.contract.bundle import sign_bundle
from edge.contract.files import write_atomically
from edge.signing import new_private_key, public_key, sign_manifest
from tests.doubles import places
from tests.doubles.graphs import unknown_operator
from tests.engine.bundles import answer_file, arrays_of, changed
from tests.engine.trt import conftest as doubles
from tests.engine.trt import scene
from tests.engine.trt.scene import FALLBACK, FULL, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.bundle import Bundle

# Fixtures of the tests of edge/engine/trt.
prepared_doubles, trt_env = doubles.prepared_doubles, doubles.trt_env
cuda_report_path = doubles.cuda_report_path
bundle, engines = scene.bundle, scene.engines
stocked, workshop = scene.stocked, scene.workshop

MIB = 1 << 20


def trt(
    workshop: Workshop,
    *arguments: str | Path,
    faults: tuple[str, ...] = (),
    bundle: Path | None = None,
    before: Callable[[], None] | None = None,
    **settings: str | int,
) -> subprocess.CompletedProcess[str]:
    """Call the command for the workshop's bundle and folder."""
    given = [bundle or workshop.bundle.path, "--cache", workshop.folder, *arguments]
    return subprocess.run(
        [sys.executable, "-m", "export.trt", *given],
        env=workshop._trt_env(*faults, **settings),
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=before,
    )


def events(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.stdout.splitlines()]


def of_kind(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["event"] == kind]


def other_answers(bundle: Bundle, path: Path) -> Bundle:
    """A bundle whose full ensemble is said to answer ice for water and water for ice."""
    files = {}
    for case in bundle.manifest.golden:
        arrays = arrays_of(bundle.read(case.answer))
        for name in ("mask", "member_masks"):
            arrays[name] = np.array([0, 2, 1], np.uint8)[arrays[name]]
        files[case.answer] = answer_file(**arrays)
    return changed(bundle, path, files)


def test_a_bundle_becomes_a_certified_engine_and_every_step_is_an_event(
    workshop: Workshop, bundle: Bundle
) -> None:
    ended = trt(workshop, "--json", faults=("slow-build=2",))
    assert (ended.returncode, ended.stderr) == (0, "")
    told = events(ended)
    assert [event["text"] for event in of_kind(told, "say")] == [
        f"{bundle.manifest.id}: not signed",
        "TensorRT 10.3.0, Double of a GPU (compute 8.7)",
        f"building an engine for graph '{FULL}' (none was built yet)",
        "running 2 golden frames through it",
    ]
    phases = of_kind(told, "progress")
    assert {event["parent"] for event in phases} == {"", "Building Engine"}
    assert told.index(phases[0]) == 3
    assert [event["phase"] for event in phases if event["over"]][-1] == "Building Engine"
    *_, engine, verdict = told
    assert (engine["graph"], engine["found"]) == (FULL, "built")
    assert engine["engine"]["origin"]["precision"] == "float16"
    assert engine["engine"]["certification"]["passed"] is True
    assert engine["plan"] in {str(path) for path in workshop.folder.glob("*.plan")}
    assert verdict == {"event": "verdict", "serves": FULL, "full": True}


def test_a_person_is_told_the_same_in_words_and_the_second_time_that_it_was_kept(
    stocked: Workshop,
) -> None:
    before = stocked.kept()
    ended = trt(stocked)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"✓ graph {FULL}: kept; 2.3 MB, built in " in ended.stdout
    assert "on 2 golden frames: agreement 99." in ended.stdout
    assert "building" not in ended.stdout
    assert stocked.kept() == before
    again = trt(stocked, "--rebuild", "--workspace", "128")
    assert again.returncode == 0
    assert f"✓ graph {FULL}: built; 2.3 MB" in again.stdout
    assert "with a workspace of 128 MiB" in again.stdout


def test_where_tensorrt_refuses_the_full_ensemble_the_fallback_serves_and_the_status_is_1(
    workshop: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    other = changed(bundle, tmp_path / "b.icecam", {"ensemble.fp16.onnx": unknown_operator()})
    ended = trt(workshop, bundle=other.path)
    assert ended.returncode == 1
    assert "✗ " in ended.stdout
    assert "node 'Thaw of mask' (Thaw)" in ended.stdout
    assert f"graph '{FALLBACK}' has no float16 form: its engine is float32" in ended.stdout
    assert f"✓ graph {FALLBACK}: built" in ended.stdout
    assert f"the full ensemble has no engine: {FALLBACK} would serve" in ended.stdout


def test_where_the_full_ensemble_is_not_equal_the_verdict_tells_its_figures(
    stocked: Workshop, bundle: Bundle, tmp_path: Path
) -> None:
    other = other_answers(bundle, tmp_path / "b.icecam")
    ended = trt(stocked, "--json", bundle=other.path)
    assert ended.returncode == 1
    told = events(ended)
    (refused,) = of_kind(told, "refused")
    verdict = refused["certification"]
    assert (verdict["graph"], verdict["passed"]) == (FULL, False)
    assert verdict["bundle_sha256"] == other.sha256
    # Of the golden frames 0.339 and 0.385 are of class other, which alone still agrees.
    assert verdict["mask_agreement"] == pytest.approx(0.36, abs=0.03)
    assert "IoU of water 0.0" in refused["message"]
    (engine,) = of_kind(told, "engine")
    assert (engine["graph"], engine["found"]) == (FALLBACK, "certified anew")
    assert told[-1] == {"event": "verdict", "serves": FALLBACK, "full": False}


def test_where_no_engine_is_equal_it_says_what_would_serve(workshop: Workshop) -> None:
    ended = trt(workshop, faults=("lose-class=2",))
    assert ended.returncode == 1
    assert ended.stdout.count("does not answer as the bundle's golden frames say") == 2
    assert "IoU of ice 0.000, at least 0.97 wanted" in ended.stdout
    assert ended.stdout.endswith("no engine was certified: ONNX Runtime would serve\n")
    assert workshop.kept() == {}


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯─]", "", text))


def test_help_teaches() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "export.trt", "--help"],
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    told = plain(ended.stdout)
    for words in (
        "python -m export.trt ice.icecam ",
        "python -m export.trt ice.icecam --on admin@salluit-01 --python /opt/icecam/bin/python",
        "An engine is for the machine that built it alone.",
        "The exit status is 0 only where the full ensemble was certified.",
        "a station looks in STATE_DIR/engines. By default ~/.cache/icecam/engines.",
        *("--on", "--cache", "--workspace", "--trust", "--python", "--ssh-config"),
        *("--rebuild", "--json", "--debug"),
    ):
        assert words in told, words


@pytest.mark.parametrize(
    "wrong",
    [("--workspace", "63"), ("--workspace", "much"), ("--thaw",), ("another.icecam",)],
)
def test_a_wrong_call_is_status_2_and_does_nothing(
    workshop: Workshop, wrong: tuple[str, ...]
) -> None:
    ended = trt(workshop, *wrong)
    assert ended.returncode == 2
    assert wrong[0] in plain(ended.stderr)
    assert not workshop.folder.exists()


def test_a_call_without_a_bundle_is_status_2() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "export.trt"],
        cwd=places.REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 2


def test_a_bundle_that_is_not_there_is_named_in_words_or_as_an_event(
    workshop: Workshop, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere.icecam"
    ended = trt(workshop, bundle=nowhere)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"error: {nowhere}: cannot be read (No such file")
    as_event = trt(workshop, "--json", bundle=nowhere)
    assert (as_event.returncode, as_event.stderr) == (1, "")
    (event,) = events(as_event)
    assert (event["event"], event["exit_code"]) == ("error", 1)
    assert event["message"] == ended.stderr.removeprefix("error: ").strip()
    with_trace = trt(workshop, "--debug", bundle=nowhere)
    assert "Traceback" in with_trace.stderr
    assert not workshop.folder.exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 0}, "the CUDA driver does not start (cuInit failed: no CUDA-capable device"),
        ({"version": "8.6.1"}, "TensorRT 8.6.1 lacks ICudaEngine.device_memory_size_v2"),
        ({"version": "10.0.1"}, "expected TensorRT 10.3 or later; pip install 'icecam[tensorrt]'"),
    ],
)
def test_where_tensorrt_or_gpu_is_missing_it_is_said_and_nothing_is_written(
    workshop: Workshop, settings: dict[str, str | int], said: str
) -> None:
    ended = trt(workshop, **settings)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert not workshop.folder.exists()


@pytest.fixture
def signed(bundle: Bundle, tmp_path: Path) -> Path:
    """The bundle with a signature by ``right.pub``; ``wrong.pub`` is another's."""
    keys = {name: new_private_key() for name in ("right", "wrong")}
    for name, key in keys.items():
        write_atomically(tmp_path / f"{name}.pub", public_key(key).pem)
    out = tmp_path / "signed.icecam"
    sign_bundle(bundle, out, lambda raw, _: sign_manifest(raw, keys["right"]))
    return out


def test_a_bundle_that_a_trusted_key_signed_is_built_and_the_key_told(
    stocked: Workshop, signed: Path
) -> None:
    ended = trt(stocked, "--trust", signed.with_name("right.pub"), bundle=signed)
    assert ended.returncode == 0, ended.stderr
    assert "signed by " in ended.stdout.splitlines()[0]


@pytest.mark.parametrize("case", ["wrong key", "unsigned", "no key", "tampered", "signature"])
def test_a_bundle_that_nobody_trusted_vouches_for_is_refused_and_nothing_written(
    workshop: Workshop, signed: Path, case: str
) -> None:
    right, wrong = signed.with_name("right.pub"), signed.with_name("wrong.pub")
    content = bytearray(signed.read_bytes())
    weights = content.index(b"onnx", content.index(b"ensemble.fp16.onnx\0")) + 2000
    path = signed.with_name("broken.icecam")
    if case == "tampered":
        content[weights] ^= 1
    if case == "signature":  # a manifest of another bundle: the serial was changed
        content = bytearray(content.replace(b'"serial": 1', b'"serial": 9', 1))
    path.write_bytes(content)
    given, said, status = {
        "wrong key": ((path, wrong), "is signed only by unknown key", 1),
        "unsigned": (
            (workshop.bundle.path, right),
            "is not signed; expected a signature by",
            1,
        ),
        "no key": ((path, signed), "signed.icecam", 2),
        "tampered": ((path, right), "ensemble.fp16.onnx is damaged", 1),
        "signature": ((path, right), "does not match its manifest", 1),
    }[case]
    ended = trt(workshop, "--trust", given[1], bundle=given[0])
    assert ended.returncode == status
    assert said in ended.stderr
    assert ended.stdout == ""
    assert not workshop.folder.exists()


@pytest.mark.parametrize("machine", ["-oProxyCommand=touch {}", "a b", "x;touch {}", "$(touch {})"])
def test_a_machine_that_ssh_would_take_for_something_else_is_refused(
    workshop: Workshop, tmp_path: Path, machine: str
) -> None:
    mark = tmp_path / "mark"
    ended = trt(workshop, f"--on={machine.format(mark)}")
    assert ended.returncode == 2
    assert "is not a machine to reach by ssh" in ended.stderr
    assert not mark.exists()
    assert not workshop.folder.exists()


def test_a_folder_that_others_can_open_is_refused_before_anything_is_built(
    stocked: Workshop,
) -> None:
    before = stocked.kept()
    stocked.folder.chmod(0o755)
    ended = trt(stocked, "--rebuild")
    assert ended.returncode == 1
    assert f"{stocked.folder} is open to others (mode 755, owner " in ended.stderr
    assert stocked.kept() == before


def test_a_plan_that_the_disk_has_no_room_for_leaves_the_engine_of_before(
    stocked: Workshop,
) -> None:
    before = stocked.kept()

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    ended = trt(stocked, "--rebuild", before=small_files_only)
    assert ended.returncode == 1
    assert "the engine of 2 MiB cannot be written (File too large)" in ended.stdout
    assert "The engine of before stays." in ended.stdout
    assert stocked.kept() == before
    assert stocked.left("unfinished") == stocked.left("quarantine") == []


def test_neither_torch_nor_train_nor_onnx_is_loaded_even_while_an_engine_is_made(
    stocked: Workshop,
) -> None:
    code = f"""
import sys
from export.trt import app
sys.argv = ["export.trt", {str(stocked.bundle.path)!r}, "--cache", {str(stocked.folder)!r}]
try:
    app()
finally:
    import edge.engine.trt.worker
    heavy = ("torch", "train", "onnx", "onnxruntime", "tensorrt", "pycuda", "lightning", "onnxslim")
    print([name for name in heavy if name in sys.modules])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=stocked._trt_env(),
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "kept" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"
