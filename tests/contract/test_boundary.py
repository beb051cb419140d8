"""The boundary: every mistake by its path, in the words of who wrote the document."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from edge.config import StationConfig
from edge.contract.boundary import parse, parse_json, read_toml
from edge.contract.bundle import Manifest
from edge.contract.errors import BundleError, ConfigError, DeliveryError

if TYPE_CHECKING:
    from pathlib import Path


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Schedule(_Strict):
    every: Annotated[str, Field(pattern=r"^\d+m$")]


class Folder(_Strict):
    type: Literal["folder"]
    path: str
    schedule: Schedule


class Stream(_Strict):
    type: Literal["stream"]
    rtsp_transport: Literal["tcp", "udp"]
    schedule: Schedule


class Document(_Strict):
    schema_id: str = Field(alias="schema")
    cameras: tuple[Annotated[Folder | Stream, Field(discriminator="type")], ...] = ()
    either: Folder | Schedule | None = None
    labels: dict[str, int] = {}
    ratio: float = 0.0


DAILY = {"every": "60m"}
FOLDER = {"type": "folder", "path": "p", "schedule": DAILY}
STREAM = {"type": "stream", "rtsp_transport": "tcp", "schedule": DAILY}
WHOLE: dict[str, Any] = {"schema": "x/1", "cameras": [FOLDER, STREAM]}


def mistakes(data: object) -> list[str]:
    """The lines of the error that a document gives."""
    with pytest.raises(ConfigError) as caught:
        parse(Document, data, where="station.toml")
    return str(caught.value).splitlines()


def test_a_whole_document_is_read() -> None:
    read = parse(Document, WHOLE, where="station.toml")
    assert [camera.type for camera in read.cameras] == ["folder", "stream"]


def test_a_mistake_deep_inside_a_variant_is_named_by_its_path_without_the_variant() -> None:
    late = {**STREAM, "schedule": {"every": "soon"}}
    (line,) = mistakes({**WHOLE, "cameras": [FOLDER, late]})
    assert line.startswith("station.toml: cameras[1].schedule.every: expected ")
    assert line.endswith("found 'soon'")
    assert "stream" not in line


def test_a_mistake_inside_an_undiscriminated_union_does_not_show_class_names() -> None:
    lines = mistakes({**WHOLE, "either": {"every": "soon"}})
    assert any(line.startswith("station.toml: either.every: ") for line in lines)
    assert not any("Folder" in line or "Schedule" in line for line in lines)


def test_an_unknown_key_names_the_nearest_that_is_known_there() -> None:
    (line,) = mistakes({**WHOLE, "cameras": [FOLDER, {**STREAM, "rtsp_trnsport": "tcp"}]})
    assert line == (
        "station.toml: cameras[1].rtsp_trnsport: unknown key; did you mean 'rtsp_transport'?"
    )


def test_an_unknown_key_near_to_none_lists_the_known_ones() -> None:
    (line,) = mistakes({**WHOLE, "cameras": [{**FOLDER, "schedule": {**DAILY, "zzz": 1}}]})
    assert line == "station.toml: cameras[0].schedule.zzz: unknown key; known here: every"


def test_a_key_is_suggested_as_it_is_written_in_the_document() -> None:
    lines = mistakes({"shema": "x/1"})
    assert "station.toml: schema: missing; it has no default" in lines
    assert "station.toml: shema: unknown key; did you mean 'schema'?" in lines


def test_all_mistakes_are_told_at_once() -> None:
    lines = mistakes(
        {
            "cameras": [{"type": "folder", "schedule": {"every": 5}}, {**STREAM, "fps": 1}],
            "ratio": "much",
            "labels": {"ice": "white"},
        }
    )
    paths = {line.split(": ")[1] for line in lines}
    assert paths == {
        "schema",
        "cameras[0].path",
        "cameras[0].schedule.every",
        "cameras[1].fps",
        "ratio",
        "labels.ice",
    }


def test_an_unknown_variant_lists_the_choices() -> None:
    (line,) = mistakes({**WHOLE, "cameras": [{**FOLDER, "type": "webcam"}]})
    assert line.startswith("station.toml: cameras[0]: ")
    assert "'folder', 'stream'" in line


def test_a_document_that_is_no_table_says_what_was_found() -> None:
    (line,) = mistakes(["not", "a", "table"])
    assert line.startswith("station.toml: expected ")
    assert "found ['not', 'a', 'table']" in line


def test_what_was_found_is_shortened() -> None:
    (line,) = mistakes({**WHOLE, "ratio": "x" * 5000})
    assert len(line) < 200
    assert line.endswith("…")


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://harbour:s3cret@broker.example",
        "mqtt://:s3cret@broker.example",
        "mqtt://harbour:s3cret/with@signs@broker.example:1883/x",
    ],
)
def test_credentials_in_a_url_are_never_repeated(url: str) -> None:
    (line,) = mistakes({**WHOLE, "ratio": url})
    assert "s3cret" not in line
    assert "harbour" not in line
    assert "broker.example" in line


def test_a_mistake_in_a_class_map_is_named_by_class_and_field() -> None:
    surface = {"index": 0, "name": "sea", "role": "water", "colour": [0, 0, 999], "shade": 1}
    with pytest.raises(ConfigError) as caught:
        parse(Manifest, {"class_map": [surface], "input": {"heigth": 1}}, where="manifest.json")
    assert "manifest.json: class_map[0].colour[2]: expected " in str(caught.value)
    assert "manifest.json: class_map[0].shade: unknown key; known here: " in str(caught.value)
    assert "input.heigth: unknown key; did you mean 'height'?" in str(caught.value)


def test_the_station_s_own_config_names_its_paths_the_same_way() -> None:
    data = {
        "station": {"id": "Salluit"},
        "bundle": {"path": "b.icecam"},
        "cameras": [
            {"type": "folder", "id": "a", "path": ".", "schedule": {"every": "1h"}},
            {"type": "folder", "id": "b", "path": ".", "schedule": {"every": "soon"}},
        ],
    }
    with pytest.raises(ConfigError) as caught:
        parse(StationConfig, data, where="station.toml")
    first, second = str(caught.value).splitlines()
    assert first.startswith("station.toml: station.id: expected ")
    assert second == (
        "station.toml: cameras[1].schedule.every: expected a duration such as 30m (s, m, h or d), "
        "found 'soon'"
    )


def test_the_error_s_kind_and_what_happens_next_are_the_caller_s() -> None:
    with pytest.raises(BundleError, match=r"Nothing was loaded$"):
        parse(Document, {}, where="m", error=BundleError, then="Nothing was loaded")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"schema": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        "{}".encode("utf-16"),
    ],
    ids=["empty", "cut", "no text", "not UTF-8", "lists", "tables", "huge number", "UTF-16"],
)
def test_text_that_is_not_json_is_refused_as_such(text: bytes) -> None:
    with pytest.raises(DeliveryError, match=r"^payload: "):
        parse_json(Document, text, where="payload", error=DeliveryError)


@pytest.mark.parametrize("ignore", [True, False])
def test_json_with_deep_nesting_in_an_unknown_field_is_refused_or_ignored_never_a_crash(
    ignore: bool,  # noqa: FBT001
) -> None:
    for depth in (100, 900, 20_000, 200_000):
        text = b'{"schema": "x/1", "more": ' + b"[" * depth + b"]" * depth + b"}"
        try:
            read = parse_json(Document, text, where="p", error=DeliveryError, ignore_unknown=ignore)
        except DeliveryError:
            continue
        assert ignore
        assert read.schema_id == "x/1"


def test_newer_fields_are_ignored_only_where_that_is_asked_for() -> None:
    text = json.dumps({**WHOLE, "newer": 1, "cameras": [{**FOLDER, "newer": 2}]})
    read = parse_json(Document, text, where="p", ignore_unknown=True)
    assert read.cameras[0].type == "folder"
    with pytest.raises(ConfigError, match="unknown key"):
        parse_json(Document, text, where="p")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_the_named_error(data: bytes) -> None:
    with pytest.raises(DeliveryError):
        parse_json(Document, data, where="p", error=DeliveryError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["schema", "cameras", "either", "labels", "x"]), JSON))
def test_any_mistake_in_a_table_is_one_named_error_with_the_document_first(
    data: dict[str, Any],
) -> None:
    try:
        parse(Document, data, where="station.toml")
    except ConfigError as error:
        said = str(error)
    else:
        return
    assert said.startswith("station.toml: ")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[station\nid = 1", "not TOML"),
        (b"id = 'a'\nid = 'b'", "not TOML"),
        (b"name = '\xff'", "not TOML"),
        (b"a = [" + b"[" * 5000, "not TOML"),
    ],
    ids=["syntax", "key twice", "not UTF-8", "deep"],
)
def test_a_file_that_is_not_toml_says_so_with_its_path(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "station.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        read_toml(path, what="a station.toml")
    assert str(caught.value).startswith(str(path))
    assert "a station.toml" in str(caught.value)


def test_a_missing_file_or_a_folder_in_its_place_says_that_it_cannot_be_read(
    tmp_path: Path,
) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read \(.+\); expected a station\.toml"):
            read_toml(path, what="a station.toml")


def test_toml_keeps_numbers_and_tables_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = 1\nb = [1.5, inf]\n[t]\nc = 'é'\n", encoding="utf-8")
    assert read_toml(path, what="x") == {"a": 1, "b": [1.5, math.inf], "t": {"c": "é"}}
