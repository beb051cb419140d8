"""icecam bench: each rung's time and verdict, for people and as JSON; TensorRT is a double."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.bundle import open_bundle
from tests.doubles.inherited import InheritedDoubles
from tests.stations import icecam, make_engines

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> InheritedDoubles:
    return InheritedDoubles(monkeypatch)


def bench(*arguments: object, status: int = 0) -> dict[str, Any]:
    done = icecam("bench", "--json", "--repeats", 3, *arguments)
    assert done.returncode == status, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_the_record_holds_each_frame_s_time_and_the_verdict(demo_bundle: Path) -> None:
    record = bench("--bundle", demo_bundle)
    bundle = open_bundle(demo_bundle)
    assert (record["bundle"], record["bundle_sha256"]) == (bundle.manifest.id, bundle.sha256)
    (rung,) = record["rungs"]
    assert (rung["engine"], rung["graph"], rung["problem"]) == ("ort", "full", "")
    assert len(rung["frames_s"]) == 3
    assert rung["median_s"] == sorted(rung["frames_s"])[1]
    assert min(rung["frames_s"]) > 0
    assert rung["load_s"] > 0
    assert rung["certification"]["passed"]
    assert rung["certification"]["frames"] == 4


def test_the_table_shows_the_rung_its_times_and_the_verdict_in_words(demo_bundle: Path) -> None:
    done = icecam("bench", "--bundle", demo_bundle, "--repeats", 2)
    assert done.returncode == 0, done.stderr
    for column in ("graph", "engine", "load", "median", "9 of 10 within", "slowest"):
        assert column in done.stdout
    assert "demo-1, 224x384" in done.stdout
    assert done.stdout.count(" ms ") >= 4
    assert "full on ort: certified" in done.stdout


def test_one_frame_is_enough_for_a_table(demo_bundle: Path) -> None:
    done = icecam("bench", "--bundle", demo_bundle, "--repeats", 1)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_was_never_compiled_is_named_and_the_rest_is_timed(
    demo_bundle: Path, tmp_path: Path, double: InheritedDoubles
) -> None:
    del double
    record = bench("--bundle", demo_bundle, "--cache", tmp_path / "engines")
    compiled, ort = record["rungs"]
    assert (compiled["engine"], compiled["median_s"]) == ("trt", None)
    assert compiled["certification"] is None
    assert "none was built yet" in compiled["problem"]
    assert "python -m export.trt" in compiled["problem"]
    assert len(ort["frames_s"]) == 3
    assert not (tmp_path / "engines").exists()
    shown = icecam("bench", "--bundle", demo_bundle, "--cache", tmp_path / "engines")
    assert shown.returncode == 0, shown.stderr
    assert "full on trt: no engine for this machine" in shown.stdout


def test_a_compiled_engine_is_timed_beside_onnx_runtime(
    demo_bundle: Path, tmp_path: Path, double: InheritedDoubles
) -> None:
    make_engines(open_bundle(demo_bundle), tmp_path)
    double.ask("slow=0.3")
    record = bench("--bundle", demo_bundle, "--cache", tmp_path / "engines")
    compiled, ort = record["rungs"]
    assert (compiled["engine"], ort["engine"]) == ("trt", "ort")
    assert min(compiled["frames_s"]) > 0.3
    assert compiled["certification"]["passed"]
    assert compiled["certification"]["mask_agreement"] == 1


def test_an_engine_that_answers_wrong_now_is_an_exit_status(
    demo_bundle: Path, tmp_path: Path, double: InheritedDoubles
) -> None:
    make_engines(open_bundle(demo_bundle), tmp_path)
    double.ask("swap-classes")
    record = bench("--bundle", demo_bundle, "--cache", tmp_path / "engines", status=1)
    assert not record["rungs"][0]["certification"]["passed"]
    assert record["rungs"][1]["certification"]["passed"]


def test_an_engine_that_was_laid_aside_is_shown_with_its_verdict(
    demo_bundle: Path, tmp_path: Path, double: InheritedDoubles
) -> None:
    double.ask("lose-class=2")
    make_engines(open_bundle(demo_bundle), tmp_path)
    record = bench("--bundle", demo_bundle, "--cache", tmp_path / "engines", status=1)
    compiled, _ = record["rungs"]
    assert compiled["frames_s"] == []
    assert (compiled["certification"]["passed"], compiled["certification"]["least_class"]) == (
        False,
        "ice",
    )
    assert "IoU of ice 0.000" in compiled["problem"]
    assert "laid aside" in compiled["problem"]


def test_a_bundle_that_is_none_is_one_line_and_an_exit_status() -> None:
    done = icecam("bench", "--bundle", "README.md")
    assert done.returncode == 1
    assert done.stderr.startswith("error: README.md: not a whole uncompressed tar")
