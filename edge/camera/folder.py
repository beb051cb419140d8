"""A folder as a camera: something else drops pictures into it."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from edge.clock import utc_now
from edge.contract.errors import CameraError
from edge.contract.frames import SUFFIXES, Frame, TimeSource, decode_image
from edge.contract.messages import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge.config import FolderCamera

_NAME_TIME = re.compile(
    r"(?<!\d)(\d{4})[-_.]?(\d\d)[-_.]?(\d\d)[-_.T ]?(\d\d)[-_.:h]?(\d\d)[-_.:m]?(\d\d)(?!\d)"
)
AHEAD = timedelta(days=1)
"""How far clocks may differ before a time counts as from the future."""

FRESH_S = 30.0
"""A file that changed this recently may still be arriving."""

_EXIF_IFD = 0x8769
_DATE_TIME_ORIGINAL = 0x9003
_OFFSET_TIME_ORIGINAL = 0x9011


class Folder:
    """Gives the pictures of a folder in order of time: by the time in the name, else by mtime.

    The cursor is that time and the name, so a picture is given once, over restarts too; files are
    never changed. Hidden files and other suffixes are passed over.
    """

    def __init__(self, config: FolderCamera) -> None:
        """Remember where to look; nothing is opened before a capture."""
        self._config = config

    def seek(self, after: str | None) -> str:
        """Return the cursor of the next picture: its time and its name.

        Raises CameraError (``no_frame``) where nothing is new or the folder cannot be read.
        """
        folder = self._config.path
        try:
            unread = [cursor for cursor, _ in listing(folder) if after is None or cursor > after]
        except OSError as problem:
            raise CameraError(
                f"camera {self._config.id!r}: folder {folder} cannot be read ({problem.strerror})",
                fault="no_frame",
                expected="a folder of pictures",
                then="The next slot tries again.",
            ) from None
        if not unread:
            raise CameraError(
                f"camera {self._config.id!r}: folder {folder} holds no new picture",
                fault="no_frame",
                expected="a file " + ", ".join(sorted(SUFFIXES)),
                then="The next slot looks again.",
            )
        return max(unread) if self._config.take == "newest" else min(unread)

    def capture(self, cursor: str) -> Frame:
        """Return the picture that a cursor names.

        captured_at comes from EXIF, else from the name (UTC), else from mtime. Raises CameraError
        (``unreadable``) with the time that the name or the file has, and with the cursor unless the
        file changed just now: it may still be arriving, and is tried again.
        """
        path = self._config.path / cursor.partition(" ")[2]
        try:
            frame = read_picture(path)
        except CameraError as error:
            arriving = error.captured_at is not None and _is_fresh(path)
            error.cursor = None if arriving else cursor
            raise
        return replace(frame, cursor=cursor)


def read_picture(path: Path) -> Frame:
    """Read a picture file as a frame. Raises CameraError (``unreadable``).

    Where the file is there but no whole picture, the error has the time of its name or the file's.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise CameraError(
            f"{path}: cannot be read ({problem.strerror})",
            fault="unreadable",
            expected="a picture file",
        ) from None
    try:
        pixels = decode_image(data, where=str(path))
    except CameraError as error:
        error.captured_at, error.time_source = name_or_mtime(path)
        raise
    moment, source = captured_at(path, data)
    return Frame(pixels=pixels, captured_at=moment, time_source=source)


def captured_at(path: Path, data: bytes) -> tuple[datetime, TimeSource]:
    """Return when a picture was taken (aware UTC) and what said so."""
    exif = _exif_time(data)
    return (exif, "exif") if exif is not None else name_or_mtime(path)


def name_or_mtime(path: Path) -> tuple[datetime, TimeSource]:
    """Return the time in a file's name, read as UTC, else its time of last change.

    A name from the future is not believed where the file's own time is not: a camera whose clock
    ran ahead once would otherwise hide all its later pictures.
    """
    changed = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc)
    named = _name_time(path.stem)
    soon = utc_now() + AHEAD
    if named is None or (named > soon and changed <= soon):
        return changed, "mtime"
    return named, "name"


def _name_time(stem: str) -> datetime | None:
    found = _NAME_TIME.search(stem)
    try:
        return (
            datetime.strptime(f"{''.join(found.groups())}+0000", "%Y%m%d%H%M%S%z")
            if found
            else None
        )
    except ValueError:
        return None


def _is_fresh(path: Path) -> bool:
    return abs(time.time() - path.stat().st_mtime) < FRESH_S


def listing(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each picture of a folder with its cursor, in no order. Raises OSError."""
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            try:
                moment, _ = name_or_mtime(path)
            except FileNotFoundError:  # moved away since it was listed
                continue
            yield f"{rfc3339(moment)} {path.name}", path


def _exif_time(data: bytes) -> datetime | None:
    """Return DateTimeOriginal (EXIF 2.31, 0x9003) with its offset; without one it is UTC."""
    from PIL import Image  # noqa: PLC0415 - not needed to start the program

    with Image.open(io.BytesIO(data)) as image:
        tags = image.getexif().get_ifd(_EXIF_IFD)
    text = str(tags.get(_DATE_TIME_ORIGINAL, "")).strip("\0 ")
    offset = str(tags.get(_OFFSET_TIME_ORIGINAL, "")).strip("\0 ") or "+00:00"
    try:
        moment = datetime.strptime(f"{text} {offset}", "%Y:%m:%d %H:%M:%S %z")
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
