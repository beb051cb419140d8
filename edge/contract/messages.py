"""What goes over the wire: topics, payloads and their schema ids (docs/protocol.md)."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    RootModel,
    field_validator,
)

from edge.contract.boundary import parse_json
from edge.contract.classes import ClassMap, Role
from edge.contract.errors import DeliveryError

COVERAGE_SCHEMA: Final = "icecam.coverage/1"
HEALTH_SCHEMA: Final = "icecam.health/1"
INFO_SCHEMA: Final = "icecam.info/1"
PREFIX = "icecam/v1"
ID_PATTERN = r"^[a-z0-9-]{1,32}$"
DETAIL_CHARACTERS = 500

ONLINE = b"online"
OFFLINE = b"offline"

Identifier = Annotated[str, Field(pattern=ID_PATTERN)]
Fraction = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False), PlainSerializer(lambda value: round(value, 6))
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
"""One of a list that may grow: a consumer shows a word that it does not know."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


def rfc3339(moment: datetime) -> str:
    """Return an aware datetime as UTC RFC 3339 with milliseconds and Z."""
    utc = moment.astimezone(timezone.utc)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[AwareDatetime, PlainSerializer(rfc3339)]
PixelSize = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


def new_id(moment: datetime) -> UUID:
    """Return a UUIDv7 of a moment: 48 bits of Unix milliseconds, 74 random bits (RFC 9562)."""
    milliseconds = max(0, int(moment.timestamp() * 1000)) & (2**48 - 1)
    random = int.from_bytes(os.urandom(10), "big")
    high = random >> 68
    low = random & (2**62 - 1)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)


class Topics:
    """The topics of one station."""

    def __init__(self, station: str) -> None:
        """Refuse a station id that could not stand in a topic."""
        _require_id(station)
        self._root = f"{PREFIX}/{station}"

    @property
    def state(self) -> str:
        """``online`` or ``offline``, retained."""
        return f"{self._root}/state"

    @property
    def info(self) -> str:
        """What the station runs, retained."""
        return f"{self._root}/info"

    @property
    def health(self) -> str:
        """How the station is, retained."""
        return f"{self._root}/health"

    def coverage(self, camera: str) -> str:
        """Every observation of a camera; the newest is retained."""
        _require_id(camera)
        return f"{self._root}/{camera}/coverage"

    def mask(self, camera: str) -> str:
        """Masks of a camera; the newest is retained."""
        _require_id(camera)
        return f"{self._root}/{camera}/mask"


def _require_id(name: str) -> None:
    if not re.fullmatch(ID_PATTERN, name):
        message = f"a station or camera id matches {ID_PATTERN}, found {name!r}"
        raise ValueError(message)


class Message(BaseModel):
    """A JSON payload: extra fields are refused when it is made, ignored when it is read."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    def encode(self) -> bytes:
        """Return the payload: UTF-8 JSON without NaN."""
        return self.model_dump_json(by_alias=True).encode()


class ClassCoverage(Message):
    """One class in the region: pixels of the mask, and their share of its valid pixels."""

    name: str
    role: Role
    pixels: Count
    pixel_fraction: Fraction | None


class MemberCoverage(Message):
    """What one member of the ensemble alone would have said, and its ensemble weight."""

    name: str
    weight: Annotated[float, Field(gt=0)]
    ice_pixel_fraction: Fraction | None


class Quality(Message):
    """What the judgement measured on the frame, and the words for what stood out."""

    flags: tuple[str, ...] = ()
    measures: dict[str, Finite] = {}


class ModelInfo(Message):
    """What made the mask. ``sha256`` is that of the bundle's manifest, which covers its files."""

    bundle: str
    sha256: Sha256
    graph: str | None
    engine: Word | None
    degraded: str = "none"


class Observation(Message):
    """What every cycle yields, whether ice could be seen or not."""

    schema_id: Literal["icecam.coverage/1"] = Field(default=COVERAGE_SCHEMA, alias="schema")
    id: UUID
    station: Identifier
    camera: Identifier
    seq: Count
    outbox_epoch: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    captured_at: Moment
    time_source: Word
    enqueued_at: Moment
    clock: Word


class CoverageMessage(Observation):
    """A frame was segmented: fractions are 0..1, null where not known."""

    status: Literal["ok"] = "ok"
    ice_pixel_fraction: Fraction | None
    sea_ice_area_fraction: Fraction | None = None
    uncertainty: Fraction | None = None
    spread: Fraction | None
    concentration_tenths: Annotated[int, Field(ge=0, le=10)] | None
    sigrid3_ct: Annotated[str, Field(pattern=r"^[0-9]{2}$")]
    valid_pixel_fraction: Fraction
    classes: tuple[ClassCoverage, ...]
    members: tuple[MemberCoverage, ...]
    frame_size: PixelSize
    mask_size: PixelSize
    region_id: Sha256 | None
    geometry_id: Sha256 | None = None
    quality: Quality
    model: ModelInfo
    mask_topic: str
    mask_sha256: Sha256


