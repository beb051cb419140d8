"""When the next frame is due. The scheduler only says when; cycles run elsewhere."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.config import FolderCamera

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Due:
    """Cameras that wait for their cycle, each once at most: late slots are not caught up.

    ``put`` and ``stop`` may be called from any thread and from a signal handler.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._cameras: dict[str, None] = {}
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, camera: str) -> None:
        """Say that a camera is due."""
        with self._changed:
            self._cameras[camera] = None
            self._changed.notify()

    def stop(self) -> None:
        """Make ``get`` return None from now on, whatever waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def get(self) -> str | None:
        """Wait for a camera that is due, the longest waiting first; None once stopped."""
        with self._changed:
            while not self._cameras and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            camera = next(iter(self._cameras))
            del self._cameras[camera]
            return camera


class Schedule:
    """Calls ``due(camera)`` at each camera's slots: whole multiples of its interval in UTC."""

    def __init__(self, cameras: Sequence[FolderCamera], due: Callable[[str], None]) -> None:
        """Prepare the slots; nothing is called before ``start``."""
        # However late a slot is, it is run, once: by default one that is 1 s late is dropped.
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._cameras = cameras
        self._due = due
        self._scheduler = BackgroundScheduler(
            timezone=timezone.utc,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for camera in cameras:
            self._scheduler.add_job(due, slots(camera.schedule.every_s), args=[camera.id])

    def start(self) -> None:
        """Run each camera's present slot, which is late, at once; then keep to the slots."""
        for camera in self._cameras:
            self._due(camera.id)
        self._scheduler.start()

    def stop(self) -> None:
        """End; no slot is called afterwards."""
        self._scheduler.shutdown(wait=True)


def slots(every_s: float) -> IntervalTrigger:
    """Return the trigger that fires at whole multiples of ``every_s`` since 1970 in UTC."""
    return IntervalTrigger(seconds=every_s, start_date=_EPOCH, timezone=timezone.utc)
