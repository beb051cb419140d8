"""A part in a process of its own: asked, answered, broken off; the parent goes on and knows why."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.child import Child
from edge.contract.errors import BundleError, CameraError, EngineError
from tests.child.tiny import Unwanted, descriptors, refuse, state, threads, tiny, zombies

if TYPE_CHECKING:
    from pathlib import Path


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
