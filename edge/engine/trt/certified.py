"""The certified engine of a graph: the one that lies here, or one built and proven equal now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edge.child import Child
from edge.clock import utc_now
from edge.contract.errors import EngineError
from edge.contract.messages import Certification
from edge.engine import WrongAnswerError
from edge.engine.trt.build import MIB, OutOfMemoryError
from edge.engine.trt.cache import EngineCache, Origin, Sidecar, default_folder
from edge.engine.trt.orders import Ask, Build, Certify, Load, Order, PlanRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.bundle import Bundle, Graph
    from edge.engine.trt.build import Progress
    from edge.engine.trt.device import Device
    from edge.engine.trt.orders import Built
    from edge.engine.trt.run import TrtBackend

WORKSPACE_BYTES = 1024 * MIB
LEAST_WORKSPACE_BYTES = 64 * MIB
_MODULE = "edge.engine.trt.worker"
_START_S = 60.0
_ASK_S = 120.0
_BUILD_S = 4 * 3600.0
_CERTIFY_S = 900.0
_LOAD_S = 120.0
_STOP_S = 20.0
"""How long a build that is broken off may take to heed it, before it is killed."""


class NotEqualError(EngineError):
    """An engine was built and does not answer as the golden frames say; ``certification`` says."""

    def __init__(self, found: str, *, certification: Certification, then: str) -> None:
        """Keep the verdict beside the message."""
        super().__init__(found, then=then)
        self.certification = certification


class _DiedError(EngineError):
    """The process that was asked crashed or hung: so would whatever loads the same plan."""


Found = Literal["kept", "certified anew", "built"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Certified:
    """An engine that may serve. found: whether it lay here already, with this bundle's verdict."""

    sidecar: Sidecar
    found: Found

    @property
    def certification(self) -> Certification:
        """How it did on the bundle's golden frames."""
        return self.sidecar.certification


