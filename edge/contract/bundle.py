"""Bundles: an uncompressed tar of a manifest and the files it lists.

``manifest.json`` comes first, then ``manifest.sig`` where the bundle is signed, then the files.
Nothing is unpacked to disk. Who brought a file may have meant harm: nothing of it is read before
the manifest lists it at the size it has, and it is used once its hash was checked.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.contract.boundary import parse_json
from edge.contract.classes import ClassMap
from edge.contract.errors import BundleError
from edge.contract.files import write_atomically
from edge.contract.messages import Moment, Sha256
from edge.contract.ustar import DO_NOTHING, entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from edge.contract.ustar import Entry

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MAX_FILE_BYTES = 2 << 30
MAX_MANIFEST_BYTES = 4 << 20
MAX_SIGNATURE_BYTES = 64 << 10
_MOST_NAMED = 4

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MemberPath = Annotated[str, Field(pattern=r"^[a-z0-9_-]+(/[a-z0-9_-]+)*(\.[a-z0-9]+)+$")]

Verify = Callable[[bytes, bytes | None], str | None]
"""From the manifest's raw bytes and ``manifest.sig``: the key that vouches for them, or None.

Raises BundleError where the bundle is not to be opened.
"""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSize(_Part):
    """What the graph takes: ``height`` x ``width``, after a stretch of at most ``max_anisotropy``.

    Anisotropy is the ratio of the two scale factors, at least 1.
    """

    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    max_anisotropy: Annotated[float, Field(ge=1)] = 1.2


class Tiles(_Part):
    """Cut the frame into rows x columns with an overlap (fraction of a tile), stitch the masks."""

    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]
    overlap: Annotated[float, Field(ge=0, lt=1)]


class Member(_Part):
    """One model of the ensemble, and how it was trained.

    unresolved: suppressions of overlapping instances that the static graph left undecided on the
    frames that export checked; None for a member that suppresses nothing.
    """

    name: Name
    architecture: str
    encoder: str
    parameters: Annotated[int, Field(gt=0)]
    weight: Positive
    temperature: Positive = 1.0
    unresolved: Annotated[int, Field(ge=0)] | None = None
    training: dict[str, str | int | float | None] = {}


class Graph(_Part):
    """One rung of the ladder: a file that runs these members, in the order of ``member_masks``.

    Two graphs of the same members may differ in precision alone.
    """

    name: Name
    file: MemberPath
    precision: Literal["float32", "float16"]
    members: Annotated[tuple[Name, ...], Field(min_length=1)]
    weights: tuple[Positive, ...]

    @model_validator(mode="after")
    def _one_weight_each(self) -> Graph:
        if len(self.weights) != len(self.members):
            message = f"expected {len(self.members)} weights, one per member"
            raise ValueError(message)
        return self


class GoldenCase(_Part):
    """A frame after resize, and what the float32 members said in training's own code.

    answer: of the full ensemble, the first graph; ``answers``: of graphs with other members, by
    the graph's name.
    """

    frame: MemberPath
    answer: MemberPath
    answers: dict[Name, MemberPath] = {}

    def answer_of(self, graph: str) -> str:
        """Return the file that holds the answer of this graph's members."""
        return self.answers.get(graph, self.answer)


class ListedFile(_Part):
    """A file of the bundle."""

    path: MemberPath
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256


class HeldOut(_Part):
    """Measured on images that no member was trained on. Fractions 0..1.

    ice_fraction_mae: mean absolute error of ice_pixel_fraction; ``iou`` is by class name.
    """

    dataset: str
    images: Annotated[int, Field(gt=0)]
    miou: Annotated[float, Field(ge=0, le=1)]
    pixel_accuracy: Annotated[float, Field(ge=0, le=1)]
    iou: dict[str, float | None]
    ice_fraction_mae: Annotated[float, Field(ge=0, le=1)] | None


