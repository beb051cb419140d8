"""Messages: what goes over the wire is complete, exact JSON; it is read back or refused."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.contract.errors import DeliveryError
from edge.contract.messages import (
    CameraHealth,
    CameraInfo,
    Certification,
    ClassCoverage,
    CoverageMessage,
    EngineHealth,
    HealthMessage,
    InfoMessage,
    MemberCoverage,
    Message,
    ModelInfo,
    NoDataMessage,
    OutboxHealth,
    Quality,
    new_id,
    read_message,
)

if TYPE_CHECKING:
    from edge.contract.classes import ClassMap

NOW = datetime(2026, 11, 22, 17, 4, 5, 678_000, tzinfo=timezone.utc)
SHA = "0123456789abcdef" * 4
MODEL = ModelInfo(bundle="demo-1", sha256=SHA, graph="full", engine="ort")
MOMENTS = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(9999, 1, 1),  # noqa: DTZ001 - the same
    timezones=st.just(timezone.utc),
)
NOT_A_NUMBER = [math.nan, math.inf, -math.inf]


def origin(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "id": new_id(NOW),
        "station": "salluit",
        "camera": "harbour-1",
        "seq": 41,
        "outbox_epoch": "00c0ffee",
        "captured_at": NOW,
        "time_source": "exif",
        "enqueued_at": NOW + timedelta(seconds=3),
        "clock": "ntp",
        "quality": Quality(flags=("fog",), measures={"sharpness": 0.25}),
        "model": MODEL,
        **changes,
    }


def coverage(**changes: Any) -> CoverageMessage:  # noqa: ANN401
    fields: dict[str, Any] = {
        "ice_pixel_fraction": 0.25,
        "spread": 0.125,
        "concentration_tenths": 3,
        "sigrid3_ct": "30",
        "valid_pixel_fraction": 1.0,
        "classes": (ClassCoverage(name="ice", role="ice", pixels=1, pixel_fraction=0.25),),
        "members": (MemberCoverage(name="unet", weight=1.0, ice_pixel_fraction=None),),
        "frame_size": (1080, 1920),
        "mask_size": (224, 384),
        "region_id": None,
        "mask_topic": "icecam/v1/salluit/harbour-1/mask",
        "mask_sha256": SHA,
    }
    return CoverageMessage(**origin(**{**fields, **changes}))


def no_data(**changes: Any) -> NoDataMessage:  # noqa: ANN401
    return NoDataMessage(**origin(**{"reason": "dark", "detail": "the sun is down", **changes}))


def certification(**changes: Any) -> Certification:  # noqa: ANN401
    fields: dict[str, Any] = {
        "engine": "trt",
        "graph": "full-fp16",
        "bundle_sha256": SHA,
        "at": NOW,
        "passed": False,
        "frames": 4,
        "mask_agreement": 0.98,
        "member_agreement": 0.96,
        "least_class_iou": 0.5,
        "least_class": "ice",
        "coverage_difference": 0.25,
        "not_numbers": 7,
        "median_s": 0.031,
        "slowest_s": 0.044,
        "shortfalls": ("IoU of ice 0.500, at least 0.97 wanted",),
    }
    return Certification(**{**fields, **changes})


def health() -> HealthMessage:
    return HealthMessage(
        station="salluit",
        at=NOW,
        boot_id="b",
        uptime_s=12.5,
        clock="unsynced",
        disk_free_bytes=1,
        disk_total_bytes=2,
        outbox=OutboxHealth(
            observations=1, masks=1, waiting_bytes=9, oldest_age_s=None, parked=0, evicted=0
        ),
        cameras=(CameraHealth(camera="c", last_ok_at=NOW, last_fault=None, last_fault_at=None),),
        engine=EngineHealth(
            state="ready",
            engine="ort",
            graph="full",
            degraded="onnxruntime",
            restarts=0,
            detail=None,
            certifications=(certification(),),
        ),
    )


def info(class_map: ClassMap) -> InfoMessage:
    return InfoMessage(
        station="salluit",
        at=NOW,
        boot_id="b",
        icecam="0.1.0",
        outbox_epoch="00c0ffee",
        bundle="demo-1",
        bundle_serial=1,
        bundle_sha256=SHA,
        members=("unet",),
        cameras=(
            CameraInfo(camera="c", every_s=3600, region=(((0, 0), (1, 0), (1, 1)),), region_id=SHA),
        ),
        classes=class_map,
    )


@pytest.mark.protocol("body-1")
@pytest.mark.protocol("body-2")
def test_the_body_of_a_coverage_message_is_what_the_protocol_says() -> None:
    body = json.loads(coverage().encode())
    assert body["schema"] == "icecam.coverage/1"
    assert "schema_id" not in body
    assert body["status"] == "ok"
    assert body["captured_at"] == "2026-11-22T17:04:05.678Z"
    assert body["enqueued_at"] == "2026-11-22T17:04:08.678Z"
    assert body["ice_pixel_fraction"] == 0.25
    assert body["sea_ice_area_fraction"] is None
    assert body["members"] == [{"name": "unet", "weight": 1.0, "ice_pixel_fraction": None}]
    assert body["frame_size"] == [1080, 1920]
    assert body["quality"] == {"flags": ["fog"], "measures": {"sharpness": 0.25}}
    assert body["model"]["degraded"] == "none"


@pytest.mark.protocol("engine-2")
def test_the_verdict_on_an_engine_goes_out_with_its_figures() -> None:
    engine = json.loads(health().encode())["engine"]
    assert engine["degraded"] == "onnxruntime"
    (verdict,) = engine["certifications"]
    assert verdict == {
        "engine": "trt",
        "graph": "full-fp16",
        "bundle_sha256": SHA,
        "at": "2026-11-22T17:04:05.678Z",
        "passed": False,
        "frames": 4,
        "mask_agreement": 0.98,
        "member_agreement": 0.96,
        "least_class_iou": 0.5,
        "least_class": "ice",
        "coverage_difference": 0.25,
        "not_numbers": 7,
        "median_s": 0.031,
        "slowest_s": 0.044,
        "shortfalls": ["IoU of ice 0.500, at least 0.97 wanted"],
    }


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "Tensor RT"},
        {"bundle_sha256": "x"},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - without a zone on purpose
        {"frames": 0},
        {"mask_agreement": 1.001},
        {"member_agreement": math.nan},
        {"least_class_iou": -0.1},
        {"coverage_difference": math.inf},
        {"not_numbers": -1},
        {"median_s": math.nan},
        {"slowest_s": -1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_verdict_with_a_figure_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        certification(**change)


def test_health_of_a_station_that_knows_no_certifications_is_read_all_the_same() -> None:
    body = json.loads(health().encode())
    del body["engine"]["certifications"]
    read = read_message(json.dumps(body).encode(), where="m")
    assert isinstance(read, HealthMessage)
    assert read.engine.certifications == ()


def test_fractions_go_out_with_six_decimals() -> None:
    body = json.loads(coverage(ice_pixel_fraction=1 / 3, spread=2e-7).encode())
    assert body["ice_pixel_fraction"] == 0.333333
    assert body["spread"] == 0.0


@pytest.mark.protocol("nodata-1")
def test_no_data_has_null_for_every_number_and_is_never_zero_percent() -> None:
    body = json.loads(no_data().encode())
    assert body["status"] == "no_data"
    assert body["reason"] == "dark"
    for field in (
        "ice_pixel_fraction",
        "sea_ice_area_fraction",
        "uncertainty",
        "spread",
        "concentration_tenths",
        "mask_size",
        "mask_topic",
        "mask_sha256",
    ):
        assert field in body
        assert body[field] is None
    assert body["sigrid3_ct"] == "99"


@pytest.mark.parametrize(
    "field", ["ice_pixel_fraction", "sea_ice_area_fraction", "concentration_tenths", "mask_topic"]
)
def test_no_data_cannot_be_given_a_number(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        no_data(**{field: 0})


@pytest.mark.parametrize("number", [*NOT_A_NUMBER, -0.001, 1.001])
@pytest.mark.parametrize("field", ["ice_pixel_fraction", "spread", "valid_pixel_fraction"])
def test_a_fraction_outside_0_to_1_nan_or_infinite_is_refused(field: str, number: float) -> None:
    with pytest.raises(ValidationError, match=field):
        coverage(**{field: number})


@pytest.mark.protocol("body-1")
@pytest.mark.parametrize("number", NOT_A_NUMBER)
def test_no_number_that_json_cannot_write_gets_into_a_message(number: float) -> None:
    with pytest.raises(ValidationError):
        Quality(measures={"sharpness": number})
    with pytest.raises(ValidationError):
        CameraInfo(camera="c", every_s=number, region=(), region_id=None)
    with pytest.raises(ValidationError):
        OutboxHealth(
            observations=0, masks=0, waiting_bytes=0, oldest_age_s=number, parked=0, evicted=0
        )
    with pytest.raises(ValidationError):
        HealthMessage(**{**dict(health()), "uptime_s": number})
    with pytest.raises(ValidationError):
        HealthMessage(**{**dict(health()), "temperature_c": number})


@pytest.mark.parametrize(
    "change",
    [
        {"station": "Salluit"},
        {"station": "a/b"},
        {"station": "+"},
        {"camera": ""},
        {"camera": "x" * 33},
        {"seq": -1},
        {"outbox_epoch": "xyz"},
        {"captured_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - without a zone on purpose
        {"clock": "GPS time"},
        {"model": {**MODEL.model_dump(), "sha256": "0" * 63}},
    ],
    ids=lambda change: next(iter(change.items()))[0],
)
def test_a_wrong_field_is_refused_when_a_message_is_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        no_data(**change)


@pytest.mark.protocol("body-2")
def test_an_extra_field_is_refused_when_made_and_ignored_at_every_level_when_read() -> None:
    with pytest.raises(ValidationError, match="tide"):
        no_data(tide=1)
    message = coverage()
    body = json.loads(message.encode())
    body["tide"] = {"level": 1}
    body["model"]["tensor_cores"] = 4
    body["classes"][0]["note"] = "new"
    assert read_message(json.dumps(body).encode(), where="m") == message


@pytest.mark.parametrize("kind", ["coverage", "no_data", "health", "info"])
def test_what_is_encoded_is_read_back_equal(kind: str, class_map: ClassMap) -> None:
    message: Message = {
        "coverage": coverage,
        "no_data": no_data,
        "health": health,
        "info": lambda: info(class_map),
    }[kind]()
    read = read_message(message.encode(), where="m")
    assert type(read) is type(message)
    assert read == message


@given(
    st.none() | st.integers(0, 10**6).map(lambda millionths: millionths / 10**6),
    st.integers(0, 2**53),
    st.text(max_size=40),
    MOMENTS.map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)),
)
def test_any_values_survive_the_wire(
    fraction: float | None, seq: int, name: str, moment: datetime
) -> None:
    message = coverage(
        ice_pixel_fraction=fraction,
        seq=seq,
        captured_at=moment,
        members=(MemberCoverage(name=name, weight=0.5, ice_pixel_fraction=fraction),),
    )
    payload = message.encode()
    assert json.loads(payload)["seq"] == seq
    assert read_message(payload, where="m") == message


@pytest.mark.protocol("body-2")
@pytest.mark.parametrize("schema", ["icecam.coverage/2", "icecam.mask/1", "", None, 7])
def test_an_unknown_schema_is_refused_before_anything_else_is_read(schema: object) -> None:
    payload = json.dumps({"schema": schema, "seq": "wrong too"}).encode()
    with pytest.raises(DeliveryError, match="schema") as caught:
        read_message(payload, where="icecam/v1/s/c/coverage")
    assert str(caught.value).startswith("icecam/v1/s/c/coverage: ")
    assert "seq" not in str(caught.value)


def test_an_unknown_status_is_refused() -> None:
    body = {**json.loads(no_data().encode()), "status": "maybe"}
    with pytest.raises(DeliveryError, match="status"):
        read_message(json.dumps(body).encode(), where="m")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("seq", {"seq": -1}),
        ("model.sha256", {"model": {**MODEL.model_dump(), "sha256": "x"}}),
        (
            "classes[1].role",
            {
                "classes": [
                    {"name": "a", "role": "ice", "pixels": 1, "pixel_fraction": 0.5},
                    {"name": "b", "role": "fog", "pixels": 1, "pixel_fraction": 0.5},
                ]
            },
        ),
    ],
)
def test_a_wrong_field_is_named_by_its_path_when_read(path: str, change: dict[str, Any]) -> None:
    body = {**json.loads(coverage().encode()), **change}
    with pytest.raises(DeliveryError) as caught:
        read_message(json.dumps(body).encode(), where="m")
    assert str(caught.value).startswith(f"m: {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_payload_with_nan_or_infinity_is_refused(number: bytes) -> None:
    payload = coverage().encode()
    assert payload.count(b'"ice_pixel_fraction":0.25') == 1
    broken = payload.replace(b'"ice_pixel_fraction":0.25', b'"ice_pixel_fraction":' + number)
    with pytest.raises(DeliveryError):
        read_message(broken, where="m")


@pytest.mark.parametrize(
    "payload",
    [b"", b"online", b"[]", b"null", b"{}", b'"x"', b"\x89PNG\r\n\x1a\n", b"\xff" * 9],
    ids=repr,
)
def test_a_payload_that_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(DeliveryError, match=r"^m: "):
        read_message(payload, where="m")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"schema":"icecam.coverage/1","a":['])
def test_a_nesting_bomb_is_refused(opening: bytes) -> None:
    with pytest.raises(DeliveryError):
        read_message(opening * 200_000, where="m")


def test_a_payload_cut_at_any_byte_is_refused() -> None:
    payload = no_data().encode()
    for length in range(len(payload)):
        with pytest.raises(DeliveryError):
            read_message(payload[:length], where="m")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_only_raise_delivery_error(payload: bytes) -> None:
    with pytest.raises(DeliveryError):
        read_message(payload, where="m")


@given(
    st.sampled_from(sorted(json.loads(coverage().encode()))),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
def test_any_value_in_any_field_is_read_or_refused_by_name(field: str, value: object) -> None:
    body = {**json.loads(coverage().encode()), field: value}
    try:
        read = read_message(json.dumps(body).encode(), where="m")
    except DeliveryError:
        return
    assert isinstance(read, CoverageMessage | NoDataMessage)


@pytest.mark.protocol("body-4")
@pytest.mark.parametrize("field", ["clock", "time_source"])
def test_a_word_that_a_newer_station_uses_is_shown_not_refused(field: str) -> None:
    body = json.loads(coverage().encode())
    body[field] = "a_word_of_2030"
    message = read_message(json.dumps(body).encode(), where="test")
    assert getattr(message, field) == "a_word_of_2030"


@pytest.mark.protocol("body-4")
@pytest.mark.parametrize("field", ["state", "engine", "degraded"])
def test_a_word_for_the_engine_that_a_newer_station_uses_is_shown_too(field: str) -> None:
    body = json.loads(health().encode())
    body["engine"][field] = "a_word_of_2030"
    message = read_message(json.dumps(body).encode(), where="test")
    assert isinstance(message, HealthMessage)
    assert getattr(message.engine, field) == "a_word_of_2030"
