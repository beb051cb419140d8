"""The engine in a process of its own: it may die, and the station goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from edge.config import FolderCamera
from edge.contract.bundle import open_bundle, write_bundle
from edge.contract.errors import BundleError, ConfigError, EngineError
from edge.engine import open_engine
from edge.engine.ladder import Ladder
from edge.engine.worker import EngineSetup, EngineWorker
from edge.health import HealthBook
from edge.outbox import Outbox
from edge.station import Station
from tests.doubles.inherited import InheritedDoubles
from tests.engine.bundles import changed
from tests.stations import make_engines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FRAME = np.random.default_rng(12).integers(0, 256, (540, 960, 3), np.uint8)


@pytest.fixture
def worker(demo_bundle: Path) -> Iterator[EngineWorker]:
    setup = EngineSetup(bundle=demo_bundle, sha256=open_bundle(demo_bundle).sha256)
    with contextlib.closing(EngineWorker(setup)) as worker:
        yield worker


def state(pid: int) -> str:
    """R, S, D, Z … as in proc(5), or nothing where there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return ""


def pid_of(worker: EngineWorker) -> int:
    assert worker.pid is not None
    return worker.pid


def test_the_real_worker_answers_what_the_engine_answers_in_this_process(
    worker: EngineWorker, demo_bundle: Path
) -> None:
    assert worker.pid is None
    assert worker.starts == 0
    found = worker.segment(FRAME)
    with open_engine(open_bundle(demo_bundle)) as engine:
        here = engine.segment(FRAME)
    assert np.array_equal(found.answer.mask, here.answer.mask)
    assert np.array_equal(found.answer.confidence, here.answer.confidence)
    assert np.array_equal(found.answer.member_masks, here.answer.member_masks)
    assert (found.graph, found.engine) == (here.graph, here.engine)
    first = pid_of(worker)
    worker.segment(FRAME)
    assert (worker.pid, worker.starts) == (first, 1)
    worker.close()
    worker.close()
    assert worker.pid is None
    assert state(first) == ""


def test_a_worker_killed_while_it_works_is_an_engine_error_and_the_next_call_starts_another(
    worker: EngineWorker,
) -> None:
    before = worker.segment(FRAME)
    first = pid_of(worker)
    os.kill(first, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, [first, signal.SIGKILL])
    killer.start()
    with pytest.raises(EngineError, match=r"edge\.engine\.worker was ended by SIGKILL"):
        worker.segment(FRAME)
    killer.join()
    assert worker.pid is None
    after = worker.segment(FRAME)
    assert np.array_equal(after.answer.mask, before.answer.mask)
    assert pid_of(worker) != first
    assert worker.starts == 2
    assert state(first) == ""


def test_a_worker_that_died_while_nobody_asked_is_replaced_without_an_error(
    worker: EngineWorker,
) -> None:
    worker.segment(FRAME)
    first = pid_of(worker)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # it ended; reaping is the worker's
    worker.segment(FRAME)
    assert worker.starts == 2
    assert state(first) == ""