class NoDataMessage(Observation):
    """Ice could not be seen, and why: never read as 0 %."""

    status: Literal["no_data"] = "no_data"
    reason: Word
    detail: Annotated[str, Field(max_length=DETAIL_CHARACTERS)]
    ice_pixel_fraction: None = None
    sea_ice_area_fraction: None = None
    uncertainty: None = None
    spread: None = None
    concentration_tenths: None = None
    sigrid3_ct: Literal["99"] = "99"
    valid_pixel_fraction: Fraction = 0.0
    classes: tuple[ClassCoverage, ...] = ()
    members: tuple[MemberCoverage, ...] = ()
    frame_size: PixelSize | None = None
    mask_size: None = None
    region_id: Sha256 | None = None
    geometry_id: Sha256 | None = None
    quality: Quality
    model: ModelInfo
    mask_topic: None = None
    mask_sha256: None = None


class AnyObservation(
    RootModel[Annotated[CoverageMessage | NoDataMessage, Discriminator("status")]]
):
    """What a subscriber finds on a coverage topic."""


class OutboxHealth(Message):
    """What waits on disk. ``parked``: refused by the broker for good; ``evicted``: dropped."""

    observations: Count
    masks: Count
    waiting_bytes: Count
    oldest_age_s: Annotated[float, Field(ge=0)] | None
    parked: Count
    evicted: Count


class CameraHealth(Message):
    """When a camera last gave a usable frame, and what was wrong last."""

    camera: Identifier
    last_ok_at: Moment | None
    last_fault: str | None
    last_fault_at: Moment | None


class Certification(Message):
    """How an engine did on a bundle's golden frames, against the answers stored there.

    mask_agreement, member_agreement: share of pixels alike, of the member that agrees least;
    least_class_iou: over pixels that were no close call, ``least_class`` has it; null where no
    class was seen; coverage_difference: of ice_pixel_fraction, the largest of any frame;
    not_numbers: pixels whose confidence no probabilities can have; shortfalls: bars that were
    missed, in words.
    """

    engine: Word
    graph: str
    bundle_sha256: Sha256
    at: Moment
    passed: bool
    frames: Annotated[int, Field(gt=0)]
    mask_agreement: Fraction
    member_agreement: Fraction
    least_class_iou: Fraction | None
    least_class: str | None
    coverage_difference: Fraction
    not_numbers: Count
    median_s: Annotated[float, Field(ge=0)]
    slowest_s: Annotated[float, Field(ge=0)]
    shortfalls: tuple[str, ...] = ()


class EngineHealth(Message):
    """The engine worker. ``restarts`` counts since the daemon started.

    certifications: of the engines that were made for this bundle on this station, newest last.
    """

    state: Word
    engine: Word | None
    graph: str | None
    degraded: str = "none"
    restarts: Count
    detail: str | None
    certifications: tuple[Certification, ...] = ()


class HealthMessage(Message):
    """How the station is."""

    schema_id: Literal["icecam.health/1"] = Field(default=HEALTH_SCHEMA, alias="schema")
    station: Identifier
    at: Moment
    boot_id: str
    uptime_s: Annotated[float, Field(ge=0)]
    clock: Word
    disk_free_bytes: Count
    disk_total_bytes: Count
    temperature_c: Finite | None = None
    outbox: OutboxHealth
    cameras: tuple[CameraHealth, ...]
    engine: EngineHealth


class CameraInfo(Message):
    """A camera: how often it looks, and the region (polygons of [x, y] in frame pixels)."""

    camera: Identifier
    every_s: Annotated[float, Field(gt=0)]
    region: tuple[tuple[tuple[Finite, Finite], ...], ...]
    region_id: Sha256 | None


class InfoMessage(Message):
    """What the station is and runs; the class table gives the masks their colours."""

    schema_id: Literal["icecam.info/1"] = Field(default=INFO_SCHEMA, alias="schema")
    station: Identifier
    at: Moment
    boot_id: str
    icecam: str
    outbox_epoch: str
    bundle: str
    bundle_serial: Count
    bundle_sha256: Sha256
    members: tuple[str, ...]
    cameras: tuple[CameraInfo, ...]
    classes: ClassMap
    schemas: tuple[str, ...] = (COVERAGE_SCHEMA, HEALTH_SCHEMA, INFO_SCHEMA)


class _Envelope(BaseModel):
    """The one field that is read before anything else."""

    model_config = ConfigDict(extra="ignore")

    schema_id: str = Field(alias="schema")

    @field_validator("schema_id")
    @classmethod
    def _known(cls, schema_id: str) -> str:
        if schema_id not in _READERS:
            message = f"expected one of {', '.join(_READERS)}"
            raise ValueError(message)
        return schema_id


_READERS: dict[str, type[BaseModel]] = {
    COVERAGE_SCHEMA: AnyObservation,
    HEALTH_SCHEMA: HealthMessage,
    INFO_SCHEMA: InfoMessage,
}


def read_message(payload: bytes, *, where: str) -> Message:
    """Read a JSON payload by its schema id; unknown fields are ignored.

    Raises DeliveryError for text that is not JSON, an unknown schema or a wrong field.
    """
    envelope = parse_json(_Envelope, payload, where=where, error=DeliveryError, ignore_unknown=True)
    reader = _READERS[envelope.schema_id]
    read: Any = parse_json(reader, payload, where=where, error=DeliveryError, ignore_unknown=True)
    message = read.root if isinstance(read, RootModel) else read
    if not isinstance(message, Message):
        raise TypeError(reader.__name__)
    return message
