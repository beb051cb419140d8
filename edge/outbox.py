"""Observations on disk until the broker has them.

One SQLite file. An observation is stored in one transaction together with its number (``seq``) and
the camera's cursor, so that after a power cut it is there whole or was never taken. A row is
deleted only when the broker acknowledged it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge.contract.errors import ConfigError, DeliveryError
from edge.contract.files import make_folder, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Kind = Literal["coverage", "mask"]

_LAYOUT = 1
_SCHEMA = """
CREATE TABLE outbox (epoch TEXT NOT NULL);
CREATE TABLE cameras (
    camera TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,              -- of the last observation
    cursor TEXT,                       -- where the camera goes on
    live_coverage INTEGER NOT NULL DEFAULT 0,   -- newest seq the broker acknowledged, per lane
    live_mask INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE messages (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    camera TEXT NOT NULL,
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('coverage', 'mask')),
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    content_type TEXT NOT NULL,
    properties TEXT NOT NULL,
    enqueued_s REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    parked TEXT                        -- why the broker will never take it, or NULL
);
CREATE INDEX newest_waiting ON messages (kind, camera, seq) WHERE parked IS NULL;
CREATE INDEX oldest_waiting ON messages (kind) WHERE parked IS NULL;
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A message before it has its row. ``properties`` travel as MQTT user properties."""

    kind: Kind
    topic: str
    payload: bytes
    content_type: str
    properties: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A stored message. ``live``: newer than anything its lane has delivered, so retained."""

    row: int
    camera: str
    seq: int
    kind: Kind
    topic: str
    payload: bytes
    content_type: str
    properties: dict[str, str]
    live: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """What the outbox holds."""

    observations: int
    masks: int
    waiting_bytes: int
    oldest_age_s: float | None
    parked: int


