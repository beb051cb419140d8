"""What memory a process took."""

from __future__ import annotations

from pathlib import Path


def peak_mb() -> float:
    """Return the most that this process held resident, in MB: VmHWM of proc(5), Linux only.

    Not ``ru_maxrss``: a program that is started inherits there the peak of the one that starts it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024
