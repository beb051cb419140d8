"""A part in a process of its own: whatever it does, the parent goes on and knows why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.child import Child, _stand_back
from edge.contract.errors import BundleError, CameraError, EngineError

TINY = '''
"""A child that does what it is told, for better or worse."""
import os, sys, threading, time
from contextlib import contextmanager
from datetime import datetime, timezone
from edge.child import serve
from edge.contract.errors import BundleError, CameraError

class Unsendable:
    def __reduce__(self):
        raise TypeError("this cannot be sent")

def answer(request):
    order, *rest = request
    if order == "echo":
        return rest[0]
    if order == "hang":
        time.sleep(600)
    if order == "fail":
        return {}["a key that is not there"]
    if order == "refuse":
        raise CameraError("the lens is iced over", fault="blocked", cursor="a 1.jpg",
                          captured_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
                          expected="glass", then="Wait for spring.")
    if order == "signal":
        os.kill(os.getpid(), rest[0])
        time.sleep(600)
    if order == "exit":
        os._exit(rest[0])
    if order == "hang up, then":
        os.close(int(sys.argv[1]))
        time.sleep(rest[0])
        os.kill(os.getpid(), rest[1])
    if order == "take all memory":
        return bytes(1 << 62)
    if order == "unsendable":
        return Unsendable()
    if order == "print":
        print("a stray print", flush=True)
        return None

def tell_many(tell, name, count, size):
    return [tell([name, number, bytes(size)]) for number in range(count)]

def talk(tell, request):
    order, *rest = request
    if order == "tell":
        return tell_many(tell, "main", *rest)
    if order == "tell from threads":
        threads = [
            threading.Thread(target=tell_many, args=[tell, name, *rest]) for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if order == "tell until unwanted":
        while tell("wanted?"):
            time.sleep(0.01)
        open(rest[0], "w").write("broken off")
    if order == "tell and hang":
        tell("hanging")
        time.sleep(600)

@contextmanager
def start(setup, tell):
    if setup == "refuse":
        raise BundleError("no bundle", expected="one")
    answer([setup] if isinstance(setup, str) else setup or ["nothing"])
    yield lambda request: talk(tell, request) if request[0][:4] == "tell" else answer(request)

if __name__ == "__main__":
    serve(start)
'''

DEAF = "import time\ntime.sleep(600)\n"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny modules that children can be started from."""
    (tmp_path / "tiny_child.py").write_text(TINY, encoding="utf-8")
    (tmp_path / "deaf_child.py").write_text(DEAF, encoding="utf-8")
    (tmp_path / "broken_child.py").write_text("import nothing_of_this_name", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def tiny(setup: object = None, *, start_deadline_s: float = 30.0) -> Child:
    return Child("tiny_child", setup, error=EngineError, start_deadline_s=start_deadline_s)


def state(pid: int) -> str:
    """R, S, D, Z … as in proc(5), or nothing where there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return ""


def zombies() -> int:
    """How many children of this process ended and were not waited for."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            count += found == "Z" and int(parent) == os.getpid()
    return count


def descriptors() -> list[str]:
    """What this process holds open, by number and target."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            found.append(f"{descriptor.name} {descriptor.readlink()}")
    return sorted(found)


def threads() -> int:
    """How many threads this process has; timers that were cancelled are given time to end."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    return threading.active_count()


def test_requests_are_answered_in_order_and_large_ones_come_back_whole() -> None:
    large = np.random.default_rng(2).integers(0, 256, 20_000_000, np.uint8)
    with tiny() as child:
        assert child.alive
        assert child.ask(["echo", 1], deadline_s=30) == 1
        assert np.array_equal(child.ask(["echo", large], deadline_s=30), large)
        assert child.ask(["echo", "é"], deadline_s=30) == "é"
        pid = child.pid
    assert not child.alive
    assert state(pid) == ""


def test_a_child_that_hangs_is_killed_at_the_deadline() -> None:
    with tiny() as child:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"tiny_child gave no answer within 0\.5 s and was"):
            child.ask(["hang"], deadline_s=0.5)
        assert 0.5 <= time.monotonic() - began < 3
        assert not child.alive
        assert state(child.pid) == ""


