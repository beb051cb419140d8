"""Who vouches for a bundle: Ed25519 (RFC 8032) over the raw bytes of its manifest.

``manifest.sig`` is ASCII text, one line per signature, at most 8, each key once::

    ed25519 KEY-ID BASE64

KEY-ID: the first 16 hex digits of the SHA-256 of the public key's 32 bytes. There are no dates of
expiry: a station's clock may say 1970.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edge.contract.bundle import open_bundle
from edge.contract.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from edge.config import BundleSection
    from edge.contract.bundle import Bundle

MAX_SIGNATURES = 8
MAX_KEY_BYTES = 16 << 10
MAX_PASSPHRASE_BYTES = 1023
_LINE = re.compile(rb"ed25519 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)\n")
_REFUSED = "The bundle was not loaded."


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKey:
    """Whose signatures may count. raw: 32 bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """The id by which signatures, configs and people name the key: 16 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def pem(self) -> bytes:
        """The key as a SubjectPublicKeyInfo, which ``read_public_key`` and openssl read."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def signed(self, manifest: bytes, signature: bytes) -> bool:
        """Whether the signature, 64 bytes, over these bytes is by this key."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, manifest)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """Whose bundles are opened.

    revoked: ids of keys, and SHA-256 (hex) of manifests, that count no more whoever signed them.
    allow_unsigned: a bundle that no trusted key signed is opened too; never one whose signature is
    wrong or revoked.
    """

    keys: tuple[PublicKey, ...] = ()
    revoked: frozenset[str] = frozenset()
    allow_unsigned: bool = False

    def verify(self, manifest: bytes, signature: bytes | None, where: str) -> str | None:
        """Return the id of the key that vouches; None for an unsigned bundle that is allowed.

        signature: the bytes of ``manifest.sig``. Raises BundleError naming ``where``.
        """
        self._refuse_revoked_manifest(manifest, where)
        signatures = {} if signature is None else parse_signatures(signature, where)
        trusted = {key.id: key for key in self.keys if key.id not in self.revoked}
        vouching = [key_id for key_id in signatures if key_id in trusted]
        for key_id in vouching:
            if not trusted[key_id].signed(manifest, signatures[key_id]):
                raise BundleError(
                    f"{where}: the signature of key {key_id} does not match its manifest",
                    expected="the bytes that were signed",
                    then=f"Somebody or something changed them. {_REFUSED}",
                )
        if vouching:
            return vouching[0]
        self._refuse_revoked_keys(signatures, where)
        if not self.allow_unsigned:
            raise self._not_vouched_for(signatures, where)
        return None

    def _refuse_revoked_manifest(self, manifest: bytes, where: str) -> None:
        digest = hashlib.sha256(manifest).hexdigest()
        if digest in self.revoked:
            raise BundleError(
                f"{where}: its manifest, sha256 {digest}, is revoked",
                expected="another bundle",
                then=_REFUSED,
            )

    def _refuse_revoked_keys(self, signers: Collection[str], where: str) -> None:
        revoked = [key_id for key_id in signers if key_id in self.revoked]
        if revoked:
            raise BundleError(
                f"{where}: is signed by {_named(revoked)}, which is revoked, and by no trusted key",
                expected=self._trusted_ones(),
                then=_REFUSED,
            )

    def _not_vouched_for(self, signers: Collection[str], where: str) -> BundleError:
        found = f"is signed only by unknown {_named(signers)}" if signers else "is not signed"
        return BundleError(
            f"{where}: {found}",
            expected=f"{self._trusted_ones()}, or allow_unsigned = true under [bundle]",
            then=_REFUSED,
        )

    def _trusted_ones(self) -> str:
        ids = [key.id for key in self.keys if key.id not in self.revoked]
        named = f"key {' or '.join(ids)}" if ids else "a key in trusted_keys"
        return f"a signature by {named}"


def read_trust(section: BundleSection) -> Trust:
    """Return what a station.toml trusts. Raises ConfigError where a key cannot be read."""
    return Trust(
        keys=tuple(read_public_key(path) for path in section.trusted_keys),
        revoked=frozenset(section.revoked),
        allow_unsigned=section.allow_unsigned,
    )


def open_trusted(path: Path, trust: Trust) -> Bundle:
    """Open a bundle, its signature checked before anything else in it is read or parsed.

    Raises BundleError.
    """
    return open_bundle(path, verify=partial(trust.verify, where=str(path)))


def describe_signature(bundle: Bundle) -> str:
    """Say in a few words whether anybody vouches for an opened bundle."""
    if bundle.signed_by is not None:
        return f"signed by key {bundle.signed_by}"
    if bundle.signature is None:
        return "not signed"
    signers = parse_signatures(bundle.signature, str(bundle.path))
    return f"signed in the name of {_named(signers)}, not trusted here: counts as not signed"


def parse_signatures(text: bytes, where: str) -> dict[str, bytes]:
    """Return signatures of 64 bytes by key id, from ``manifest.sig``. Raises BundleError."""
    lines = _LINE.findall(text)
    found = {key_id.decode(): base64.b64decode(code) for key_id, code in lines}
    if not 1 <= len(found) <= MAX_SIGNATURES or _format(found) != text:
        raise BundleError(
            f"{where}: manifest.sig is damaged ({len(text)} bytes)",
            expected=f"1 to {MAX_SIGNATURES} lines 'ed25519 KEY-ID BASE64', each key once",
            then=_REFUSED,
        )
    return found


def sign_manifest(
    manifest: bytes, key: Ed25519PrivateKey, *, beside: bytes | None = None, where: str = "bundle"
) -> bytes:
    """Return ``manifest.sig``: a signature by ``key``, beside those by other keys.

    beside: the ``manifest.sig`` so far. Raises BundleError where that is damaged or full.
    """
    signatures = {} if beside is None else parse_signatures(beside, where)
    signatures[public_key(key).id] = key.sign(manifest)
    if len(signatures) > MAX_SIGNATURES:
        raise BundleError(
            f"{where}: has {MAX_SIGNATURES} signatures already",
            expected=f"at most {MAX_SIGNATURES}",
            then="It was not signed.",
        )
    return _format(signatures)


def new_private_key() -> Ed25519PrivateKey:
    """Make a key from the system's random numbers."""
    return Ed25519PrivateKey.generate()


