"""Cycles for months: opens the parts of a station, runs what is due, ends cleanly on a signal."""

from __future__ import annotations

import logging
import signal
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from edge import __version__
from edge.clock import boot_id, utc_now
from edge.config import ENGINES
from edge.contract.messages import CameraInfo, InfoMessage
from edge.engine.ladder import Ladder
from edge.geometry import region_id
from edge.health import HealthBook
from edge.outbox import Outbox
from edge.publish import Publisher
from edge.schedule import Due, Schedule
from edge.signing import describe_signature, open_trusted, read_trust
from edge.station import Station

if TYPE_CHECKING:
    from types import FrameType

    from edge.config import StationConfig

log = logging.getLogger(__name__)

STOP_GRACE_S = 20
"""How long a cycle under way may go on after the station was told to stop."""


class CutShortError(BaseException):
    """The cycle took longer than the grace: its frame is captured again after the next start."""


class Daemon:
    """One station at work. The main thread runs the cycles, so that workers die with it."""

    def __init__(self, config: StationConfig) -> None:
        """Take a checked config; nothing is opened before ``run``."""
        self._config = config
        self._cameras = {camera.id: camera for camera in config.cameras}
        self._due = Due()
        self._cycling = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises ConfigError, BundleError, DeliveryError at start."""
        with ExitStack() as stack:
            section = self._config.bundle
            self._bundle = open_trusted(section.path, read_trust(section))
            log.info("%s: %s", section.path, describe_signature(self._bundle))
            self._outbox = stack.enter_context(closing(Outbox(self._config.station.state_dir)))
            self._engine = stack.enter_context(closing(self._ladder()))
            self._engine.start()
            self._health = HealthBook(list(self._cameras))
            publisher = Publisher(
                self._config.broker.address, self._config.station.id, self._outbox, self
            )
            publisher.start()
            stack.callback(publisher.stop)
            schedule = Schedule(self._config.cameras, self._due.put)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            signal.signal(signal.SIGALRM, self._cut_short)
            schedule.start()
            stack.callback(schedule.stop)
            self._serve(publisher)

    def _ladder(self) -> Ladder:
        return Ladder(
            self._bundle,
            self._config.engine.backend,
            cache=self._config.station.state_dir / ENGINES,
            workspace_bytes=self._config.engine.workspace_mib << 20,
        )

    def info(self) -> bytes:
        """Return the info payload."""
        manifest = self._bundle.manifest
        return InfoMessage(
            station=self._config.station.id,
            at=utc_now(),
            boot_id=boot_id(),
            icecam=__version__,
            outbox_epoch=self._outbox.epoch,
            bundle=manifest.id,
            bundle_serial=manifest.serial,
            bundle_sha256=self._bundle.sha256,
            members=tuple(member.name for member in manifest.members),
            cameras=tuple(
                CameraInfo(
                    camera=camera.id,
                    every_s=camera.schedule.every_s,
                    region=camera.region,
                    region_id=region_id(camera.region),
                )
                for camera in self._config.cameras
            ),
            classes=manifest.class_map,
        ).encode()

    def health(self) -> bytes:
        """Return the health payload of this moment."""
        station = self._config.station
        return self._health.message(
            station.id, self._outbox, self._engine, station.state_dir
        ).encode()

    def _serve(self, publisher: Publisher) -> None:
        station = Station(
            self._config.station.id, self._bundle, self._engine, self._outbox, self._health
        )
        log.info(
            "station %s runs bundle %s with %d cameras",
            self._config.station.id, self._bundle.manifest.id, len(self._cameras),
        )  # fmt: skip
        while (camera := self._due.get()) is not None:
            self._cycling = True
            try:
                station.cycle(self._cameras[camera])
            except Exception:
                log.exception("%s: the cycle failed and left no observation", camera)
            except CutShortError:
                log.warning("%s: its cycle was cut short; the frame is taken again", camera)
            finally:
                self._cycling = False
            publisher.report_health()
        signal.alarm(0)
        log.info("stopping: what waits in the outbox is sent after the next start")

    def _stop(self, number: int, _: FrameType | None) -> None:
        log.info("received %s", signal.Signals(number).name)
        self._due.stop()
        signal.alarm(STOP_GRACE_S)

    def _cut_short(self, _number: int, _frame: FrameType | None) -> None:
        if self._cycling:
            raise CutShortError
