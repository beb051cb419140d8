"""Fixtures that every test may ask for: a class map, real images, a bundle, a real broker."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from edge.contract.classes import ClassMap

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1"
START_S = 10.0
STOP_S = 10.0

# How long one example takes says more about the machine's load than about the code.
settings.register_profile("icecam", deadline=None, database=None, print_blob=True)
settings.load_profile("icecam")


@pytest.fixture(scope="session")
def class_map() -> ClassMap:
    """Other, water, ice: as in the demo bundle."""
    return ClassMap.model_validate(
        [
            {"index": 0, "name": "other", "role": "other", "colour": (112, 112, 112)},
            {"index": 1, "name": "water", "role": "water", "colour": (28, 78, 138)},
            {"index": 2, "name": "ice", "role": "ice", "colour": (127, 219, 255)},
        ]
    )


@pytest.fixture(scope="session")
def icecam_data() -> Path:
    """The folder of real images, which never lie in the repository."""
    folder = Path(os.environ.get("ICECAM_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "agulhas_floes" / "images").is_dir():
        pytest.skip(f"NO REAL IMAGES: {folder} has no agulhas_floes/images; set ICECAM_DATA")
    return folder


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """The bundle that `icecam demo` runs: classes other, water, ice; 224x384."""
    path = REPOSITORY / "edge" / "demo" / "demo.icecam"
    if not path.is_file():
        pytest.fail(f"{path} is missing: make demo-bundle makes it")
    return path


@pytest.fixture
def free_port() -> int:
    """A loopback TCP port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """A mosquitto of the test's own on a loopback port that stays the same over restarts."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        """Nothing runs until `start`; `folder` takes its configuration, log and database."""
        self.folder = folder
        self.address = (LOOPBACK, port)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.configure("")

    @property
    def url(self) -> str:
        """What station.toml would say."""
        return f"mqtt://{LOOPBACK}:{self.address[1]}"

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything it has logged over all its starts."""
        path = self.folder / "mosquitto.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def configure(
        self, extra: str = "", *, anonymous: bool = True, persistent: bool = False
    ) -> None:
        """Replace its configuration; one that runs is stopped and started again with it.

        extra: lines of mosquitto.conf such as `acl_file PATH` or `max_packet_size 2000`.
        persistent: retained messages and sessions survive stop(); kill() loses the last second.
        """
        saved = f"persistence true\npersistence_location {self.folder}/\nautosave_interval 1\n"
        (self.folder / "mosquitto.conf").write_text(
            f"user root\nlistener {self.address[1]} {LOOPBACK}\n"
            f"allow_anonymous {str(anonymous).lower()}\n"
            "log_dest stderr\nlog_type all\n"
            f"{saved if persistent else 'persistence false'}\n{extra}\n",
            encoding="utf-8",
        )
        if self.running:
            self.stop()
            self.start()

    def start(self) -> None:
        """Start it and return once it takes connections."""
        if self.running:
            return
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self.folder / "mosquitto.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + START_S
        while self.running and time.monotonic() < until:
            if self._accepts():
                return
            time.sleep(0.02)
        self.kill()
        pytest.fail(f"mosquitto took no connections within {START_S:g} s:\n{self.log}")

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0

    def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[Broker]:
    """A real mosquitto that runs, empty, anonymous; its port is this test's alone."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.fail("no mosquitto in PATH or /usr/sbin: apt-get install mosquitto")
    broker = Broker(program, tmp_path_factory.mktemp("mosquitto"), free_port)
    broker.start()
    yield broker
    broker.kill()
