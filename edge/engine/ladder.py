"""The station's engine: the best rung that is ready, while better ones are made beside it.

Full ensemble on TensorRT → fallback on TensorRT → full ensemble on ONNX Runtime.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from importlib.util import find_spec
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

from edge.contract.errors import EngineError, IcecamError
from edge.engine import BackendName, graph_of
from edge.engine.trt.device import l4t
from edge.engine.worker import EngineSetup, EngineWorker

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Bundle, Graph, Manifest
    from edge.contract.frames import Pixels
    from edge.contract.messages import Certification
    from edge.engine import Segmentation
    from edge.engine.trt.certified import Maker
    from edge.engine.trt.device import Device

log = logging.getLogger(__name__)

_END_S = 5.0
"""How long the thread that makes engines may take to see that it is to end."""

_REASON_LENGTH = 300

Wanted = Literal["auto", "ort", "trt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """What runs which graph. degraded: the word that is published for it, none for the best."""

    backend: BackendName
    graph: str
    degraded: str


def rungs(manifest: Manifest, wanted: Wanted) -> tuple[Rung, ...]:
    """Return the rungs of a station, best first.

    auto: TensorRT where it is installed, and on a Jetson, where it is to be.
    """
    full = manifest.graphs[0]
    installed = find_spec("tensorrt") is not None
    if wanted == "ort" or (wanted == "auto" and not installed and not l4t()):
        return (Rung(backend="ort", graph=full.name, degraded="none"),)
    compiled = tuple(
        Rung(
            backend="trt",
            graph=graph.name,
            degraded="none" if graph.members == full.members else "fallback",
        )
        for graph in to_compile(manifest)
    )
    return (*compiled, Rung(backend="ort", graph=full.name, degraded="onnxruntime"))


def to_compile(manifest: Manifest) -> list[Graph]:
    """Return the graphs that TensorRT is to compile, best first.

    Of each ensemble the float16 graph, or the float32 one where there is no other: a graph's own
    precision is the engine's.
    """
    best: dict[tuple[str, ...], Graph] = {}
    for graph in manifest.graphs:
        if graph.members not in best or graph.precision == "float16":
            best[graph.members] = graph
    return list(best.values())


class Ladder:
    """Segments on the best rung that is certified and holds; says which it is.

    One thread segments. Engines that TensorRT is to compile are made on another, once, when
    ``start`` is called: minutes on a small board, in which the best of those serves that lie here
    already, or the last rung.
    """

    def __init__(
        self, bundle: Bundle, wanted: Wanted, *, cache: Path, workspace_bytes: int
    ) -> None:
        """Begin on the last rung; nothing is started yet."""
        self._bundle = bundle
        self._cache = cache
        self._workspace_bytes = workspace_bytes
        self._rungs = rungs(bundle.manifest, wanted)
        self._ready = [self._rungs[-1]]
        self._serving: Rung | None = None
        self._worker: EngineWorker | None = None
        self._maker: Maker | None = None
        self._making: threading.Thread | None = None
        self._closed = False
        self._restarts = 0
        self._why = ""
        self.certifications: tuple[Certification, ...] = ()

    @property
    def degraded(self) -> str:
        """The word for the rung that would serve now."""
        return self._best().degraded

    @property
    def why_degraded(self) -> str | None:
        """What last kept a better rung from serving, in short; None where nothing is known to."""
        return (self._why or None) if self.degraded != "none" else None

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again on its rung."""
        return self._restarts + max(0, self._worker.starts - 1 if self._worker else 0)

    def start(self) -> None:
        """Make what the better rungs need, on a thread of its own."""
        if len(self._rungs) > 1:
            self._making = threading.Thread(target=self._make, name="engines", daemon=True)
            self._making.start()

    def segment(self, pixels: Pixels) -> Segmentation:
        """Segment a uint8 ``(h, w, 3)`` BGR frame; a rung that fails gives way to the next.

        Raises EngineError where the last one fails too, and what ``EngineWorker.segment`` does.
        """
        while True:
            rung = self._best()
            try:
                segmentation = self._worker_on(rung).segment(pixels)
            except EngineError as problem:
                if rung == self._rungs[-1]:
                    raise
                self._give_up(f"{rung.graph} failed: {problem}", "the next rung serves")
                self._ready.remove(rung)
            else:
                return replace(segmentation, degraded=rung.degraded)

    def close(self) -> None:
        """End the worker and what is being made. Safe to call twice."""
        self._closed = True
        if self._maker is not None:
            self._maker.stop()
        if self._worker is not None:
            self._worker.close()
        if self._making is not None:
            self._making.join(_END_S)

    def _best(self) -> Rung:
        return min(self._ready, key=self._rungs.index)

    def _worker_on(self, rung: Rung) -> EngineWorker:
        if self._worker is None or self._serving != rung:
            if self._worker is not None:
                self._restarts += max(0, self._worker.starts - 1)
                self._worker.close()
            setup = EngineSetup(
                bundle=self._bundle.path,
                sha256=self._bundle.sha256,
                backend=rung.backend,
                graph=rung.graph,
                cache=self._cache,
            )
            self._worker, self._serving = EngineWorker(setup), rung
            log.info("graph %s runs on %s", rung.graph, rung.backend)
        return self._worker

    def _give_up(self, why: str, then: str = "") -> None:
        """Log why a rung does not serve, and keep it; not where it is only that all ends."""
        if not self._closed:
            log.warning("%s", f"{why}; {then}" if then else why)
            self._why = shorten(why, _REASON_LENGTH, placeholder=" …")

    def _make(self) -> None:
        """Let the engines serve that lie here, then make the others, best first.

        The fallbacks' too, though the best was made: so that there is a next rung when it fails.
        """
        from edge.engine.trt.cache import EngineCache  # noqa: PLC0415 - only where it is wanted
        from edge.engine.trt.certified import Maker  # noqa: PLC0415 - the same

        try:
            self._maker = Maker(
                cache=EngineCache(self._cache),
                workspace_bytes=self._workspace_bytes,
                say=lambda told: log.info("engine: %s", told),
            )
            if self._closed:
                return
            device = self._maker.device()
        except EngineError as problem:
            self._give_up(f"no TensorRT engine: {problem}", "ONNX Runtime serves")
            return
        log.info("engines for %s", device.describe())
        compiled = self._rungs[:-1]
        kept = [rung for rung in compiled if self._kept(self._maker, rung, device)]
        self._ready += kept
        for rung in compiled:
            if rung not in kept and not self._closed:
                self._made(self._maker, rung, device)

    def _kept(self, maker: Maker, rung: Rung, device: Device) -> bool:
        """Return whether a rung's engine lies here and may serve. What failed, ``_made`` tells."""
        try:
            kept = maker.kept(self._bundle, graph_of(self._bundle, rung.graph), device)
        except EngineError:
            return False
        if kept is not None:
            self.certifications += (kept.certification,)
        return kept is not None

    def _made(self, maker: Maker, rung: Rung, device: Device) -> None:
        """Make a rung's engine and let it serve."""
        from edge.engine.trt.certified import NotEqualError  # noqa: PLC0415 - as above

        try:
            made = maker.make(self._bundle, graph_of(self._bundle, rung.graph), device)
        except (IcecamError, OSError) as problem:  # the disk may fail, the bundle go away
            self._give_up(f"no engine of graph {rung.graph}: {problem}")
            if isinstance(problem, NotEqualError):
                self.certifications += (problem.certification,)
        else:
            self.certifications += (made.certification,)
            self._ready.append(rung)
