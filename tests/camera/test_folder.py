"""A folder as a camera: which picture comes next, when it was taken, and what a fault is called."""

from __future__ import annotations

import io
import os
import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from edge.camera import capture, open_camera
from edge.config import FolderCamera
from edge.contract.errors import CameraError

if TYPE_CHECKING:
    from edge.contract.frames import Frame

DATE_TIME_ORIGINAL, OFFSET_TIME_ORIGINAL, EXIF_IFD = 0x9003, 0x9011, 0x8769  # EXIF 2.31
NOON = datetime(2026, 7, 21, 12, tzinfo=timezone.utc)


def picture(
    path: Path,
    shade: int = 100,
    *,
    mtime: datetime | None = None,
    taken: str = "",
    offset: str = "",
) -> Path:
    """Drop a small JPEG of one grey shade into a folder."""
    exif = Image.Exif()
    if taken:
        exif.get_ifd(EXIF_IFD)[DATE_TIME_ORIGINAL] = taken
    if offset:
        exif.get_ifd(EXIF_IFD)[OFFSET_TIME_ORIGINAL] = offset
    Image.new("RGB", (32, 24), (shade, shade, shade)).save(path, format="JPEG", exif=exif)
    if mtime is not None:
        os.utime(path, (mtime.timestamp(), mtime.timestamp()))
    return path


def camera(folder: Path, **changes: object) -> FolderCamera:
    fields = {"type": "folder", "id": "c", "path": folder, "schedule": {"every": "1h"}}
    return FolderCamera.model_validate({**fields, **changes})


def take(folder: Path, after: str | None = None, **changes: object) -> Frame:
    opened = open_camera(camera(folder, **changes))
    return opened.capture(opened.seek(after))


def arrived_long_ago(path: Path) -> None:
    os.utime(path, (0, 0))


def fault(folder: Path, after: str | None = None, **changes: object) -> CameraError:
    with pytest.raises(CameraError) as caught:
        take(folder, after, **changes)
    return caught.value


def shade_of(frame: Frame) -> int:
    return round(float(frame.pixels.mean()))


def all_shades(folder: Path, **changes: object) -> list[int]:
    """Every picture that comes, each capture by a new camera that knows only the last cursor."""
    shades: list[int] = []
    cursor: str | None = None
    for _ in range(20):
        try:
            frame = take(folder, cursor, **changes)
        except CameraError as ended:
            assert ended.fault == "no_frame"  # noqa: PT017 - how a folder says that it is done
            return shades
        shades.append(shade_of(frame))
        cursor = frame.cursor
    pytest.fail(f"the pictures never end: {shades}")


def test_a_picture_comes_as_bgr_pixels_with_its_time_and_a_cursor(tmp_path: Path) -> None:
    picture(tmp_path / "2026-07-21_12-00-00.jpg", 100)
    frame = take(tmp_path)
    assert frame.pixels.dtype == np.uint8
    assert frame.size == (24, 32)
    assert shade_of(frame) == 100
    assert frame.captured_at == NOON
    assert frame.captured_at.tzinfo == timezone.utc
    assert frame.time_source == "name"
    assert frame.cursor is not None


@pytest.mark.parametrize(
    "name",
    [
        "2026-07-21_12-00-00",
        "20260721_120000",
        "20260721120000",
        "20260721T120000Z",
        "IMG_20260721-120000_v2",
        "harbour 2026.07.21 12.00.00",
        "cam1-2026-07-21T12:00:00",
        "2026-07-21_12h00m00",
    ],
)
def test_the_time_is_read_from_common_names_as_utc(tmp_path: Path, name: str) -> None:
    picture(tmp_path / f"{name}.jpg", mtime=NOON - timedelta(days=9))
    frame = take(tmp_path)
    assert (frame.captured_at, frame.time_source) == (NOON, "name")


@pytest.mark.parametrize(
    "name", ["picture", "2026-13-21_12-00-00", "2026-07-21_25-00-00", "12026072112000099", "0007"]
)
def test_a_name_without_a_real_time_falls_back_to_the_time_of_last_change(
    tmp_path: Path, name: str
) -> None:
    changed = NOON + timedelta(hours=3, milliseconds=250)
    picture(tmp_path / f"{name}.jpg", mtime=changed)
    frame = take(tmp_path)
    assert (frame.captured_at, frame.time_source) == (changed, "mtime")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("", NOON),
        ("+00:00", NOON),
        ("-05:00", NOON + timedelta(hours=5)),
        ("+09:30", NOON - timedelta(hours=9, minutes=30)),
    ],
)
def test_exif_time_wins_over_the_name_and_its_offset_is_taken_off(
    tmp_path: Path, offset: str, expected: datetime
) -> None:
    picture(tmp_path / "2020-01-01_00-00-00.jpg", taken="2026:07:21 12:00:00", offset=offset)
    frame = take(tmp_path)
    assert (frame.captured_at, frame.time_source) == (expected, "exif")


