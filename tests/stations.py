"""Stations for tests: the icecam command, a station.toml, a daemon at work, what it publishes."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge.config import ENGINES
from edge.engine.ladder import Ladder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.contract.bundle import Bundle
    from edge.subscriber import Received, Subscriber
    from tests.conftest import Broker

REPOSITORY = Path(__file__).resolve().parents[1]
STATION = "test-01"


def icecam(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user types it."""
    command = [sys.executable, "-m", "edge", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd or REPOSITORY, timeout=120
    )


def a_station(folder: Path, bundle: object, **changed: str) -> Path:
    """Write a station.toml of one folder camera and return its path.

    changed: the broker's ``url``, the camera's ``path``, lines that are ``more`` of it.
    """
    told = {"url": "mqtt://127.0.0.1:1", "path": ".", "more": "", **changed}
    config = folder / "station.toml"
    config.write_text(
        f"""
        [station]
        id = "here"
        state_dir = "state"
        [bundle]
        path = "{bundle}"
        {told["more"]}
        [broker]
        url = "{told["url"]}"
        [[cameras]]
        id = "cam"
        type = "folder"
        path = "{told["path"]}"
        schedule = {{ every = "1h" }}
        """
    )
    return config


def make_engines(bundle: Bundle, state: Path) -> None:
    """Let a station's ladder make what it can in ``state``, and end."""
    with closing(Ladder(bundle, "auto", cache=state / ENGINES, workspace_bytes=1 << 28)) as ladder:
        ladder.start()
        assert ladder._making is not None
        ladder._making.join(60)
        assert not ladder._making.is_alive()


class Site:
    """A station's folder: config, pictures named by their time, state."""

    def __init__(self, folder: Path, broker: Broker, bundle: Path) -> None:
        self.frames = folder / "frames"
        self.frames.mkdir()
        self.state = folder / "state"
        self.log = folder / "station.log"
        self.config = folder / "station.toml"
        self.config.write_text(
            f"""
            [station]
            id = "{STATION}"
            state_dir = "state"
            [bundle]
            path = "{bundle}"
            allow_unsigned = true
            [broker]
            url = "{broker.url}"
            [[cameras]]
            id = "cam"
            type = "folder"
            path = "frames"
            take = "every"
            schedule = {{ every = "0.3s" }}
            """
        )

    def add(self, count: int, *, hour: int = 0) -> None:
        """Drop pictures of 180x320, a minute apart."""
        noise = np.random.default_rng(0)
        for minute in range(count):
            picture = noise.integers(0, 256, (180, 320, 3), dtype=np.uint8)
            cv2.imwrite(str(self.frames / f"2026-01-01_{hour:02}-{minute:02}-00.jpg"), picture)


@contextmanager
def station(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon, which is killed in the end; what it logs is added to ``site.log``."""
    command = [sys.executable, "-m", "edge", "run", "--config", str(site.config)]
    with site.log.open("ab") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def listen(
    subscriber: Subscriber, enough: Callable[[list[Received]], bool], *, within_s: float
) -> list[Received]:
    """Collect until it is enough; fail where it never is."""
    collected: list[Received] = []
    until = time.monotonic() + within_s
    while not enough(collected):
        assert time.monotonic() < until, f"only {len(collected)} messages came"
        received = subscriber.receive(0.2)
        if received is not None:
            collected.append(received)
    return collected


def children(pid: int) -> list[int]:
    """The processes that any thread of a process started and that it has not waited for."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found += map(int, (task / "children").read_text(encoding="utf-8").split())
    return found


def command_of(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
