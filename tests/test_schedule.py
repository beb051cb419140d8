"""When cameras are due: slots in UTC, each at most once, stoppable at any time."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone

import pytest

from edge.config import FolderCamera
from edge.schedule import Due, Schedule, slots


def camera(name: str, every: str) -> FolderCamera:
    fields = {"type": "folder", "id": name, "path": "/x", "schedule": {"every": every}}
    return FolderCamera.model_validate(fields)


@pytest.mark.parametrize(
    ("every_s", "now", "due"),
    [
        (1800, "2026-11-22T17:00:01", "2026-11-22T17:30:00"),
        (1800, "2026-11-22T17:30:00", "2026-11-22T17:30:00"),
        (3600, "2026-03-29T00:59:59", "2026-03-29T01:00:00"),
        (86400, "2026-11-22T17:00:00", "2026-11-23T00:00:00"),
    ],
)
def test_slots_are_whole_multiples_in_utc(every_s: float, now: str, due: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=timezone.utc)
    found = slots(every_s).get_next_fire_time(None, moment)
    assert found == datetime.fromisoformat(due).replace(tzinfo=timezone.utc)


def test_late_slots_are_run_once_not_caught_up() -> None:
    due = Due()
    schedule = Schedule([camera("a", "0.2s")], due.put)
    schedule.start()
    time.sleep(1.5)  # nobody takes them
    schedule.stop()
    assert due.get() == "a"
    due.stop()
    assert due.get() is None


def test_the_camera_that_waits_longest_comes_first() -> None:
    due = Due()
    for name in ("a", "b", "a"):
        due.put(name)
    assert [due.get(), due.get()] == ["a", "b"]


def test_stop_is_seen_before_what_waits_and_while_waiting() -> None:
    due = Due()
    threading.Timer(0.2, due.stop).start()
    assert due.get() is None
    due.put("a")
    assert due.get() is None
