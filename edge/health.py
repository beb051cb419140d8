"""How the station is: what the cycles noted, joined with what the machine says."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.clock import boot_id, clock_quality, utc_now
from edge.contract.messages import CameraHealth, EngineHealth, HealthMessage, OutboxHealth
from edge.observation import Seen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from edge.contract.messages import ModelInfo
    from edge.engine.ladder import Ladder
    from edge.observation import NotSeen
    from edge.outbox import Outbox


@dataclass(kw_only=True, slots=True)
class _CameraNotes:
    last_ok_at: datetime | None = None
    last_fault: str | None = None
    last_fault_at: datetime | None = None


class HealthBook:
    """Notes of the cycles since the daemon started. Written by one thread, read by any."""

    def __init__(self, cameras: Sequence[str]) -> None:
        """Start an empty book for these cameras."""
        self._began_s = time.monotonic()
        self._cameras = {camera: _CameraNotes() for camera in cameras}
        self._model: ModelInfo | None = None
        self._engine_fault: str | None = None

    def note(self, observation: Seen | NotSeen) -> None:
        """Remember how a cycle ended."""
        notes = self._cameras[observation.origin.camera]
        if isinstance(observation, Seen):
            notes.last_ok_at = observation.origin.captured_at
            self._model, self._engine_fault = observation.model, None
        else:
            notes.last_fault = observation.reason
            notes.last_fault_at = utc_now()
            if observation.reason == "engine_failed":
                self._engine_fault = observation.detail

    def message(
        self, station: str, outbox: Outbox, engine: Ladder, state_dir: Path
    ) -> HealthMessage:
        """Return the health message of this moment."""
        disk = shutil.disk_usage(state_dir)
        depth = outbox.depth()
        return HealthMessage(
            station=station,
            at=utc_now(),
            boot_id=boot_id(),
            uptime_s=round(time.monotonic() - self._began_s, 1),
            clock=clock_quality(),
            disk_free_bytes=disk.free,
            disk_total_bytes=disk.total,
            outbox=OutboxHealth(
                observations=depth.observations,
                masks=depth.masks,
                waiting_bytes=depth.waiting_bytes,
                oldest_age_s=depth.oldest_age_s,
                parked=depth.parked,
                evicted=0,
            ),
            cameras=tuple(
                CameraHealth(
                    camera=camera,
                    last_ok_at=notes.last_ok_at,
                    last_fault=notes.last_fault,
                    last_fault_at=notes.last_fault_at,
                )
                for camera, notes in self._cameras.items()
            ),
            engine=self._engine_health(engine),
        )

    def _engine_health(self, engine: Ladder) -> EngineHealth:
        state = "failed" if self._engine_fault else "ready" if self._model else "not_started"
        return EngineHealth(
            state=state,
            engine=self._model.engine if self._model else None,
            graph=self._model.graph if self._model else None,
            degraded=engine.degraded,
            restarts=engine.restarts,
            detail=engine.why_degraded if state == "ready" else self._engine_fault,
            certifications=engine.certifications,
        )