@pytest.mark.parametrize(
    ("taken", "offset"),
    [
        ("0000:00:00 00:00:00", ""),
        ("    :  :     :  :  ", ""),
        ("yesterday", ""),
        ("2026:07:21 12:00:00", "EST"),
        ("0001:01:01 00:00:00", "+14:00"),
        ("9999:12:31 23:59:59", "-12:00"),
    ],
)
def test_an_exif_time_that_is_none_falls_back_to_the_name(
    tmp_path: Path, taken: str, offset: str
) -> None:
    picture(tmp_path / "2026-07-21_12-00-00.jpg", taken=taken, offset=offset)
    frame = take(tmp_path)
    assert (frame.captured_at, frame.time_source) == (NOON, "name")


def test_pictures_come_in_order_of_the_time_in_their_names_whatever_their_order_on_disk(
    tmp_path: Path,
) -> None:
    for hour, shade in ((15, 150), (9, 90), (12, 120)):
        picture(tmp_path / f"z{shade}_2026-07-21_{hour:02}-00-00.jpg", shade, mtime=NOON)
    assert all_shades(tmp_path, take="every") == [90, 120, 150]


def test_pictures_without_a_time_in_the_name_come_in_order_of_last_change(tmp_path: Path) -> None:
    for name, minutes, shade in (("a", 3, 30), ("b", 1, 10), ("c", 2, 20)):
        picture(tmp_path / f"{name}.jpg", shade, mtime=NOON + timedelta(minutes=minutes))
    assert all_shades(tmp_path, take="every") == [10, 20, 30]


def test_pictures_of_the_same_moment_each_come_once(tmp_path: Path) -> None:
    for name, shade in (("b", 20), ("a", 10), ("c", 30)):
        picture(tmp_path / f"{name}.jpg", shade, mtime=NOON)
    assert all_shades(tmp_path, take="every") == [10, 20, 30]


def test_the_newest_picture_is_taken_and_older_ones_are_passed_over(tmp_path: Path) -> None:
    for hour in (9, 12, 15):
        picture(tmp_path / f"2026-07-21_{hour:02}-00-00.jpg", hour * 10)
    assert all_shades(tmp_path, take="newest") == [150]
    first = take(tmp_path, take="newest")
    picture(tmp_path / "2026-07-21_13-00-00.jpg", 130)  # arrives late
    picture(tmp_path / "2026-07-21_18-00-00.jpg", 180)
    assert shade_of(take(tmp_path, first.cursor, take="newest")) == 180


def test_a_picture_that_arrives_after_a_restart_comes_next(tmp_path: Path) -> None:
    picture(tmp_path / "2026-07-21_09-00-00.jpg", 90)
    cursor = take(tmp_path, take="every").cursor
    assert fault(tmp_path, cursor, take="every").fault == "no_frame"
    picture(tmp_path / "2026-07-21_10-00-00.jpg", 100)
    assert shade_of(take(tmp_path, cursor, take="every")) == 100


def test_a_name_of_its_own_alphabet_survives_as_a_cursor(tmp_path: Path) -> None:
    picture(tmp_path / "port ᓴᓪᓗᐃᑦ é 1.jpg", 10, mtime=NOON)
    picture(tmp_path / "port ᓴᓪᓗᐃᑦ é 2.jpg", 20, mtime=NOON)
    assert all_shades(tmp_path, take="every") == [10, 20]


def test_hidden_files_and_other_suffixes_are_passed_over_and_suffixes_may_be_large(
    tmp_path: Path,
) -> None:
    picture(tmp_path / ".2026-07-21_12-00-00.jpg", 10)
    picture(tmp_path / "2026-07-21_12-00-00.jpg.part", 20)
    picture(tmp_path / "2026-07-21_12-00-00", 30)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    assert fault(tmp_path).fault == "no_frame"
    picture(tmp_path / "2026-07-21_12-00-00.JPG", 40)
    assert all_shades(tmp_path, take="every") == [40]


