"""``icecam check``: everything a station needs, tried before it is needed."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from edge.commands.wording import certified
from edge.config import ENGINES
from edge.contract.errors import ConfigError, EngineError, IcecamError
from edge.engine import graph_of, open_engine
from edge.engine.certify import replay_golden
from edge.engine.ladder import rungs
from edge.signing import (
    Trust,
    describe_signature,
    open_trusted,
    read_public_key,
    read_trust,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edge.config import FolderCamera, StationConfig
    from edge.contract.bundle import Bundle
    from edge.engine.certify import Verdict
    from edge.engine.ladder import Rung
    from edge.engine.trt.cache import EngineCache
    from edge.engine.trt.device import Device


_RUNTIMES = {"trt": "TensorRT", "ort": "ONNX Runtime"}


def check_station(path: Path) -> bool:
    """Check a station.toml and all it names; print each finding; True where all is well.

    Raises ConfigError where the config itself is wrong.
    """
    from edge.config import read_config  # noqa: PLC0415 - a bundle alone needs no config

    config = read_config(path)
    _good(f"config {path}: station {config.station.id}, {len(config.cameras)} cameras")
    well = [
        _try(lambda: _state_dir(config)),
        _try(lambda: _bundle(config)) and _engines(config),
        *[_try(partial(_camera, camera)) for camera in config.cameras],
        _try(lambda: _broker(config)),
    ]
    return all(well)


def check_bundle(path: Path, keys: Sequence[Path] = ()) -> bool:
    """Check a bundle file; print each finding; True where all is well.

    keys: files of public keys, one of which is to vouch for it; without any it may be unsigned.
    Raises ConfigError where one cannot be read.
    """
    trust = Trust(keys=tuple(map(read_public_key, keys)), allow_unsigned=not keys)
    return _try(lambda: _replayed(open_trusted(path, trust)))


def _bundle(config: StationConfig) -> str:
    return _replayed(open_trusted(config.bundle.path, read_trust(config.bundle)))


def _engines(config: StationConfig) -> bool:
    """Show the engines down to the first that may serve, and what serves. Builds nothing."""
    bundle = open_trusted(config.bundle.path, read_trust(config.bundle))
    *compiled, last = rungs(bundle.manifest, config.engine.backend)
    if not compiled:
        _good(f"engine: graph {last.graph} on ONNX Runtime, on the CPU")
        return True
    well, best = _compiled(bundle, compiled, config.station.state_dir / ENGINES)
    serves = best or last
    degraded = "" if serves.degraded == "none" else f", degraded: {serves.degraded}"
    _good(f"what serves now: graph {serves.graph} on {_RUNTIMES[serves.backend]}{degraded}")
    return well


def _compiled(bundle: Bundle, rungs: Sequence[Rung], folder: Path) -> tuple[bool, Rung | None]:
    """Show how each engine did; return whether all is well, and the first that may serve."""
    from edge.engine.trt.cache import EngineCache  # noqa: PLC0415 - only where it is wanted
    from edge.engine.trt.certified import Maker, origin_of, passed  # noqa: PLC0415 - the same

    try:
        cache = EngineCache(folder)
        device = Maker(cache=cache).device()
    except EngineError as problem:
        _bad(problem)
        return False, None
    well = True
    for rung in rungs:
        well &= _try(partial(_engine, bundle, rung, cache, device))
        sidecar, _ = cache.find(origin_of(bundle, graph_of(bundle, rung.graph), device))
        if sidecar is not None and passed(sidecar, bundle):
            return well, rung
    return well, None


def _engine(bundle: Bundle, rung: Rung, cache: EngineCache, device: Device) -> str:
    """Say how a rung's engine did, or why there is none; raise EngineError: it was laid aside."""
    from edge.engine.trt.certified import origin_of  # noqa: PLC0415 - as above

    origin = origin_of(bundle, graph_of(bundle, rung.graph), device)
    what = f"engine of graph {rung.graph} ({device.describe()})"
    sidecar, why = cache.find(origin)
    refused = None if sidecar else cache.refused(origin, bundle.sha256)
    if refused is not None:
        raise EngineError(
            f"{what}: {certified(refused)}", then="It was laid aside, and the next rung serves."
        )
    if sidecar is None:
        return (
            f"{what}: {why}; the station builds it as it runs, or now: "
            f"python -m export.trt {bundle.path} --cache {cache.folder}"
        )
    if sidecar.certification.bundle_sha256 != bundle.sha256:
        return (
            f"{what}: certified on another bundle; the station runs this one's golden frames "
            "through it before it serves"
        )
    return f"{what}: {certified(sidecar.certification)}"


def _replayed(bundle: Bundle) -> str:
    with open_engine(bundle) as engine:
        verdict = replay_golden(bundle, engine)
    manifest = bundle.manifest
    told = (
        f"bundle {manifest.id} (serial {manifest.serial}, sha256 {bundle.sha256[:12]}…): "
        f"{len(manifest.members)} members at {manifest.input.height}x{manifest.input.width}; "
        f"{_figures(verdict)}"
    )
    if not verdict.passed:
        raise EngineError(
            f"{told}; {'; '.join(verdict.shortfalls)}", then="Do not trust this engine's masks."
        )
    return f"{told}; {describe_signature(bundle)}"


def _figures(verdict: Verdict) -> str:
    return (
        f"golden frames {verdict.frames}: {verdict.describe()}; "
        f"slowest frame {verdict.slowest_s * 1000:.0f} ms"
    )


def _state_dir(config: StationConfig) -> str:
    folder = config.station.state_dir
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"state_dir {folder}: {nearest} cannot be written to",
            expected="a folder where the station may keep its outbox",
        )
    return f"state_dir {folder}: " + ("there" if nearest == folder else f"can be made in {nearest}")


def _camera(camera: FolderCamera) -> str:
    from edge.camera import capture  # noqa: PLC0415 - only where a config names cameras

    frame = capture(camera, None)
    height, width = frame.size
    return (
        f"camera {camera.id}: a frame of {height}x{width}, captured "
        f"{frame.captured_at:%Y-%m-%d %H:%M:%S} UTC ({frame.time_source})"
    )


def _broker(config: StationConfig) -> str:
    from edge.link import connect, new_client  # noqa: PLC0415 - only where a config names a broker

    link = connect(config.broker.address, new_client(""), clean_start=True, session_expiry_s=0)
    link.close()
    return f"broker {config.broker.url}: accepts MQTT 5"


def _try(check: Callable[[], str]) -> bool:
    try:
        _good(check())
    except IcecamError as error:
        _bad(error)
        return False
    return True


def _bad(error: IcecamError) -> None:
    Console().print("[red]✗[/red] ", end="")
    Console(soft_wrap=True, highlight=False).print(str(error), markup=False)


def _good(told: str) -> None:
    Console().print("[green]✓[/green] ", end="")
    Console(soft_wrap=True, highlight=False).print(told, markup=False)
