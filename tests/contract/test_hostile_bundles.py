"""Bundles meant to do harm: refused before they cost memory or time, whoever signed nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.bundle import MAX_MANIFEST_BYTES, open_bundle, write_bundle
from edge.contract.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.classes import ClassMap

MIB = 1 << 20
HUGE = 600 * MIB
FILES = {"ensemble.onnx": bytes(range(256)) * 5, "golden/0.npz": b"an answer", "golden/0.png": b""}
EXTENSIONS = {
    "pax": tarfile.XHDTYPE,
    "pax for all": tarfile.XGLTYPE,
    "a long name": tarfile.GNUTYPE_LONGNAME,
    "a long link": tarfile.GNUTYPE_LONGLINK,
    "sparse": tarfile.GNUTYPE_SPARSE,
}

OPEN = """
import re, sys, time
from pathlib import Path
from edge.contract.bundle import open_bundle
from edge.contract.errors import BundleError
began = time.monotonic()
try:
    open_bundle(Path(sys.argv[1]))
except BundleError as refused:
    print(refused)
print(time.monotonic() - began)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""

Part = tuple[str, bytes | int] | tuple[str, bytes | int, bytes]
"""A name, bytes or how many that are left out of a sparse file, and a type other than a file's."""


@pytest.fixture
def fields(class_map: ClassMap) -> dict[str, Any]:
    member = {"name": "unet", "architecture": "unet", "encoder": "e", "parameters": 1, "weight": 1}
    graph = {"name": "full", "file": "ensemble.onnx", "precision": "float32"}
    return {
        "id": "hostile",
        "serial": 1,
        "created_at": datetime(2026, 11, 22, tzinfo=timezone.utc),
        "min_icecam": "0.1.0",
        "class_map": class_map,
        "input": {"height": 224, "width": 384},
        "graphs": [{**graph, "members": ["unet"], "weights": [1.0]}],
        "members": [member],
        "golden": [{"frame": "golden/0.png", "answer": "golden/0.npz"}],
    }


@pytest.fixture
def good(tmp_path: Path, fields: dict[str, Any]) -> Path:
    write_bundle(tmp_path / "good.icecam", fields, FILES)
    return tmp_path / "good.icecam"


def manifest(path: Path, **sizes: int) -> bytes:
    """A bundle's manifest, with other sizes for files of these stems."""
    with tarfile.open(path) as tar:
        content = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    for listed in content["files"]:
        listed["size"] = sizes.get(listed["path"].partition(".")[0], listed["size"])
    return json.dumps(content).encode()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = tarfile.TarInfo(name)
    made.size = size
    made.type = kind
    return made.tobuf(tarfile.USTAR_FORMAT)


