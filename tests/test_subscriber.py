"""The reference consumer: repeats, holes, and payloads that are not what they should be."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from edge.contract.messages import ModelInfo, NoDataMessage, Quality, new_id
from edge.subscriber import Series, Spans, Subscriber

if TYPE_CHECKING:
    from tests.conftest import Broker

NOW = datetime(2026, 11, 22, 17, tzinfo=timezone.utc)


def observation(seq: int, *, epoch: str = "00000001", camera: str = "cam") -> NoDataMessage:
    return NoDataMessage(
        id=new_id(NOW),
        station="test-01",
        camera=camera,
        seq=seq,
        outbox_epoch=epoch,
        captured_at=NOW,
        time_source="clock",
        enqueued_at=NOW,
        clock="unknown",
        reason="no_frame",
        detail="nothing",
        quality=Quality(),
        model=ModelInfo(bundle="b", sha256="0" * 64, graph=None, engine=None),
    )


@pytest.mark.protocol("once-1")
def test_an_observation_received_twice_is_new_once() -> None:
    series = Series()
    one = observation(1)
    assert [series.take(one), series.take(one), series.take(observation(2))] == [True, False, True]


@pytest.mark.protocol("gap-1")
def test_holes_are_told_per_camera_and_fill_when_the_backlog_arrives() -> None:
    series = Series()
    for seq in (7, 12, 8, 11):
        series.take(observation(seq))
    series.take(observation(3, camera="other"))
    assert series.missing("test-01", "cam") == [(9, 10)]
    series.take(observation(9))
    series.take(observation(10))
    assert series.missing("test-01", "cam") == []


def test_a_new_outbox_epoch_starts_a_series_of_its_own() -> None:
    series = Series()
    series.take(observation(40))
    series.take(observation(1, epoch="00000002"))
    assert series.missing("test-01", "cam") == []


@given(st.lists(st.integers(min_value=1, max_value=60)))
def test_holes_are_exactly_the_numbers_between_that_never_came(numbers: list[int]) -> None:
    spans = Spans()
    for number in numbers:
        spans.add(number)
    told = {n for first, last in spans.holes() for n in range(first, last + 1)}
    between = set(range(min(numbers), max(numbers))) if numbers else set()
    assert told == between - set(numbers)


@pytest.mark.broker
def test_payloads_that_break_the_protocol_are_told_and_do_not_stop_the_rest(
    broker: Broker,
) -> None:
    good = observation(1)
    sent = [
        ("icecam/v1/test-01/cam/coverage", b"{"),
        ("icecam/v1/test-01/cam/coverage", b'{"schema": "icecam.coverage/9"}'),
        ("icecam/v1/test-01/cam/mask", b"not a png"),
        ("icecam/v1/test-01/state", b"online"),
        ("icecam/v1/test-01/cam/coverage", good.encode()),
    ]
    with Subscriber(broker.address) as subscriber, closing(_publisher(broker)) as publisher:
        for topic, payload in sent:
            publisher.client.publish(topic, payload, qos=1)
        received = [subscriber.receive(10) for _ in sent]
    problems = [r.problem for r in received if r is not None]
    assert len(problems) == 5
    assert "not JSON" in str(problems[0])
    assert "icecam.coverage/1" in str(problems[1])
    assert "not a readable PNG" in str(problems[2])
    assert received[3] is not None
    assert received[3].state == "online"
    assert received[4] is not None
    assert received[4].message == good
    assert received[4].camera == "cam"


class _publisher:  # noqa: N801 - reads as a function in the test
    """A plain paho client that publishes."""

    def __init__(self, broker: Broker) -> None:
        self.client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self.client.connect(*broker.address)
        self.client.loop_start()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