@dataclass(kw_only=True, slots=True)
class Maker:
    """Makes engines for one machine, in child processes; the caller loads nothing of the GPU's.

    say: is told each step in words; heed: is given the progress of a build. A make may be broken
    off from another thread by ``stop``.
    """

    cache: EngineCache
    workspace_bytes: int = WORKSPACE_BYTES
    say: Callable[[str], None] = lambda _: None
    heed: Callable[[Progress], None] = lambda _: None
    _child: Child | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    def device(self) -> Device:
        """Ask what is here. Raises EngineError: no TensorRT, too old, no GPU."""
        found: Device = self._ask(Ask(), _ASK_S)
        return found

    def kept(self, bundle: Bundle, graph: Graph, device: Device) -> Certified | None:
        """Return the engine that lies here with this bundle's passing verdict, and loads; or None.

        It is loaded once, which takes seconds, and let go. Raises EngineError where it cannot be:
        PlanRefusedError, where TensorRT does not take it or it takes its process down.
        """
        sidecar, _ = self.cache.find(origin_of(bundle, graph, device))
        if sidecar is None or not passed(sidecar, bundle):
            return None
        self.cache.require_own()
        plan, sha256 = self.cache.plan(sidecar.origin), sidecar.plan_sha256
        try:
            self._ask(Load(graph=graph.name, plan=plan, plan_sha256=sha256), _LOAD_S)
        except _DiedError as problem:
            raise PlanRefusedError(f"{problem.found} as it loaded {plan}") from problem
        return Certified(sidecar=sidecar, found="kept")

    def make(
        self, bundle: Bundle, graph: Graph, device: Device, *, rebuild: bool = False
    ) -> Certified:
        """Return a graph's certified engine; build it where none lies here that fits.

        Raises EngineError: refused by TensorRT, out of memory, no room on the disk, or built but
        not equal. What served before is left as it was, unless it is what failed.
        """
        origin = origin_of(bundle, graph, device)
        with self.cache.building(lambda: self.say("waiting for another build to end")):
            if not rebuild:
                lies_here = self._without_building(bundle, graph, device)
                if lies_here is not None:
                    return lies_here
            self.cache.require_room(bundle.listed(graph.file).size)
            built, workspace_bytes = self._build(bundle, graph, origin)
            return self._prove(bundle, graph, origin, built, workspace_bytes)

    def stop(self) -> None:
        """Break off, from another thread."""
        self._stopped = True
        if self._child is not None:
            self._child.cut()

    def _without_building(self, bundle: Bundle, graph: Graph, device: Device) -> Certified | None:
        origin = origin_of(bundle, graph, device)
        sidecar, why = self.cache.find(origin)
        if sidecar is None:
            refused = self.cache.refused(origin, bundle.sha256)
            if refused is not None:
                raise _failed(graph, refused, "It failed before and is not built again by itself.")
        else:
            try:
                return self.kept(bundle, graph, device) or self._anew(bundle, graph, sidecar)
            except PlanRefusedError as problem:
                self.cache.forget(origin)
                why = problem.found
        self.say(f"building an engine for graph {graph.name!r} ({why})")
        return None

    def _anew(self, bundle: Bundle, graph: Graph, sidecar: Sidecar) -> Certified:
        """Certify on this bundle what lies here with the verdict on another."""
        self.say(f"the engine of graph {graph.name!r} lies here; running golden frames through it")
        plan = self.cache.plan(sidecar.origin)
        verdict = self._certification(bundle, graph, plan, sidecar.plan_sha256)
        sidecar = sidecar.model_copy(update={"certification": verdict})
        if not verdict.passed:
            self.cache.quarantine_kept(sidecar)
            raise _failed(graph, verdict, "It was laid aside.")
        self.cache.certify(sidecar)
        return Certified(sidecar=sidecar, found="certified anew")

    def _build(self, bundle: Bundle, graph: Graph, origin: Origin) -> tuple[Built, int]:
        """Build within the workspace, or half of it where memory runs out, and half again."""
        workspace_bytes = self.workspace_bytes
        while True:
            order = Build(
                bundle=bundle.path,
                bundle_sha256=bundle.sha256,
                graph=graph.name,
                plan=self.cache.unfinished(origin),
                workspace_bytes=workspace_bytes,
                timings=self.cache.timings(origin),
            )
            try:
                built: Built = self._ask(order, _BUILD_S)
            except OutOfMemoryError as problem:
                workspace_bytes //= 2
                if workspace_bytes < LEAST_WORKSPACE_BYTES:
                    raise
                self.say(f"{problem.found}; trying again with {workspace_bytes // MIB} MiB")
            else:
                self._keep_timings(origin, built.timings)
                return built, workspace_bytes

    def _keep_timings(self, origin: Origin, timings: bytes) -> None:
        try:
            self.cache.keep_timings(origin, timings)
        except OSError as problem:
            self.say(
                f"the build's timings cannot be kept ({problem.strerror}): the next build takes "
                "as long as this one"
            )

    def _prove(
        self, bundle: Bundle, graph: Graph, origin: Origin, built: Built, workspace_bytes: int
    ) -> Certified:
        self.say(f"running {len(bundle.manifest.golden)} golden frames through it")
        plan = self.cache.unfinished(origin)
        try:
            verdict = self._certification(bundle, graph, plan, built.plan_sha256)
        except PlanRefusedError as problem:
            raise EngineError(
                f"{problem.found}, though it was built just now", then="The engine of before stays."
            ) from problem
        sidecar = Sidecar(
            origin=origin,
            plan_sha256=built.plan_sha256,
            plan_bytes=built.plan_bytes,
            built_at=utc_now(),
            build_s=built.build_s,
            workspace_bytes=workspace_bytes,
            certification=verdict,
        )
        if not verdict.passed:
            self.cache.quarantine(sidecar)
            raise _failed(graph, verdict, "It was laid aside; the engine of before stays.")
        self.cache.keep(sidecar)
        return Certified(sidecar=sidecar, found="built")

    def _certification(
        self, bundle: Bundle, graph: Graph, plan: Path, plan_sha256: str
    ) -> Certification:
        order = Certify(
            bundle=bundle.path,
            bundle_sha256=bundle.sha256,
            graph=graph.name,
            plan=plan,
            plan_sha256=plan_sha256,
        )
        try:
            found: Certification = self._ask(order, _CERTIFY_S)
        except (_DiedError, WrongAnswerError) as problem:
            return _no_answer(bundle, graph, problem)
        return found

    def _ask(self, order: Order, deadline_s: float) -> Any:  # noqa: ANN401 - each order's own
        """Have one order done by a process of its own, so that its memory is free afterwards."""
        self._require_wanted()
        with Child(_MODULE, None, error=EngineError, start_deadline_s=_START_S) as child:
            self._child = child
            try:
                self._require_wanted()  # it took a while to start
                return child.ask(order, deadline_s=deadline_s, heed=self.heed)
            except KeyboardInterrupt:
                self.say("breaking off …")
                child.stop(grace_s=_STOP_S)
                raise
            except EngineError as problem:
                if child.killed:
                    raise _killed(order) from problem
                if not child.alive and not self._stopped:
                    raise _DiedError(problem.found) from problem
                raise
            finally:
                self._child = None

    def _require_wanted(self) -> None:
        if self._stopped:
            raise EngineError("broken off")


