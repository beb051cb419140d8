"""Outbox → MQTT 5. One thread owns the client: it publishes, reads, reconnects, deletes.

A fresh client serves each connection, so that paho holds nothing over a reconnect and the outbox
stays the only owner of what waits. Callbacks only note what happened; the thread acts on it.
What paho does and does not say is measured, not read (docs/protocol.md, "Why the publisher …").
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.contract.errors import DeliveryError
from edge.contract.messages import OFFLINE, ONLINE, Topics
from edge.link import connect, new_client

if TYPE_CHECKING:
    from paho.mqtt.client import Client
    from paho.mqtt.reasoncodes import ReasonCode

    from edge.link import Address, Link
    from edge.outbox import Outbox, Waiting

log = logging.getLogger(__name__)

WINDOW = 8
SESSION_EXPIRY_S = 120
WILL_DELAY_S = 120
MASK_EXPIRY_S = 7 * 24 * 3600
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
FAREWELL_S = 5.0
MOST_ATTEMPTS = 20
PACKET_HEAD_BYTES = 512
"""What topic and properties of a packet take at most."""

_PERMANENT = {
    0x87: "not authorized",
    0x90: "topic name invalid",
    0x95: "packet too large",
    0x99: "payload format invalid",
}


class Reports(Protocol):
    """What the publisher asks the station for."""

    def info(self) -> bytes:
        """Return the info payload."""
        ...

    def health(self) -> bytes:
        """Return the health payload of this moment."""
        ...


ReportName = Literal["state", "info", "health"]
Report = tuple[ReportName, bytes]


@dataclass(slots=True)
class Flight:
    """What is under way on one connection, by packet number, and the reports still to send."""

    link: Link
    reports: deque[Report]
    under_way: dict[int, Waiting | ReportName] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether the window has room for another message."""
        window = min(WINDOW, self.link.limit("ReceiveMaximum", WINDOW))
        return len(self.under_way) < window and not self.link.lost

    def fits(self, payload: bytes) -> bool:
        """Whether the broker takes a packet with this payload."""
        limit = self.link.limit("MaximumPacketSize", 0)
        return not limit or len(payload) + PACKET_HEAD_BYTES <= limit


