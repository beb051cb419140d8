"""``python -m export sign``: vouch for a bundle."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from edge.contract.bundle import open_bundle, sign_bundle
from edge.contract.errors import ConfigError
from edge.contract.files import make_folder
from edge.signing import (
    Trust,
    is_encrypted,
    open_trusted,
    parse_signatures,
    public_key,
    read_passphrase,
    read_private_key,
    sign_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge.contract.bundle import Bundle


def sign(path: Path, key_file: Path, passphrase_file: Path | None, out: Path | None) -> None:
    """Check a bundle whole, sign it, in place where ``out`` is None, and say who vouches for it.

    Raises BundleError, ConfigError; the bundle is then as it was.
    """
    key = _read_key(key_file, passphrase_file)
    bundle = open_bundle(path)
    target = out or path
    make_folder(target.parent, what="the bundle's folder")
    try:
        sign_bundle(bundle, target, partial(_signature, key, str(path)))
    except OSError as problem:
        raise ConfigError(
            f"{target}: cannot be written ({problem.strerror})",
            then="What was there is as it was.",
        ) from None
    _say(open_trusted(target, Trust(keys=(public_key(key),))))


def _signature(key: Ed25519PrivateKey, where: str, manifest: bytes, beside: bytes | None) -> bytes:
    return sign_manifest(manifest, key, beside=beside, where=where)


def _read_key(path: Path, passphrase_file: Path | None) -> Ed25519PrivateKey:
    if passphrase_file is not None:
        return read_private_key(path, read_passphrase(passphrase_file))
    if is_encrypted(path) and sys.stdin.isatty():
        asked: str = typer.prompt(f"Passphrase of {path}", hide_input=True)
        return read_private_key(path, asked.encode())
    return read_private_key(path, None)


def _say(bundle: Bundle) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    manifest = bundle.manifest
    console.print(
        f"signed {bundle.path}: bundle {manifest.id}, serial {manifest.serial}, manifest sha256 "
        f"{bundle.sha256}, by key {bundle.signed_by}"
    )
    signers = parse_signatures(bundle.signature or b"", str(bundle.path))
    if others := [key_id for key_id in signers if key_id != bundle.signed_by]:
        console.print(f"it keeps what was signed in the name of {', '.join(others)}")
