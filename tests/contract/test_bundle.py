"""Bundles: whole or refused, whatever happened to the file on its way."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.bundle import (
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    Bundle,
    open_bundle,
    write_bundle,
)
from edge.contract.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edge.contract.classes import ClassMap

FILES = {
    "ensemble.onnx": bytes(range(256)) * 5,
    "golden/0.png": b"a picture",
    "golden/0.npz": b"an answer",
}
Entry = tuple[str, bytes]


@pytest.fixture
def fields(class_map: ClassMap) -> dict[str, Any]:
    return {
        "id": "test-1",
        "serial": 3,
        "created_at": datetime(2026, 11, 22, tzinfo=timezone.utc),
        "min_icecam": "0.1.0",
        "class_map": class_map,
        "input": {"height": 224, "width": 384},
        "graphs": [
            {
                "name": "full",
                "file": "ensemble.onnx",
                "precision": "float32",
                "members": ["unet", "pspnet"],
                "weights": [0.5, 0.5],
            }
        ],
        "members": [
            {
                "name": name,
                "architecture": name,
                "encoder": "e",
                "parameters": 10,
                "weight": weight,
                "training": {"dataset": "d", "epochs": 2, "miou": 0.5, "note": None},
            }
            for name, weight in (("pspnet", 0.25), ("unet", 0.75))
        ],
        "golden": [{"frame": "golden/0.png", "answer": "golden/0.npz"}],
    }


@pytest.fixture
def good(tmp_path: Path, fields: dict[str, Any]) -> Path:
    path = tmp_path / "good.icecam"
    write_bundle(path, fields, FILES)
    return path


def entries(path: Path) -> list[Entry]:
    """What the standard library finds in a tar."""
    with tarfile.open(path, "r:") as tar:
        return [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]


def rewritten(path: Path, changed: Sequence[Entry | tarfile.TarInfo]) -> Path:
    """The same file with other entries."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for entry in changed:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            name, data = entry
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def refused(path: Path, match: str | None = None) -> str:
    with pytest.raises(BundleError, match=match) as caught:
        open_bundle(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def content(bundle: Bundle) -> dict[str, bytes]:
    return {file.path: bundle.read(file.path) for file in bundle.manifest.files}


def test_what_was_written_is_read_back(good: Path, fields: dict[str, Any]) -> None:
    bundle = open_bundle(good)
    assert content(bundle) == FILES
    assert bundle.manifest.id == "test-1"
    assert bundle.manifest.created_at == fields["created_at"]
    assert bundle.manifest.class_map == fields["class_map"]
    assert bundle.manifest.members[0].training == fields["members"][0]["training"]
    assert bundle.signature is None


def test_the_file_is_a_plain_tar_with_the_manifest_first_and_hashes_of_the_rest(
    good: Path,
) -> None:
    (name, raw), *rest = entries(good)
    assert name == "manifest.json"
    assert dict(rest) == FILES
    listed = {one["path"]: (one["size"], one["sha256"]) for one in json.loads(raw)["files"]}
    assert listed == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in FILES.items()
    }
    assert open_bundle(good).sha256 == hashlib.sha256(raw).hexdigest()
    assert json.loads(raw)["schema"] == "icecam.bundle/1"


def test_the_same_input_gives_the_same_bytes(
    tmp_path: Path, good: Path, fields: dict[str, Any]
) -> None:
    again = tmp_path / "again.icecam"
    write_bundle(again, fields, dict(reversed(FILES.items())))
    assert again.read_bytes() == good.read_bytes()


def test_a_signature_as_the_second_entry_is_kept_and_changes_nothing_else(good: Path) -> None:
    before = open_bundle(good)
    manifest, *rest = entries(good)
    signed = open_bundle(rewritten(good, [manifest, ("manifest.sig", b"\x01" * 64), *rest]))
    assert signed.signature == b"\x01" * 64
    assert signed.manifest == before.manifest
    assert signed.sha256 == before.sha256
    assert content(signed) == FILES


def test_whoever_verifies_is_asked_once_with_the_raw_bytes_and_has_the_say(
    good: Path, fields: dict[str, Any]
) -> None:
    asked: list[tuple[bytes, bytes | None]] = []

    def verify(raw: bytes, signature: bytes | None) -> str | None:
        asked.append((raw, signature))
        return None if signature is None else "somebody"

    assert open_bundle(good, verify=verify).signed_by is None
    signed = good.with_name("signed.icecam")
    write_bundle(signed, fields, FILES, sign=lambda raw: raw[:9])
    assert open_bundle(signed, verify=verify).signed_by == "somebody"
    (_, raw), *_rest = entries(good)
    assert asked == [(raw, None), (raw, raw[:9])]
    assert open_bundle(signed).raw == raw
    assert open_bundle(signed).signed_by is None

    def refuse(_raw: bytes, _signature: bytes | None) -> str | None:
        raise BundleError("never seen")

    with pytest.raises(BundleError, match="never seen"):
        open_bundle(good, verify=refuse)


