"""What a test asks of the double through the environment.

``ICECAM_TRT_DOUBLE_VERSION``: the release to stand in for. ``ICECAM_TRT_DOUBLE``: faults,
separated by commas; some take a value, as in ``slow=2``.
"""

from __future__ import annotations

import os
from typing import Final

Version = tuple[int, int, int]

FAULTS: Final = {
    # build
    "parse-error": "the parser refuses the first node",
    "build-none": "building fails for want of memory",
    "build-killed": "the process is killed while it builds",
    "build-killed-above": "the same, where the workspace may be larger than this many bytes",
    "build-crash": "the process crashes while it builds",
    "slow-build": "building takes this many seconds",
    "phases": "how many nested phases a build reports (default 3)",
    # run
    "deserialize-none": "no plan can be deserialized",
    "context-none": "no execution context can be made for want of memory",
    "execute-false": "queueing an execution fails",
    "lost": "what was queued fails on the device, and the CUDA context with it",
    "crash": "the process crashes when it executes",
    "hang": "an execution never returns",
    "slow": "an execution takes this many seconds",
    # wrong answers
    "swap-classes": "class 0 and class 1 are swapped",
    "lose-class": "this class is answered as class 0",
    "zeros": "every answer is 0",
    "nan": "what NaN comes to after the cast to uint8: 0",
    "garbage": "every answer is random",
}


def _version(text: str) -> Version:
    major, minor, patch = text.split(".")[:3]
    return int(major), int(minor), int(patch)


def _faults(text: str) -> dict[str, str]:
    asked = dict(word.partition("=")[::2] for word in text.split(",") if word)
    unknown = asked.keys() - FAULTS.keys()
    if unknown:
        raise ValueError(f"ICECAM_TRT_DOUBLE: no fault {min(unknown)!r}, only {', '.join(FAULTS)}")
    return asked


VERSION: Final = _version(os.environ.get("ICECAM_TRT_DOUBLE_VERSION") or "10.3.0")
_ASKED: Final = _faults(os.environ.get("ICECAM_TRT_DOUBLE", ""))


def fault(name: str) -> bool:
    """Whether a fault was asked for."""
    if name not in FAULTS:
        raise KeyError(name)
    return name in _ASKED


def value(name: str, otherwise: float) -> float:
    """Return the value given with a fault."""
    return float(_ASKED.get(name) or otherwise)