def test_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    path = picture(tmp_path / "2026-07-21_12-00-00.jpg", mtime=NOON)
    before = path.read_bytes(), path.stat().st_mtime_ns
    take(tmp_path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_folder_has_no_frame_and_no_cursor(tmp_path: Path) -> None:
    problem = fault(tmp_path)
    assert (problem.fault, problem.cursor, problem.captured_at) == ("no_frame", None, None)
    assert "holds no new picture" in str(problem)
    assert str(tmp_path) in str(problem)


def test_a_missing_folder_or_a_file_in_its_place_is_a_camera_without_a_frame(
    tmp_path: Path,
) -> None:
    file = picture(tmp_path / "a.jpg")
    for path in (tmp_path / "none", file):
        problem = fault(path)
        assert (problem.fault, problem.cursor) == ("no_frame", None)
        assert "cannot be read" in str(problem)


@pytest.mark.parametrize("mode", ["newest", "every"])
def test_a_picture_that_stops_early_is_unreadable_and_is_passed_over_next_time(
    tmp_path: Path, mode: str
) -> None:
    whole = picture(tmp_path / "2026-07-21_12-00-00.jpg", 120)
    whole.write_bytes(whole.read_bytes()[:-40])
    arrived_long_ago(whole)
    problem = fault(tmp_path, take=mode)
    assert problem.fault == "unreadable"
    assert problem.captured_at == NOON
    assert problem.cursor is not None
    assert "2026-07-21_12-00-00.jpg" in str(problem)
    picture(tmp_path / "2026-07-21_13-00-00.jpg", 130)
    assert shade_of(take(tmp_path, problem.cursor, take=mode)) == 130
    assert fault(tmp_path, take(tmp_path, problem.cursor).cursor).fault == "no_frame"


def test_a_folder_named_like_a_picture_is_unreadable_and_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "2026-07-21_12-00-00.jpg").mkdir()
    problem = fault(tmp_path)
    assert (problem.fault, problem.cursor is None) == ("unreadable", False)
    assert fault(tmp_path, problem.cursor).fault == "no_frame"


def test_an_empty_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "2026-07-21_12-00-00.png").touch()
    assert fault(tmp_path).fault == "unreadable"


def zombies() -> list[int]:
    """Children of this process that have ended and were not waited for (proc(5))."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def test_a_frame_comes_whole_through_the_real_child_process(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1080, 1920, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    (tmp_path / "2026-07-21_12-00-00.png").write_bytes(file.getvalue())
    frame = capture(camera(tmp_path), None)
    assert np.array_equal(frame.pixels[:, :, ::-1], pixels)
    assert (frame.captured_at, frame.time_source) == (NOON, "name")
    here = take(tmp_path)
    assert frame.cursor == here.cursor
    assert zombies() == []


def test_a_fault_comes_through_the_child_process_with_all_its_parts(tmp_path: Path) -> None:
    with pytest.raises(CameraError) as empty:
        capture(camera(tmp_path), None)
    assert (empty.value.fault, empty.value.cursor) == ("no_frame", None)
    (tmp_path / "2026-07-21_12-00-00.jpg").write_bytes(b"\xff\xd8\xff")
    arrived_long_ago(tmp_path / "2026-07-21_12-00-00.jpg")
    with pytest.raises(CameraError) as broken:
        capture(camera(tmp_path), None)
    assert broken.value.fault == "unreadable"
    assert broken.value.captured_at == NOON
    assert broken.value.cursor == fault(tmp_path).cursor
    assert str(broken.value) == str(fault(tmp_path))
    assert zombies() == []


def test_a_picture_that_cannot_be_opened_in_time_is_a_timeout_and_the_child_is_gone(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "2026-07-21_12-00-00.jpg")  # open() waits for a writer for ever
    began = time.monotonic()
    with pytest.raises(CameraError) as caught:
        capture(camera(tmp_path, deadline_s=1.5), None)
    # One deadline to start the child, one to capture, and 2 s of grace.
    assert 1.5 <= time.monotonic() - began < 1.5 + 1.5 + 2
    assert caught.value.fault == "camera_timeout"
    assert re.search(r"within [01]\.\d s and was killed", str(caught.value))
    assert zombies() == []
    picture(tmp_path / "2026-07-21_13-00-00.jpg", 130)
    behind_it = caught.value.cursor
    assert shade_of(capture(camera(tmp_path, take="every"), behind_it)) == 130


def test_a_picture_that_is_still_arriving_is_tried_again(tmp_path: Path) -> None:
    path = picture(tmp_path / "2026-07-21_12-00-00.jpg", 120)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    problem = fault(tmp_path)
    assert (problem.fault, problem.cursor) == ("unreadable", None)
    path.write_bytes(whole)
    assert shade_of(take(tmp_path, problem.cursor)) == 120


def test_a_name_from_the_future_does_not_hide_the_pictures_after_it(tmp_path: Path) -> None:
    arrived_long_ago(picture(tmp_path / "2099-01-01_00-00-00.jpg", 120))
    first = take(tmp_path, take="every")
    assert (shade_of(first), first.time_source) == (120, "mtime")
    picture(tmp_path / "2026-07-21_13-00-00.jpg", 130)
    assert shade_of(take(tmp_path, first.cursor, take="every")) == 130