def test_the_signature_s_place_is_right_after_the_manifest(
    good: Path, fields: dict[str, Any]
) -> None:
    write_bundle(good, fields, FILES, sign=lambda _: b"me")
    assert [name for name, _ in entries(good)] == ["manifest.json", "manifest.sig", *sorted(FILES)]


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_a_file_may_not_bear_the_name_of_manifest_or_signature(
    tmp_path: Path, fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(BundleError, match=f"repeated .'{name}'"):
        write_bundle(tmp_path / "b.icecam", fields, {**FILES, name: b"x"})


@pytest.mark.parametrize("size", [MAX_SIGNATURE_BYTES + 1])
def test_a_signature_out_of_place_or_too_large_is_refused(good: Path, size: int) -> None:
    manifest, *rest = entries(good)
    refused(rewritten(good, [manifest, *rest, ("manifest.sig", b"x")]), "manifest.sig")
    refused(rewritten(good, [manifest, ("manifest.sig", bytes(size)), *rest]), "manifest.sig")


def test_a_byte_flipped_anywhere_is_refused_or_changes_nothing_under_the_same_hash(
    good: Path,
) -> None:
    raw = good.read_bytes()
    whole = open_bundle(good)
    manifest_end = 512 + len(entries(good)[0][1])  # a tar's header is one block of 512
    for offset in range(0, len(raw), 13):
        damaged = bytearray(raw)
        damaged[offset] ^= 1 << offset % 8
        good.write_bytes(damaged)
        try:
            found = open_bundle(good)
        except BundleError:
            continue
        # An unsigned manifest may still be valid after a flip: then its hash, which is what is
        # signed and published, is another.
        if found.sha256 != whole.sha256:
            assert 512 <= offset < manifest_end
        else:
            assert found.manifest == whole.manifest
            assert content(found) == FILES


def test_a_flip_in_a_file_s_bytes_after_it_was_opened_is_found_when_it_is_read(
    good: Path,
) -> None:
    bundle = open_bundle(good)
    raw = good.read_bytes()
    assert raw.count(b"an answer") == 1
    good.write_bytes(raw.replace(b"an answer", b"no answer"))
    assert bundle.read("golden/0.png") == b"a picture"
    with pytest.raises(BundleError, match=r"golden/0\.npz is damaged"):
        bundle.read("golden/0.npz")


def test_a_file_is_found_by_its_path_with_size_and_hash(good: Path) -> None:
    listed = open_bundle(good).listed("golden/0.png")
    assert listed.path == "golden/0.png"
    assert (listed.size, listed.sha256) == (9, hashlib.sha256(b"a picture").hexdigest())


@pytest.mark.parametrize("path", ["golden/1.png", "manifest.json", "golden", ""])
def test_a_file_that_no_manifest_lists_is_a_bundle_error(good: Path, path: str) -> None:
    bundle = open_bundle(good)
    for look in (bundle.listed, bundle.read):
        with pytest.raises(BundleError, match=f"'{path}' is not listed in the manifest"):
            look(path)


def test_a_bundle_that_went_away_after_it_was_opened_is_a_bundle_error(good: Path) -> None:
    bundle = open_bundle(good)
    good.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read("ensemble.onnx")


def test_a_file_cut_short_at_any_block_or_inside_one_is_refused(good: Path) -> None:
    raw = good.read_bytes()
    end = len(raw.rstrip(b"\0"))
    for length in [*range(0, end, 256), *range(511, end, 512), *range(513, end, 512), end - 1]:
        good.write_bytes(raw[:length])
        refused(good)


def test_an_end_mark_cut_off_loses_nothing(good: Path) -> None:
    raw = good.read_bytes()
    data_end = -(-len(raw.rstrip(b"\0")) // 512) * 512
    good.write_bytes(raw[:data_end])
    assert content(open_bundle(good)) == FILES


def link(kind: bytes, name: str = "golden/0.npz", target: str = "golden/0.png") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.linkname = target
    return header


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda e: e[:-1], "missing golden/0.png"),
        (lambda e: e[:1], "missing ensemble.onnx, golden/0.npz, golden/0.png"),
        (lambda e: [*e, ("more.bin", b"x")], "more.bin"),
        (lambda e: [*e, e[1]], "ensemble.onnx"),
        (lambda e: [*e, e[0]], "manifest.json"),
        (lambda e: [e[1], e[0], *e[2:]], "begins with 'ensemble.onnx'"),
        (lambda e: [("./manifest.json", e[0][1]), *e[1:]], "begins with"),
        (lambda e: [*e[:-1], ("/golden/0.png", e[-1][1])], "/golden/0.png"),
        (lambda e: [*e[:-1], ("../golden/0.png", e[-1][1])], "golden/0.png"),
        (lambda e: [*e[:-1], ("golden/../golden/0.png", e[-1][1])], "golden/0.png"),
        (lambda e: [*e[:-1], link(tarfile.SYMTYPE, "golden/0.png", "/etc/passwd")], "regular"),
        (lambda e: [*e[:-1], link(tarfile.LNKTYPE, "golden/0.png", "golden/0.npz")], "regular"),
        (lambda e: [*e, link(tarfile.FIFOTYPE, "pipe")], "regular"),
        (lambda e: [*e, link(tarfile.CHRTYPE, "device")], "regular"),
        (lambda e: [*e, link(tarfile.DIRTYPE, "golden")], "regular"),
        (lambda e: [link(tarfile.SYMTYPE, "manifest.json", "/etc/passwd"), *e[1:]], "regular"),
        (lambda e: [(e[0][0], e[0][1][:-1]), *e[1:]], "not JSON"),
        (lambda e: [(e[0][0], b""), *e[1:]], "not JSON"),
        (
            lambda e: [(e[0][0], b" " * (MAX_MANIFEST_BYTES + 1)), *e[1:]],
            "'manifest.json' of 4194305 bytes",
        ),
        (lambda _: [], "begins with 'nothing'"),
    ],
    ids=[
        "one missing",
        "all missing",
        "one unlisted",
        "a file twice",
        "the manifest twice",
        "the manifest second",
        "the manifest under another name",
        "an absolute name",
        "a name outside",
        "a name that goes up",
        "a symlink",
        "a hard link",
        "a FIFO",
        "a device",
        "a folder",
        "a symlink for the manifest",
        "a manifest cut short",
        "an empty manifest",
        "a manifest too large",
        "no entries",
    ],
)
def test_an_archive_that_is_not_what_its_manifest_says_is_refused(
    good: Path, damage: Callable[[list[Entry]], list[Entry | tarfile.TarInfo]], said: str
) -> None:
    message = refused(rewritten(good, damage(entries(good))))
    assert said in message
    assert "not loaded" in message


