"""Engines that this machine compiled: plans and what they are of, in a folder of its own.

A plan is native code: whoever can write it, runs it. So the folder is the owner's alone, each plan
is loaded only with the hash it was written with, and only on what it was built for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge.contract.boundary import parse_json
from edge.contract.errors import EngineError
from edge.contract.files import sync_folder, write_atomically
from edge.contract.messages import Certification, Moment, Sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.engine.trt.device import Device

KEPT = 8
"""How many engines stay: two bundles, each with its fallback, and some to go back to."""

_PLAN, _SIDECAR = ".plan", ".json"
_READ_BYTES = 1 << 20
_ROOM = 3
"""How many times the graph's size must be free: plan, timings, and the one it replaces."""


class Origin(BaseModel):
    """What a plan was made of, and for what: where one of these differs, it is built anew."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    onnx_sha256: Sha256
    precision: Literal["float32", "float16"]
    tensorrt: str
    compute_capability: str
    device: str
    l4t: str

    @classmethod
    def of(cls, onnx_sha256: str, precision: Literal["float32", "float16"], on: Device) -> Origin:
        """Join a graph and a machine."""
        return cls(
            onnx_sha256=onnx_sha256,
            precision=precision,
            tensorrt=on.tensorrt,
            compute_capability=on.compute_capability,
            device=on.name,
            l4t=on.l4t,
        )

    def differences(self, now: Origin) -> str:
        """Say what is another now, nothing where nothing is."""
        before, after = self.model_dump(), now.model_dump()
        return ", ".join(
            f"{key} {before[key]} → {after[key]}" for key in before if before[key] != after[key]
        )


class Sidecar(BaseModel):
    """What lies beside a plan. certification: on the bundle whose golden frames it last ran."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_id: Literal["icecam.engine/1"] = Field(default="icecam.engine/1", alias="schema")
    origin: Origin
    plan_sha256: Sha256
    plan_bytes: Annotated[int, Field(gt=0)]
    built_at: Moment
    build_s: Annotated[float, Field(ge=0)]
    workspace_bytes: Annotated[int, Field(gt=0)]
    certification: Certification


