"""``python -m export.trt`` that is broken off, killed, or called twice at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.doubles import places
from tests.engine.trt import conftest as doubles
from tests.engine.trt import scene
from tests.engine.trt.scene import FULL, Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator

# Fixtures of the tests of edge/engine/trt.
prepared_doubles, trt_env = doubles.prepared_doubles, doubles.trt_env
cuda_report_path = doubles.cuda_report_path
bundle, engines = scene.bundle, scene.engines
stocked, workshop = scene.stocked, scene.workshop

PATIENCE_S = 30.0
LONG, VERY_LONG = "slow-build=45", "slow-build=900"
"""A step of these builds takes 3 s, or a minute: between two the progress monitor can say no."""


class Running:
    """A call of the command under way, its events so far, and the processes that it started."""

    def __init__(self, workshop: Workshop, *arguments: str, fault: str = "") -> None:
        given = [workshop.bundle.path, "--cache", workshop.folder, "--json", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "export.trt", *given],
            env=workshop._trt_env(*filter(None, [fault])),
            cwd=places.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.told: list[dict[str, object]] = []

    def until(self, words: str) -> None:
        """Read events up to one that holds these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))
            if words in line:
                return
        pytest.fail(f"it ended without {words!r}: {self.told}")

    def end(self) -> tuple[int, str]:
        """Wait for the end; return status and stderr, and keep the events until then."""
        out, error = self.process.communicate(timeout=PATIENCE_S)
        self.told += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, error

    @property
    def children(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in found.split()]

    def said(self, words: str) -> bool:
        return any(words in str(event.get("text", "")) for event in self.told)


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds (a zombie has)."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


@contextlib.contextmanager
def rebuilding(workshop: Workshop, fault: str) -> Iterator[Running]:
    """A rebuild that has begun, and is killed in the end."""
    running = Running(workshop, "--rebuild", fault=fault)
    try:
        running.until('"phase": "Tactics 0"')
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def building(stocked: Workshop) -> Iterator[Running]:
    """One that takes long."""
    with rebuilding(stocked, LONG) as running:
        yield running


def test_ctrl_c_breaks_a_build_off_within_seconds_and_leaves_what_was_there(
    stocked: Workshop, building: Running
) -> None:
    before = stocked.kept()
    timings = {path: path.read_bytes() for path in stocked.folder.glob("timings-*")}
    (child,) = building.children
    began = time.monotonic()
    building.process.send_signal(signal.SIGINT)
    status, error = building.end()
    assert time.monotonic() - began < 12
    assert (status, error) == (130, "")
    assert building.said("breaking off")
    assert gone(child)
    assert stocked.kept() == before
    assert {path: path.read_bytes() for path in stocked.folder.glob("timings-*")} == timings
    assert len(timings) == 1
    assert stocked.left("unfinished") == stocked.left("quarantine") == []
    assert stocked.make().found == "kept"


def test_a_second_ctrl_c_does_not_wait(stocked: Workshop, building: Running) -> None:
    (child,) = building.children
    building.process.send_signal(signal.SIGINT)
    building.until("breaking off")
    building.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    status, _ = building.end()
    assert time.monotonic() - began < 2.5
    assert status == 130
    assert gone(child)
    assert stocked.make().found == "kept"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_builds_dies_with_the_command_and_the_next_call_cleans_up(
    stocked: Workshop, how: signal.Signals
) -> None:
    before = stocked.kept()
    with rebuilding(stocked, VERY_LONG) as building:
        (child,) = building.children
        (stocked.folder / "unfinished" / "half.plan").write_bytes(b"half")
        building.process.send_signal(how)
        assert building.end()[0] == -how
        assert gone(child)
    assert stocked.kept() == before
    again = Running(stocked)
    assert again.end() == (0, "")
    assert not again.said("waiting")
    assert stocked.left("unfinished") == []
    assert again.told[-1] == {"event": "verdict", "serves": FULL, "full": True}


def test_of_two_at_once_the_second_waits_and_finds_the_engine_kept(workshop: Workshop) -> None:
    first = Running(workshop, fault="slow-build=4")
    first.until('"phase": "Tactics 0"')
    second = Running(workshop)
    second.until("waiting for another build to end")
    assert first.process.poll() is None
    assert second.end() == (0, "")
    assert first.end() == (0, "")
    found = {
        str(event["found"]): event
        for running in (first, second)
        for event in running.told
        if event["event"] == "engine"
    }
    assert set(found) == {"built", "kept"}
    assert found["built"]["engine"] == found["kept"]["engine"]
    assert not any(event["event"] == "progress" for event in second.told)


def test_who_waits_for_another_s_build_can_be_broken_off_too(
    stocked: Workshop, building: Running
) -> None:
    waiting = Running(stocked)
    waiting.until("waiting for another build to end")
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.end() == (130, "")
    assert building.process.poll() is None
    os.kill(building.process.pid, signal.SIGKILL)