def test_a_child_that_hangs_while_it_starts_is_killed_at_the_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"within 1\.0 s and was killed"):
        tiny("hang", start_deadline_s=1)
    assert time.monotonic() - began < 4
    assert zombies() == 0


def test_a_child_that_never_listens_is_killed_even_where_the_request_fills_the_pipe() -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"deaf_child gave no answer within 1.0 s"):
        Child("deaf_child", bytes(50_000_000), error=EngineError, start_deadline_s=1)
    assert time.monotonic() - began < 4
    assert zombies() == 0


def test_a_stopped_child_is_killed_all_the_same() -> None:
    with tiny() as child:
        with pytest.raises(EngineError, match=r"within 1\.0 s and was killed"):
            child.ask(["signal", signal.SIGSTOP], deadline_s=1)
        assert state(child.pid) == ""


def test_a_crash_gives_the_traceback_s_text_and_ends_the_child() -> None:
    with tiny() as child:
        with pytest.raises(EngineError, match="tiny_child crashed") as caught:
            child.ask(["fail"], deadline_s=30)
        assert "KeyError: 'a key that is not there'" in str(caught.value)
        assert "tiny_child.py" in str(caught.value)
        assert not child.alive


def test_a_crash_while_it_starts_gives_the_traceback_s_text() -> None:
    with pytest.raises(EngineError, match="KeyError: 'a key that is not there'"):
        tiny("fail")
    assert zombies() == 0


def test_an_answer_that_cannot_be_sent_is_a_crash_not_silence() -> None:
    with tiny() as child, pytest.raises(EngineError, match="this cannot be sent"):
        child.ask(["unsendable"], deadline_s=30)


def test_a_module_that_does_not_import_ends_the_start_with_its_status() -> None:
    for module in ("broken_child", "no_module_of_this_name"):
        with pytest.raises(EngineError, match=f"{module} ended with status 1"):
            Child(module, None, error=EngineError, start_deadline_s=30)
    assert zombies() == 0


def test_a_process_that_cannot_be_started_is_the_caller_s_error_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/no/python/here")
    with pytest.raises(EngineError, match=r"tiny_child could not be started \(No such file"):
        tiny()
    assert descriptors() == before


def test_the_child_s_own_error_comes_through_unchanged_and_the_child_lives_on() -> None:
    with tiny() as child:
        with pytest.raises(CameraError) as caught:
            child.ask(["refuse"], deadline_s=30)
        problem = caught.value
        assert type(problem) is CameraError
        assert str(problem) == "the lens is iced over; expected glass. Wait for spring."
        assert (problem.found, problem.expected) == ("the lens is iced over", "glass")
        assert problem.then == "Wait for spring."
        assert (problem.fault, problem.cursor) == ("blocked", "a 1.jpg")
        assert problem.captured_at == datetime(2026, 1, 2, tzinfo=timezone.utc)
        assert child.alive
        assert child.ask(["echo", 5], deadline_s=30) == 5


def test_the_child_s_own_error_at_the_start_comes_through_and_leaves_nothing() -> None:
    before = descriptors()
    with pytest.raises(BundleError, match="no bundle; expected one") as caught:
        tiny("refuse")
    # While the error is still held: its traceback must not be what keeps a process or a socket.
    assert zombies() == 0
    assert descriptors() == before
    assert caught.value.expected == "one"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_child_ended_by_a_signal_is_said_to_be_by_its_name(number: signal.Signals) -> None:
    with tiny() as child:
        with pytest.raises(EngineError, match=f"tiny_child was ended by {number.name}"):
            child.ask(["signal", number], deadline_s=30)
        assert not child.alive


def test_a_child_that_exits_is_said_to_with_its_status() -> None:
    with tiny() as child, pytest.raises(EngineError, match="tiny_child ended with status 3"):
        child.ask(["exit", 3], deadline_s=30)