class EngineCache:
    """A private folder of engines, one per graph. Writers hold ``building`` meanwhile.

    A record names its plan by hash, and is what counts: it is replaced after the new plan lies
    here and before the old one goes, so that a reader finds either engine, whole.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder that may be yet to be made. Raises EngineError: not this user's to read.

        Root may read another user's records; to load or build, the folder is to be one's own.
        """
        self.folder = folder
        self._quarantine = folder / "quarantine"
        self._unfinished = folder / "unfinished"
        found = _looked_at(folder)
        if found is not None:
            _require_closed(folder, found)
            if os.geteuid():
                _require_own(folder, found)

    def find(self, wanted: Origin) -> tuple[Sidecar | None, str]:
        """Return what lies beside a graph's plan that can be loaded here, or why there is none."""
        sidecar, why = self._record(wanted)
        while sidecar is not None and (damage := self._damage(sidecar)):
            newer, why = self._record(wanted)
            if newer == sidecar:
                return None, damage
            sidecar = newer  # it was replaced meanwhile
        return sidecar, why

    def load(self, wanted: Origin) -> tuple[bytes, Sidecar]:
        """Return a plan and what lies beside it. Raises EngineError: none fits and is whole."""
        self.require_own()
        sidecar, why = self.find(wanted)
        while sidecar is not None:
            with suppress(EngineError):  # replaced or damaged meanwhile: the next look says
                return read_plan(self._plan(sidecar), sidecar.plan_sha256), sidecar
            sidecar, why = self.find(wanted)
        raise EngineError(
            f"no engine for this machine in {self.folder} ({why})",
            expected="one that python -m export.trt or the station compiled here",
        )

    def require_own(self) -> None:
        """Raise EngineError where the folder is another user's: what is loaded runs as this one."""
        found = _looked_at(self.folder)
        if found is not None:
            _require_own(self.folder, found)

    def refused(self, wanted: Origin, bundle_sha256: str) -> Certification | None:
        """Return the verdict on an engine like this that failed on this bundle, or None."""
        try:
            sidecar = self._read(_name(wanted), self._quarantine)
        except (OSError, EngineError):
            return None
        same = sidecar.origin == wanted and sidecar.certification.bundle_sha256 == bundle_sha256
        return sidecar.certification if same else None

    def plan(self, origin: Origin) -> Path:
        """Return where a graph's plan lies. Raises EngineError where no record names one."""
        sidecar, why = self._record(origin)
        if sidecar is None:
            raise EngineError(f"no engine for this machine in {self.folder} ({why})")
        return self._plan(sidecar)

    def unfinished(self, wanted: Origin) -> Path:
        """Return where a build may lay its plan until it is certified."""
        return self._unfinished / (_name(wanted) + _PLAN)

    def keep(self, sidecar: Sidecar) -> None:
        """Let an unfinished plan that passed replace the graph's earlier one."""
        name, plan = _name(sidecar.origin), self._plan(sidecar)
        _move(self.unfinished(sidecar.origin), plan)
        self._write(self.folder, name, sidecar)
        for old in set(self._plans(self.folder, name)) - {plan}:
            old.unlink()
        self._forget(self._quarantine, name)

    def quarantine(self, sidecar: Sidecar) -> None:
        """Keep the verdict on an unfinished plan that failed; the plan itself goes."""
        self._write(self._quarantine, _name(sidecar.origin), sidecar)
        self.unfinished(sidecar.origin).unlink(missing_ok=True)

    def quarantine_kept(self, sidecar: Sidecar) -> None:
        """Do the same with one that served until now."""
        self._write(self._quarantine, _name(sidecar.origin), sidecar)
        self.forget(sidecar.origin)

    def forget(self, origin: Origin) -> None:
        """Remove a graph's plan and its record."""
        self._forget(self.folder, _name(origin))

    def certify(self, sidecar: Sidecar) -> None:
        """Replace the record beside a plan that stays as it is."""
        self._write(self.folder, _name(sidecar.origin), sidecar)

    def timings(self, origin: Origin) -> bytes:
        """Return the timings of earlier builds of this kind, or nothing."""
        try:
            return _read_private(self._timings(origin))
        except OSError:
            return b""

    def keep_timings(self, origin: Origin, timings: bytes) -> None:
        """Write the timings that a build left."""
        if timings:
            write_atomically(self._timings(origin), timings)

    def require_room(self, graph_bytes: int) -> None:
        """Raise EngineError where the disk has no room for an engine of a graph of that size."""
        free, wanted = shutil.disk_usage(self.folder).free, _ROOM * graph_bytes
        if free < wanted:
            raise EngineError(
                f"{self.folder}: {free >> 20} MiB free",
                expected=f"{wanted >> 20} MiB for the engine",
                then="Nothing was built, and the engine of before stays.",
            )

    @contextmanager
    def building(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only one that builds here; ``waiting`` is called where another does already.

        What a build that was killed left behind is removed. Raises EngineError where the folder
        cannot be made or written to, also later on.
        """
        with self._naming_what_fails(), self._locked(waiting):
            yield

    @contextmanager
    def _locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        self._make()
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in self._unfinished.iterdir():
                left.unlink()
            yield

    def _make(self) -> None:
        for one in (self.folder, self._quarantine, self._unfinished):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = one.lstat()
            _require_closed(one, found)
            _require_own(one, found)

    @contextmanager
    def _naming_what_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise EngineError(
                f"the engines' folder {self.folder} cannot be used ({problem.strerror})",
                expected="a folder to write to with room in it, or --cache with another",
            ) from None

    def _plan(self, sidecar: Sidecar) -> Path:
        return self.folder / f"{_name(sidecar.origin)}-{sidecar.plan_sha256[:16]}{_PLAN}"

    @staticmethod
    def _plans(folder: Path, name: str) -> list[Path]:
        return list(folder.glob(f"{name}*{_PLAN}"))

    def _timings(self, origin: Origin) -> Path:
        kind = f"{origin.tensorrt} {origin.compute_capability} {origin.device} {origin.l4t}"
        return self.folder / f"timings-{hashlib.sha256(kind.encode()).hexdigest()[:16]}.bin"

    def _read(self, name: str, folder: Path | None = None) -> Sidecar:
        path = (folder or self.folder) / (name + _SIDECAR)
        return parse_json(Sidecar, _read_private(path), where=str(path), error=EngineError)

    def _record(self, wanted: Origin) -> tuple[Sidecar | None, str]:
        """Return the record of a graph's plan where it is of this machine, or why there is none."""
        name = _name(wanted)
        try:
            sidecar = self._read(name)
        except (OSError, EngineError):
            built = self._plans(self.folder, name)
            return None, "damaged record" if built else "none was built yet"
        why = sidecar.origin.differences(wanted)
        return (None, why) if why else (sidecar, "")

    def _write(self, folder: Path, name: str, sidecar: Sidecar) -> None:
        """Write a record. What it pushes out is older, whatever the clock says of the two."""
        text = sidecar.model_dump_json(by_alias=True, indent=1)
        write_atomically(folder / (name + _SIDECAR), text.encode())
        others = [path for path in folder.glob("*" + _SIDECAR) if path.stem != name]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for oldest in others[KEPT - 1 :]:
            self._forget(folder, oldest.stem)

    def _damage(self, sidecar: Sidecar) -> str:
        """Say what is wrong with a plan: missing, or another than was written."""
        digest = hashlib.sha256()
        try:
            with _open_private(self._plan(sidecar)) as file:
                while chunk := file.read(_READ_BYTES):
                    digest.update(chunk)
        except OSError as problem:
            return f"its plan cannot be read: {problem.strerror}"
        return "" if digest.hexdigest() == sidecar.plan_sha256 else "its plan is damaged"

    def _forget(self, folder: Path, name: str) -> None:
        """Remove plans and record, in this order: no plan is left that no record names."""
        for path in (*self._plans(folder, name), folder / (name + _SIDECAR)):
            path.unlink(missing_ok=True)
        sync_folder(folder)


def default_folder() -> Path:
    """Return where a person's engines lie (XDG base directories); a station's are in state_dir."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "icecam" / "engines"


def read_plan(path: Path, sha256: str) -> bytes:
    """Return a plan. Raises EngineError where it is not the one with this hash."""
    try:
        plan = _read_private(path)
    except OSError as problem:
        raise EngineError(f"{path}: the engine cannot be read ({problem.strerror})") from None
    if hashlib.sha256(plan).hexdigest() != sha256:
        raise EngineError(
            f"{path}: the engine is another than was written", expected=f"sha256 {sha256[:12]}…"
        )
    return plan


def _name(origin: Origin) -> str:
    return origin.onnx_sha256[:32]


def _looked_at(folder: Path) -> os.stat_result | None:
    """Return what a folder is, None where there is none. Raises EngineError: it cannot be seen."""
    try:
        return folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise EngineError(
            f"the engines' folder {folder} cannot be looked at ({problem.strerror})",
            expected=f"a folder that user {os.geteuid()} may enter",
            then="Run this as the user whose engines they are, or name another folder with "
            "--cache.",
        ) from None


def _require_closed(folder: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise EngineError(f"the engines' folder {folder} is no folder", expected="one, or nothing")
    if found.st_mode & 0o077:
        raise EngineError(
            f"the engines' folder {folder} is open to others (mode {found.st_mode & 0o7777:o}, "
            f"owner {_user(found.st_uid)})",
            expected="mode 700: engines are native code",
            then=f"Nothing in it was loaded; chmod 700 {folder}, or remove it.",
        )


def _require_own(folder: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        owner = _user(found.st_uid)
        raise EngineError(
            f"the engines' folder {folder} belongs to user {owner}",
            expected="one of one's own: engines are native code",
            then=f"Nothing in it was loaded; run this as that user (sudo -u {owner} ...), or name "
            "another folder with --cache.",
        )


def _user(uid: int) -> str:
    """Return a user's name, or its number as sudo takes it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"'#{uid}'"


@contextmanager
def _open_private(path: Path) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _read_private(path: Path) -> bytes:
    with _open_private(path) as file:
        return file.read()


def _move(source: Path, target: Path) -> None:
    source.replace(target)
    sync_folder(target.parent)
