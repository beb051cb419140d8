"""One cycle: capture → segment → measure → enqueue. Read it from top to bottom."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge.camera import capture
from edge.clock import utc_now
from edge.contract.errors import BundleError, CameraError, ConfigError, EngineError
from edge.observation import NotSeen, Origin, Seen, model_info, read_mask

if TYPE_CHECKING:
    from datetime import datetime

    from edge.config import FolderCamera
    from edge.contract.bundle import Bundle
    from edge.contract.errors import IcecamError
    from edge.contract.frames import Frame, TimeSource
    from edge.engine.ladder import Ladder
    from edge.health import HealthBook
    from edge.outbox import Outbox

log = logging.getLogger(__name__)


class Station:
    """The engine and the outbox of one station, and the cycle that joins them with a camera."""

    def __init__(
        self, name: str, bundle: Bundle, engine: Ladder, outbox: Outbox, health: HealthBook
    ) -> None:
        """Take parts that are already open; whoever opened them closes them."""
        self._name = name
        self._bundle = bundle
        self._engine = engine
        self._outbox = outbox
        self._health = health

    def cycle(self, camera: FolderCamera) -> int:
        """Observe once through a camera; the observation is durable when its seq is returned."""
        cursor, observation = self._observe(camera)
        seq = self._outbox.enqueue(
            camera.id, cursor, lambda seq: observation.drafts(seq, self._outbox.epoch)
        )
        self._health.note(observation)
        level = logging.INFO if isinstance(observation, Seen) else logging.WARNING
        log.log(level, "%s: observation %d stored: %s", camera.id, seq, observation.describe())
        return seq

    def _observe(self, camera: FolderCamera) -> tuple[str | None, Seen | NotSeen]:
        """Return the camera's next cursor and what was seen, or why nothing could be."""
        began = utc_now()
        try:
            frame = capture(camera, self._outbox.cursor(camera.id))
        except CameraError as fault:
            origin = self._origin(camera, fault.captured_at or began, fault.time_source)
            return fault.cursor, self._not_seen(origin, fault.fault, fault)
        origin = self._origin(camera, frame.captured_at, frame.time_source)
        try:
            segmentation = self._engine.segment(frame.pixels)
        except (BundleError, EngineError) as fault:
            return frame.cursor, self._not_seen(origin, "engine_failed", fault, frame)
        except ConfigError as fault:
            return frame.cursor, self._not_seen(origin, "frame_shape", fault, frame)
        return frame.cursor, read_mask(origin, self._bundle, frame, segmentation, camera.region)

    def _origin(self, camera: FolderCamera, captured_at: datetime, source: TimeSource) -> Origin:
        return Origin.of(self._name, camera.id, captured_at, source, camera.region)

    def _not_seen(
        self, origin: Origin, reason: str, fault: IcecamError, frame: Frame | None = None
    ) -> NotSeen:
        return NotSeen(
            origin=origin,
            reason=reason,
            detail=str(fault),
            frame_size=frame.size if frame else None,
            model=model_info(self._bundle, None),
        )
