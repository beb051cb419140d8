"""The daemon as a real process: SIGKILL, a broker that goes away, pictures that are no pictures."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from edge.contract.messages import CoverageMessage, HealthMessage, InfoMessage, NoDataMessage
from edge.subscriber import Received, Subscriber
from tests.stations import STATION, Site, children, command_of, listen, runs, station

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Broker

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def site(tmp_path: Path, broker: Broker, demo_bundle: Path) -> Site:
    return Site(tmp_path, broker, demo_bundle)


def new_seqs(collected: list[Received]) -> list[int]:
    return [
        received.message.seq
        for received in collected
        if received.new and isinstance(received.message, (CoverageMessage, NoDataMessage))
    ]


def test_a_station_observes_publishes_and_leaves_politely(site: Site, broker: Broker) -> None:
    site.add(2)
    with Subscriber(broker.address) as subscriber, station(site) as process:
        collected = listen(
            subscriber,
            lambda c: {1, 2} <= set(new_seqs(c)) and sum(r.mask is not None for r in c) >= 2,
            within_s=60,
        )
        process.send_signal(signal.SIGTERM)
        collected += listen(subscriber, lambda c: any(r.state == "offline" for r in c), within_s=10)
        assert process.wait(10) == 0
    (info,) = [r.message for r in collected if isinstance(r.message, InfoMessage)]
    assert info.station == STATION
    assert info.classes.names == ("other", "water", "ice")
    assert any(isinstance(r.message, HealthMessage) for r in collected)
    observed = [r.message for r in collected if isinstance(r.message, CoverageMessage)]
    assert [f"{o.captured_at:%H:%M} {o.time_source}" for o in observed[:2]] == [
        "00:00 name",
        "00:01 name",
    ]
    assert observed[0].frame_size == (180, 320)


@pytest.mark.protocol("mask-2")
@pytest.mark.protocol("fraction-1")
def test_counting_the_published_mask_gives_the_published_figures(
    site: Site, broker: Broker
) -> None:
    """Rule: a subscriber that counts the mask's values gets the coverage's numbers."""
    site.add(1)
    with Subscriber(broker.address) as subscriber, station(site):
        collected = listen(subscriber, lambda c: any(r.mask is not None for r in c), within_s=60)
    body = json.loads(next(r.payload for r in collected if r.camera and r.message))
    raw = next(r.payload for r in collected if r.mask is not None)
    mask = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    assert list(mask.shape) == body["mask_size"]
    ice, water = int((mask == 2).sum()), int((mask == 1).sum())
    assert [c["pixels"] for c in body["classes"]] == [int((mask == 0).sum()), water, ice]
    assert body["ice_pixel_fraction"] == pytest.approx(ice / (ice + water), abs=1e-6)


@pytest.mark.protocol("topic-1")
@pytest.mark.protocol("topic-3")
@pytest.mark.protocol("qos-1")
@pytest.mark.protocol("state-1")
def test_the_broker_itself_sees_only_what_the_protocol_allows(site: Site, broker: Broker) -> None:
    site.add(1)
    with Subscriber(broker.address) as subscriber, station(site) as process:
        listen(subscriber, lambda c: any(r.mask is not None for r in c), within_s=60)
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    ours = [line for line in broker.log.splitlines() if f"icecam-{STATION}" in line]
    published = [line for line in ours if "Received PUBLISH" in line]
    topics = {line.split("'")[1] for line in published}
    assert topics == {
        f"icecam/v1/{STATION}/{end}"
        for end in ("state", "info", "health", "cam/coverage", "cam/mask")
    }
    assert all(", q1, " in line for line in published)
    assert not any("SUBSCRIBE" in line for line in ours)
    will = broker.log[broker.log.index(f"as icecam-{STATION}") :]
    assert f"Will message specified (7 bytes) (r1, q1).\n\ticecam/v1/{STATION}/state" in re.sub(
        r"\n\d+: ", "\n", will
    )


@pytest.mark.protocol("body-3")
def test_what_user_properties_say_stands_in_the_body_too(site: Site, broker: Broker) -> None:
    site.add(1)
    with _listening(broker) as messages, station(site):
        _wait_for(lambda: any(m.topic.endswith("/mask") for m in messages))
    mask = next(m for m in messages if m.topic.endswith("/mask"))
    told = _user_properties(mask)
    observed = [m for m in messages if m.topic.endswith("/coverage")]
    coverage = next(m for m in observed if _user_properties(m)["id"] == told["id"])
    body = json.loads(coverage.payload)
    for name, value in _user_properties(coverage).items():
        assert body[name] == value
    assert told == {
        "id": body["id"],
        "captured_at": body["captured_at"],
        "sha256": body["mask_sha256"],
    }
    assert hashlib.sha256(mask.payload).hexdigest() == body["mask_sha256"]


def test_a_picture_that_is_none_becomes_no_data_and_the_next_one_is_observed(
    site: Site, broker: Broker
) -> None:
    site.add(3)
    whole = sorted(site.frames.iterdir())[1]
    whole.write_bytes(whole.read_bytes()[:-3000])
    os.utime(whole, (0, 0))  # it is not still arriving
    with Subscriber(broker.address) as subscriber, station(site):
        collected = listen(subscriber, lambda c: {1, 2, 3} <= set(new_seqs(c)), within_s=60)
    by_seq = {
        r.message.seq: r.message
        for r in collected
        if isinstance(r.message, (CoverageMessage, NoDataMessage))
    }
    broken = by_seq[2]
    assert isinstance(broken, NoDataMessage)
    assert broken.reason == "unreadable"
    assert whole.name in broken.detail
    assert f"{broken.captured_at:%H:%M}" == "00:01"
    assert isinstance(by_seq[3], CoverageMessage)


@pytest.mark.protocol("nodata-1")
def test_an_empty_folder_is_no_data_never_zero_ice(site: Site, broker: Broker) -> None:
    with Subscriber(broker.address) as subscriber, station(site):
        collected = listen(subscriber, lambda c: 1 in new_seqs(c), within_s=60)
    body = json.loads(next(r.payload for r in collected if r.camera))
    assert (body["status"], body["reason"]) == ("no_data", "no_frame")
    assert body["ice_pixel_fraction"] is None


@pytest.mark.protocol("seq-1")
@pytest.mark.protocol("id-1")
@pytest.mark.protocol("epoch-1")
@pytest.mark.protocol("once-1")
def test_nothing_is_lost_or_doubled_over_sigkills_and_a_broker_that_was_away(
    site: Site, broker: Broker
) -> None:
    """Rule: seq has no holes, each picture is observed once, repeats carry the same id."""
    frames, rounds, chance = 40, 5, random.Random(11)
    site.add(frames)
    broker.configure(persistent=True)
    with Subscriber(broker.address, client_id="test-durable") as subscriber:
        collected: list[Received] = []

        def drain(seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                received = subscriber.receive(0.1)
                if received is not None:
                    collected.append(received)

        for round_ in range(rounds):
            with station(site) as process:
                drain(chance.uniform(1.5, 4.0))
                if round_ == 2:
                    broker.stop()
                    time.sleep(2)
                    broker.start()
                    drain(2)
                process.send_signal(signal.SIGKILL)
        with station(site):
            collected += listen(
                subscriber,
                lambda c: (
                    _frames_seen(collected + c) == frames
                    and _holes(collected + c) == []
                    and _masks_named(collected + c) <= _masks_received(collected + c)
                ),
                within_s=90,
            )
    assert subscriber.series.missing(STATION, "cam") == []
    observed = [r.message for r in collected if isinstance(r.message, CoverageMessage) and r.new]
    assert len({o.captured_at for o in observed}) == len(observed) == frames
    assert len({o.outbox_epoch for o in observed}) == 1
    seqs = sorted(new_seqs(collected))
    assert seqs == list(range(1, len(seqs) + 1))


def test_workers_die_with_a_daemon_that_is_killed(site: Site, broker: Broker) -> None:
    site.add(2)
    with Subscriber(broker.address) as subscriber, station(site) as process:
        listen(subscriber, lambda c: 1 in new_seqs(c), within_s=60)
        started = children(process.pid)
        assert started, "the engine worker should be running"
        process.send_signal(signal.SIGKILL)
        process.wait(5)
        until = time.monotonic() + 5
        while any(runs(child) for child in started):
            assert time.monotonic() < until, "a worker outlived its daemon"
            time.sleep(0.05)


def test_a_hung_camera_does_not_keep_the_station_from_stopping(site: Site, broker: Broker) -> None:
    """systemd kills after TimeoutStopSec=45: by then the station has said offline itself."""
    os.mkfifo(site.frames / "2026-01-01_00-00-00.jpg")  # whoever opens it waits for ever
    text = site.config.read_text()
    site.config.write_text(text.replace('take = "every"', 'take = "every"\ndeadline_s = 300'))
    with Subscriber(broker.address) as subscriber, station(site) as process:
        listen(subscriber, lambda c: any(r.state == "online" for r in c), within_s=60)
        _wait_for(lambda: any("camera.worker" in command_of(c) for c in children(process.pid)))
        process.send_signal(signal.SIGTERM)
        listen(subscriber, lambda c: any(r.state == "offline" for r in c), within_s=40)
        assert process.wait(5) == 0


def test_a_killed_engine_worker_costs_one_frame_at_most(site: Site, broker: Broker) -> None:
    site.add(20)
    with Subscriber(broker.address) as subscriber, station(site) as process:
        listen(subscriber, lambda c: 2 in new_seqs(c), within_s=60)
        for child in children(process.pid):
            if "edge.engine.worker" in command_of(child):
                os.kill(child, signal.SIGKILL)
        collected = listen(subscriber, lambda c: 10 in new_seqs(c), within_s=60)
    messages = [r.message for r in collected if r.new]
    lost = [m for m in messages if isinstance(m, NoDataMessage)]
    assert len(lost) <= 1
    assert all(m.reason == "engine_failed" for m in lost)
    last = next(m for m in messages if getattr(m, "seq", 0) == 10)
    assert isinstance(last, CoverageMessage)


def _observations(collected: list[Received]) -> list[CoverageMessage | NoDataMessage]:
    return [r.message for r in collected if isinstance(r.message, (CoverageMessage, NoDataMessage))]


def _frames_seen(collected: list[Received]) -> int:
    seen = [o for o in _observations(collected) if isinstance(o, CoverageMessage)]
    return len({o.captured_at for o in seen})


def _holes(collected: list[Received]) -> list[int]:
    seqs = {o.seq for o in _observations(collected)}
    return sorted(set(range(1, max(seqs, default=0) + 1)) - seqs)


def _masks_named(collected: list[Received]) -> set[str]:
    return {o.mask_sha256 for o in _observations(collected) if isinstance(o, CoverageMessage)}


def _masks_received(collected: list[Received]) -> set[str]:
    return {hashlib.sha256(r.payload).hexdigest() for r in collected if r.mask is not None}


@contextmanager
def _listening(broker: Broker) -> Iterator[list[MQTTMessage]]:
    """Collect messages with paho alone, not with the code under test."""
    messages: list[MQTTMessage] = []
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.on_message = lambda _client, _data, message: messages.append(message)
    client.connect(*broker.address)
    client.subscribe("icecam/#", qos=1)
    client.loop_start()
    yield messages
    client.disconnect()
    client.loop_stop()


def _wait_for(what: Callable[[], bool], *, within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


def _user_properties(message: MQTTMessage) -> dict[str, str]:
    assert message.properties is not None
    return dict(message.properties.json()["UserProperty"])
