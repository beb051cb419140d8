"""The publisher against a real mosquitto: what arrives, what is kept, what is set aside."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge import publish
from edge.contract.messages import Topics
from edge.link import connect
from edge.outbox import Draft, Outbox
from edge.publish import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Broker

pytestmark = pytest.mark.broker

STATION = "test-01"
COVERAGE = Topics(STATION).coverage("cam")
MASK = Topics(STATION).mask("cam")
STATE = Topics(STATION).state


class Reports:
    """What a station would report; a fixed text here."""

    def info(self) -> bytes:
        return b'{"info": 1}'

    def health(self) -> bytes:
        return b'{"health": 1}'


class Listener:
    """A plain paho subscriber that keeps what it gets: not the code under test."""

    def __init__(self, address: tuple[str, int], *, client_id: str = "") -> None:
        self.messages: list[MQTTMessage] = []
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5)
        self._client.on_message = lambda _client, _data, message: self.messages.append(message)
        self._client.on_connect = lambda client, *_: client.subscribe("icecam/#", qos=1)
        self._client.reconnect_delay_set(1, 1)
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600 if client_id else 0
        self._client.connect(*address, clean_start=not client_id, properties=session)
        self._client.loop_start()

    def on(self, topic: str) -> list[MQTTMessage]:
        return [message for message in self.messages if message.topic == topic]

    def texts(self, topic: str) -> list[str]:
        return [message.payload.decode() for message in self.on(topic)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path / "state")) as opened:
        yield opened


@contextmanager
def publishing(broker: Broker, outbox: Outbox) -> Iterator[Publisher]:
    publisher = Publisher(broker.address, STATION, outbox, Reports())
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop()


def enqueue(outbox: Outbox, text: str, *, mask: bytes = b"") -> None:
    def drafts(_: int) -> list[Draft]:
        properties = {"id": text, "schema": "icecam.coverage/1"}
        coverage = Draft(
            kind="coverage",
            topic=COVERAGE,
            payload=text.encode(),
            content_type="application/json",
            properties=properties,
        )
        png = Draft(
            kind="mask",
            topic=MASK,
            payload=mask,
            content_type="image/png",
            properties={"id": text},
        )
        return [coverage, png] if mask else [coverage]

    outbox.enqueue("cam", None, drafts)


def eventually(what: Callable[[], Any], *, within_s: float = 15) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


def is_empty(outbox: Outbox) -> bool:
    depth = outbox.depth()
    return depth.observations == depth.masks == 0


def test_an_observation_arrives_with_its_properties_and_leaves_the_outbox(
    broker: Broker, outbox: Outbox
) -> None:
    with closing(Listener(broker.address)) as listener, publishing(broker, outbox):
        enqueue(outbox, "one", mask=b"\x89PNG")
        eventually(lambda: is_empty(outbox) and listener.on(MASK))
    (coverage,) = listener.on(COVERAGE)
    assert coverage.payload == b"one"
    assert coverage.qos == 1
    assert coverage.properties is not None
    sent = coverage.properties.json()
    assert sent["ContentType"] == "application/json"
    assert sent["PayloadFormatIndicator"] == 1
    assert ("id", "one") in map(tuple, sent["UserProperty"])
    (mask,) = listener.on(MASK)
    assert mask.properties is not None
    sent = mask.properties.json()
    assert sent["ContentType"] == "image/png"
    assert sent["MessageExpiryInterval"] > 0


@pytest.mark.protocol("state-2")
def test_state_info_and_health_are_retained_and_a_clean_stop_says_offline(
    broker: Broker, outbox: Outbox
) -> None:
    with publishing(broker, outbox):
        eventually(lambda: retained(broker).get(STATE) == b"online")
        eventually(lambda: Topics(STATION).health in retained(broker))
        kept = retained(broker)
    assert kept[Topics(STATION).info] == b'{"info": 1}'
    assert kept[Topics(STATION).health] == b'{"health": 1}'
    assert retained(broker)[STATE] == b"offline"


@pytest.mark.protocol("state-1")
def test_a_killed_connection_is_reported_by_the_will_after_its_delay(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish.WILL_DELAY_S == 120
    monkeypatch.setattr(publish, "WILL_DELAY_S", 2)
    publisher = Publisher(broker.address, STATION, outbox, Reports())
    link = connect(broker.address, publisher._client(), clean_start=True, session_expiry_s=120)
    with closing(Listener(broker.address)) as listener:
        time.sleep(0.3)
        link.drop()
        time.sleep(1)
        assert listener.texts(STATE) == []
        eventually(lambda: listener.texts(STATE) == ["offline"])


@pytest.mark.protocol("order-1")
@pytest.mark.protocol("order-2")
def test_the_newest_stays_retained_whatever_the_backlog_does(
    broker: Broker, outbox: Outbox
) -> None:
    for text in ("1", "2", "3"):
        enqueue(outbox, text, mask=text.encode())
    with closing(Listener(broker.address)) as listener:
        with publishing(broker, outbox):
            eventually(lambda: is_empty(outbox))
            eventually(lambda: len(listener.on(MASK)) == 3)
        assert listener.texts(COVERAGE) == ["3", "1", "2"]
        assert listener.texts(MASK) == ["3", "1", "2"]
    kept = retained(broker)
    assert (kept[COVERAGE], kept[MASK]) == (b"3", b"3")


def test_observations_made_while_the_broker_is_away_arrive_later_once(
    broker: Broker, outbox: Outbox
) -> None:
    broker.stop()
    with publishing(broker, outbox):
        enqueue(outbox, "while away")
        time.sleep(0.5)
        broker.start()
        with closing(Listener(broker.address)) as listener:
            eventually(lambda: is_empty(outbox), within_s=30)
            eventually(lambda: listener.texts(COVERAGE) == ["while away"])


@pytest.mark.protocol("ack-1")
def test_nothing_leaves_the_outbox_that_a_killed_broker_had_not_received(
    broker: Broker, outbox: Outbox
) -> None:
    """Each message has a length of its own, and mosquitto's log names the lengths it received."""
    lengths = iter(range(1000, 1120))
    with publishing(broker, outbox):
        for _ in range(3):
            eventually(lambda: outbox.depth().observations == 0, within_s=30)
            for length in [next(lengths) for _ in range(40)]:
                enqueue(outbox, "x" * length)
            eventually(lambda: outbox.depth().observations < 35)
            broker.kill()
            broker.start()
        eventually(lambda: outbox.depth().observations == 0, within_s=30)
    lines = [line for line in broker.log.splitlines() if "Received PUBLISH" in line]
    received = {int(line.rsplit("(", 1)[1].split()[0]) for line in lines if COVERAGE in line}
    assert received == set(range(1000, 1120))
    assert outbox.depth().parked == 0


