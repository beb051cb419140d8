"""Where the prepared doubles lie: each in a folder whose name changes with what it is made of.

``eval "$(python -m tests.doubles.places)"`` lets a shell's programs find them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
REPOSITORY = SOURCES.parents[1]
MODULES = SOURCES / "modules"
"""What stands in for TensorRT: for the PYTHONPATH of child processes."""

BUILD = REPOSITORY / "build" / "doubles"
PYTHON = f"{sys.implementation.cache_tag}-{sys.platform}"

PYCUDA_VERSION = "2026.1"
PYCUDA = BUILD / f"pycuda-{PYCUDA_VERSION}-{PYTHON}"


def _digest(*sources: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


LIBCUDA_SOURCES = tuple(sorted((SOURCES / "libcuda").glob("*.[ch]")))
LIBCUDA = BUILD / f"libcuda-{_digest(*LIBCUDA_SOURCES)}-{PYCUDA.name}"
"""Holds libcuda.so.1."""

NVINFER_SOURCE = SOURCES / "libnvinfer.c"
NVINFER = BUILD / f"libnvinfer-{_digest(NVINFER_SOURCE)}"
"""Holds libnvinfer.so.10 and .11, and the plugin and parser libraries beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """One release of TensorRT's Python bindings, and the newest Python it has a wheel for."""

    version: str
    package: str
    newest_python: tuple[int, int]

    @property
    def folder(self) -> Path:
        """Where it is installed."""
        return BUILD / "bindings" / f"{self.version}-{PYTHON}"

    @property
    def available(self) -> bool:
        """Whether there is a wheel for this Python."""
        return sys.version_info[:2] <= self.newest_python


BINDINGS = (
    Binding(version="10.3.0", package="tensorrt-cu12-bindings", newest_python=(3, 12)),
    Binding(version="10.7.0.post1", package="tensorrt-cu12-bindings", newest_python=(3, 12)),
    Binding(version="10.16.1.11", package="tensorrt-cu13-bindings", newest_python=(3, 13)),
    Binding(version="11.4.0.106", package="tensorrt-cu13-bindings", newest_python=(3, 14)),
)


def missing() -> list[Path]:
    """The folders that preparation has still to make."""
    bindings = [binding.folder for binding in BINDINGS if binding.available]
    return [path for path in (PYCUDA, LIBCUDA, NVINFER, *bindings) if not path.is_dir()]


def search_paths() -> dict[str, str]:
    """Return the variables by which a process finds the doubles, before what it finds already."""
    ours = {"PYTHONPATH": (MODULES, PYCUDA), "LD_LIBRARY_PATH": (LIBCUDA,)}
    return {
        name: os.pathsep.join(filter(None, (*map(str, folders), os.environ.get(name))))
        for name, folders in ours.items()
    }


if __name__ == "__main__":
    print("export", *(f"{name}={shlex.quote(value)}" for name, value in search_paths().items()))
