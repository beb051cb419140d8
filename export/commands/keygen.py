"""``python -m export keygen``: a new key pair to sign bundles with, in two files."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from edge.contract.errors import ConfigError
from edge.contract.files import make_folder, sync_folder
from edge.signing import new_private_key, private_pem, public_key, usable_passphrase

if TYPE_CHECKING:
    from pathlib import Path

    from edge.signing import PublicKey

ONLY_OWNER = 0o600
EVERYONE = 0o644
_NOTHING = "No key was made."


def keygen(out: Path, passphrase: bytes | None) -> PublicKey:
    """Write ``out``.key, which only the owner may read, and ``out``.pub; say what to do with them.

    passphrase: encrypts the private key; None leaves it as it is. Raises ConfigError where either
    file is there already or cannot be written; then neither is new.
    """
    if out.name in {"", ".."}:
        raise ConfigError(f"{out} is no name", expected="such as harbour", then=_NOTHING)
    make_folder(out.parent, what="the keys' folder")
    private_file = out.with_name(f"{out.name}.key")
    public_file = out.with_name(f"{out.name}.pub")
    for path in (private_file, public_file):
        if os.path.lexists(path):
            raise _taken(path)
    key = new_private_key()
    public = public_key(key)
    _write_new(private_file, private_pem(key, passphrase), ONLY_OWNER)
    try:
        _write_new(public_file, public.pem, EVERYONE)
    except BaseException:
        private_file.unlink(missing_ok=True)
        raise
    sync_folder(out.parent)
    _say(private_file, public_file, public, locked=passphrase is not None)
    return public


def ask_passphrase() -> bytes:
    """Ask for a new passphrase, twice. Raises ConfigError where there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise ConfigError(
            "--passphrase without a terminal", expected="--passphrase-file", then=_NOTHING
        )
    asked: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    return usable_passphrase(asked.encode(), where="--passphrase")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as problem:
        raise _not_written(path, problem) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as problem:
        path.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise _not_written(path, problem) from None
        raise


def _taken(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is there already", expected="a new name: keys are never replaced", then=_NOTHING
    )


def _not_written(path: Path, problem: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({problem.strerror})", then=_NOTHING)


def _say(private_file: Path, public_file: Path, public: PublicKey, *, locked: bool) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    guard = "needs its passphrase" if locked else "has no passphrase"
    console.print(
        f"wrote {private_file}: it signs bundles and {guard}; keep it off stations, and a copy of "
        "it in another place"
    )
    console.print(f"wrote {public_file}: key id {public.id}; copy it to every station and say in")
    console.print("its station.toml, with the path it has there:")
    console.print(f'\n[bundle]\ntrusted_keys = ["{public_file.name}"]')
