"""``icecam bench``: what each rung takes for a frame here, and whether it answers as it should."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from edge.commands.wording import certified
from edge.contract.bundle import open_bundle
from edge.contract.errors import EngineError
from edge.engine import open_engine
from edge.engine.certify import replay_golden
from edge.engine.golden import read_golden
from edge.engine.ladder import rungs
from edge.engine.trt.certified import NotEqualError

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.contract.messages import Certification
    from edge.engine.ladder import Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timed:
    """A rung's load, and its frames from resize to masks, in seconds; or why it does not run.

    certification: how it did on the golden frames, now or when it was laid aside for it.
    """

    rung: Rung
    load_s: float
    frames_s: list[float]
    certification: Certification | None
    problem: str = ""

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "engine": self.rung.backend,
            "graph": self.rung.graph,
            "load_s": self.load_s,
            "frames_s": self.frames_s,
            "median_s": median(self.frames_s) if self.frames_s else None,
            "certification": self.certification.model_dump(mode="json")
            if self.certification
            else None,
            "problem": self.problem,
        }


def bench(path: Path, cache: Path | None, *, repeats: int, as_json: bool) -> bool:
    """Time every rung of a bundle; print them; True where each engine answers as it should."""
    bundle = open_bundle(path)
    timed = [_time(bundle, rung, cache, repeats) for rung in rungs(bundle.manifest, wanted="auto")]
    if as_json:
        record = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "bundle": bundle.manifest.id,
            "bundle_sha256": bundle.sha256,
            "rungs": [one.record() for one in timed],
        }
        print(json.dumps(record, indent=1))  # noqa: T201 - it is the output
    else:
        _show(bundle, timed)
    return all(one.certification.passed for one in timed if one.certification is not None)


def _time(bundle: Bundle, rung: Rung, cache: Path | None, repeats: int) -> _Timed:
    began = time.perf_counter()
    try:
        with open_engine(bundle, backend=rung.backend, graph=rung.graph, cache=cache) as engine:
            load_s = time.perf_counter() - began
            verdict = replay_golden(bundle, engine).certification(engine, bundle)
            cases = bundle.manifest.golden
            frames = [read_golden(bundle, case, engine.graph)[0] for case in cases]
            frames_s = [
                engine.answer(frames[turn % len(frames)]).latency_s for turn in range(repeats)
            ]
    except EngineError as problem:
        return _Timed(
            rung=rung,
            load_s=0,
            frames_s=[],
            certification=problem.certification if isinstance(problem, NotEqualError) else None,
            problem=str(problem),
        )
    return _Timed(rung=rung, load_s=load_s, frames_s=frames_s, certification=verdict)


def _show(bundle: Bundle, timed: list[_Timed]) -> None:
    size = bundle.manifest.input
    console = Console(highlight=False)
    table = Table(title=f"{bundle.manifest.id}, {size.height}x{size.width}", title_justify="left")
    for column in ("graph", "engine", "load", "median", "9 of 10 within", "slowest"):
        table.add_column(column, justify="left" if column in {"graph", "engine"} else "right")
    for one in timed:
        table.add_row(one.rung.graph, one.rung.backend, *_times(one))
    console.print(table)
    for one in timed:
        told = one.problem or (certified(one.certification) if one.certification else "")
        console.print(f"{one.rung.graph} on {one.rung.backend}: {told}", soft_wrap=True)


def _times(one: _Timed) -> list[str]:
    if not one.frames_s:
        return ["–"] * 4
    most = quantiles(one.frames_s, n=10)[-1] if len(one.frames_s) > 1 else one.frames_s[0]
    seconds = (one.load_s, median(one.frames_s), most, max(one.frames_s))
    return [f"{each * 1000:.0f} ms" for each in seconds]