def test_a_worker_that_hangs_is_killed_at_its_deadline(
    worker: EngineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.segment(FRAME)
    monkeypatch.setattr("edge.engine.worker.SEGMENT_DEADLINE_S", 0.5)
    first = pid_of(worker)
    os.kill(first, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"within 0\.5 s and was killed"):
        worker.segment(FRAME)
    assert time.monotonic() - began < 3
    assert state(first) == ""


def test_a_frame_the_bundle_cannot_take_is_refused_and_the_worker_lives_on(
    worker: EngineWorker,
) -> None:
    worker.segment(FRAME)
    with pytest.raises(ConfigError, match="distorted"):
        worker.segment(np.zeros((900, 300, 3), np.uint8))
    worker.segment(FRAME)
    assert worker.starts == 1


PARENT = """
import sys, time
from pathlib import Path
import numpy as np
from edge.contract.bundle import open_bundle
from edge.engine.ladder import Ladder
from edge.engine.worker import EngineSetup, EngineWorker
path = Path(sys.argv[1])
worker = EngineWorker(EngineSetup(bundle=path, sha256=open_bundle(path).sha256))
worker.segment(np.zeros((224, 384, 3), np.uint8))
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_the_worker_dies_when_its_parent_is_killed(demo_bundle: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(demo_bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert state(pid) in {"S", "R", "D"}
        parent.kill()
    until = time.monotonic() + 5
    while state(pid) not in {"", "Z"} and time.monotonic() < until:
        time.sleep(0.02)
    assert state(pid) in {"", "Z"}  # Z: nobody in this container reaps orphans


def test_a_bundle_that_changed_on_disk_since_the_station_started_is_refused(
    demo_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "station.icecam"
    shutil.copy(demo_bundle, path)
    seen = open_bundle(path)
    with contextlib.closing(EngineWorker(EngineSetup(bundle=path, sha256=seen.sha256))) as worker:
        worker.segment(FRAME)
        manifest = seen.manifest.model_dump(by_alias=True, exclude={"files"})
        files = {one.path: seen.read(one.path) for one in seen.manifest.files}
        write_bundle(path, {**manifest, "serial": seen.manifest.serial + 1}, files)
        pid = pid_of(worker)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(EngineError, match="changed since the station started") as caught:
            worker.segment(FRAME)
        assert "Restart the station" in str(caught.value)
        assert worker.pid is None
        shutil.copy(demo_bundle, path)
        assert worker.segment(FRAME).answer.mask.shape == (224, 384)


def test_a_bundle_that_went_missing_or_broke_is_refused_by_what_is_wrong_with_it(
    tmp_path: Path,
) -> None:
    setup = EngineSetup(bundle=tmp_path / "none.icecam", sha256="0" * 64)
    with contextlib.closing(EngineWorker(setup)) as worker:
        with pytest.raises(BundleError, match="cannot be read"):
            worker.segment(FRAME)
        setup.bundle.write_bytes(b"x" * 2000)
        with pytest.raises(BundleError, match="not a whole"):
            worker.segment(FRAME)


def test_a_cycle_whose_bundle_went_missing_still_stores_an_observation(
    demo_bundle: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(FRAME).save(pictures / "2026-07-21_12-00-00.png", compress_level=1)
    camera = FolderCamera.model_validate(
        {"type": "folder", "id": "c", "path": pictures, "schedule": {"every": "1h"}}
    )
    copy = tmp_path / "station.icecam"
    shutil.copy(demo_bundle, copy)
    bundle = open_bundle(copy)
    with (
        contextlib.closing(Outbox(tmp_path / "state")) as outbox,
        contextlib.closing(
            Ladder(bundle, "auto", cache=tmp_path / "engines", workspace_bytes=1 << 28)
        ) as ladder,
    ):
        copy.unlink()
        station = Station("s", bundle, ladder, outbox, HealthBook(["c"]))
        assert station.cycle(camera) == 1
        assert outbox.depth().observations == 1


def test_a_graph_that_the_bundle_does_not_have_is_refused_with_those_it_has(
    demo_bundle: Path,
) -> None:
    setup = EngineSetup(bundle=demo_bundle, sha256=open_bundle(demo_bundle).sha256, graph="half")
    with (
        contextlib.closing(EngineWorker(setup)) as worker,
        pytest.raises(EngineError, match=r"no graph 'half'; expected one of full"),
    ):
        worker.segment(FRAME)


@pytest.fixture(scope="module")
def compiled(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's certified engine, made on the TensorRT double."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        InheritedDoubles(patch)
        make_engines(open_bundle(demo_bundle), folder)
    return folder / "engines"


def other_bundle(engines: Path, bundle: Path) -> str:
    demo = open_bundle(bundle)
    changed(demo, bundle, {}, serial=demo.manifest.serial + 1)
    return f"the engine of graph 'full' in {engines} was not certified with {bundle}"


def damaged_plan(engines: Path, _: Path) -> str:
    (plan,) = engines.glob("*.plan")
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    return "its plan is damaged"


def none_built(engines: Path, _: Path) -> str:
    shutil.rmtree(engines)
    return f"no engine for this machine in {engines} (none was built yet)"


def open_to_others(engines: Path, _: Path) -> str:
    engines.chmod(0o770)
    return f"the engines' folder {engines} is open to others (mode 770"


@pytest.mark.parametrize("spoil", [other_bundle, damaged_plan, none_built, open_to_others])
def test_a_worker_runs_only_an_engine_that_was_made_here_and_certified_with_its_bundle(
    demo_bundle: Path,
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, Path], str],
) -> None:
    InheritedDoubles(monkeypatch)
    engines = Path(shutil.copytree(compiled, tmp_path / "engines"))
    bundle = Path(shutil.copy(demo_bundle, tmp_path / "b.icecam"))

    def worker() -> EngineWorker:
        sha256 = open_bundle(bundle).sha256
        return EngineWorker(EngineSetup(bundle=bundle, sha256=sha256, backend="trt", cache=engines))

    with contextlib.closing(worker()) as whole:
        found = whole.segment(FRAME)
    with open_engine(open_bundle(demo_bundle)) as engine:
        here = engine.segment(FRAME)
    assert (found.engine, found.graph) == ("trt", here.graph)
    assert np.array_equal(found.answer.mask, here.answer.mask)
    said = spoil(engines, bundle)
    with contextlib.closing(worker()) as refused:
        with pytest.raises(EngineError) as caught:
            refused.segment(FRAME)
        assert refused.pid is None
    assert said in str(caught.value)