def test_an_entry_that_claims_eight_gigabytes_is_refused(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    header = tarfile.TarInfo("ensemble.onnx")
    header.size = 8 * 1024**3 - 1
    at = raw.index(b"ensemble.onnx\0")
    raw[at : at + 512] = header.tobuf(tarfile.USTAR_FORMAT)
    good.write_bytes(raw)
    assert "ensemble.onnx" in refused(good)


@pytest.mark.parametrize("pack", [gzip.compress, lambda raw: b"PK\x03\x04" + raw])
def test_a_compressed_archive_is_refused(good: Path, pack: Callable[[bytes], bytes]) -> None:
    good.write_bytes(pack(good.read_bytes()))
    refused(good, "not a whole uncompressed tar")


@pytest.mark.parametrize("raw", [b"", b"x", b"x" * 5000, bytes(511)], ids=len)
def test_a_file_that_is_no_tar_is_refused(good: Path, raw: bytes) -> None:
    good.write_bytes(raw)
    refused(good)


def test_a_path_that_cannot_be_read_is_a_bundle_error(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "none.icecam", "cannot be read")


def with_manifest(path: Path, change: dict[str, Any]) -> Path:
    (name, raw), *rest = entries(path)
    return rewritten(path, [(name, json.dumps({**json.loads(raw), **change}).encode()), *rest])


GRAPH = {
    "name": "full",
    "file": "ensemble.onnx",
    "precision": "float32",
    "members": ["unet"],
    "weights": [1.0],
}
GOLDEN = {"frame": "golden/0.png", "answer": "golden/0.npz"}
HASH = hashlib.sha256(FILES["golden/0.png"]).hexdigest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "icecam.bundle/2"}, "schema: expected "),
        ({"serial": "new"}, "serial: expected "),
        ({"serial": -1}, "serial: expected "),
        ({"created_at": "2026-11-22T00:00:00"}, "created_at: expected "),
        ({"min_icecam": "1"}, "min_icecam: expected "),
        ({"input": {"height": 0, "width": 384}}, "input.height: expected "),
        ({"tiles": {"rows": 1, "columns": 1, "overlap": 1}}, "tiles.overlap: expected "),
        ({"graphs": [{**GRAPH, "precision": "int8"}]}, "graphs[0].precision: expected "),
        ({"graphs": []}, "graphs: expected "),
        ({"graphs": [{**GRAPH, "members": ["maskrcnn"]}]}, "members of graph 'full'"),
        ({"graphs": [{**GRAPH, "file": "other.onnx"}]}, "other.onnx"),
        ({"graphs": [GRAPH, GRAPH]}, "repeated ['full']"),
        ({"golden": []}, "golden: expected "),
        ({"golden": [{**GOLDEN, "answers": {"full": "other.npz"}}]}, "missing ['other.npz']"),
        ({"golden": [{**GOLDEN, "answers": {"fall": "golden/0.npz"}}]}, "not of ['fall']"),
        ({"golden": [{**GOLDEN, "answers": {"full": "../0.npz"}}]}, "golden[0].answers.full: "),
        ({"graphs": [{**GRAPH, "weights": [0.5, 0.5]}]}, "expected 1 weights"),
        ({"class_map": []}, "class_map: expected at least one class of role 'ice'"),
        (
            {"files": [{"path": "../../etc/passwd", "size": 1, "sha256": HASH}]},
            "files[0].path: expected ",
        ),
        ({"files": [{"path": "/a.bin", "size": 1, "sha256": HASH}]}, "files[0].path: expected "),
        ({"files": [{"path": "a.bin", "size": 1, "sha256": "x"}]}, "files[0].sha256: expected "),
        (
            {"files": [{"path": "a.bin", "size": 2**31 + 1, "sha256": HASH}]},
            "files[0].size: expected ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_that_breaks_a_rule_is_refused_by_the_path_of_the_field(
    good: Path, change: dict[str, Any], said: str
) -> None:
    assert said in refused(with_manifest(good, change))


