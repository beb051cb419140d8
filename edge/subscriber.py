"""MQTT → typed messages: the reference consumer of docs/protocol.md."""

from __future__ import annotations

import bisect
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.contract.errors import DeliveryError
from edge.contract.masks import decode_png
from edge.contract.messages import PREFIX, CoverageMessage, NoDataMessage, read_message
from edge.link import CONNECT_TIMEOUT_S, connect, new_client

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from paho.mqtt.client import MQTTMessage
    from typing_extensions import Self

    from edge.contract.masks import Mask
    from edge.contract.messages import Message
    from edge.link import Address, Link

log = logging.getLogger(__name__)

SESSION_EXPIRY_S = 30 * 24 * 3600
REMEMBERED_IDS = 100_000
RECONNECT_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One MQTT message, read: exactly one of message, mask, state and problem is set.

    problem: why a payload could not be read; it is passed on, never dropped.
    retained: the broker kept it from before; new: False for an observation received before.
    """

    topic: str
    payload: bytes
    retained: bool
    station: str
    camera: str | None
    message: Message | None = None
    mask: Mask | None = None
    state: str | None = None
    problem: str | None = None
    new: bool = True

    @property
    def observed(self) -> bool:
        """Whether this is an observation that was not received before."""
        return self.new and isinstance(self.message, (CoverageMessage, NoDataMessage))


class Series:
    """What was received of each camera: tells repeats by id and holes by seq.

    A camera's series is (station, camera, outbox_epoch); seq has no holes in it.
    """

    def __init__(self) -> None:
        """Start knowing nothing."""
        self._ids: dict[UUID, None] = {}
        self._spans: dict[tuple[str, str, str], Spans] = {}

    def take(self, observation: CoverageMessage | NoDataMessage) -> bool:
        """Note an observation and return whether it is new."""
        if observation.id in self._ids:
            return False
        self._ids[observation.id] = None
        if len(self._ids) > REMEMBERED_IDS:
            del self._ids[next(iter(self._ids))]
        key = (observation.station, observation.camera, observation.outbox_epoch)
        self._spans.setdefault(key, Spans()).add(observation.seq)
        return True

    def missing(self, station: str, camera: str) -> list[tuple[int, int]]:
        """Return what is missing of a camera as (first, last) seq, over all its epochs."""
        return [
            hole
            for (of_station, of_camera, _), spans in self._spans.items()
            if (of_station, of_camera) == (station, camera)
            for hole in spans.holes()
        ]


class Spans:
    """A set of whole numbers, kept as its unbroken spans."""

    def __init__(self) -> None:
        """Start empty."""
        self._spans: list[tuple[int, int]] = []

    def add(self, number: int) -> None:
        """Put a number in."""
        at = bisect.bisect_right(self._spans, (number, number))
        first = last = number
        if at < len(self._spans) and self._spans[at][0] <= number + 1:
            last = max(last, self._spans.pop(at)[1])
        if at and self._spans[at - 1][1] >= number - 1:
            first, before = self._spans.pop(at - 1)
            last = max(last, before)
            at -= 1
        self._spans.insert(at, (first, last))

    def holes(self) -> list[tuple[int, int]]:
        """Return the gaps between the spans as (first, last), ascending."""
        pairs = zip(self._spans, self._spans[1:], strict=False)
        return [(before[1] + 1, after[0] - 1) for before, after in pairs]


class Subscriber:
    """Receives what stations publish. A context manager for one thread; reconnects by itself.

    With a ``client_id`` the broker keeps what arrives while this consumer is away; without one it
    only sees what is published while it is here, and what is retained.
    """

    def __init__(self, address: Address, *, station: str = "+", client_id: str = "") -> None:
        """Connect and subscribe. Raises DeliveryError where the broker refuses."""
        self._address = address
        self._station = station
        self._client_id = client_id
        self.series = Series()
        self._link = self._connect()

    def __enter__(self) -> Self:
        """Return the subscriber itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave; a durable session stays with the broker."""
        self._link.close()

    def receive(self, timeout_s: float) -> Received | None:
        """Return the next message, None where none came within ``timeout_s``."""
        until = time.monotonic() + timeout_s
        while not self._link.received:
            if time.monotonic() >= until:
                return None
            if self._link.lost:
                self._reconnect(until)
            else:
                self._link.turn()
        return self._read(self._link.received.popleft())

    def _connect(self) -> Link:
        link = connect(
            self._address,
            new_client(self._client_id),
            clean_start=not self._client_id,
            session_expiry_s=SESSION_EXPIRY_S if self._client_id else 0,
        )
        wanted = f"{PREFIX}/{self._station}/#"
        link.client.subscribe(wanted, qos=1)
        until = time.monotonic() + CONNECT_TIMEOUT_S
        while not link.subscribed and not link.lost and time.monotonic() < until:
            link.turn()
        if not link.subscribed or link.subscribed[0].is_failure:
            link.close()
            why = link.subscribed[0] if link.subscribed else link.lost or "no answer"
            raise DeliveryError(f"the broker refused the subscription to {wanted} ({why})")
        return link

    def _reconnect(self, until: float) -> None:
        log.warning("connection lost (%s); connecting again", self._link.lost)
        try:
            self._link = self._connect()
        except DeliveryError as problem:
            log.warning("%s", problem)
            time.sleep(max(0.0, min(RECONNECT_S, until - time.monotonic())))

    def _read(self, raw: MQTTMessage) -> Received:
        levels = raw.topic.removeprefix(f"{PREFIX}/").split("/")
        station, camera = levels[0], levels[1] if len(levels) > 2 else None  # noqa: PLR2004 - a leaf below
        plain = Received(
            topic=raw.topic,
            payload=bytes(raw.payload),
            retained=raw.retain,
            station=station,
            camera=camera,
        )
        try:
            if levels[-1] == "state":
                return replace(plain, state=plain.payload.decode("ascii", "replace"))
            if levels[-1] == "mask":
                return replace(plain, mask=decode_png(plain.payload, where=raw.topic))
            message = read_message(plain.payload, where=raw.topic)
        except DeliveryError as problem:
            return replace(plain, problem=str(problem))
        if isinstance(message, (CoverageMessage, NoDataMessage)):
            return replace(plain, message=message, new=self.series.take(message))
        return replace(plain, message=message)
