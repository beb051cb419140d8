"""The engine in a child process of its own, and the parent's handle on it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.child import Child, serve
from edge.contract.bundle import open_bundle
from edge.contract.errors import EngineError
from edge.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge.child import Tell
    from edge.contract.frames import Pixels
    from edge.engine import BackendName, Segmentation

START_DEADLINE_S = 120.0
SEGMENT_DEADLINE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSetup:
    """What the worker opens; ``sha256`` is the manifest's that the daemon has seen.

    graph: by default the full ensemble's; cache: where this machine's compiled engines lie.
    """

    bundle: Path
    sha256: str
    backend: BackendName = "ort"
    graph: str = ""
    cache: Path | None = None


class EngineWorker:
    """An engine that cannot take the daemon down: started when needed, again after it died."""

    def __init__(self, setup: EngineSetup) -> None:
        """Remember what to open; nothing is started yet."""
        self._setup = setup
        self._child: Child | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return self._child.pid if self._child and self._child.alive else None

    def segment(self, pixels: Pixels) -> Segmentation:
        """Segment a uint8 ``(h, w, 3)`` BGR frame.

        Raises EngineError, ConfigError for the frame's shape, BundleError where the bundle broke
        or went away before the worker could be started again.
        """
        if self._child is None or not self._child.alive:
            self.close()
            self.starts += 1
            self._child = Child(
                "edge.engine.worker",
                self._setup,
                error=EngineError,
                start_deadline_s=START_DEADLINE_S,
            )
        answer: Segmentation = self._child.ask(pixels, deadline_s=SEGMENT_DEADLINE_S)
        return answer

    def close(self) -> None:
        """End the worker. Safe to call twice."""
        if self._child is not None:
            self._child.close()
            self._child = None


@contextmanager
def start(setup: EngineSetup, _: Tell) -> Iterator[Callable[[Pixels], Segmentation]]:
    """Open bundle and engine in the child; each request is a frame."""

    def same(manifest: bytes, _: bytes | None) -> None:
        if hashlib.sha256(manifest).hexdigest() != setup.sha256:
            raise EngineError(
                f"{setup.bundle} changed since the station started",
                expected=f"manifest {setup.sha256[:12]}…",
                then="Restart the station to run the new one.",
            )

    bundle = open_bundle(setup.bundle, verify=same)
    with open_engine(bundle, backend=setup.backend, graph=setup.graph, cache=setup.cache) as engine:
        yield engine.segment


if __name__ == "__main__":
    serve(start)
