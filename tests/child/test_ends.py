"""However a child ends, its parent knows why, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge.child import Child, _stand_back
from edge.contract.errors import CameraError, EngineError
from tests.child.tiny import Unwanted, descriptors, refuse, state, threads, tiny, zombies


@pytest.mark.parametrize(
    ("order", "killed"),
    [
        (["signal", signal.SIGKILL], True),
        (["signal", signal.SIGSEGV], False),
        (["signal", signal.SIGTERM], False),
        (["exit", 137], False),
        (["hang up, then", 2, signal.SIGKILL], True),
        (["take all memory"], True),
        (["fail"], False),
        (["hang"], False),
    ],
    ids=str,
)
def test_only_somebody_else_s_sigkill_counts_as_killed(order: list[Any], *, killed: bool) -> None:
    with tiny() as child:
        assert not child.killed
        with pytest.raises(EngineError):
            child.ask(order, deadline_s=1 if order == ["hang"] else 30)
        assert child.killed is killed
    assert child.killed is killed


def test_a_child_without_memory_is_said_to_be_and_ended() -> None:
    with tiny() as child:
        with pytest.raises(EngineError) as caught:
            child.ask(["take all memory"], deadline_s=30)
        assert str(caught.value) == "tiny_child ran out of memory"
        assert not child.alive
        assert state(child.pid) == ""
    with pytest.raises(EngineError, match="tiny_child ran out of memory"):
        tiny(["take all memory"])
    assert zombies() == 0


def test_a_child_that_takes_its_time_to_end_is_told_by_its_own_end_and_not_by_the_deadline() -> (
    None
):
    with tiny() as child:
        began = time.monotonic()
        with pytest.raises(EngineError, match="tiny_child was ended by SIGSEGV"):
            child.ask(["hang up, then", 2.5, signal.SIGSEGV], deadline_s=2)
        assert 2.4 < time.monotonic() - began < 6


def test_a_child_that_hangs_up_and_lives_on_is_killed_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.child._END_S", 0.5)
    with tiny() as child:
        with pytest.raises(EngineError, match="tiny_child hung up without an answer and was kill"):
            child.ask(["hang up, then", 600, signal.SIGKILL], deadline_s=30)
        assert not child.alive
        assert not child.killed


def test_what_is_asked_after_the_deadline_s_kill_does_not_count_it_as_somebody_else_s() -> None:
    with tiny() as child:
        with pytest.raises(EngineError, match="within 0"):
            child.ask(["hang"], deadline_s=0.5)
        with pytest.raises(EngineError, match="tiny_child"):
            child.ask(["echo", 1], deadline_s=30)
        assert not child.killed


def test_a_child_that_was_closed_was_not_killed_by_somebody_else() -> None:
    with tiny() as child:
        pass
    assert not child.killed


@pytest.mark.parametrize(
    "order", [["hang"], ["signal", signal.SIGSTOP], ["tell and hang"]], ids=str
)
def test_cut_from_another_thread_ends_what_is_asked_at_once(order: list[Any]) -> None:
    with tiny() as child:
        cutter = threading.Timer(0.5, child.cut)
        cutter.start()
        began = time.monotonic()
        with pytest.raises(EngineError, match="tiny_child was broken off"):
            child.ask(order, deadline_s=600)
        assert 0.4 < time.monotonic() - began < 4
        cutter.join()
        assert not child.killed
        assert not child.alive
        assert state(child.pid) == ""
        child.cut()
    child.cut()  # closed meanwhile: no harm


def test_what_is_asked_after_a_cut_is_the_same_error_at_once() -> None:
    with tiny() as child:
        child.cut()
        began = time.monotonic()
        with pytest.raises(EngineError, match="tiny_child was broken off"):
            child.ask(["echo", 1], deadline_s=600)
        assert time.monotonic() - began < 4
        assert not child.killed


def test_notes_stops_and_cuts_leave_no_zombie_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    def round_of(number: int) -> None:
        with tiny() as child:
            child.ask(["tell", 3, 100], deadline_s=30, heed=lambda _: None)
            with contextlib.suppress(Unwanted, EngineError):
                if number % 2:
                    child.ask(
                        ["tell until unwanted", str(tmp_path / "x")], deadline_s=60, heed=refuse
                    )
                threading.Timer(0.05, child.cut).start()
                child.ask(["hang"], deadline_s=600)
            child.stop(grace_s=10)

    round_of(0)
    round_of(1)
    before, count = descriptors(), threads()
    for number in range(10):
        round_of(number)
    assert descriptors() == before
    assert threads() == count
    assert zombies() == 0


def test_fifty_children_leave_no_zombie_no_descriptor_and_no_thread() -> None:
    def round_of(number: int) -> None:
        with tiny() as child:
            orders: list[list[Any]] = [["echo", 1], ["fail"], ["exit", 1], ["refuse"]]
            with contextlib.suppress(EngineError, CameraError):
                child.ask(orders[number % 4], deadline_s=30)

    round_of(0)
    before, count = descriptors(), threads()
    for number in range(50):
        round_of(number)
    assert descriptors() == before
    assert threads() == count
    assert zombies() == 0


PARENT = """
import sys, time
from edge.child import Child
from edge.contract.errors import EngineError
child = Child("tiny_child", None, error=EngineError, start_deadline_s=30)
print(child.pid, flush=True)
if sys.argv[1] == "busy":
    child.ask(["hang"], deadline_s=600)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@pytest.mark.parametrize("work", ["busy", "idle"])