class Manifest(_Part):
    """What is in a bundle. ``serial`` never goes down on a station."""

    schema_id: Literal["icecam.bundle/1"] = Field(default="icecam.bundle/1", alias="schema")
    id: Name
    serial: Annotated[int, Field(ge=0)]
    created_at: Moment
    min_icecam: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    class_map: ClassMap
    input: InputSize
    tiles: Tiles | None = None
    graphs: Annotated[tuple[Graph, ...], Field(min_length=1)]
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    metrics: HeldOut | None = None
    golden: Annotated[tuple[GoldenCase, ...], Field(min_length=1)]
    files: tuple[ListedFile, ...]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        _refuse_repeats("files", [MANIFEST, SIGNATURE, *(listed.path for listed in self.files)])
        _refuse_repeats("members", [member.name for member in self.members])
        _refuse_repeats("graphs", [graph.name for graph in self.graphs])
        listed = {file.path for file in self.files}
        named = {g.file for g in self.graphs}
        for case in self.golden:
            named |= {case.frame, case.answer, *case.answers.values()}
        if named - listed:
            message = f"expected every named file among files, missing {sorted(named - listed)}"
            raise ValueError(message)
        known = {member.name for member in self.members}
        for graph in self.graphs:
            if not known.issuperset(graph.members):
                message = f"expected the members of graph {graph.name!r} to be among members"
                raise ValueError(message)
        answered = {name for case in self.golden for name in case.answers}
        if strangers := sorted(answered - {graph.name for graph in self.graphs}):
            message = f"expected golden answers of graphs in the manifest, not of {strangers}"
            raise ValueError(message)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An opened bundle: manifest read, every file checked by size and hash.

    raw: the manifest's bytes, which a signature is over.
    sha256: of ``raw``, and so of everything the manifest lists.
    signature: the bytes of ``manifest.sig``, or None.
    signed_by: the id of the key that vouches for ``raw``; None where none does or nobody looked.
    """

    path: Path
    manifest: Manifest
    raw: bytes
    sha256: str
    signature: bytes | None
    signed_by: str | None

    def listed(self, path: str) -> ListedFile:
        """Return what the manifest says of a file. Raises BundleError where it lists none such."""
        for file in self.manifest.files:
            if file.path == path:
                return file
        raise BundleError(f"{self.path}: {path!r} is not listed in the manifest")

    def read(self, member: str) -> bytes:
        """Return one listed file, checked again against its hash. Raises BundleError."""
        listed = self.listed(member)
        with closing(entries(self.path)) as archive:
            for entry in archive:
                if entry.name == member:
                    _require_size(self.path, listed, entry)
                    data = entry.read()
                    _require_hash(self.path, listed, hashlib.sha256(data).hexdigest())
                    return data
        raise BundleError(f"{self.path}: {member} is missing", then=DO_NOTHING)


def open_bundle(path: Path, *, verify: Verify | None = None) -> Bundle:
    """Read the manifest and check every file. Raises BundleError; writes nothing.

    ``verify`` is asked before the manifest is parsed and before any file after it is read.
    """
    with closing(entries(path)) as archive:
        raw, signature, following = _opening(path, archive)
        signed_by = None if verify is None else verify(raw, signature)
        manifest = parse_json(
            Manifest,
            raw,
            where=f"{path}: {MANIFEST}",
            error=BundleError,
            then=DO_NOTHING,
            ignore_unknown=True,
        )
        _check_files(path, manifest, chain(following, archive))
    return Bundle(
        path=path,
        manifest=manifest,
        raw=raw,
        sha256=hashlib.sha256(raw).hexdigest(),
        signature=signature,
        signed_by=signed_by,
    )


def write_bundle(
    path: Path,
    fields: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    sign: Callable[[bytes], bytes] | None = None,
) -> Manifest:
    """Write a bundle: ``fields`` are the manifest's, without ``files``. Same input, same bytes.

    sign: from the manifest's raw bytes to ``manifest.sig``. Raises BundleError where the manifest
    would not be valid; the file appears whole or not at all.
    """
    listed = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    ]
    whole = {**fields, "files": listed}
    try:
        manifest = Manifest.model_validate(whole)
    except ValueError as problem:
        raise BundleError(f"{path}: this manifest would not be valid: {problem}") from None
    raw = manifest.model_dump_json(by_alias=True, indent=1).encode()
    _write(path, raw, None if sign is None else sign(raw), files)
    return manifest


def sign_bundle(bundle: Bundle, out: Path, sign: Callable[[bytes, bytes | None], bytes]) -> None:
    """Write a bundle again with a signature; its manifest and files keep every byte.

    sign: from the manifest's raw bytes and the signature so far to the new ``manifest.sig``.
    ``out`` may be the bundle itself; it appears whole or stays as it was. Raises BundleError,
    OSError.
    """
    signature = sign(bundle.raw, bundle.signature)
    files = {file.path: bundle.read(file.path) for file in bundle.manifest.files}
    _write(out, bundle.raw, signature, files)


def _write(path: Path, raw: bytes, signature: bytes | None, files: Mapping[str, bytes]) -> None:
    first = [(MANIFEST, raw)] if signature is None else [(MANIFEST, raw), (SIGNATURE, signature)]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [*first, *sorted(files.items())]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(data))
    write_atomically(path, archive.getvalue())


def _opening(path: Path, archive: Iterator[Entry]) -> tuple[bytes, bytes | None, tuple[Entry, ...]]:
    """Return manifest, signature or None, and the entry that was found in the signature's place."""
    first = next(archive, None)
    if first is None or first.name != MANIFEST:
        found = "nothing" if first is None else first.name
        raise BundleError(
            f"{path}: begins with {found!r}", expected=f"{MANIFEST} first", then=DO_NOTHING
        )
    raw = _read_at_most(path, first, MAX_MANIFEST_BYTES)
    second = next(archive, None)
    if second is None or second.name != SIGNATURE:
        return raw, None, () if second is None else (second,)
    return raw, _read_at_most(path, second, MAX_SIGNATURE_BYTES), ()