@pytest.mark.protocol("park-1")
def test_what_the_broker_forbids_is_parked_and_the_rest_goes_on(
    broker: Broker, outbox: Outbox, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite {COVERAGE}\ntopic readwrite {STATE}\n")
    acl.chmod(0o644)
    tmp_path.chmod(0o755)
    broker.stop()
    broker.configure(f"acl_file {acl}")
    broker.start()
    enqueue(outbox, "1", mask=b"forbidden")
    with closing(Listener(broker.address)) as listener, publishing(broker, outbox):
        eventually(lambda: outbox.depth().parked == 1)
        enqueue(outbox, "2")
        eventually(lambda: listener.texts(COVERAGE) == ["1", "2"])
    assert outbox.depth().observations == 0


@pytest.mark.protocol("park-1")
def test_a_mask_too_large_for_the_broker_is_parked_and_the_rest_goes_on(
    broker: Broker, outbox: Outbox
) -> None:
    broker.stop()
    broker.configure("max_packet_size 2000")
    broker.start()
    enqueue(outbox, "1", mask=b"x" * 5000)
    with closing(Listener(broker.address)) as listener, publishing(broker, outbox):
        eventually(lambda: outbox.depth().parked == 1)
        enqueue(outbox, "2")
        eventually(lambda: listener.texts(COVERAGE) == ["1", "2"])


def test_a_report_too_large_for_the_broker_does_not_keep_the_rest_back(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reports, "info", lambda _: b"x" * 5000)
    broker.stop()
    broker.configure("max_packet_size 2000")
    broker.start()
    enqueue(outbox, "1")
    with closing(Listener(broker.address)) as listener, publishing(broker, outbox):
        eventually(lambda: listener.texts(COVERAGE) == ["1"])
    assert broker.log.count(f"as icecam-{STATION}") == 1


def retained(broker: Broker) -> dict[str, bytes]:
    """Return what a newcomer is given."""
    with closing(Listener(broker.address)) as listener:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            time.sleep(0.02)
        return {message.topic: message.payload for message in listener.messages if message.retain}
