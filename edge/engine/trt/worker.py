"""What touches the GPU while an engine is made, in a process of its own."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.child import serve
from edge.contract.bundle import open_bundle
from edge.contract.errors import EngineError
from edge.contract.files import write_atomically
from edge.engine import Engine, graph_of
from edge.engine.certify import replay_golden
from edge.engine.trt.build import build_plan
from edge.engine.trt.cache import read_plan
from edge.engine.trt.device import find_device
from edge.engine.trt.orders import Ask, Build, Built, Certify, Load, Order
from edge.engine.trt.run import TrtBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.child import Tell
    from edge.contract.bundle import Bundle
    from edge.contract.messages import Certification


@contextmanager
def start(_: None, tell: Tell) -> Iterator[Callable[[Order], object]]:
    """Answer orders, one after the other."""

    def answer(order: Order) -> object:
        match order:
            case Ask():
                return find_device()
            case Build():
                return _build(order, tell)
            case Certify():
                return _certify(order)
            case Load():
                _load(order)
                return None

    yield answer


def _build(order: Build, tell: Tell) -> Built:
    bundle = _same_bundle(order)
    graph = graph_of(bundle, order.graph)
    began = time.monotonic()
    built = build_plan(
        bundle.read(graph.file),
        where=f"{bundle.path}: {graph.file}",
        workspace_bytes=order.workspace_bytes,
        timings=order.timings,
        tell=tell,
    )
    build_s = time.monotonic() - began
    try:
        write_atomically(order.plan, built.plan)
    except OSError as problem:
        raise EngineError(
            f"{order.plan}: the engine of {len(built.plan) >> 20} MiB cannot be written "
            f"({problem.strerror})",
            expected="room for it",
            then="The engine of before stays.",
        ) from None
    return Built(
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        build_s=build_s,
        timings=built.timings,
    )


def _certify(order: Certify) -> Certification:
    bundle = _same_bundle(order)
    graph = graph_of(bundle, order.graph)
    backend = TrtBackend(read_plan(order.plan, order.plan_sha256), where=f"{order.plan}")
    with Engine(bundle.manifest, graph, "trt", backend) as engine:
        return replay_golden(bundle, engine).certification(engine, bundle)


def _load(order: Load) -> None:
    plan = read_plan(order.plan, order.plan_sha256)
    TrtBackend(plan, where=f"engine of graph {order.graph!r}").close()


def _same_bundle(order: Build | Certify) -> Bundle:
    def same(manifest: bytes, _: bytes | None) -> None:
        if hashlib.sha256(manifest).hexdigest() != order.bundle_sha256:
            raise EngineError(
                f"{order.bundle} changed meanwhile",
                expected=f"manifest {order.bundle_sha256[:12]}…",
            )

    return open_bundle(order.bundle, verify=same)


if __name__ == "__main__":
    serve(start, oom_score=900, niceness=10)
