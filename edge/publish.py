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
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.contract.errors import DeliveryError
from edge.contract.messages import OFFLINE, ONLINE, Topics
from edge.link import connect, new_client

if TYPE_CHECKING:
    from paho.mqtt.client import Client

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

_PERMANENT = {
    0x87: "not authorized",
    0x90: "topic name invalid",
    0x95: "packet too large",
    0x99: "payload format invalid",
}
_PUBLISH_HEAD_BYTES = 512


class Reports(Protocol):
    """What the publisher asks the station for."""

    def info(self) -> bytes:
        """Return the info payload."""
        ...

    def health(self) -> bytes:
        """Return the health payload of this moment."""
        ...


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
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            served = False
            try:
                link = connect(
                    self._address,
                    self._client(),
                    clean_start=True,
                    session_expiry_s=SESSION_EXPIRY_S,
                )
                served = True
                with closing(link):
                    self._serve(link)
            except DeliveryError as problem:
                log.warning("%s; observations wait on disk", problem)
            except Exception:
                log.exception("the sender failed; observations wait on disk, it starts again")
            finally:
                self._outbox.release()
            backoff_s = FIRST_BACKOFF_S if served else min(backoff_s * 2, LONGEST_BACKOFF_S)
            self._stopping.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret

    def _client(self) -> Client:
        client = new_client(f"icecam-{self._station}")
        will = Properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = WILL_DELAY_S
        client.will_set(self._topics.state, OFFLINE, qos=1, retain=True, properties=will)
        return client

    def _serve(self, link: Link) -> None:
        """Send until the connection is lost or the station stops."""
        log.info("connected to %s:%d", *self._address)
        self._send(link, self._topics.state, ONLINE, "text/plain")
        self._send(link, self._topics.info, self._reports.info(), "application/json")
        under_way: dict[int, Waiting] = {}
        health_due = 0.0
        while not link.lost:
            if self._stopping.is_set():
                self._farewell(link)
                return
            self._fill(link, under_way)
            asked = self._report_now.is_set() and not under_way
            if asked or time.monotonic() >= health_due:
                self._report_now.clear()
                health_due = time.monotonic() + self._health_every_s
                self._send(link, self._topics.health, self._reports.health(), "application/json")
            link.turn()
            self._settle(link, under_way)
        raise DeliveryError(f"connection to {self._where} lost ({link.lost})")

    def _fill(self, link: Link, under_way: dict[int, Waiting]) -> None:
        while len(under_way) < min(WINDOW, link.limit("ReceiveMaximum", WINDOW)) and not link.lost:
            message = self._outbox.take()
            if message is None:
                return
            limit = link.limit("MaximumPacketSize", 0)
            if limit and len(message.payload) + _PUBLISH_HEAD_BYTES > limit:
                why = f"{len(message.payload)} bytes; the broker takes packets up to {limit}"
                self._park(message, why)
                continue
            properties = _properties(message.content_type)
            properties.UserProperty = list(message.properties.items())
            if message.kind == "mask":
                properties.MessageExpiryInterval = MASK_EXPIRY_S
            sent = link.client.publish(
                message.topic, message.payload, qos=1, retain=message.live, properties=properties
            )
            under_way[sent.mid] = message

    def _settle(self, link: Link, under_way: dict[int, Waiting]) -> None:
        """Act on what the broker acknowledged or refused."""
        noted, link.acknowledged = link.acknowledged, []
        for number, reason in noted:
            message = under_way.pop(number, None)
            if message is None:
                continue
            if not reason.is_failure:
                self._outbox.acknowledge(message)
            elif reason.value in _PERMANENT:
                self._park(message, f"0x{reason.value:02x} {_PERMANENT[reason.value]}")
            else:
                self._outbox.retry(message)
                raise DeliveryError(f"{self._where} refused a message for now ({reason})")

    def _park(self, message: Waiting, why: str) -> None:
        self._outbox.park(message, why)
        log.error(
            "the %s of observation %d of camera %s cannot be delivered (%s): parked, continuing "
            "with the next", message.kind, message.seq, message.camera, why,
        )  # fmt: skip

    def _send(self, link: Link, topic: str, payload: bytes, content_type: str) -> int:
        """Publish a retained report; nobody waits for it, each connection sends its own."""
        properties = _properties(content_type)
        return link.client.publish(topic, payload, qos=1, retain=True, properties=properties).mid

    def _farewell(self, link: Link) -> None:
        """Publish ``offline`` and leave once the broker has it: a clean stop triggers no will."""
        number = self._send(link, self._topics.state, OFFLINE, "text/plain")
        until = time.monotonic() + FAREWELL_S
        while time.monotonic() < until and not link.lost:
            if any(noted == number for noted, _ in link.acknowledged):
                return
            link.turn()

    @property
    def _where(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"


def _properties(content_type: str) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = content_type
    if content_type != "image/png":
        properties.PayloadFormatIndicator = 1
    return properties