def packed(path: Path, *parts: Part) -> Path:
    """An archive whose large entries take no room on the disk."""
    with path.open("wb") as file:
        for name, data, *kind in parts:
            size = data if isinstance(data, int) else len(data)
            file.write(header(name, size, *kind))
            begin = file.tell()
            file.write(b"" if isinstance(data, int) else data)
            file.seek(begin + -(-size // 512) * 512)
        file.write(bytes(1024))
    return path


def opened_elsewhere(path: Path) -> tuple[str, float, float]:
    """What a process of its own said of a bundle, the seconds it took and its peak in MiB."""
    command = [sys.executable, "-c", OPEN, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *said, seconds, peak_kib = done.stdout.splitlines()
    return "\n".join(said), float(seconds), int(peak_kib) / 1024


def refused(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        open_bundle(path)
    assert str(path) in str(caught.value)
    assert "not loaded" in str(caught.value)


def listed_smaller(path: Path) -> list[Part]:
    return [("manifest.json", manifest(path)), ("ensemble.onnx", HUGE)]


def not_listed(path: Path) -> list[Part]:
    return [("manifest.json", manifest(path)), ("more.bin", HUGE)]


def no_manifest(_: Path) -> list[Part]:
    return [("ensemble.onnx", HUGE)]


def huge_manifest(_: Path) -> list[Part]:
    return [("manifest.json", HUGE)]


def huge_signature(path: Path) -> list[Part]:
    return [("manifest.json", manifest(path)), ("manifest.sig", HUGE)]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (listed_smaller, "ensemble.onnx is damaged (629145600 bytes); expected 1280 bytes"),
        (not_listed, "'more.bin' is not listed"),
        (no_manifest, "begins with 'ensemble.onnx'"),
        (huge_manifest, "'manifest.json' of 629145600 bytes"),
        (huge_signature, "'manifest.sig' of 629145600 bytes"),
    ],
)
def test_bytes_that_nobody_vouched_for_are_not_read(
    good: Path, parts: Callable[[Path], list[Part]], said: str
) -> None:
    path = packed(good.with_name("bomb.icecam"), *parts(good))
    message, took_s, peak_mib = opened_elsewhere(path)
    assert f"{path}: " in message
    assert said in message
    assert took_s < 2
    assert peak_mib < 150


@pytest.mark.parametrize("first", [True, False], ids=["first", "after the manifest"])
@pytest.mark.parametrize("kind", EXTENSIONS.values(), ids=EXTENSIONS.keys())
def test_extension_headers_are_refused_and_what_they_bring_is_not_read(
    good: Path, kind: bytes, *, first: bool
) -> None:
    before: list[Part] = [] if first else [("manifest.json", manifest(good))]
    path = packed(good.with_name("bomb.icecam"), *before, ("x", HUGE, kind), ("y", b"z"))
    message, took_s, peak_mib = opened_elsewhere(path)
    assert f"{path}: 'x' is not a regular file" in message
    assert took_s < 2
    assert peak_mib < 150


def test_an_extension_header_that_changes_nothing_is_refused_too(good: Path) -> None:
    record = b"19 path=golden/0.png\n"
    parts: list[Part] = [("manifest.json", manifest(good)), ("pax", record, tarfile.XHDTYPE)]
    refused(packed(good, *parts, *FILES.items()), "'pax' is not a regular file")


def test_a_file_that_is_as_large_as_its_manifest_says_is_hashed_piece_by_piece(good: Path) -> None:
    raw = manifest(good, ensemble=HUGE)
    path = packed(good.with_name("big.icecam"), ("manifest.json", raw), ("ensemble.onnx", HUGE))
    message, _, peak_mib = opened_elsewhere(path)
    assert "ensemble.onnx is damaged (sha256 " in message
    assert peak_mib < 150


def test_a_file_that_grew_after_the_bundle_was_opened_is_not_read(good: Path) -> None:
    bundle = open_bundle(good)
    packed(good, ("manifest.json", manifest(good)), ("ensemble.onnx", 1 << 32))
    with pytest.raises(BundleError, match=r"ensemble\.onnx is damaged \(4294967296 bytes\)"):
        bundle.read("ensemble.onnx")


def test_a_size_beyond_the_archive_s_end_is_refused_before_memory_is_taken_for_it(
    good: Path,
) -> None:
    raw = manifest(good, ensemble=1 << 31)
    path = packed(good, ("manifest.json", raw), ("ensemble.onnx", 1 << 31))
    with path.open("r+b") as file:
        file.truncate(512 * 20)
    message, took_s, peak_mib = opened_elsewhere(path)
    assert "not a whole uncompressed tar ('ensemble.onnx' is cut short)" in message
    assert took_s < 2
    assert peak_mib < 150


def test_a_manifest_of_as_many_files_as_it_holds_is_refused_in_seconds(
    good: Path,
) -> None:
    content = json.loads(manifest(good))
    content["files"] += [{"path": f"{n:x}.b", "size": 0, "sha256": "0" * 64} for n in range(38_000)]
    raw = json.dumps(content, separators=(",", ":")).encode()
    assert 0.9 * MAX_MANIFEST_BYTES < len(raw) <= MAX_MANIFEST_BYTES
    began = time.monotonic()
    path = packed(good, ("manifest.json", raw), *FILES.items())
    refused(path, r"missing 0\.b, 1\.b, 10\.b, 100\.b and 37996 more\. ")
    assert time.monotonic() - began < 10


def edited(path: Path, begin: int, field: bytes, *, summed: bool = True) -> Path:
    """Overwrite a field in the first header, and its sum."""
    raw = bytearray(path.read_bytes())
    raw[begin : begin + len(field)] = field
    if summed:
        total = sum(raw[:148]) + 8 * 32 + sum(raw[156:512])
        raw[148:156] = b"%06o\0 " % total
    path.write_bytes(raw)
    return path


SIZE, SUM, MAGIC = 124, 148, 257


@pytest.mark.parametrize(
    ("begin", "field", "said"),
    [
        (SIZE, b"\x80" + bytes(10) + b"\x10", "no octal number"),  # GNU's for large files
        (SIZE, b"\xff" * 12, "no octal number"),
        (SIZE, b"-0000000001\0", "no octal number"),
        (SIZE, b"0o000000017\0", "no octal number"),
        (SIZE, b"0000_0000_1\0", "no octal number"),
        (SIZE, b"00000000008\0", "no octal number"),
        (SIZE, b"0000000\x001234", "no octal number"),
        (SIZE, bytes(12), "no octal number"),
        (MAGIC, b"ustar  \0", "no USTAR header at byte 0"),  # GNU's own format
        (MAGIC, bytes(8), "no USTAR header at byte 0"),  # before POSIX
    ],
)
def test_a_header_that_is_not_ustar_to_the_letter_is_refused(
    good: Path, begin: int, field: bytes, said: str
) -> None:
    refused(edited(good, begin, field), said)


@pytest.mark.parametrize(
    ("begin", "field"), [(0, b"Manifest"), (SUM, b"000001\0 "), (SUM, bytes(8)), (500, b"x")]
)
def test_a_header_whose_sum_is_wrong_is_refused(good: Path, begin: int, field: bytes) -> None:
    refused(edited(good, begin, field, summed=False), "not a whole uncompressed tar")


def test_what_the_tar_command_packs_as_ustar_is_a_bundle_and_unpacks_what_was_written(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    deep = "/".join(["a" * 50, "b" * 50, "c" * 50]) + "/parameters.bin"  # beyond a name's 100 bytes
    files = {**FILES, deep: b"far down", "one.bin": bytes(MIB + 1), "two.bin": b"\1" * 2 * MIB}
    files |= {f"size/{size}.bin": b"x" * size for size in (1, 511, 512, 513, MIB)}
    write_bundle(tmp_path / "ours.icecam", fields, files)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "ours.icecam", "-C", folder], check=True)
    for name, data in files.items():
        assert (folder / name).read_bytes() == data
    names = ["manifest.json", *reversed(files)]
    theirs = tmp_path / "theirs.icecam"
    subprocess.run(["tar", "--format=ustar", "-cf", theirs, "-C", folder, *names], check=True)
    bundle = open_bundle(theirs)
    assert {one.path: bundle.read(one.path) for one in bundle.manifest.files} == files
    assert bundle.sha256 == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
