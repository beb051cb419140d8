"""station.toml → StationConfig: parsed once, every mistake named by its path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from edge.contract.boundary import parse, read_toml
from edge.contract.messages import Identifier

ENGINES = "engines"
"""Where in ``state_dir`` the engines lie that the station compiled."""

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(value: object) -> float:
    """Read ``30s``, ``30m``, ``1h`` or ``1d`` as seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value) if isinstance(value, str) else None
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if not found or seconds <= 0:
        message = "expected a duration such as 30m (s, m, h or d)"
        raise ValueError(message)
    return seconds


def revoked_id(value: object) -> str:
    """Read the id of a key or the SHA-256 of a manifest, in hex digits. Raises ValueError."""
    text = value.lower() if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", text):
        message = "expected a key id (16 hex digits) or the sha256 of a manifest (64)"
        raise ValueError(message)
    return text


Revoked = Annotated[str, BeforeValidator(revoked_id)]
DurationS = Annotated[float, BeforeValidator(duration_s)]
Point = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
Polygon = Annotated[tuple[Point, ...], Field(min_length=3)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StationSection(_Section):
    """Who this is, and where it keeps what must survive a power cut."""

    id: Identifier
    state_dir: Path = Path("/var/lib/icecam")


class BundleSection(_Section):
    """Which bundle to run, and whose signature lets it run.

    trusted_keys: files of public keys in PEM. revoked: ids of keys and SHA-256 of manifests that
    count no more.
    """

    path: Path
    allow_unsigned: bool = False
    trusted_keys: tuple[Path, ...] = ()
    revoked: tuple[Revoked, ...] = ()


class EngineSection(_Section):
    """What runs the bundle's graphs.

    backend: ``trt`` compiles them with TensorRT on this machine and certifies the engine before it
    serves; ``ort`` is ONNX Runtime on the CPU; ``auto`` is ``trt`` where TensorRT is installed.
    workspace_mib: the memory that TensorRT may try kernels with.
    """

    backend: Literal["auto", "ort", "trt"] = "auto"
    workspace_mib: Annotated[int, Field(ge=64)] = 1024


class BrokerSection(_Section):
    """Where observations go."""

    url: str = "mqtt://127.0.0.1:1883"

    @field_validator("url")
    @classmethod
    def _plain_mqtt(cls, url: str) -> str:
        broker_address(url)
        return url

    @property
    def address(self) -> tuple[str, int]:
        """(host, port)."""
        return broker_address(self.url)


class ScheduleSection(_Section):
    """When a camera is due: ``every`` so long, at whole multiples of it in UTC."""

    every: DurationS

    @property
    def every_s(self) -> float:
        """The interval in seconds."""
        return self.every


class FolderCamera(_Section):
    """A folder that pictures are dropped into.

    ``take``: ``newest`` reads the newest unread picture and passes over older ones;
    ``every`` reads them one by one, oldest first.
    ``region``: polygons of [x, y] in pixels of the frame; only what lies inside one is counted.
    """

    type: Literal["folder"]
    id: Identifier
    path: Path
    take: Literal["newest", "every"] = "newest"
    deadline_s: Annotated[float, Field(gt=0)] = 30.0
    region: tuple[Polygon, ...] = ()
    schedule: ScheduleSection


class StationConfig(_Section):
    """A whole station.toml."""

    station: StationSection
    bundle: BundleSection
    engine: EngineSection = EngineSection()
    broker: BrokerSection = BrokerSection()
    cameras: Annotated[tuple[FolderCamera, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct_cameras(self) -> StationConfig:
        names = [camera.id for camera in self.cameras]
        if len(set(names)) != len(names):
            message = f"expected each camera id once, not {', '.join(names)}"
            raise ValueError(message)
        return self


def read_config(path: Path) -> StationConfig:
    """Read and check a station.toml; relative paths in it count from its own folder.

    Raises ConfigError with every mistake in it.
    """
    config = parse(StationConfig, read_toml(path, what="a station.toml"), where=str(path))
    folder = path.resolve().parent
    return config.model_copy(
        update={
            "station": config.station.model_copy(
                update={"state_dir": folder / config.station.state_dir}
            ),
            "bundle": config.bundle.model_copy(
                update={
                    "path": folder / config.bundle.path,
                    "trusted_keys": tuple(folder / key for key in config.bundle.trusted_keys),
                }
            ),
            "cameras": tuple(
                camera.model_copy(update={"path": folder / camera.path})
                for camera in config.cameras
            ),
        }
    )


def broker_address(url: str) -> tuple[str, int]:
    """Return (host, port) of an ``mqtt://host[:port]`` URL. Raises ValueError."""
    expected = "expected a broker such as mqtt://host:1883"
    try:
        parts = urlsplit(url)
        port = 1883 if parts.port is None else parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.username is not None or parts.password is not None:
        message = f"{expected}, without user or password in it"
        raise ValueError(message)
    beyond = parts.path.removeprefix("/") or parts.query or parts.fragment
    if parts.scheme != "mqtt" or not parts.hostname or not port or beyond:
        raise ValueError(expected)
    return parts.hostname, port