def _read_at_most(path: Path, entry: Entry, most: int) -> bytes:
    if entry.size > most:
        raise BundleError(
            f"{path}: {entry.name!r} of {entry.size} bytes",
            expected=f"at most {most}",
            then=DO_NOTHING,
        )
    return entry.read()


def _check_files(path: Path, manifest: Manifest, archive: Iterable[Entry]) -> None:
    expected = {file.path: file for file in manifest.files}
    for entry in archive:
        listed = expected.pop(entry.name, None)
        if listed is None:
            raise BundleError(
                f"{path}: {entry.name!r} is not listed in the manifest, or twice", then=DO_NOTHING
            )
        _require_size(path, listed, entry)
        _require_hash(path, listed, entry.sha256())
    if expected:
        missing = ", ".join(sorted(expected)[:_MOST_NAMED])
        more = len(expected) - _MOST_NAMED
        further = f" and {more} more" if more > 0 else ""
        raise BundleError(f"{path}: missing {missing}{further}", then=DO_NOTHING)


def _require_size(path: Path, listed: ListedFile, entry: Entry) -> None:
    if entry.size != listed.size:
        raise BundleError(
            f"{path}: {listed.path} is damaged ({entry.size} bytes)",
            expected=f"{listed.size} bytes",
            then=DO_NOTHING,
        )


def _require_hash(path: Path, listed: ListedFile, sha256: str) -> None:
    if sha256 != listed.sha256:
        raise BundleError(
            f"{path}: {listed.path} is damaged (sha256 {sha256[:12]}…)",
            expected=f"sha256 {listed.sha256[:12]}…",
            then=DO_NOTHING,
        )


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        message = f"expected each of {what} once, repeated {repeated}"
        raise ValueError(message)
