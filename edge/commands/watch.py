"""``icecam watch``: what stations publish, as a live table or a line per message."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from edge.commands.wording import percent
from edge.contract.messages import CoverageMessage, NoDataMessage
from edge.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.link import Address
    from edge.subscriber import Received

Key = tuple[str, str]


class Board:
    """The newest observation of each camera, whether its station is online, and its holes."""

    def __init__(self, subscriber: Subscriber) -> None:
        """Start empty, beside the subscriber that knows the holes."""
        self._series = subscriber.series
        self._newest: dict[Key, CoverageMessage | NoDataMessage] = {}
        self._states: dict[str, str] = {}
        self._mask_bytes: dict[Key, int] = {}

    def take(self, received: Received) -> None:
        """Note a message."""
        if received.state is not None:
            self._states[received.station] = received.state
        message = received.message
        if isinstance(message, (CoverageMessage, NoDataMessage)):
            key = (message.station, message.camera)
            shown = self._newest.get(key)
            if shown is None or message.captured_at >= shown.captured_at:
                self._newest[key] = message
        if received.mask is not None and received.camera is not None:
            self._mask_bytes[received.station, received.camera] = len(received.payload)

    def table(self, now: datetime) -> Table:
        """Return the board as a table; ages count to ``now``."""
        table = Table("station", "camera", "captured (UTC)", "age", "ice", "CT", "spread", "seq",
                      "missing", "mask", title="icecam watch")  # fmt: skip
        for key, message in sorted(self._newest.items()):
            station, camera = key
            state = self._states.get(station, "?")
            style = "green" if state == "online" else "red"
            missing = sum(last - first + 1 for first, last in self._series.missing(*key))
            table.add_row(
                f"[{style}]●[/{style}] {station}",
                camera,
                f"{message.captured_at:%Y-%m-%d %H:%M:%S}",
                _age((now - message.captured_at).total_seconds()),
                *_finding(message),
                str(message.seq),
                f"[red]{missing}[/red]" if missing else "0",
                f"{self._mask_bytes[key] / 1024:.1f} KiB" if key in self._mask_bytes else "–",
            )
        return table


def watch(address: Address, *, station: str, count: int | None) -> None:
    """Show what arrives until Ctrl-C, or until ``count`` new observations. Raises DeliveryError."""
    with Subscriber(address, station=station) as subscriber:
        board = Board(subscriber)
        if sys.stdout.isatty():
            with Live(Table(), console=Console(), auto_refresh=False) as live:
                for received in _received(subscriber, count):
                    if received is not None:
                        board.take(received)
                    live.update(board.table(datetime.now(timezone.utc)), refresh=True)
        else:
            for received in _received(subscriber, count):
                if received is not None:
                    print(line(received), flush=True)  # noqa: T201 - it is the output


def _received(subscriber: Subscriber, count: int | None) -> Iterator[Received | None]:
    """Yield each message, and None about once a second where nothing comes."""
    left = count
    while left is None or left > 0:
        received = subscriber.receive(1.0)
        if left is not None and received is not None and received.observed:
            left -= 1
        yield received


def line(received: Received) -> str:
    """Return a message in one line, for pipes and logs."""
    where = received.topic
    if received.problem is not None:
        return f"{where}  UNREADABLE {received.problem}"
    if received.state is not None:
        return f"{where}  {received.state}"
    if received.mask is not None:
        height, width = received.mask.shape
        return f"{where}  {height}x{width}, {len(received.payload)} bytes"
    message = received.message
    if isinstance(message, (CoverageMessage, NoDataMessage)):
        ice, tenths, spread = _finding(message)
        repeat = "" if received.new else "  (repeat)"
        captured = f"{message.captured_at:%Y-%m-%dT%H:%M:%SZ}"
        found = f"seq {message.seq}  ice {ice}  CT {tenths}  spread {spread}"
        return f"{where}  {captured}  {found}{repeat}"
    return f"{where}  {len(received.payload)} bytes"


def _finding(message: CoverageMessage | NoDataMessage) -> tuple[str, str, str]:
    if isinstance(message, NoDataMessage):
        return f"no data: {message.reason}", message.sigrid3_ct, "–"
    spread = "–" if message.spread is None else f"{message.spread:.3f}"
    return percent(message.ice_pixel_fraction), message.sigrid3_ct, spread


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
