"""Signatures: whatever was changed, or signed by others than the trusted, is not opened."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.bundle import open_bundle, sign_bundle, write_bundle
from edge.contract.errors import BundleError
from edge.signing import (
    PublicKey,
    Trust,
    describe_signature,
    new_private_key,
    open_trusted,
    parse_signatures,
    public_key,
    read_private_key,
    read_public_key,
    sign_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.classes import ClassMap

FILES = {
    "ensemble.onnx": bytes(range(256)) * 80,
    "golden/0.png": b"a picture",
    "golden/0.npz": b"an answer",
}
MANIFEST = b'{"schema": "icecam.bundle/1"}'
OLD, NEW, STRANGER = new_private_key(), new_private_key(), new_private_key()
OLD_ID, NEW_ID, STRANGER_ID = (public_key(key).id for key in (OLD, NEW, STRANGER))


def openssl(*arguments: object) -> None:
    if shutil.which("openssl") is None:
        pytest.fail("the openssl command is missing: apt install openssl")
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def trust(
    *keys: Ed25519PrivateKey, revoked: tuple[str, ...] = (), allow_unsigned: bool = False
) -> Trust:
    return Trust(
        keys=tuple(map(public_key, keys)),
        revoked=frozenset(revoked),
        allow_unsigned=allow_unsigned,
    )


def signed_by(*keys: Ed25519PrivateKey, manifest: bytes = MANIFEST) -> bytes:
    text: bytes | None = None
    for key in keys:
        text = sign_manifest(manifest, key, beside=text)
    assert text is not None
    return text


@pytest.fixture
def fields(class_map: ClassMap) -> dict[str, Any]:
    graph = {"name": "full", "file": "ensemble.onnx", "precision": "float32"}
    return {
        "id": "test-1",
        "serial": 3,
        "created_at": datetime(2026, 11, 22, tzinfo=timezone.utc),
        "min_icecam": "0.1.0",
        "class_map": class_map,
        "input": {"height": 224, "width": 384},
        "graphs": [{**graph, "members": ["unet"], "weights": [1.0]}],
        "members": [
            {"name": "unet", "architecture": "a", "encoder": "e", "parameters": 1, "weight": 1.0}
        ],
        "golden": [{"frame": "golden/0.png", "answer": "golden/0.npz"}],
    }


@pytest.fixture
def unsigned(tmp_path: Path, fields: dict[str, Any]) -> Path:
    path = tmp_path / "unsigned.icecam"
    write_bundle(path, fields, FILES)
    return path


@pytest.fixture
def signed(tmp_path: Path, fields: dict[str, Any]) -> Path:
    path = tmp_path / "signed.icecam"
    write_bundle(path, fields, FILES, sign=partial(sign_manifest, key=OLD))
    return path


def entries(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def end_of(path: Path, name: str) -> int:
    """Where an entry's last block ends."""
    with tarfile.open(path, "r:") as tar:
        entry = tar.getmember(name)
        return entry.offset_data + -(-entry.size // 512) * 512


def refused(call: Callable[[], object], *said: str) -> str:
    with pytest.raises(BundleError) as caught:
        call()
    for words in said:
        assert words in str(caught.value)
    assert "not loaded" in str(caught.value)
    return str(caught.value)


# The scheme, seen by others


def test_the_first_vector_of_rfc_8032_is_signed_and_verified() -> None:
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf"
        "9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    key_id = hashlib.sha256(raw).hexdigest()[:16]
    text = b"ed25519 " + key_id.encode() + b" " + base64.b64encode(signature) + b"\n"
    assert sign_manifest(b"", key) == text
    assert Trust(keys=(PublicKey(raw=raw),)).verify(b"", text, "here") == key_id


def test_a_key_and_a_signature_that_openssl_made_count(tmp_path: Path, unsigned: Path) -> None:
    private, public = tmp_path / "k.key", tmp_path / "k.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    raw = entries(unsigned)["manifest.json"]
    (tmp_path / "m").write_bytes(raw)
    files = ("-in", tmp_path / "m", "-out", tmp_path / "s")
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", private, *files)
    key = read_public_key(public)
    signature = base64.b64encode((tmp_path / "s").read_bytes())
    text = b"ed25519 %b %b\n" % (key.id.encode(), signature)
    assert Trust(keys=(key,)).verify(raw, text, "here") == key.id
    assert sign_manifest(raw, read_private_key(private, None)) == text


# What is trusted


def test_a_bundle_signed_by_a_trusted_key_is_opened_and_names_the_key(signed: Path) -> None:
    bundle = open_trusted(signed, trust(STRANGER, OLD))
    assert bundle.signed_by == OLD_ID
    assert {name: bundle.read(name) for name in FILES} == FILES
    assert describe_signature(bundle) == f"signed by key {OLD_ID}"


def test_an_unsigned_bundle_is_opened_only_where_that_is_allowed(unsigned: Path) -> None:
    refused(lambda: open_trusted(unsigned, trust(OLD)), str(unsigned), "is not signed", OLD_ID)
    either = f"expected a signature by key {OLD_ID} or {NEW_ID}, or allow_unsigned"
    refused(lambda: open_trusted(unsigned, trust(OLD, NEW)), either)
    bundle = open_trusted(unsigned, trust(OLD, allow_unsigned=True))
    assert (bundle.signature, bundle.signed_by) == (None, None)
    assert describe_signature(bundle) == "not signed"


def test_a_signature_by_an_unknown_key_is_as_good_as_none(signed: Path) -> None:
    refused(lambda: open_trusted(signed, trust(NEW)), f"unknown key {OLD_ID}", f"by key {NEW_ID}")
    refused(lambda: open_trusted(signed, trust()), OLD_ID, "a key in trusted_keys")
    bundle = open_trusted(signed, trust(NEW, allow_unsigned=True))
    assert bundle.signed_by is None
    told = describe_signature(bundle)
    assert OLD_ID in told
    assert "counts as not signed" in told


@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_a_manifest_changed_anywhere_is_refused_even_where_unsigned_ones_are_allowed(
    signed: Path, *, allow_unsigned: bool
) -> None:
    whole = signed.read_bytes()
    size = len(entries(signed)["manifest.json"])
    for offset in range(512, 512 + size, 31):  # the first header is one block of 512
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        signed.write_bytes(damaged)
        allowed = trust(OLD, allow_unsigned=allow_unsigned)
        refused(partial(open_trusted, signed, allowed), f"key {OLD_ID} does not match its manifest")


@pytest.mark.parametrize("name", FILES)
def test_a_file_changed_under_a_good_signature_is_refused(signed: Path, name: str) -> None:
    whole = signed.read_bytes()
    at = end_of(signed, name) - 512
    signed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(lambda: open_trusted(signed, trust(OLD)), f"{name} is damaged")


def test_a_good_signature_of_another_manifest_is_refused() -> None:
    text = signed_by(OLD, manifest=MANIFEST + b" ")
    refused(lambda: trust(OLD).verify(MANIFEST, text, "b.icecam"), "b.icecam", "does not match")


def test_a_key_of_the_same_id_but_other_bytes_does_not_vouch() -> None:
    forged = signed_by(STRANGER).replace(STRANGER_ID.encode(), OLD_ID.encode())
    refused(lambda: trust(OLD).verify(MANIFEST, forged, "here"), "does not match")


@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_revoked_keys_and_revoked_manifests_count_no_more(*, allow_unsigned: bool) -> None:
    digest = hashlib.sha256(MANIFEST).hexdigest()
    for revoked in (OLD_ID, digest):
        strict = trust(OLD, revoked=(revoked,), allow_unsigned=allow_unsigned)
        said = refused(lambda: strict.verify(MANIFEST, signed_by(OLD), "here"), revoked, "revoked")  # noqa: B023
        assert f"expected a signature by key {OLD_ID}" not in said
    strict = trust(OLD, revoked=(digest,), allow_unsigned=True)
    refused(lambda: strict.verify(MANIFEST, None, "here"), "revoked")
    assert strict.verify(MANIFEST + b" ", None, "here") is None


def test_while_keys_change_over_a_bundle_of_both_serves_old_and_new_stations(
    signed: Path,
) -> None:
    sign_bundle(
        open_bundle(signed), signed, lambda raw, so_far: sign_manifest(raw, NEW, beside=so_far)
    )
    assert list(parse_signatures(entries(signed)["manifest.sig"], "here")) == [OLD_ID, NEW_ID]
    assert open_trusted(signed, trust(OLD)).signed_by == OLD_ID
    assert open_trusted(signed, trust(NEW)).signed_by == NEW_ID
    assert open_trusted(signed, trust(NEW, STRANGER)).signed_by == NEW_ID
    assert open_trusted(signed, trust(NEW, OLD)).signed_by == OLD_ID  # the first in the bundle
    after = trust(OLD, NEW, revoked=(OLD_ID,))
    assert open_trusted(signed, after).signed_by == NEW_ID


def test_one_wrong_signature_of_a_trusted_key_spoils_a_right_one() -> None:
    text = signed_by(OLD, manifest=MANIFEST + b" ") + signed_by(NEW)
    refused(lambda: trust(OLD, NEW).verify(MANIFEST, text, "here"), OLD_ID, "does not match")
    assert trust(NEW).verify(MANIFEST, text, "here") == NEW_ID


# Signatures are checked first


def test_nothing_after_the_signature_is_read_before_it_is_checked(signed: Path) -> None:
    end = end_of(signed, "manifest.sig")
    signed.write_bytes(signed.read_bytes()[: end + 512 + 100])  # a header, and some of its file
    refused(lambda: open_trusted(signed, trust(NEW)), "unknown key")
    refused(lambda: open_trusted(signed, trust(OLD)), "not a whole uncompressed tar")


def test_the_file_after_the_manifest_of_an_unsigned_bundle_is_not_read(unsigned: Path) -> None:
    whole = unsigned.read_bytes()
    unsigned.write_bytes(whole[: end_of(unsigned, "manifest.json") + 512 + 100])
    refused(lambda: open_trusted(unsigned, trust(OLD)), "is not signed")
    refused(lambda: open_bundle(unsigned), "not a whole uncompressed tar")


def test_a_manifest_is_not_parsed_before_its_signature_is_checked(signed: Path) -> None:
    whole = signed.read_bytes()
    signed.write_bytes(whole[:512] + b"[" + whole[513:])
    refused(lambda: open_trusted(signed, trust(OLD)), "does not match")
    refused(lambda: open_bundle(signed), "not JSON")


# manifest.sig


@given(st.binary(max_size=400), st.booleans())
def test_bytes_that_are_no_signatures_are_damage_and_nothing_else(
    text: bytes,
    allow_unsigned: bool,  # noqa: FBT001 - drawn
) -> None:
    allowed = trust(OLD, allow_unsigned=allow_unsigned)
    refused(lambda: allowed.verify(MANIFEST, text, "here"), "manifest.sig is damaged")


@given(st.data())
def test_a_signature_with_any_byte_changed_added_or_lost_never_vouches(data: st.DataObject) -> None:
    text = signed_by(OLD, STRANGER)
    at = data.draw(st.integers(0, len(text) // 2 - 1))  # within the line of the trusted key
    inserted = data.draw(st.binary(max_size=2))
    changed = text[:at] + inserted + text[at + data.draw(st.integers(0, 2)) :]
    if changed != text:
        refused(lambda: trust(OLD).verify(MANIFEST, changed, "here"))


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda text: text[:-1],
        lambda text: text + b"\n",
        lambda text: text + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"ed25519", b"rsa4096"),
        lambda text: text.replace(b"ed25519 ", b"ed25519  "),
        lambda text: text.upper(),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"==", b"AA"),
        lambda text: re.sub(rb"(.)==", lambda end: bytes([end[1][0] + 1]) + b"==", text),
        lambda text: text + b"".join(signed_by(new_private_key()) for _ in range(8)),
    ],
    ids=[
        "empty", "no end of line", "an empty line", "a key twice", "CRLF", "another kind",
        "two spaces", "capitals", "a byte order mark", "66 bytes", "spare bits set", "nine lines",
    ],
)  # fmt: skip
def test_text_that_strays_from_the_form_is_refused(change: Callable[[bytes], bytes]) -> None:
    text = signed_by(OLD)
    for allowed in (trust(OLD), trust(OLD, allow_unsigned=True)):
        refused(lambda: allowed.verify(MANIFEST, change(text), "here"), "manifest.sig is damaged")  # noqa: B023


def test_eight_keys_may_sign_and_a_ninth_may_not() -> None:
    keys = [new_private_key() for _ in range(8)]
    text = signed_by(*keys)
    assert all(trust(key).verify(MANIFEST, text, "here") == public_key(key).id for key in keys)
    assert sign_manifest(MANIFEST, keys[3], beside=text) == text
    with pytest.raises(BundleError, match="8 signatures already"):
        sign_manifest(MANIFEST, OLD, beside=text)


# Signing a bundle


def test_signing_keeps_every_byte_of_manifest_and_files(unsigned: Path, signed: Path) -> None:
    before = entries(unsigned)
    out = unsigned.with_name("out.icecam")
    untouched = unsigned.read_bytes()
    sign_bundle(open_bundle(unsigned), out, lambda raw, _: sign_manifest(raw, OLD))
    after = entries(out)
    assert after.pop("manifest.sig") == sign_manifest(before["manifest.json"], OLD)
    assert after == before
    assert out.read_bytes() == signed.read_bytes()
    assert unsigned.read_bytes() == untouched
