"""When the next frame is due. The scheduler only says when; cycles run elsewhere."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.config import FolderCamera

LATE_S = 3600
"""A slot this late is still run, once; APScheduler's default of 1 s would drop it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Schedule:
    """Calls ``due(camera)`` at each camera's slots: whole multiples of its interval in UTC."""

    def __init__(self, cameras: Sequence[FolderCamera], due: Callable[[str], None]) -> None:
        """Prepare the slots; nothing is called before ``start``."""
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._cameras = cameras
        self._due = due
        self._scheduler = BackgroundScheduler(
            timezone=timezone.utc,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": LATE_S},
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
