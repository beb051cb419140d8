"""Ids, times and topics: what every message is found and ordered by."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.messages import (
    Topics,
    new_id,
    rfc3339,
)

NOW = datetime(2026, 11, 22, 17, 4, 5, 678_000, tzinfo=timezone.utc)
MOMENTS = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(9999, 1, 1),  # noqa: DTZ001 - the same
    timezones=st.just(timezone.utc),
)


@pytest.mark.protocol("id-1")
@given(MOMENTS)
def test_an_id_is_a_uuid_of_version_7_as_rfc_9562_lays_it_out(moment: datetime) -> None:
    number = new_id(moment).int
    assert number.bit_length() <= 128
    assert (number >> 76) & 0xF == 7  # bits 48..51 from the top: the version
    assert (number >> 62) & 0b11 == 0b10  # bits 64..65: the variant
    since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    exact_ms = since // timedelta(microseconds=1) / 1000
    assert abs((number >> 80) - exact_ms) <= 1  # bits 0..47: Unix milliseconds


def test_the_random_bits_of_ids_of_one_moment_all_vary_and_none_repeats() -> None:
    ids = [new_id(NOW).int for _ in range(500)]
    assert len(set(ids)) == 500
    fixed = (0xFFFF_FFFF_FFFF << 80) | (0xF << 76) | (0b11 << 62)
    always_one, ever_one = (1 << 128) - 1, 0
    for number in ids:
        always_one &= number
        ever_one |= number
    assert (always_one ^ ever_one) | fixed == (1 << 128) - 1


def test_ids_sort_by_the_time_of_capture() -> None:
    moments = [NOW + timedelta(milliseconds=5 * step) for step in range(50)]
    ids = [str(new_id(moment)) for moment in moments]
    assert ids == sorted(ids)


def test_a_clock_that_stands_before_1970_still_gives_an_id() -> None:
    assert new_id(datetime(1969, 12, 31, tzinfo=timezone.utc)).int >> 80 == 0


@pytest.mark.protocol("body-1")
@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOW, "2026-11-22T17:04:05.678Z"),
        (NOW.replace(microsecond=0), "2026-11-22T17:04:05.000Z"),
        (NOW.replace(microsecond=999_999), "2026-11-22T17:04:05.999Z"),
        (NOW.astimezone(timezone(timedelta(hours=-5))), "2026-11-22T17:04:05.678Z"),
        (NOW.replace(tzinfo=timezone(timedelta(hours=9, minutes=30))), "2026-11-22T07:34:05.678Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds_and_z(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


@given(MOMENTS)
def test_the_standard_library_reads_our_times_back_within_a_millisecond(moment: datetime) -> None:
    read = datetime.strptime(rfc3339(moment), "%Y-%m-%dT%H:%M:%S.%f%z")
    assert timedelta(0) <= moment - read < timedelta(milliseconds=1)


def test_topics_lie_under_the_station_as_the_protocol_says() -> None:
    topics = Topics("salluit")
    assert topics.state == "icecam/v1/salluit/state"
    assert topics.info == "icecam/v1/salluit/info"
    assert topics.health == "icecam/v1/salluit/health"
    assert topics.coverage("harbour-1") == "icecam/v1/salluit/harbour-1/coverage"
    assert topics.mask("harbour-1") == "icecam/v1/salluit/harbour-1/mask"


@pytest.mark.protocol("topic-2")
@pytest.mark.parametrize("name", ["", "A", "a/b", "+", "#", "a b", "a\n", "\u0000", "x" * 33, "é"])
def test_an_id_that_could_not_stand_in_a_topic_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="id matches"):
        Topics(name)
    with pytest.raises(ValueError, match="id matches"):
        Topics("salluit").coverage(name)
    with pytest.raises(ValueError, match="id matches"):
        Topics("salluit").mask(name)
