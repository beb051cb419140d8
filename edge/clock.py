"""What is known about this machine's time."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

ClockQuality = Literal["ntp", "unsynced", "unknown"]

_SYNCHRONIZED = Path("/run/systemd/timesync/synchronized")
_TIMESYNC = Path("/run/systemd/timesync")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def utc_now() -> datetime:
    """Return this moment, aware UTC."""
    return datetime.now(timezone.utc)


def clock_quality() -> ClockQuality:
    """Say whether systemd-timesyncd set the clock since boot; ``unknown`` where it doesn't run."""
    if _SYNCHRONIZED.exists():
        return "ntp"
    return "unsynced" if _TIMESYNC.exists() else "unknown"


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