def test_asking_a_dead_child_is_the_same_error_at_once() -> None:
    with tiny() as child:
        os.kill(child.pid, signal.SIGKILL)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(EngineError, match="SIGKILL"):
                child.ask(["echo", 1], deadline_s=30)
            assert time.monotonic() - began < 3


def test_what_the_child_prints_does_not_disturb_its_answers() -> None:
    with tiny() as child:
        assert child.ask(["print"], deadline_s=30) is None
        assert child.ask(["echo", 2], deadline_s=30) == 2


def test_closing_twice_and_closing_a_dead_child_do_no_harm() -> None:
    child = tiny()
    os.kill(child.pid, signal.SIGKILL)
    child.close()
    child.close()
    assert state(child.pid) == ""


def test_an_answer_in_time_stops_the_clock() -> None:
    with tiny() as child:
        assert child.ask(["echo", 1], deadline_s=1) == 1
        time.sleep(1.2)
        assert child.ask(["echo", 2], deadline_s=30) == 2


def test_notes_arrive_in_order_before_the_answer() -> None:
    heard: list[Any] = []
    with tiny() as child:
        told = child.ask(["tell", 100, 10], deadline_s=30, heed=heard.append)
        assert heard == [["main", number, bytes(10)] for number in range(100)]
        assert told == [True] * 100
        assert child.ask(["tell", 2, 0], deadline_s=30) == [True, True]  # nobody need listen
        assert child.ask(["echo", 3], deadline_s=30) == 3
        assert len(heard) == 100


def test_notes_from_several_threads_arrive_whole_and_in_each_thread_s_order() -> None:
    heard: list[Any] = []
    with tiny() as child:
        # 20 kB: beyond the size up to which a message is written in one piece.
        child.ask(["tell from threads", 25, 20_000], deadline_s=60, heed=heard.append)
    assert len(heard) == 100
    assert all(note[2] == bytes(20_000) for note in heard)
    for name in "abcd":
        assert [note[1] for note in heard if note[0] == name] == list(range(25))


class Unwanted(Exception):  # noqa: N818 - what stands in for Ctrl-C
    """The one who asked wants no answer any more."""


def refuse(_: object) -> None:
    raise Unwanted


@pytest.mark.parametrize("problem", [BrokenPipeError("nobody reads on"), EOFError("no more")])
def test_what_goes_wrong_where_notes_are_heeded_is_not_taken_for_the_child_s_death(
    problem: Exception,
) -> None:
    def heed(_: object) -> None:
        raise problem

    count = threads()
    with tiny() as child:
        with pytest.raises(type(problem)) as caught:
            child.ask(["tell and hang"], deadline_s=60, heed=heed)
        assert caught.value is problem
        assert child.alive
        assert not child.killed
    assert threads() == count


def test_a_child_that_is_told_to_stop_hears_it_breaks_off_and_ends_by_itself(
    tmp_path: Path,
) -> None:
    written = tmp_path / "written"
    child = tiny()
    with pytest.raises(Unwanted):
        child.ask(["tell until unwanted", str(written)], deadline_s=60, heed=refuse)
    assert child.alive
    began = time.monotonic()
    child.stop(grace_s=20)
    assert time.monotonic() - began < 10
    assert written.read_text(encoding="utf-8") == "broken off"
    assert child._process.returncode == 0
    assert not child.killed
    assert state(child.pid) == ""


def test_a_child_that_does_not_stop_is_killed_after_the_grace() -> None:
    child = tiny()
    with pytest.raises(Unwanted):
        child.ask(["tell and hang"], deadline_s=60, heed=refuse)
    began = time.monotonic()
    child.stop(grace_s=0.5)
    assert 0.5 <= time.monotonic() - began < 4
    assert not child.alive
    assert not child.killed
    assert state(child.pid) == ""
    child.stop(grace_s=5)  # once more does no harm, and does not wait


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