class Publisher(threading.Thread):
    """Sends what the outbox holds until it is told to stop."""

    def __init__(
        self,
        address: Address,
        station: str,
        outbox: Outbox,
        reports: Reports,
        *,
        health_every_s: float = 300.0,
    ) -> None:
        """Prepare the thread; ``start()`` connects."""
        super().__init__(name="sender", daemon=True)
        self._address = address
        self._station = station
        self._topics = Topics(station)
        self._outbox = outbox
        self._reports = reports
        self._health_every_s = health_every_s
        self._backoff_s = FIRST_BACKOFF_S
        self._stopping = threading.Event()
        self._report_now = threading.Event()

    def stop(self) -> None:
        """Say farewell to the broker and end; waits for it."""
        self._stopping.set()
        self.join(FAREWELL_S + 1)

    def report_health(self) -> None:
        """Ask for a health message soon."""
        self._report_now.set()

    def run(self) -> None:
        """Connect, serve, and connect again after a capped, jittered pause."""
        while not self._stopping.is_set():
            try:
                link = connect(
                    self._address,
                    self._client(),
                    clean_start=True,
                    session_expiry_s=SESSION_EXPIRY_S,
                )
                self._serve(link)
            except DeliveryError as problem:
                log.warning("%s; observations wait on disk", problem)
            except Exception:
                log.exception("the sender failed; observations wait on disk, it starts again")
            finally:
                self._outbox.release()
            pause_s = self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
            self._backoff_s = min(self._backoff_s * 2, LONGEST_BACKOFF_S)
            self._stopping.wait(pause_s)

    def _client(self) -> Client:
        client = new_client(f"icecam-{self._station}")
        will = Properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = WILL_DELAY_S
        client.will_set(self._topics.state, OFFLINE, qos=1, retain=True, properties=will)
        return client

    def _serve(self, link: Link) -> None:
        """Send until the station stops. Raises DeliveryError where the connection is lost."""
        log.info("connected to %s", self._where)
        flight = Flight(
            link, deque([("state", ONLINE), ("info", self._reports.info()), self._health()])
        )
        health_due = time.monotonic() + self._health_every_s
        try:
            while not self._stopping.is_set():
                self._fill(flight)
                asked = self._report_now.is_set() and not flight.under_way
                if asked or time.monotonic() >= health_due:
                    self._report_now.clear()
                    health_due = time.monotonic() + self._health_every_s
                    flight.reports.append(self._health())
                self._turn(flight)
            self._farewell(flight)
        finally:
            link.drop()

    def _health(self) -> Report:
        return "health", self._reports.health()

    def _fill(self, flight: Flight) -> None:
        """Publish reports, then what the outbox holds, as far as the window allows."""
        while flight.has_room and flight.reports:
            self._report(flight, *flight.reports.popleft())
        while flight.has_room:
            message = self._outbox.take()
            if message is None:
                return
            if flight.fits(message.payload):
                flight.under_way[self._publish(flight.link, message)] = message
            else:
                limit = flight.link.limit("MaximumPacketSize", 0)
                found = f"{len(message.payload)} bytes; the broker takes packets up to {limit}"
                self._park(message, found)

    def _report(self, flight: Flight, name: ReportName, payload: bytes) -> None:
        """Publish a retained report; each connection sends its own, so none is repeated."""
        if not flight.fits(payload):
            log.error("the broker takes no %s of %d bytes: left out", name, len(payload))
            return
        properties = _properties("text/plain" if name == "state" else "application/json")
        sent = flight.link.client.publish(
            getattr(self._topics, name), payload, qos=1, retain=True, properties=properties
        )
        flight.under_way[sent.mid] = name

    def _publish(self, link: Link, message: Waiting) -> int:
        properties = _properties(message.content_type)
        properties.UserProperty = list(message.properties.items())
        if message.kind == "mask":
            properties.MessageExpiryInterval = MASK_EXPIRY_S
        return link.client.publish(
            message.topic, message.payload, qos=1, retain=message.live, properties=properties
        ).mid

    def _turn(self, flight: Flight) -> None:
        """Read and write for a moment, and act on every answer of the broker."""
        link = flight.link
        link.turn()
        noted, link.acknowledged = link.acknowledged, []
        refusals = [
            refusal
            for number, reason in noted
            if (sent := flight.under_way.pop(number, None)) is not None
            and (refusal := self._settle(sent, reason))
        ]
        if refusals:
            raise DeliveryError(f"{self._where} refused messages for now ({refusals[0]})")
        if link.lost:
            raise DeliveryError(f"connection to {self._where} lost ({link.lost})")

    def _settle(self, sent: Waiting | ReportName, reason: ReasonCode) -> str:
        """Act on one answer; return the reason of a refusal that may pass, else nothing."""
        if not reason.is_failure:
            if isinstance(sent, str):
                return ""
            self._outbox.acknowledge(sent)
            self._backoff_s = FIRST_BACKOFF_S  # not for a report: those pass where all else fails
        elif isinstance(sent, str):
            log.error("%s refused the %s (%s): left out", self._where, sent, reason)
        elif reason.value in _PERMANENT:
            self._park(sent, f"0x{reason.value:02x} {_PERMANENT[reason.value]}")
        elif self._outbox.retry(sent) >= MOST_ATTEMPTS:
            self._park(sent, f"{reason}, {MOST_ATTEMPTS} times")
        else:
            return str(reason)
        return ""

    def _park(self, message: Waiting, why: str) -> None:
        self._outbox.park(message, why)
        log.error(
            "the %s of observation %d of camera %s cannot be delivered (%s): parked until the next "
            "start, continuing with the next",
            message.kind,
            message.seq,
            message.camera,
            why,
        )

    def _farewell(self, flight: Flight) -> None:
        """Publish ``offline`` and leave once the broker has it: a clean stop triggers no will.

        Where it does not answer, the connection is dropped instead and the will speaks.
        """
        self._report(flight, "state", OFFLINE)
        until = time.monotonic() + FAREWELL_S
        while time.monotonic() < until:
            if "state" not in flight.under_way.values():
                flight.link.close()
                return
            self._turn(flight)

    @property
    def _where(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"


def _properties(content_type: str) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = content_type
    if content_type != "image/png":
        properties.PayloadFormatIndicator = 1
    return properties