class Outbox:
    """The queue between station and sender. Safe to use from several threads.

    A lock file keeps a second daemon out of the same folder.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create ``folder/outbox.sqlite``. Raises ConfigError, DeliveryError."""
        make_folder(folder, what="state_dir")
        self.path = folder / "outbox.sqlite"
        self._lock = threading.Lock()
        self._under_way: dict[int, Waiting] = {}
        self._guard = _exclusive(folder / "lock")
        try:
            self._database = _open(self.path)
            (self.epoch,) = self._database.execute("SELECT epoch FROM outbox").fetchone()
            self._database.execute(
                "UPDATE messages SET parked = NULL, attempts = 0 WHERE parked IS NOT NULL"
            )
        except (sqlite3.DatabaseError, TypeError) as problem:
            os.close(self._guard)
            raise DeliveryError(
                f"{self.path}: not a usable outbox ({problem})",
                expected=f"an outbox of layout {_LAYOUT}",
                then="Move the file aside; a new one is made, with a new outbox_epoch.",
            ) from None

    def close(self) -> None:
        """Close the file and let the lock go. Safe to call twice."""
        with self._lock:
            self._database.close()
            if self._guard >= 0:
                os.close(self._guard)
                self._guard = -1

    def cursor(self, camera: str) -> str | None:
        """Return where a camera goes on, None where it never gave a frame."""
        with self._lock:
            found = self._database.execute(
                "SELECT cursor FROM cameras WHERE camera = ?", [camera]
            ).fetchone()
        return found[0] if found else None

    def enqueue(
        self, camera: str, cursor: str | None, draft: Callable[[int], Sequence[Draft]]
    ) -> int:
        """Store one observation in one transaction and return its seq.

        ``draft(seq)`` builds its messages. ``cursor`` None leaves the camera's as it is.
        """
        with self._transaction() as database:
            (seq,) = database.execute(
                "INSERT INTO cameras (camera, seq, cursor) VALUES (?, 1, ?) ON CONFLICT (camera) "
                "DO UPDATE SET seq = seq + 1, cursor = coalesce(excluded.cursor, cursor) "
                "RETURNING seq",
                [camera, cursor],
            ).fetchone()
            database.executemany(
                "INSERT INTO messages (camera, seq, kind, topic, payload, content_type, properties,"
                " enqueued_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (camera, seq, d.kind, d.topic, d.payload, d.content_type,
                     json.dumps(d.properties), time.time())
                    for d in draft(seq)
                ],
            )  # fmt: skip
        return int(seq)

    def take(self) -> Waiting | None:
        """Return what to send next and mark it as under way; None where nothing else waits.

        First each camera's newest coverage, then older coverage, oldest first; then masks in the
        same way. ``live`` is what is newer than all its lane has sent.
        """
        with self._lock:
            for kind in _KINDS:
                found = self._newest(kind) or self._oldest(kind)
                if found:
                    self._under_way[found.row] = found
                    return found
        return None

    def release(self) -> None:
        """Make all that is under way wait again: the connection is gone, nobody will answer."""
        with self._lock:
            self._under_way.clear()

    def acknowledge(self, message: Waiting) -> None:
        """Delete a message that the broker has, and remember how far its lane is."""
        column = f"live_{message.kind}"
        with self._transaction() as database:
            database.execute("DELETE FROM messages WHERE row = ?", [message.row])
            database.execute(
                f"UPDATE cameras SET {column} = max({column}, ?) WHERE camera = ?",  # noqa: S608 - one of two literals
                [message.seq, message.camera],
            )
            self._under_way.pop(message.row, None)

    def retry(self, message: Waiting) -> int:
        """Let a message wait again after a refusal that may pass; return how often it was tried."""
        with self._transaction() as database:
            (attempts,) = database.execute(
                "UPDATE messages SET attempts = attempts + 1 WHERE row = ? RETURNING attempts",
                [message.row],
            ).fetchone()
            self._under_way.pop(message.row, None)
        return int(attempts)

    def park(self, message: Waiting, why: str) -> None:
        """Set a message aside that the broker does not take; what waits behind it goes on.

        It is tried again when the outbox is opened next.
        """
        with self._transaction() as database:
            database.execute("UPDATE messages SET parked = ? WHERE row = ?", [why, message.row])
            self._under_way.pop(message.row, None)

    def depth(self) -> Depth:
        """Count what waits."""
        with self._lock:
            kinds = dict(
                self._database.execute(
                    "SELECT kind, count(*) FROM messages WHERE parked IS NULL GROUP BY kind"
                )
            )
            waiting_bytes, oldest_s = self._database.execute(
                "SELECT coalesce(sum(length(payload)), 0), min(enqueued_s) FROM messages "
                "WHERE parked IS NULL"
            ).fetchone()
            (parked,) = self._database.execute(
                "SELECT count(*) FROM messages WHERE parked IS NOT NULL"
            ).fetchone()
        return Depth(
            observations=kinds.get("coverage", 0),
            masks=kinds.get("mask", 0),
            waiting_bytes=waiting_bytes,
            oldest_age_s=None if oldest_s is None else round(max(0.0, time.time() - oldest_s), 1),
            parked=parked,
        )

    def _newest(self, kind: Kind) -> Waiting | None:
        """Return the newest message of a camera that is ahead of all its lane has sent."""
        found: list[Waiting] = []
        lanes = f"SELECT camera, live_{kind} FROM cameras"  # noqa: S608 - one of two literals
        for camera, delivered in self._database.execute(lanes).fetchall():
            sent = [m.seq for m in self._under_way.values() if (m.camera, m.kind) == (camera, kind)]
            row = self._database.execute(
                f"{_SELECT} WHERE kind = ? AND camera = ? AND parked IS NULL AND seq > ? "
                "ORDER BY seq DESC LIMIT 1",
                [kind, camera, max([delivered, *sent])],
            ).fetchone()
            found += [_waiting(row, live=True)] if row else []
        return max(found, key=lambda message: message.row, default=None)

    def _oldest(self, kind: Kind) -> Waiting | None:
        under_way = ",".join(map(str, self._under_way))
        row = self._database.execute(
            f"{_SELECT} WHERE kind = ? AND parked IS NULL AND row NOT IN ({under_way}) "
            "ORDER BY row LIMIT 1",
            [kind],
        ).fetchone()
        return _waiting(row, live=False) if row else None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


_KINDS: tuple[Kind, ...] = ("coverage", "mask")
_SELECT = "SELECT row, camera, seq, kind, topic, payload, content_type, properties FROM messages"


def _waiting(row: tuple[Any, ...], *, live: bool) -> Waiting:
    number, camera, seq, kind, topic, payload, content_type, properties = row
    return Waiting(
        row=number,
        camera=camera,
        seq=seq,
        kind=kind,
        topic=topic,
        payload=payload,
        content_type=content_type,
        properties=json.loads(properties),
        live=live,
    )


def _exclusive(path: Path) -> int:
    """Hold a lock file for as long as the process lives. Raises ConfigError where another does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"{path.parent} is in use by another icecam",
            expected="one station per state_dir",
            then="Stop the other one, or give this one a state_dir of its own.",
        ) from None
    return descriptor


def _open(path: Path) -> sqlite3.Connection:
    """Open the database with commits that survive a power cut (WAL, synchronous FULL)."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA journal_size_limit = 4194304")
    (layout,) = database.execute("PRAGMA user_version").fetchone()
    if layout == 0:
        epoch = os.urandom(4).hex()
        database.executescript(
            f"BEGIN; {_SCHEMA} INSERT INTO outbox VALUES ('{epoch}');"  # noqa: S608 - hex digits
            f" PRAGMA user_version = {_LAYOUT}; COMMIT;"
        )
        sync_folder(path.parent)
    elif layout != _LAYOUT:
        message = f"layout {layout}"
        raise sqlite3.DatabaseError(message)
    database.execute("PRAGMA incremental_vacuum").fetchall()  # give back what a long outage took
    return database
