"""``icecam demo``: a real broker, a real station and a real subscriber, for a few cycles."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from edge.camera.folder import listing, read_picture
from edge.commands.wording import headline, percent
from edge.contract.bundle import open_bundle
from edge.contract.errors import ConfigError, DeliveryError
from edge.contract.files import make_folder, write_atomically
from edge.contract.masks import decode_png
from edge.contract.messages import CoverageMessage, HealthMessage, NoDataMessage, rfc3339
from edge.contract.overlay import render_png
from edge.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.contract.frames import Frame
    from edge.link import Address
    from edge.subscriber import Received

STATION = "demo"
CAMERA = "fjord"
EVERY_S = 2
PATIENCE_S = 60.0
_PATHS = ("/usr/sbin", "/usr/local/sbin")
_CONFIG = """\
[station]
id = "{station}"
state_dir = "state"

[bundle]
path = {bundle}
allow_unsigned = true

[broker]
url = "mqtt://{host}:{port}"

[[cameras]]
id = "{camera}"
type = "folder"
path = {frames}
take = "every"
schedule = {{ every = "{every_s}s" }}
"""


@dataclass(kw_only=True, slots=True)
class _Story:
    """What the subscriber received, by kind."""

    observations: dict[int, Received] = field(default_factory=dict)
    masks: dict[str, bytes] = field(default_factory=dict)
    health: bytes = b""
    states: list[str] = field(default_factory=list)

    def take(self, received: Received) -> CoverageMessage | NoDataMessage | None:
        """Note a message; return it where it is a new observation."""
        message = received.message
        if received.state is not None:
            self.states.append(received.state)
        elif received.mask is not None:
            self.masks[hashlib.sha256(received.payload).hexdigest()] = received.payload
        elif isinstance(message, HealthMessage):
            self.health = received.payload
        elif isinstance(message, (CoverageMessage, NoDataMessage)) and received.new:
            self.observations[message.seq] = received
            return message
        return None

    def whole(self, cycles: int) -> bool:
        """Say whether every observation and every mask that one names has arrived."""
        named = [
            received.message.mask_sha256
            for received in self.observations.values()
            if isinstance(received.message, CoverageMessage)
        ]
        return (
            len(self.observations) >= cycles
            and all(name in self.masks for name in named)
            and bool(self.health)
        )


def demo(frames: Path, bundle: Path, out: Path, *, cycles: int) -> None:
    """Run the demo and leave its results in ``out``. Raises ConfigError, DeliveryError."""
    console = Console(highlight=False, soft_wrap=True)
    pictures = _pictures(frames)
    cycles = min(cycles, len(pictures))
    make_folder(out, what="--out")
    with tempfile.TemporaryDirectory(prefix="icecam-demo-") as folder, broker() as address:
        console.print(f"1. A private mosquitto listens on {address[0]}:{address[1]}.")
        with Subscriber(address, client_id="icecam-demo-subscriber") as subscriber:
            console.print("2. A subscriber asks for icecam/v1/# and waits.")
            with _station(Path(folder), frames, bundle, address) as station:
                console.print(
                    f"3. A station starts: camera {CAMERA!r} reads {frames}, a picture every "
                    f"{EVERY_S} s, segmented by {open_bundle(bundle).manifest.id}."
                )
                story = _listen(subscriber, station, cycles, console)
            _hear_farewell(subscriber, story)
    said = story.states[-1] if story.states else "nothing"
    console.print(f"4. The station was stopped; the last it said of itself is {said!r}.")
    _leave(story, pictures, bundle, out, console)


@contextmanager
def broker() -> Iterator[Address]:
    """Run a private mosquitto on a free loopback port. Raises ConfigError where there is none."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=":".join(_PATHS))
    if program is None:
        raise ConfigError(
            "mosquitto is not installed",
            expected="an MQTT broker to run the demo with",
            then="Install it: sudo apt-get install mosquitto",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: Address = probe.getsockname()
    with tempfile.TemporaryDirectory(prefix="icecam-broker-") as folder:
        config = Path(folder) / "mosquitto.conf"
        config.write_text(
            f"listener {address[1]} {address[0]}\nallow_anonymous true\nlog_type error\n"
        )
        process = subprocess.Popen([program, "-c", str(config)], stdin=subprocess.DEVNULL)  # noqa: S603 - found on PATH
        try:
            _wait_until_listening(address, process)
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait_until_listening(address: Address, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.05)
    raise DeliveryError(f"mosquitto did not start on {address[0]}:{address[1]}")


def _pictures(frames: Path) -> list[Path]:
    if not frames.is_dir():
        raise ConfigError(f"{frames} is not a folder", expected="a folder of pictures")
    pictures = [path for _, path in sorted(listing(frames))]
    if not pictures:
        raise ConfigError(f"{frames} holds no picture", expected="at least one JPEG or PNG")
    return pictures


@contextmanager
def _station(
    folder: Path, frames: Path, bundle: Path, address: Address
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``icecam run`` on a config of its own; its log goes to the terminal only if it fails."""
    config = folder / "station.toml"
    config.write_text(
        _CONFIG.format(
            station=STATION,
            camera=CAMERA,
            every_s=EVERY_S,
            host=address[0],
            port=address[1],
            bundle=_quoted(bundle),
            frames=_quoted(frames),
        ),
        encoding="utf-8",
    )
    with (folder / "log").open("w+") as log:
        command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
        process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603 - ours
        try:
            yield process
        except DeliveryError:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _quoted(path: Path) -> str:
    """Return a path as a TOML string."""
    escaped = str(path.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _listen(
    subscriber: Subscriber, station: subprocess.Popen[bytes], cycles: int, console: Console
) -> _Story:
    story = _Story()
    until = time.monotonic() + PATIENCE_S + cycles * EVERY_S
    while not story.whole(cycles):
        if time.monotonic() > until or station.poll() is not None:
            raise DeliveryError(
                f"received {len(story.observations)} of {cycles} observations",
                expected="all of them from a station that keeps running",
                then="The station's log is above.",
            )
        received = subscriber.receive(0.5)
        message = story.take(received) if received else None
        if message is not None:
            console.print(
                f"   observation {message.seq}, captured {message.captured_at:%Y-%m-%d %H:%M}: "
                f"{_told(message)}"
            )
    return story


def _told(message: CoverageMessage | NoDataMessage) -> str:
    if isinstance(message, NoDataMessage):
        return f"no data ({message.reason}): {message.detail}"
    members = ", ".join(f"{m.name} {percent(m.ice_pixel_fraction)}" for m in message.members)
    return f"ice {percent(message.ice_pixel_fraction)} of the water surface seen ({members})"


def _hear_farewell(subscriber: Subscriber, story: _Story) -> None:
    until = time.monotonic() + 10
    while story.states[-1:] != ["offline"] and time.monotonic() < until:
        received = subscriber.receive(0.5)
        if received is not None:
            story.take(received)


def _picture_of(message: CoverageMessage, pictures: list[Path]) -> Frame:
    """Return the picture that an observation is of, found by its time of capture."""
    for path in pictures:
        frame = read_picture(path)
        if rfc3339(frame.captured_at) == rfc3339(message.captured_at):
            return frame
    raise DeliveryError(f"no picture was captured at {rfc3339(message.captured_at)}")


def _leave(story: _Story, pictures: list[Path], bundle: Path, out: Path, console: Console) -> None:
    """Write what was received: the newest coverage with its mask, or the newest no_data."""
    seen = [seq for seq, r in story.observations.items() if isinstance(r.message, CoverageMessage)]
    seq = max(seen, default=max(story.observations))
    newest = story.observations[seq].message
    written = ["coverage.json", "health.json"]
    write_atomically(out / "coverage.json", story.observations[seq].payload + b"\n")
    write_atomically(out / "health.json", story.health + b"\n")
    for stale in ("mask.png", "overlay.png"):
        (out / stale).unlink(missing_ok=True)
    if isinstance(newest, CoverageMessage):
        png = story.masks[newest.mask_sha256]
        overlay = render_png(
            _picture_of(newest, pictures).pixels,
            decode_png(png),
            open_bundle(bundle).manifest.class_map,
            title=headline(newest),
        )
        write_atomically(out / "mask.png", png)
        write_atomically(out / "overlay.png", overlay)
        written += ["mask.png", "overlay.png"]
    console.print(f"5. What the subscriber received lies in {out}/: {', '.join(written)}.")
    console.print("   The demo bundle has only seen drawn scenes; real ice needs a real bundle.")