@pytest.mark.parametrize("weight", [0, -1, "NaN", "Infinity"])
def test_a_member_s_weight_is_positive_and_finite(good: Path, weight: float | str) -> None:
    (name, raw), *rest = entries(good)
    text = raw.replace(b'"weight":0.25', f'"weight":{weight}'.encode())
    text = text.replace(b'"weight": 0.25', f'"weight": {weight}'.encode())
    assert text != raw
    refused(rewritten(good, [(name, text), *rest]))


@pytest.mark.parametrize("unresolved", [-1, 0.5, "many"])
def test_a_count_of_unresolved_suppressions_is_whole_and_not_negative(
    good: Path, unresolved: object
) -> None:
    (_, raw), *_rest = entries(good)
    members = json.loads(raw)["members"]
    members[1]["unresolved"] = unresolved
    assert "members[1].unresolved: expected " in refused(with_manifest(good, {"members": members}))


def test_a_golden_case_keeps_the_answers_of_graphs_with_other_members(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    members = [{**fields["members"][0], "unresolved": 2}, fields["members"][1]]
    full = fields["graphs"][0]
    half = {**full, "name": "full-float16", "file": "ensemble.fp16.onnx", "precision": "float16"}
    small = {**GRAPH, "name": "fallback", "file": "fallback.onnx"}
    changed = {
        **fields,
        "members": members,
        "graphs": [full, half, small],
        "golden": [{**GOLDEN, "answers": {"fallback": "golden/0-fallback.npz"}}],
    }
    files = {
        **FILES,
        "ensemble.fp16.onnx": b"half",
        "fallback.onnx": b"less",
        "golden/0-fallback.npz": b"another answer",
    }
    write_bundle(tmp_path / "b.icecam", changed, files)
    bundle = open_bundle(tmp_path / "b.icecam")
    (case,) = bundle.manifest.golden
    said = {graph.name: case.answer_of(graph.name) for graph in bundle.manifest.graphs}
    assert said == {
        "full": "golden/0.npz",
        "full-float16": "golden/0.npz",
        "fallback": "golden/0-fallback.npz",
    }
    assert bundle.read(case.answer_of("fallback")) == b"another answer"
    assert [member.unresolved for member in bundle.manifest.members] == [2, None]


def test_two_members_of_one_name_are_refused(good: Path) -> None:
    (_, raw), *_rest = entries(good)
    members = json.loads(raw)["members"]
    assert "repeated ['unet']" in refused(with_manifest(good, {"members": [*members, members[1]]}))


def test_a_manifest_of_deep_nesting_is_refused(good: Path) -> None:
    (name, _), *rest = entries(good)
    refused(rewritten(good, [(name, b'{"id":' + b"[" * 200_000), *rest]), "not JSON")


def test_a_bundle_that_would_not_be_valid_is_not_written(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    path = tmp_path / "bad.icecam"
    with pytest.raises(BundleError, match="would not be valid"):
        write_bundle(path, {**fields, "serial": -1}, FILES)
    with pytest.raises(BundleError, match="would not be valid"):
        write_bundle(path, fields, {"ensemble.onnx": b""})
    assert list(tmp_path.iterdir()) == []


def test_what_a_newer_icecam_adds_to_a_manifest_is_ignored(good: Path) -> None:
    newer = with_manifest(good, {"trust": True})
    assert open_bundle(newer).manifest == open_bundle(good).manifest