def test_a_child_dies_with_its_parent_whatever_kills_the_parent(
    number: signal.Signals, work: str
) -> None:
    command = [sys.executable, "-c", PARENT, work]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)  # until the child has taken up its work
        assert state(pid) in {"S", "R", "D"}
        parent.send_signal(number)
    until = time.monotonic() + 5
    while state(pid) not in {"", "Z"} and time.monotonic() < until:
        time.sleep(0.02)
    assert state(pid) in {"", "Z"}  # Z: nobody in this container reaps orphans


def test_the_child_inherits_no_descriptor_but_its_own_end() -> None:
    with tiny() as child, tiny() as other:
        names = [
            descriptor.readlink()
            for pid in (child.pid, other.pid)
            for descriptor in Path(f"/proc/{pid}/fd").iterdir()
        ]
        sockets = [name for name in names if str(name).startswith("socket:")]
    assert len(sockets) == 2
    assert len(set(sockets)) == 2


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="utf-8"))


def test_where_memory_runs_out_the_kernel_ends_the_child_before_its_parent() -> None:
    with tiny() as child:
        assert oom_score(child.pid) == max(500, oom_score(os.getpid()))
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_the_engine_maker_goes_before_the_engine_that_serves_and_is_nice_to_it() -> None:
    with Child("edge.engine.trt.worker", None, error=EngineError, start_deadline_s=60) as maker:
        assert oom_score(maker.pid) == max(900, oom_score(os.getpid()))
        assert os.getpriority(os.PRIO_PROCESS, maker.pid) == min(
            os.getpriority(os.PRIO_PROCESS, 0) + 10, 19
        )


EARLY = """
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("970")
from edge.child import Child
from edge.contract.errors import EngineError
with Child("tiny_child", None, error=EngineError, start_deadline_s=30) as child:
    print(Path(f"/proc/{child.pid}/oom_score_adj").read_text())
"""


def test_a_child_does_not_go_after_a_parent_that_goes_early_itself() -> None:
    command = [sys.executable, "-c", EARLY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 970


def test_a_system_that_lets_no_score_be_set_stops_no_child() -> None:
    before = oom_score(os.getpid())
    _stand_back(5000, 0)  # out of range: the kernel refuses it
    assert oom_score(os.getpid()) == before
