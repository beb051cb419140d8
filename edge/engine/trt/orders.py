"""What the process that touches the GPU is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Which TensorRT and GPU are here? Answered with a ``Device``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """Compile a graph of a bundle and lay the plan at ``plan``. Answered with ``Built``."""

    bundle: Path
    bundle_sha256: str
    graph: str
    plan: Path
    workspace_bytes: int
    timings: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What lies at ``Build.plan`` now, how long it took, and the timings to keep."""

    plan_sha256: str
    plan_bytes: int
    build_s: float
    timings: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Certify:
    """Run a bundle's golden frames through a plan. Answered with a ``Certification``."""

    bundle: Path
    bundle_sha256: str
    graph: str
    plan: Path
    plan_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Load a plan as the station would, and let it go. Answered with nothing."""

    graph: str
    plan: Path
    plan_sha256: str


class PlanRefusedError(EngineError):
    """TensorRT does not load a plan that is whole: it is of no use here and is to be built anew."""


Order = Ask | Build | Certify | Load
