"""Archives of plain USTAR (POSIX.1-1988): regular files alone, one header of 512 bytes for each.

tarfile reads as much as an extension header claims before it says what the archive holds. Here
names and sizes are told before any byte is read, and no header makes the reader take memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path
    from typing import BinaryIO

DO_NOTHING = "The bundle was not loaded; bring a whole copy."
_BLOCK = 512
_CHUNK = 1 << 20
_MAGIC = b"ustar\x0000"
_REGULAR = b"0"
_NUMBER = re.compile(rb" *([0-7]+)[ \0]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of an archive that is open: what its header claims; nothing of it was read.

    size: bytes. What reads it raises BundleError where the archive holds less.
    """

    name: str
    size: int
    path: Path
    file: BinaryIO
    begin: int

    def read(self) -> bytes:
        """Return the whole file."""
        with _naming_damage(self.path):
            self.require_whole()
            self.file.seek(self.begin)
            return self.file.read(self.size)

    def sha256(self) -> str:
        """Return the hash of the file, of which little is in memory at any time."""
        digest = hashlib.sha256()
        with _naming_damage(self.path):
            self.require_whole()
            self.file.seek(self.begin)
            for left in range(self.size, 0, -_CHUNK):
                digest.update(self.file.read(min(left, _CHUNK)))
        return digest.hexdigest()

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.begin + -(-self.size // _BLOCK) * _BLOCK

    def require_whole(self) -> None:
        """Raise BundleError where the archive ends before the file does."""
        if os.fstat(self.file.fileno()).st_size < self.end:
            raise _damage(self.path, f"{self.name!r} is cut short")


def entries(path: Path) -> Generator[Entry, None, None]:
    """Yield each file of an archive, to be read before the next. The archive is open meanwhile.

    Raises BundleError where it cannot be read, ends inside a file or holds anything else.
    """
    with _naming_damage(path), path.open("rb") as file:
        at = 0
        while (header := _header(path, file, at)) is not None:
            entry = _parsed(path, file, at, header)
            yield entry
            entry.require_whole()
            at = entry.end


def _header(path: Path, file: BinaryIO, at: int) -> bytes | None:
    file.seek(at)
    header = file.read(_BLOCK)
    if not header.strip(b"\0") and len(header) in {0, _BLOCK}:
        return None
    if len(header) < _BLOCK:
        raise _damage(path, "it ends inside a header")
    return header


def _parsed(path: Path, file: BinaryIO, at: int, header: bytes) -> Entry:
    summed = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if header[257:265] != _MAGIC or _number(path, header[148:156]) != summed:
        raise _damage(path, f"no USTAR header at byte {at}")
    name = _text(header[:100])
    if header[345]:
        name = f"{_text(header[345:500])}/{name}"
    if header[156:157] != _REGULAR:
        kind = _text(header[156:157])
        raise BundleError(
            f"{path}: {name!r} is not a regular file (its type in the tar is {kind!r})",
            expected="plain USTAR, without links, folders and extension headers",
            then=DO_NOTHING,
        )
    size = _number(path, header[124:136])
    return Entry(name=name, size=size, path=path, file=file, begin=at + _BLOCK)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "backslashreplace")


def _number(path: Path, field: bytes) -> int:
    found = _NUMBER.fullmatch(field)
    if found is None:
        raise _damage(path, f"{field!r} is no octal number")
    return int(found[1], 8)


def _damage(path: Path, why: str) -> BundleError:
    return BundleError(f"{path}: not a whole uncompressed tar ({why})", then=DO_NOTHING)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise BundleError(f"{path}: cannot be read ({why})", then=DO_NOTHING) from None
