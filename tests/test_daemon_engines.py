"""The daemon and its engines, as a real process with a real broker; TensorRT is a double."""

from __future__ import annotations

import json
import signal
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import onnx
import pytest

from edge.contract.bundle import open_bundle
from edge.contract.messages import CoverageMessage, HealthMessage, NoDataMessage
from edge.subscriber import Subscriber
from tests.doubles.inherited import InheritedDoubles
from tests.engine.fallbacks import with_fallback
from tests.engine.surgery import HEADS, swap_classes
from tests.stations import Site, children, command_of, runs, station

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.messages import EngineHealth, Message
    from tests.conftest import Broker

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> InheritedDoubles:
    return InheritedDoubles(monkeypatch)


@pytest.fixture
def site(tmp_path: Path, broker: Broker, demo_bundle: Path) -> Site:
    site = Site(tmp_path, broker, demo_bundle)
    site.add(60)
    return site


class Heard:
    """What a subscriber hears of a daemon that starts now; what an earlier one left is dropped."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._began = datetime.now(timezone.utc)
        self.observations: list[CoverageMessage | NoDataMessage] = []
        self.healths: list[HealthMessage] = []

    def until(self, enough: Callable[[Heard], bool], *, within_s: float = 90) -> Heard:
        """Listen until it is enough; fail where it never is."""
        until = time.monotonic() + within_s
        while not enough(self):
            assert time.monotonic() < until, f"heard only {self.rungs}"
            received = self._subscriber.receive(0.2)
            if received is not None and received.new:
                self._note(received.message)
        return self

    def _note(self, message: Message | None) -> None:
        if isinstance(message, HealthMessage) and message.at >= self._began:
            self.healths.append(message)
        elif isinstance(message, CoverageMessage | NoDataMessage):
            self.observations += [message] * (message.enqueued_at >= self._began)

    @property
    def rungs(self) -> list[tuple[str | None, str]]:
        """Which engine answered each observation, and the word for its rung, in order."""
        return [(one.model.engine, one.model.degraded) for one in self.observations]

    @property
    def engine(self) -> EngineHealth:
        """What health said of the engine last."""
        return self.healths[-1].engine


def tensorrt_serves(heard: Heard) -> bool:
    """Whether observations and health both say so."""
    return (
        heard.rungs.count(("trt", "none")) >= 2
        and bool(heard.healths)
        and heard.engine.engine == "trt"
        and bool(heard.engine.certifications)
    )


@pytest.mark.protocol("engine-1")
@pytest.mark.protocol("engine-2")
def test_a_station_serves_with_onnx_runtime_then_tensorrt_and_says_which_and_how_well(
    site: Site, broker: Broker, demo_bundle: Path, double: InheritedDoubles
) -> None:
    double.ask("slow-build=6")
    with Subscriber(broker.address) as subscriber, station(site) as process:
        heard = Heard(subscriber).until(tensorrt_serves)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    served = heard.rungs
    first = served.index(("trt", "none"))
    assert first >= 1, "the build was to take longer than the first observation"
    assert set(served[:first]) == {("ort", "onnxruntime")}
    assert set(served[first:]) == {("trt", "none")}
    told = heard.engine
    assert (told.state, told.engine, told.degraded, told.restarts) == ("ready", "trt", "none", 0)
    assert told.detail is None
    (verdict,) = told.certifications
    assert (verdict.engine, verdict.graph, verdict.passed) == ("trt", "full", True)
    assert verdict.bundle_sha256 == open_bundle(demo_bundle).sha256
    assert verdict.mask_agreement == 1.0
    assert verdict.shortfalls == ()
    early = heard.healths[0].engine
    assert (early.degraded, early.certifications) == ("onnxruntime", ())


def sidecar(site: Site) -> dict[str, object]:
    """What lies beside the one engine of a station."""
    (path,) = (site.state / "engines").glob("*.json")
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_after_an_update_of_jetpack_a_station_builds_its_engine_anew_by_itself(
    site: Site, broker: Broker, double: InheritedDoubles
) -> None:
    with Subscriber(broker.address) as subscriber:
        with station(site):
            Heard(subscriber).until(tensorrt_serves)
        first = sidecar(site)
        with station(site):
            Heard(subscriber).until(tensorrt_serves)
        assert sidecar(site) == first  # started again, nothing changed: kept
        double.ask(version="10.7.0")
        with station(site):
            heard = Heard(subscriber).until(tensorrt_serves)
    second = sidecar(site)
    assert first["origin"] == {**second["origin"], "tensorrt": "10.3.0"}  # type: ignore[dict-item]
    assert second["origin"]["tensorrt"] == "10.7.0"  # type: ignore[index]
    assert second["built_at"] != first["built_at"]
    assert all(verdict.passed for verdict in heard.engine.certifications)
    assert "tensorrt 10.3.0 → 10.7.0" in site.log.read_text(encoding="utf-8")


@pytest.mark.protocol("engine-2")
def test_an_engine_that_is_not_equal_never_serves_and_its_verdict_is_published(
    site: Site, broker: Broker, double: InheritedDoubles
) -> None:
    double.ask("lose-class=2")
    with Subscriber(broker.address) as subscriber, station(site):
        heard = Heard(subscriber)
        heard.until(lambda h: bool(h.healths and h.engine.certifications))
        before = len(heard.observations)
        heard.until(lambda h: len(h.observations) >= before + 2)
    assert set(heard.rungs) == {("ort", "onnxruntime")}
    told = heard.engine
    assert (told.engine, told.degraded) == ("ort", "onnxruntime")
    (verdict,) = told.certifications
    assert not verdict.passed
    assert told.detail is not None
    assert told.detail.startswith("no engine of graph full: ")
    assert "IoU of ice 0.000" in told.detail
    assert (verdict.least_class, verdict.least_class_iou) == ("ice", 0.0)
    assert any("IoU of ice 0.000" in shortfall for shortfall in verdict.shortfalls)
    engines = site.state / "engines"
    assert not list(engines.glob("*.plan"))
    assert len(list((engines / "quarantine").glob("*.json"))) == 1
    assert not list((engines / "quarantine").glob("*.plan"))


@pytest.mark.protocol("engine-1")
def test_the_fallback_serves_with_its_own_members_and_both_verdicts_are_published(
    tmp_path: Path, broker: Broker, demo_bundle: Path, double: InheritedDoubles
) -> None:
    del double
    demo = open_bundle(demo_bundle)
    wrong = onnx.load_from_string(demo.read("ensemble.onnx"))
    swap_classes(wrong, 1, 2, heads=HEADS)
    with_fallback(demo, tmp_path / "b.icecam", wrong.SerializeToString())
    site = Site(tmp_path, broker, tmp_path / "b.icecam")
    site.add(60)
    with Subscriber(broker.address) as subscriber, station(site):
        heard = Heard(subscriber).until(
            lambda h: (
                ("trt", "fallback") in h.rungs
                and bool(h.healths)
                and h.engine.degraded == "fallback"
            )
        )
    by_rung = {one.model.degraded: one for one in heard.observations}
    observed = by_rung["fallback"]
    assert observed.model.graph == "fallback-fp16"
    assert [(member.name, member.weight) for member in observed.members] == [("unet", 1.0)]
    assert observed.ice_pixel_fraction == observed.members[0].ice_pixel_fraction
    assert observed.spread is None
    verdicts = [(one.graph, one.passed) for one in heard.engine.certifications]
    assert verdicts == [("full-fp16", False), ("fallback-fp16", True)]


@pytest.mark.protocol("engine-1")
def test_an_engine_that_crashes_at_work_costs_no_observation(
    site: Site, broker: Broker, double: InheritedDoubles
) -> None:
    with Subscriber(broker.address) as subscriber:
        with station(site):
            Heard(subscriber).until(tensorrt_serves)
        double.ask("crash")  # the engine lies there and is not run before it serves
        with station(site):
            heard = Heard(subscriber)
            heard.until(lambda _: "the next rung serves" in site.log.read_text(encoding="utf-8"))
            before = len(heard.observations)
            heard.until(lambda h: len(h.observations) >= before + 2 and bool(h.healths))
            heard.until(lambda h: h.engine.engine == "ort")
    assert set(heard.rungs) == {("ort", "onnxruntime")}
    assert not any(isinstance(one, NoDataMessage) for one in heard.observations)
    seqs = sorted(one.seq for one in heard.observations)
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    told = heard.engine
    assert (told.state, told.degraded) == ("ready", "onnxruntime")
    assert told.detail == "full failed: edge.engine.worker was ended by SIGSEGV"


def test_a_station_that_is_told_to_stop_while_it_builds_ends_within_seconds(
    site: Site, broker: Broker, double: InheritedDoubles
) -> None:
    double.ask("slow-build=600")
    with Subscriber(broker.address) as subscriber, station(site) as process:
        Heard(subscriber).until(lambda h: len(h.observations) >= 2)
        started = children(process.pid)
        assert any("edge.engine.trt.worker" in command_of(child) for child in started)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(15) == 0
        assert time.monotonic() - began < 15
    assert not any(runs(child) for child in started)
    log = site.log.read_text(encoding="utf-8")
    assert "no engine of graph" not in log
    assert "Traceback" not in log


def test_a_station_that_is_killed_while_it_builds_leaves_no_process_and_starts_again(
    site: Site, broker: Broker, double: InheritedDoubles
) -> None:
    double.ask("slow-build=600")
    with Subscriber(broker.address) as subscriber:
        with station(site) as process:
            Heard(subscriber).until(lambda h: len(h.observations) >= 2)
            started = children(process.pid)
            assert any("edge.engine.trt.worker" in command_of(child) for child in started)
        until = time.monotonic() + 5
        while any(runs(child) for child in started):
            assert time.monotonic() < until, "a process outlived its daemon"
            time.sleep(0.05)
        double.ask()
        with station(site):
            Heard(subscriber).until(tensorrt_serves)
    assert not list((site.state / "engines" / "unfinished").iterdir())
