"""One MQTT 5 connection, driven by the thread that owns it.

paho's own network thread and its memory of messages over reconnects are not used: ``turn`` reads
and writes through paho's interface for outside event loops, callbacks only note what happened, and
each connection has a fresh client.
"""

from __future__ import annotations

import select
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.contract.errors import DeliveryError

if TYPE_CHECKING:
    from paho.mqtt.client import ConnectFlags, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

CONNECT_TIMEOUT_S = 30.0
KEEPALIVE_S = 60
TICK_S = 0.1

Address = tuple[str, int]
"""(host, port)."""


@dataclass(kw_only=True, slots=True)
class Link:
    """A connection: the client, and what its callbacks noted since they were last looked at.

    lost: why the connection ended, empty while it stands.
    """

    client: Client
    answer: ReasonCode | None = None
    limits: Properties | None = None
    lost: str = ""
    acknowledged: list[tuple[int, ReasonCode]] = field(default_factory=list)
    subscribed: list[ReasonCode] = field(default_factory=list)
    received: deque[MQTTMessage] = field(default_factory=deque)

    def limit(self, name: str, otherwise: int) -> int:
        """Return a limit that the broker named when it accepted the connection."""
        return int(getattr(self.limits, name, otherwise))

    def turn(self) -> None:
        """Wait a moment for the network, and let the client read and write."""
        channel = self.client.socket()
        if channel is None:
            self.lost = self.lost or "connection closed"
            return
        writing = [channel] if self.client.want_write() else []
        readable, writable, _ = select.select([channel], writing, [], TICK_S)
        results = [self.client.loop_read()] if readable else []
        results += [self.client.loop_write()] if writable else []
        for status in (*results, self.client.loop_misc()):
            if status != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.lost = self.lost or status.name

    def close(self) -> None:
        """Say goodbye where the connection still stands, and let the socket go."""
        self.client.disconnect()
        self.drop()

    def drop(self) -> None:
        """Let the socket go without a goodbye: the broker then publishes the will."""
        channel = self.client.socket()
        if channel is not None:
            channel.close()


def new_client(client_id: str) -> Client:
    """Return an MQTT 5 client that holds nothing yet."""
    return Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)


def connect(address: Address, client: Client, *, clean_start: bool, session_expiry_s: int) -> Link:
    """Connect a fresh client and wait for the broker's answer. Raises DeliveryError."""
    where = f"broker {address[0]}:{address[1]}"
    link = Link(client=client)
    _note_into(link)
    client.connect_timeout = CONNECT_TIMEOUT_S
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = session_expiry_s
    try:
        client.connect(*address, KEEPALIVE_S, clean_start=clean_start, properties=session)
    except (OSError, ValueError) as problem:
        raise DeliveryError(f"{where} cannot be reached ({problem})") from None
    until = time.monotonic() + CONNECT_TIMEOUT_S
    while link.answer is None and not link.lost:
        if time.monotonic() > until:
            link.close()
            raise DeliveryError(f"{where} did not answer within {CONNECT_TIMEOUT_S:g} s")
        link.turn()
    if link.answer is None or link.answer.is_failure:
        link.close()
        raise DeliveryError(f"{where} refused the connection ({link.answer or link.lost})")
    return link


def _note_into(link: Link) -> None:
    """Make the callbacks note, and do nothing else: they run inside paho's locks."""

    def on_connect(
        _client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        link.answer, link.limits = reason, properties

    def on_publish(
        _client: Client, _data: object, number: int, reason: ReasonCode, _properties: object
    ) -> None:
        link.acknowledged.append((number, reason))

    def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
        link.received.append(message)

    def on_subscribe(
        _client: Client, _data: object, _number: int, reasons: list[ReasonCode], _: object
    ) -> None:
        link.subscribed.extend(reasons)

    def on_disconnect(
        _client: Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        link.lost = link.lost or str(reason)

    link.client.on_connect = on_connect
    link.client.on_publish = on_publish
    link.client.on_message = on_message
    link.client.on_subscribe = on_subscribe
    link.client.on_disconnect = on_disconnect