def load_certified(bundle: Bundle, graph: Graph, folder: Path | None = None) -> TrtBackend:
    """Load a graph's engine in this process. Raises EngineError where none here is certified.

    NotEqualError, with the verdict, where the one that was built here was laid aside.
    """
    from edge.engine.trt.device import find_device  # noqa: PLC0415 - loads TensorRT
    from edge.engine.trt.run import TrtBackend  # noqa: PLC0415 - the same

    cache = EngineCache(folder or default_folder())
    origin = origin_of(bundle, graph, find_device())
    try:
        plan, sidecar = cache.load(origin)
    except EngineError:
        refused = cache.refused(origin, bundle.sha256)
        if refused is None:
            raise
        raise _failed(graph, refused, "It was laid aside.") from None
    if not passed(sidecar, bundle):
        raise EngineError(
            f"the engine of graph {graph.name!r} in {cache.folder} was not certified with "
            f"{bundle.path}",
            expected="python -m export.trt, or the station, to do so",
        )
    return TrtBackend(plan, where=f"engine of graph {graph.name!r}")


def passed(sidecar: Sidecar, bundle: Bundle) -> bool:
    """Return whether an engine did well on this bundle's golden frames."""
    verdict = sidecar.certification
    return verdict.bundle_sha256 == bundle.sha256 and verdict.passed


def origin_of(bundle: Bundle, graph: Graph, device: Device) -> Origin:
    """Return what an engine of this graph on this device is made of."""
    return Origin.of(bundle.listed(graph.file).sha256, graph.precision, device)


def _killed(order: Order) -> OutOfMemoryError:
    """Return what SIGKILL most likely means. It tells nothing of an engine that was being run."""
    if isinstance(order, Build):
        mib = order.workspace_bytes // MIB
        what, then = f"the build, with a workspace of {mib} MiB,", ""
    else:
        what, then = "what asked the GPU", "The engine of before stays."
    return OutOfMemoryError(
        f"{what} was ended by SIGKILL, most likely for want of memory", then=then
    )


def _no_answer(bundle: Bundle, graph: Graph, problem: EngineError) -> Certification:
    return Certification(
        engine="trt",
        graph=graph.name,
        bundle_sha256=bundle.sha256,
        at=utc_now(),
        passed=False,
        frames=len(bundle.manifest.golden),
        mask_agreement=0,
        member_agreement=0,
        least_class_iou=None,
        least_class=None,
        coverage_difference=1,
        not_numbers=0,
        median_s=0,
        slowest_s=0,
        shortfalls=(problem.found,),
    )


def _failed(graph: Graph, verdict: Certification, then: str) -> NotEqualError:
    return NotEqualError(
        f"the engine of graph {graph.name!r} does not answer as the bundle's golden frames say: "
        + "; ".join(verdict.shortfalls),
        certification=verdict,
        then=then,
    )