def public_key(key: Ed25519PrivateKey) -> PublicKey:
    """Return the public half of a private key."""
    return PublicKey(raw=key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def private_pem(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    """Return a private key as PKCS8, encrypted where there is a passphrase (not empty)."""
    lock = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def read_public_key(path: Path) -> PublicKey:
    """Read a public key in PEM, as ``keygen`` and openssl write it. Raises ConfigError."""
    pem = _read_file(path, what="a public key")
    if b"PRIVATE KEY-" in pem:
        raise ConfigError(
            f"{path}: is a private key",
            expected="the public one, NAME.pub",
            then="Only who signs bundles needs the private key: keep it off stations.",
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            f"{path}: holds no public key that can be read", expected="an Ed25519 key in PEM"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _another_kind(path, key)
    return PublicKey(raw=key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def is_encrypted(path: Path) -> bool:
    """Whether a private key in PEM needs a passphrase. Raises ConfigError."""
    return _is_encrypted(_read_file(path, what="a private key"))


def read_private_key(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a private key in PEM. Raises ConfigError, which never shows key or passphrase."""
    pem = _read_file(path, what="a private key")
    encrypted = _is_encrypted(pem)
    if encrypted != bool(passphrase):
        state, needed = ("is", "its") if encrypted else ("is not", "no")
        raise ConfigError(
            f"{path}: {state} protected by a passphrase", expected=f"{needed} passphrase with it"
        )
    try:
        key = load_pem_private_key(pem, passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = "the passphrase is wrong, or the key damaged" if encrypted else "holds no private key"
        raise ConfigError(f"{path}: {why}", expected="an Ed25519 key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _another_kind(path, key)
    return key


def read_passphrase(path: Path) -> bytes:
    """Return what a file holds but the end of its line. Raises ConfigError."""
    text = _read_file(path, what="a file with a passphrase")
    return usable_passphrase(re.sub(rb"\r?\n\Z", b"", text), where=str(path))


def usable_passphrase(passphrase: bytes, *, where: str) -> bytes:
    """Return it as it is. Raises ConfigError where a key cannot be encrypted with it."""
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise ConfigError(
            f"{where}: a passphrase of {len(passphrase)} bytes",
            expected=f"1 to {MAX_PASSPHRASE_BYTES}",
        )
    return passphrase


def _is_encrypted(pem: bytes) -> bool:
    return b"ENCRYPTED PRIVATE KEY-" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def _read_file(path: Path, *, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror})", expected=what) from None
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(f"{path}: more than {MAX_KEY_BYTES} bytes", expected=what)
    return data


def _another_kind(path: Path, key: object) -> ConfigError:
    kind = re.sub(r"(Private|Public)Key$", "", type(key).__name__.lstrip("_"))
    return ConfigError(f"{path}: holds a key of kind {kind}", expected="an Ed25519 key")


def _format(signatures: Mapping[str, bytes]) -> bytes:
    return b"".join(
        b"ed25519 %b %b\n" % (key_id.encode(), base64.b64encode(signature))
        for key_id, signature in signatures.items()
    )


def _named(ids: Iterable[str]) -> str:
    named = tuple(ids)
    return f"key{'s' if len(named) > 1 else ''} {', '.join(named)}"
